//! How many pages may be resident while a bound holds everything a process takes.
//!
//! The bound is on the whole: resident pages, compressed pages, copies, tables, and the
//! memory that is not the heap's. What is left of it goes to resident pages, a quantum at
//! a time. A quantum is a quarter of what is left, so a program that grows fast is looked
//! at a few times per halving of its room, and as often as need be close to the bound.
//!
//! ```text
//!   bound
//!   bound - headroom   never granted: what an eviction stores before its frames come free,
//!                      and what the kernel's counters are behind
//!   held               what was measured at the last look, and what the heap took since
//! ```

/// A quantum is this part of what is left.
const QUANTUM_SHARE: i64 = 4;
/// A quantum is at least this part of the bound: the reclaimer keeps up to a
/// thirty-second of the pages free, and must not evict while there is room.
const QUANTUM_LEAST_SHARE: i64 = 32;
/// And at least this much is never asked for, bytes.
const QUANTUM_LEAST_MOST: i64 = 4 << 20;

/// What is kept free below a bound of so many bytes: what threads store in evictions
/// before the frames come free, and what they take between two looks.
#[must_use]
pub const fn headroom_bytes(bound_bytes: usize) -> usize {
    const LEAST: usize = 4 << 20;
    let part = bound_bytes / 32;
    let wanted = if part > LEAST { part } else { LEAST };
    let most = bound_bytes / 8;
    if wanted < most { wanted } else { most }
}

/// What a bound has no place for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Strain {
    /// There is place: free, or that of pages that leave for it.
    None = 0,
    /// For no page that holds nothing yet: it takes what the one leaving for it needs.
    NothingNew = 1,
    /// For no page at all.
    Nothing = 2,
}

impl Strain {
    /// The strain that was stored as a number; the worst for a number that none has.
    #[must_use]
    pub const fn from_bits(bits: u8) -> Self {
        match bits {
            0 => Self::None,
            1 => Self::NothingNew,
            _ => Self::Nothing,
        }
    }
}

/// A look at what is held under a bound.
#[derive(Debug, Clone, Copy)]
pub struct Look {
    /// The bound, bytes.
    pub bound_bytes: u64,
    /// What is kept free below it, bytes.
    pub headroom_bytes: u64,
    /// Everything that is held, bytes.
    pub held_bytes: u64,
    /// Bytes of a page.
    pub page_bytes: u64,
    /// Pages that are resident.
    pub used_pages: i64,
    /// Fewest pages that may be resident, whatever is held.
    pub least_pages: i64,
    /// Most pages that may be resident, whatever is left.
    pub most_pages: i64,
}

impl Look {
    /// Bytes that may still be taken; below zero, bytes that have to go.
    #[must_use]
    pub fn room_bytes(&self) -> i64 {
        let most = self.bound_bytes.saturating_sub(self.headroom_bytes);
        signed(most).saturating_sub(signed(self.held_bytes))
    }

    /// Pages that may be resident until the next look.
    #[must_use]
    pub fn limit_pages(&self) -> i64 {
        let page = signed(self.page_bytes).max(1);
        let room = self.room_bytes();
        let least = (signed(self.bound_bytes) / QUANTUM_LEAST_SHARE).min(QUANTUM_LEAST_MOST);
        let more = if room >= 0 {
            room.min(least.max(room / QUANTUM_SHARE)) / page
        } else {
            // Rounded away from zero: a part of a page over is a page over.
            (room - (page - 1)) / page
        };
        self.clamp(self.used_pages.saturating_add(more))
    }

    /// Pages that could be resident if the heap took all that is left.
    #[must_use]
    pub fn reach_pages(&self) -> i64 {
        let page = signed(self.page_bytes).max(1);
        self.clamp(
            self.used_pages
                .saturating_add(self.room_bytes().max(0) / page),
        )
    }

    /// What the bound has no place for, with the fewest pages resident: what is stored
    /// and what is not the heap's fill it then. Half of the headroom is left to those
    /// that were granted memory before that, an eighth to nobody.
    #[must_use]
    pub fn strain(&self) -> Strain {
        let over = self.room_bytes().saturating_neg();
        let headroom = signed(self.headroom_bytes);
        if self.used_pages > self.least_pages.min(self.most_pages) {
            Strain::None
        } else if over > headroom / 8 * 7 {
            Strain::Nothing
        } else if over > headroom / 2 {
            Strain::NothingNew
        } else {
            Strain::None
        }
    }

    fn clamp(&self, pages: i64) -> i64 {
        pages.max(self.least_pages).min(self.most_pages)
    }
}

fn signed(bytes: u64) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn look(held_mib: u64, used_mib: u64) -> Look {
        Look {
            bound_bytes: 300 * MIB,
            headroom_bytes: 10 * MIB,
            held_bytes: held_mib * MIB,
            page_bytes: 4096,
            used_pages: (used_mib * MIB / 4096) as i64,
            least_pages: 256,
            most_pages: i64::MAX,
        }
    }

    fn mib(pages: i64) -> f64 {
        pages as f64 * 4096.0 / MIB as f64
    }

    #[test]
    fn a_quantum_is_a_quarter_of_what_is_left_and_little_at_the_end() {
        assert_eq!(mib(look(90, 0).limit_pages()), 50.0, "a quarter of 200");
        assert_eq!(mib(look(282, 100).limit_pages()), 104.0, "not less than 4");
        assert_eq!(mib(look(289, 100).limit_pages()), 101.0, "but what is left");
        assert_eq!(look(290, 100).limit_pages(), look(290, 100).used_pages);
    }

    #[test]
    fn what_is_over_comes_off_the_resident_pages() {
        assert_eq!(mib(look(298, 100).limit_pages()), 92.0);
        let byte_over = Look {
            held_bytes: 290 * MIB + 1,
            ..look(290, 100)
        };
        assert_eq!(byte_over.limit_pages(), byte_over.used_pages - 1);
        // The fewest pages stay.
        assert_eq!(look(500, 100).limit_pages(), 256);
        assert_eq!(look(u64::MAX / MIB, 100).limit_pages(), 256);
    }

    #[test]
    fn headroom_is_a_part_of_the_bound_and_little_of_a_small_one() {
        let mib = |bound: usize| headroom_bytes(bound << 20) as f64 / MIB as f64;
        assert_eq!((mib(16), mib(48), mib(300)), (2.0, 4.0, 9.375));
    }

    #[test]
    fn the_resident_limit_that_was_asked_for_is_kept() {
        let most = Look {
            most_pages: 1000,
            ..look(20, 0)
        };
        assert_eq!((most.limit_pages(), most.reach_pages()), (1000, 1000));
        let below_the_least = Look {
            most_pages: 5,
            ..look(500, 0)
        };
        assert_eq!(below_the_least.limit_pages(), 5);
    }

    #[test]
    fn what_is_granted_already_has_half_of_the_headroom_and_nobody_the_last_eighth() {
        assert_eq!(look(299, 100).strain(), Strain::None, "pages can go");
        assert_eq!(look(295, 1).strain(), Strain::None);
        assert_eq!(look(296, 1).strain(), Strain::NothingNew);
        assert_eq!(look(299, 1).strain(), Strain::Nothing);
        for strain in [Strain::None, Strain::NothingNew, Strain::Nothing] {
            assert_eq!(Strain::from_bits(strain as u8), strain);
        }
    }

    #[test]
    fn the_reclaimers_free_frames_fit_in_a_quantum() {
        // It keeps up to twice a 64th of the limit free, 512 pages at most.
        for bound in [16, 64, 300, 5000, 1 << 20] {
            let look = Look {
                bound_bytes: bound * MIB,
                headroom_bytes: 0,
                held_bytes: bound * MIB / 4 * 3,
                used_pages: (bound * MIB / 4 * 3 / 4096) as i64,
                ..look(0, 0)
            };
            let free = look.limit_pages() - look.used_pages;
            assert!(free >= (look.limit_pages() / 64).min(256) * 2, "{bound}");
        }
    }

    #[test]
    fn filling_a_bound_takes_few_looks_and_never_passes_it() {
        let (mut used, mut looks) = (0_i64, 0);
        loop {
            let now = Look {
                held_bytes: used as u64 * 4096,
                used_pages: used,
                ..look(0, 0)
            };
            let limit = now.limit_pages();
            assert!(limit as u64 * 4096 <= 290 * MIB);
            if limit == used {
                break;
            }
            used = limit;
            looks += 1;
        }
        assert_eq!(used as u64 * 4096, 290 * MIB);
        assert!(looks < 30, "{looks}");
    }
}
