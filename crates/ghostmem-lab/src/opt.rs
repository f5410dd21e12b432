//! The clairvoyant optimum: evict the page whose next touch is farthest away
//! (Belady, "A study of replacement algorithms for a virtual-storage computer",
//! 1966). No policy that fetches on demand misses less.

use std::collections::BinaryHeap;

use crate::Policy;
use crate::trace::Touch;

const NEVER: u32 = u32::MAX;

/// Belady's policy for one trace; fed any other, it panics.
#[derive(Debug)]
pub struct Opt {
    limit: usize,
    /// By touch: when its page is touched next.
    next: Vec<u32>,
    /// By page: when it is touched next, if it is resident.
    due: Vec<Option<u32>>,
    /// Resident pages by their next touch, stale entries among them.
    queue: BinaryHeap<(u32, u32)>,
    resident: usize,
    now: usize,
}

impl Opt {
    /// For a trace over pages below `pages`, `limit` of them resident.
    #[must_use]
    pub fn new(pages: u32, limit: usize, touches: &[Touch]) -> Self {
        let mut seen = vec![NEVER; pages as usize];
        let mut next = vec![NEVER; touches.len()];
        for (at, touch) in touches.iter().enumerate().rev() {
            next[at] = std::mem::replace(&mut seen[touch.page() as usize], at as u32);
        }
        Self {
            limit,
            next,
            due: vec![None; pages as usize],
            queue: BinaryHeap::new(),
            resident: 0,
            now: 0,
        }
    }
}

impl Policy for Opt {
    fn touch(&mut self, touch: Touch) -> u32 {
        let page = touch.page();
        let next = self.next[self.now];
        self.now += 1;
        let hit = self.due[page as usize].is_some();
        if !hit {
            while self.resident == self.limit {
                let Some((due, victim)) = self.queue.pop() else {
                    break;
                };
                if self.due[victim as usize] == Some(due) {
                    self.due[victim as usize] = None;
                    self.resident -= 1;
                }
            }
            self.resident += 1;
        }
        self.due[page as usize] = Some(next);
        self.queue.push((next, page));
        u32::from(!hit)
    }

    fn resident(&self) -> usize {
        self.resident
    }
}
