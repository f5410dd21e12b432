//! A queue of pages, doubly linked through arrays, so that any page can leave
//! from the middle in constant time. A page is in it at most once.

/// The end of the list.
const NONE: u32 = u32::MAX;

/// The queue. New pages go in at the head, old ones come out at the tail.
#[derive(Debug, Clone)]
pub(crate) struct List {
    /// Towards the head, by page.
    newer: Vec<u32>,
    /// Towards the tail, by page.
    older: Vec<u32>,
    member: Vec<bool>,
    head: u32,
    tail: u32,
    len: usize,
}

impl List {
    /// An empty queue for pages below `pages`.
    pub(crate) fn new(pages: u32) -> Self {
        Self {
            newer: vec![NONE; pages as usize],
            older: vec![NONE; pages as usize],
            member: vec![false; pages as usize],
            head: NONE,
            tail: NONE,
            len: 0,
        }
    }

    pub(crate) const fn len(&self) -> usize {
        self.len
    }

    pub(crate) fn contains(&self, page: u32) -> bool {
        self.member[page as usize]
    }

    /// The oldest page.
    pub(crate) fn tail(&self) -> Option<u32> {
        (self.tail != NONE).then_some(self.tail)
    }

    /// The next page towards the head.
    pub(crate) fn newer(&self, page: u32) -> Option<u32> {
        let newer = self.newer[page as usize];
        (newer != NONE).then_some(newer)
    }

    /// Puts a page in at the head.
    pub(crate) fn push(&mut self, page: u32) {
        debug_assert!(!self.contains(page), "page {page} is queued already");
        self.member[page as usize] = true;
        self.older[page as usize] = self.head;
        self.newer[page as usize] = NONE;
        if self.head == NONE {
            self.tail = page;
        } else {
            self.newer[self.head as usize] = page;
        }
        self.head = page;
        self.len += 1;
    }

    /// Takes a page out, wherever it is; `false` when it is not in the queue.
    pub(crate) fn remove(&mut self, page: u32) -> bool {
        if !self.contains(page) {
            return false;
        }
        self.member[page as usize] = false;
        let (newer, older) = (self.newer[page as usize], self.older[page as usize]);
        if newer == NONE {
            self.head = older;
        } else {
            self.older[newer as usize] = older;
        }
        if older == NONE {
            self.tail = newer;
        } else {
            self.newer[older as usize] = newer;
        }
        self.len -= 1;
        true
    }

    /// Takes the oldest page out.
    pub(crate) fn pop(&mut self) -> Option<u32> {
        let tail = self.tail()?;
        self.remove(tail);
        Some(tail)
    }
}
