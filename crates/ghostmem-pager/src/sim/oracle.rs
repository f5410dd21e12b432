//! What every page of the program must hold: a plain map.
//!
//! A store changes the map at the moment at which it changes the page. A page that is being
//! discarded may hold what it held, or zeros: the next access says which of the two.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::OnceLock;

use ghostmem_os::PAGE_SIZE;

use crate::sim::plan::mix;

pub(crate) type Bytes = [u8; PAGE_SIZE];

pub(crate) static ZEROS: Bytes = [0; PAGE_SIZE];

/// What is known of a page.
#[derive(Default)]
pub(crate) struct Known {
    /// Its bytes; `None`: zeros.
    bytes: Option<Box<Bytes>>,
    /// Or zeros instead.
    pub(crate) or_zero: bool,
    /// The program was told that it is lost.
    pub(crate) lost: bool,
}

impl Known {
    pub(crate) fn bytes(&self) -> &Bytes {
        self.bytes.as_deref().unwrap_or(&ZEROS)
    }

    /// It was forgotten.
    pub(crate) fn clear(&mut self) {
        *self = Self::default();
    }

    /// Whether a page that reads so is right.
    pub(crate) fn allows(&self, seen: &Bytes) -> bool {
        (!self.lost && seen == self.bytes()) || (self.or_zero && *seen == ZEROS)
    }

    /// The page reads so, which is right; `discarding`: somebody forgets it just now.
    pub(crate) fn learn(&mut self, seen: &Bytes, discarding: bool) {
        if !self.or_zero {
            return;
        }
        if self.lost || seen != self.bytes() {
            self.bytes = None;
            self.lost = false;
        }
        self.or_zero = discarding;
    }

    /// Stores.
    pub(crate) fn store(&mut self, at: usize, bytes: &[u8]) {
        let held = self.bytes.get_or_insert_with(|| Box::new(ZEROS));
        held[at..at + bytes.len()].copy_from_slice(bytes);
    }
}

/// A block of the program's.
pub(crate) struct Block {
    pub(crate) address: usize,
    /// By which operations find it.
    pub(crate) number: u8,
    pub(crate) pages: Cell<usize>,
    pub(crate) known: RefCell<Vec<Known>>,
    /// Operations that are in the middle of something with it.
    users: Cell<u32>,
    /// Operations that ever were.
    pub(crate) uses: Cell<u64>,
    /// Pages that are being forgotten: first and end.
    pub(crate) discarding: RefCell<Vec<(usize, usize)>>,
}

impl Block {
    pub(crate) fn new(address: usize, pages: usize, number: u8) -> Rc<Self> {
        Rc::new(Self {
            address,
            number,
            pages: Cell::new(pages),
            known: RefCell::new((0..pages).map(|_| Known::default()).collect()),
            users: Cell::new(0),
            uses: Cell::new(0),
            discarding: RefCell::default(),
        })
    }

    pub(crate) fn page(&self, page: usize) -> usize {
        self.address + page * PAGE_SIZE
    }

    pub(crate) fn end(&self) -> usize {
        self.page(self.pages.get())
    }

    pub(crate) fn is_used(&self) -> bool {
        self.users.get() > 0
    }

    /// Whether the caller is the only one who uses it.
    pub(crate) fn is_used_once(&self) -> bool {
        self.users.get() == 1
    }

    pub(crate) fn is_discarding(&self, page: usize) -> bool {
        let discarding = self.discarding.borrow();
        discarding
            .iter()
            .any(|&(first, end)| (first..end).contains(&page))
    }

    /// It is used until that is dropped.
    pub(crate) fn enter(self: &Rc<Self>) -> Use {
        self.users.set(self.users.get() + 1);
        self.uses.set(self.uses.get() + 1);
        Use(self.clone())
    }
}

/// A block that is used.
pub(crate) struct Use(Rc<Block>);

impl core::ops::Deref for Use {
    type Target = Rc<Block>;
    fn deref(&self) -> &Rc<Block> {
        &self.0
    }
}

impl Drop for Use {
    fn drop(&mut self) {
        self.0.users.set(self.0.users.get() - 1);
    }
}

/// Pages that pack in one way or the other, made once.
struct Pool {
    text: Vec<Bytes>,
    noise: Vec<Bytes>,
}

const POOL_PAGES: usize = 32;

fn pool() -> &'static Pool {
    static POOL: OnceLock<Pool> = OnceLock::new();
    POOL.get_or_init(|| {
        let page = |of: &dyn Fn(u32) -> u64| {
            let mut page = ZEROS;
            for (at, word) in page.chunks_exact_mut(8).enumerate() {
                word.copy_from_slice(&of(at as u32).to_le_bytes());
            }
            page
        };
        let pages = |of: &dyn Fn(u64, u32) -> u64| {
            let all = 0..POOL_PAGES as u64;
            all.map(|number| page(&|at| of(number, at))).collect()
        };
        Pool {
            text: pages(&|number, at| mix(number, at % 5, 0) & 0x00FF_FF00_00FF_00FF),
            noise: pages(&|number, at| mix(number ^ 0xFEED, at, 1)),
        }
    })
}

/// What a store writes, by a number: a few bytes anywhere, a page of one value, one that
/// compresses, one that does not. No two numbers write the same, but for the page of one
/// value.
pub(crate) fn write(how: u64, act: &mut dyn FnMut(usize, &[u8])) {
    let tag = how.to_le_bytes();
    let place = (how >> 20) as usize % (PAGE_SIZE - 8);
    let from = (how >> 8) as usize % POOL_PAGES;
    match how & 7 {
        0..=2 => act(place, &tag),
        3 => act(0, &[tag[1]; PAGE_SIZE]),
        4..=6 => {
            act(0, &pool().text[from]);
            act(place, &tag);
        }
        _ => {
            act(0, &pool().noise[from]);
            act(place, &tag);
        }
    }
}

pub(crate) const fn kind_of(how: u64) -> &'static str {
    match how & 7 {
        0..=2 => "a few bytes",
        3 => "one value",
        4..=6 => "text",
        _ => "noise",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_that_is_discarded_holds_one_of_two_until_it_is_seen() {
        let mut known = Known::default();
        known.store(3, &[7]);
        let mut before = ZEROS;
        before[3] = 7;
        let mut wrong = before;
        wrong[4] = 1;
        assert!(known.allows(&before) && !known.allows(&ZEROS) && !known.allows(&wrong));
        known.or_zero = true;
        assert!(known.allows(&before) && known.allows(&ZEROS) && !known.allows(&wrong));
        known.learn(&before, true);
        assert!(known.allows(&ZEROS), "it may be forgotten still");
        known.learn(&ZEROS, false);
        assert!(known.allows(&ZEROS) && !known.allows(&before));
    }

    #[test]
    fn stores_pack_in_the_way_they_are_called() {
        let written = |how: u64| {
            let mut page = ZEROS;
            write(how, &mut |at, bytes| {
                page[at..at + bytes.len()].copy_from_slice(bytes);
            });
            page
        };
        assert_eq!(written(0x1203), [0x12; PAGE_SIZE]);
        assert_ne!(written(4), written(4 + 256));
        assert_ne!(written(7), written(7 + (1 << 20)));
        let distinct = |page: Bytes| {
            let words: std::collections::BTreeSet<&[u8]> = page.chunks(8).collect();
            words.len()
        };
        assert!(distinct(written(5)) < 10 && distinct(written(7)) > 500);
    }
}
