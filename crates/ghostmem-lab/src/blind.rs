//! Policies that need to see nothing but faults.

use crate::FaultPolicy;
use crate::list::List;
use crate::trace::Touch;

/// First in, first out.
#[derive(Debug)]
pub struct Fifo {
    limit: usize,
    list: List,
}

impl Fifo {
    /// For pages below `pages`, `limit` of them resident.
    #[must_use]
    pub fn new(pages: u32, limit: usize) -> Self {
        Self {
            limit,
            list: List::new(pages),
        }
    }
}

impl FaultPolicy for Fifo {
    fn is_resident(&self, page: u32) -> bool {
        self.list.contains(page)
    }

    fn fault(&mut self, touch: Touch) -> u32 {
        if self.list.len() == self.limit {
            self.list.pop();
        }
        self.list.push(touch.page());
        1
    }

    fn resident(&self) -> usize {
        self.list.len()
    }
}

/// 2Q as far as faults show it: a quarter of the frames is a queue for new
/// pages; pages that come back while they are remembered go to the main queue,
/// which is first in, first out too, for want of hits. As many evicted pages
/// are remembered as there are frames.
#[derive(Debug)]
pub struct BlindTwoQ {
    limit: usize,
    new: List,
    main: List,
    ghosts: List,
}

impl BlindTwoQ {
    /// For pages below `pages`, `limit` of them resident.
    #[must_use]
    pub fn new(pages: u32, limit: usize) -> Self {
        Self {
            limit,
            new: List::new(pages),
            main: List::new(pages),
            ghosts: List::new(pages),
        }
    }
}

impl FaultPolicy for BlindTwoQ {
    fn is_resident(&self, page: u32) -> bool {
        self.new.contains(page) || self.main.contains(page)
    }

    fn fault(&mut self, touch: Touch) -> u32 {
        let page = touch.page();
        let remembered = self.ghosts.remove(page);
        if self.resident() == self.limit {
            let from = if self.new.len() > self.limit / 4 || self.main.len() == 0 {
                &mut self.new
            } else {
                &mut self.main
            };
            if let Some(victim) = from.pop() {
                self.ghosts.push(victim);
            }
            if self.ghosts.len() > self.limit {
                self.ghosts.pop();
            }
        }
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
