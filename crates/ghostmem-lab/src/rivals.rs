//! Policies from the literature that see every access, as a kernel or a cache
//! can and a user-space pager cannot.

use crate::Policy;
use crate::list::List;
use crate::trace::Touch;

/// Least recently used.
#[derive(Debug)]
pub struct Lru {
    limit: usize,
    list: List,
}

impl Lru {
    /// For pages below `pages`, `limit` of them resident.
    #[must_use]
    pub fn new(pages: u32, limit: usize) -> Self {
        Self {
            limit,
            list: List::new(pages),
        }
    }
}

impl Policy for Lru {
    fn touch(&mut self, touch: Touch) -> u32 {
        let hit = self.list.remove(touch.page());
        if !hit && self.list.len() == self.limit {
            self.list.pop();
        }
        self.list.push(touch.page());
        u32::from(!hit)
    }

    fn resident(&self) -> usize {
        self.list.len()
    }
}

/// One reference bit per page, and a hand over the pages in the order they
/// came (Corbató, "A paging experiment with the Multics system", 1968).
#[derive(Debug)]
pub struct Clock {
    limit: usize,
    list: List,
    referenced: Vec<bool>,
}

impl Clock {
    /// For pages below `pages`, `limit` of them resident.
    #[must_use]
    pub fn new(pages: u32, limit: usize) -> Self {
        Self {
            limit,
            list: List::new(pages),
            referenced: vec![false; pages as usize],
        }
    }
}

impl Policy for Clock {
    fn touch(&mut self, touch: Touch) -> u32 {
        let page = touch.page();
        if self.list.contains(page) {
            self.referenced[page as usize] = true;
            return 0;
        }
        while self.list.len() == self.limit {
            let Some(oldest) = self.list.pop() else { break };
            if std::mem::take(&mut self.referenced[oldest as usize]) {
                self.list.push(oldest);
            }
        }
        self.list.push(page);
        self.referenced[page as usize] = false;
        1
    }

    fn resident(&self) -> usize {
        self.list.len()
    }
}

/// The full 2Q of Johnson and Shasha (VLDB 1994): a quarter of the frames is a
/// first-in queue for new pages, the rest an LRU list for pages that came back
/// while they were remembered; half as many pages as there are frames are
/// remembered.
#[derive(Debug)]
pub struct TwoQ {
    limit: usize,
    new: List,
    ghosts: List,
    main: List,
}

impl TwoQ {
    /// For pages below `pages`, `limit` of them resident.
    #[must_use]
    pub fn new(pages: u32, limit: usize) -> Self {
        Self {
            limit,
            new: List::new(pages),
            ghosts: List::new(pages),
            main: List::new(pages),
        }
    }

    fn make_room(&mut self) {
        if self.resident() < self.limit {
            return;
        }
        if self.new.len() > self.limit / 4 || self.main.len() == 0 {
            if let Some(page) = self.new.pop() {
                self.ghosts.push(page);
                if self.ghosts.len() > self.limit / 2 {
                    self.ghosts.pop();
                }
            }
        } else {
            self.main.pop();
        }
    }
}

impl Policy for TwoQ {
    fn touch(&mut self, touch: Touch) -> u32 {
        let page = touch.page();
        if self.main.remove(page) {
            self.main.push(page);
            return 0;
        }
        if self.new.contains(page) {
            return 0;
        }
        let remembered = self.ghosts.remove(page);
        self.make_room();
        if remembered {
            self.main.push(page);
        } else {
            self.new.push(page);
        }
        1
    }

    fn resident(&self) -> usize {
        self.new.len() + self.main.len()
    }
}

/// S3-FIFO (Yang et al., SOSP 2023): a tenth of the frames is a small queue for
/// new pages, which move to the main queue when they were touched more than
/// once there, and else are remembered; the main queue is a clock with two bits.
#[derive(Debug)]
pub struct S3Fifo {
    limit: usize,
    small: List,
    main: List,
    ghosts: List,
    uses: Vec<u8>,
}

impl S3Fifo {
    /// For pages below `pages`, `limit` of them resident.
    #[must_use]
    pub fn new(pages: u32, limit: usize) -> Self {
        Self {
            limit,
            small: List::new(pages),
            main: List::new(pages),
            ghosts: List::new(pages),
            uses: vec![0; pages as usize],
        }
    }

    fn small_share(&self) -> usize {
        (self.limit / 10).max(1)
    }

    fn evict(&mut self) {
        while self.resident() >= self.limit {
            if self.small.len() >= self.small_share() || self.main.len() == 0 {
                self.evict_small();
            } else {
                self.evict_main();
            }
        }
    }

    fn evict_small(&mut self) {
        let Some(page) = self.small.pop() else { return };
        if self.uses[page as usize] > 1 {
            self.uses[page as usize] = 0;
            self.main.push(page);
            return;
        }
        self.ghosts.push(page);
        if self.ghosts.len() > self.limit - self.small_share() {
            self.ghosts.pop();
        }
    }

    fn evict_main(&mut self) {
        while let Some(page) = self.main.pop() {
            let uses = &mut self.uses[page as usize];
            if *uses == 0 {
                return;
            }
            *uses -= 1;
            self.main.push(page);
        }
    }
}

impl Policy for S3Fifo {
    fn touch(&mut self, touch: Touch) -> u32 {
        let page = touch.page();
        if self.small.contains(page) || self.main.contains(page) {
            let uses = &mut self.uses[page as usize];
            *uses = (*uses + 1).min(3);
            return 0;
        }
        self.evict();
        self.uses[page as usize] = 0;
        if self.ghosts.remove(page) {
            self.main.push(page);
        } else {
            self.small.push(page);
        }
        1
    }

    fn resident(&self) -> usize {
        self.small.len() + self.main.len()
    }
}

/// SIEVE (Zhang et al., NSDI 2024): a first-in queue whose pages stay where
/// they are; the hand moves from the tail to the head and takes the first page
/// that was not touched since it last came by.
#[derive(Debug)]
pub struct Sieve {
    limit: usize,
    list: List,
    visited: Vec<bool>,
    hand: Option<u32>,
}

impl Sieve {
    /// For pages below `pages`, `limit` of them resident.
    #[must_use]
    pub fn new(pages: u32, limit: usize) -> Self {
        Self {
            limit,
            list: List::new(pages),
            visited: vec![false; pages as usize],
            hand: None,
        }
    }

    fn evict(&mut self) {
        let mut at = self.hand.or_else(|| self.list.tail());
        while let Some(page) = at {
            let next = self.list.newer(page);
            if !std::mem::take(&mut self.visited[page as usize]) {
                self.hand = next;
                self.list.remove(page);
                return;
            }
            at = next.or_else(|| self.list.tail());
        }
    }
}

impl Policy for Sieve {
    fn touch(&mut self, touch: Touch) -> u32 {
        let page = touch.page();
        if self.list.contains(page) {
            self.visited[page as usize] = true;
            return 0;
        }
        if self.list.len() == self.limit {
            self.evict();
        }
        self.visited[page as usize] = false;
        self.list.push(page);
        1
    }

    fn resident(&self) -> usize {
        self.list.len()
    }
}
