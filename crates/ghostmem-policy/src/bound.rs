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
//!
//! Supplies that others take from as well (memory groups, the machine) become a bound by
//! [`Allowance::of_supply`]: what the process takes, and what is left but for a reserve.
//! There a quantum is a sixteenth, so that as many processes can take one at once; and
//! below the reserve each process gives back, in proportion to what it takes.
//!
//! Where a quantum is announced to others ([`Share`]), it is theirs no more, whether it is
//! taken or not. There it is an eighth of what the process has resident: one that does
//! nothing keeps little that it does not use, and one that grows doubles with six looks.

/// A quantum is this part of what is left.
const QUANTUM_SHARE: i64 = 4;
/// The same where others take from the same supply.
const QUANTUM_SHARED_SHARE: i64 = 16;
/// There no more than this is asked for at least, bytes: twice what the reclaimer keeps
/// free.
const QUANTUM_SHARED_LEAST: i64 = 2 << 20;
/// Where it is announced to others, a quantum is at most this part of what is resident: the
/// reclaimer keeps up to a thirty-second of the pages free.
const QUANTUM_ANNOUNCED_SHARE: u64 = 8;
/// Or this much, bytes: as many pages as the reclaimer of a small heap keeps free.
const QUANTUM_ANNOUNCED_LEAST: u64 = 512 << 10;
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

/// What is kept free in a supply of so many bytes that others take from as well: what they
/// take between two looks, and what evictions store. A twentieth, so that what is charged
/// stays well below 97 %; at most 1 GiB.
#[must_use]
pub const fn reserve_bytes(limit_bytes: u64) -> u64 {
    const LEAST: u64 = 4 << 20;
    const MOST: u64 = 1 << 30;
    let part = limit_bytes / 20;
    let wanted = if part > MOST {
        MOST
    } else if part > LEAST {
        part
    } else {
        LEAST
    };
    let most = limit_bytes / 8;
    if wanted < most { wanted } else { most }
}

/// The same for a process that is starved: a quarter less, so that the others are short of
/// their reserve and give back.
#[must_use]
pub const fn starved_reserve_bytes(limit_bytes: u64) -> u64 {
    reserve_bytes(limit_bytes) / 4 * 3
}

/// What a process takes next of `spare_bytes` to have others give back `missing_bytes`: a
/// sixteenth, so that as many can do it at the same moment, and 64 KiB at least.
#[must_use]
pub fn balloon_step_bytes(spare_bytes: u64, missing_bytes: u64) -> u64 {
    const LEAST: u64 = 64 << 10;
    let part = (spare_bytes / QUANTUM_SHARED_SHARE.unsigned_abs()).max(LEAST);
    part.min(spare_bytes).min(missing_bytes)
}

/// Whether hardly anything of what a process holds is resident, so that it has nothing to
/// give back: less than an eighth; and of one that `was` so, less than a sixth.
#[must_use]
pub const fn is_starved(resident_bytes: u64, stored_bytes: u64, was: bool) -> bool {
    let times = if was { 5 } else { 7 };
    stored_bytes > resident_bytes.saturating_mul(times)
}

/// Most that is granted at once to a process with `resident_bytes`, where others hear of
/// it, bytes.
#[must_use]
pub const fn announced_quantum_bytes(resident_bytes: u64) -> u64 {
    let part = resident_bytes / QUANTUM_ANNOUNCED_SHARE;
    if part > QUANTUM_ANNOUNCED_LEAST {
        part
    } else {
        QUANTUM_ANNOUNCED_LEAST
    }
}

/// What a process with `resident_bytes` wants to find free when it looks for more, bytes:
/// others that have more than their part keep twice as much free for it.
#[must_use]
pub const fn wanted_bytes(resident_bytes: u64) -> u64 {
    let quantum = announced_quantum_bytes(resident_bytes);
    let most = QUANTUM_SHARED_LEAST.unsigned_abs();
    if quantum < most { quantum } else { most }
}

/// What a process may take in all, and what it keeps free below that.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Allowance {
    /// The bound, bytes.
    pub bytes: u64,
    /// What is kept free below it, bytes.
    pub headroom_bytes: u64,
    /// What is missing of a shared supply's reserve, bytes: others may have taken it.
    pub short_bytes: u64,
    /// Others take from the same supply.
    pub shared: bool,
}

impl Allowance {
    /// No bound.
    pub const ALL: Self = Self {
        bytes: i64::MAX as u64,
        headroom_bytes: 0,
        short_bytes: 0,
        shared: false,
    };

    /// A bound of this process's own.
    #[must_use]
    pub const fn of_bound(bytes: usize) -> Self {
        Self {
            bytes: bytes as u64,
            headroom_bytes: headroom_bytes(bytes) as u64,
            short_bytes: 0,
            shared: false,
        }
    }

    /// What a supply of `limit_bytes`, of which `left_bytes` are left, allows a process
    /// that takes `taken_bytes` of the machine. One that is `starved` beside others may
    /// take a quarter of the reserve: they are short of it then, and give back.
    #[must_use]
    pub fn of_supply(limit_bytes: u64, left_bytes: u64, taken_bytes: u64, starved: bool) -> Self {
        // All that can give back is at most what is taken of the supply.
        let used = limit_bytes
            .saturating_sub(left_bytes)
            .max(taken_bytes)
            .max(1);
        let mut reserve = reserve_bytes(limit_bytes);
        if starved && used - taken_bytes > reserve {
            reserve = starved_reserve_bytes(limit_bytes);
        }
        let short = reserve.saturating_sub(left_bytes);
        let mine = u128::from(short) * u128::from(taken_bytes) / u128::from(used);
        let mine = u64::try_from(mine).unwrap_or(short);
        let left = left_bytes.max(reserve);
        Self {
            bytes: taken_bytes.saturating_add(left).saturating_sub(mine),
            headroom_bytes: reserve,
            short_bytes: short,
            shared: true,
        }
    }

    /// Most that may be held, bytes.
    #[must_use]
    pub const fn most_bytes(&self) -> u64 {
        self.bytes.saturating_sub(self.headroom_bytes)
    }

    /// The tighter of two; what is short of one is short of both.
    #[must_use]
    pub fn tighter(self, other: Self) -> Self {
        let short_bytes = self.short_bytes.max(other.short_bytes);
        let tighter = if other.most_bytes() < self.most_bytes() {
            other
        } else {
            self
        };
        Self {
            short_bytes,
            ..tighter
        }
    }
}

/// A bound that processes have together, as one of them sees it. Each has an equal part,
/// and may take more while nobody needs it.
#[derive(Debug, Clone, Copy)]
pub struct Share {
    /// What all may take, bytes.
    pub bound_bytes: u64,
    /// What the others take, or may before they look again, bytes.
    pub others_bytes: u64,
    /// What the others keep when they give back all they can, bytes.
    pub others_needed_bytes: u64,
    /// What those among them take that keep no bound, bytes.
    pub unbound_bytes: u64,
    /// Processes that keep it, this one included.
    pub members: u64,
    /// What those of the others that have less than their part, and look for more in vain,
    /// are to find free, bytes.
    pub others_want_bytes: u64,
}

impl Share {
    const fn usable_bytes(&self) -> u64 {
        let headroom = headroom_bytes(self.bound_bytes as usize) as u64;
        self.bound_bytes.saturating_sub(headroom)
    }

    /// The part of each process that keeps the bound, bytes.
    #[must_use]
    pub fn equal_bytes(&self) -> u64 {
        self.usable_bytes().saturating_sub(self.unbound_bytes) / self.members.max(1)
    }

    /// What this process may come to, bytes: its part, as far as the others can give it
    /// back. Pages that do not compress stay with who has them.
    #[must_use]
    pub fn obtainable_bytes(&self) -> u64 {
        let given = self.usable_bytes().saturating_sub(self.others_needed_bytes);
        self.equal_bytes().min(given)
    }

    /// What it allows this process: what the others leave. Beyond its equal part what
    /// others look for in vain stays free, or comes free: they take it, and it goes on so
    /// until they have their parts or look for no more.
    #[must_use]
    pub fn allowance(&self) -> Allowance {
        let left = self.usable_bytes().saturating_sub(self.others_bytes);
        let beside = left.saturating_sub(self.others_want_bytes);
        let most = beside.max(self.equal_bytes().min(left));
        let headroom_bytes = headroom_bytes(self.bound_bytes as usize) as u64;
        Allowance {
            bytes: most.saturating_add(headroom_bytes),
            headroom_bytes,
            short_bytes: 0,
            shared: true,
        }
    }
}

/// What a bound has no place for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
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
    /// What may be held.
    pub allowance: Allowance,
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
    /// Others hear of what is granted.
    pub announced: bool,
}

impl Look {
    /// Bytes that may still be taken; below zero, bytes that have to go.
    #[must_use]
    pub fn room_bytes(&self) -> i64 {
        signed(self.allowance.most_bytes()).saturating_sub(signed(self.held_bytes))
    }

    /// Pages that may be resident until the next look.
    #[must_use]
    pub fn limit_pages(&self) -> i64 {
        let page = signed(self.page_bytes).max(1);
        let room = self.room_bytes();
        let least = (signed(self.allowance.bytes) / QUANTUM_LEAST_SHARE).min(QUANTUM_LEAST_MOST);
        let (least, share) = if self.allowance.shared {
            (least.min(QUANTUM_SHARED_LEAST), QUANTUM_SHARED_SHARE)
        } else {
            (least, QUANTUM_SHARE)
        };
        let more = if room >= 0 {
            let quantum = if self.announced {
                let resident = self.used_pages.max(0).saturating_mul(page);
                let most = signed(announced_quantum_bytes(resident.unsigned_abs()));
                most.min(QUANTUM_LEAST_MOST.max(room / share))
            } else {
                least.max(room / share)
            };
            room.min(quantum) / page
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
        let over = over.max(signed(self.allowance.short_bytes));
        let headroom = signed(self.allowance.headroom_bytes);
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
            allowance: Allowance {
                bytes: 300 * MIB,
                headroom_bytes: 10 * MIB,
                short_bytes: 0,
                shared: false,
            },
            held_bytes: held_mib * MIB,
            page_bytes: 4096,
            used_pages: (used_mib * MIB / 4096) as i64,
            least_pages: 256,
            most_pages: i64::MAX,
            announced: false,
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
            for (shared, announced) in [(false, false), (true, false), (true, true)] {
                let allowance = Allowance {
                    bytes: bound * MIB,
                    headroom_bytes: 0,
                    shared,
                    ..Allowance::ALL
                };
                let look = Look {
                    allowance,
                    held_bytes: bound * MIB / 4 * 3,
                    used_pages: (bound * MIB / 4 * 3 / 4096) as i64,
                    announced,
                    ..look(0, 0)
                };
                let free = look.limit_pages() - look.used_pages;
                let kept = (look.limit_pages() / 64).min(256) * 2;
                assert!(free >= kept, "{bound} {shared}");
            }
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

    #[test]
    fn what_a_supply_leaves_but_for_its_reserve_may_be_taken() {
        let most = |left, taken| {
            let allowed = Allowance::of_supply(300 * MIB, left * MIB, taken * MIB, false);
            allowed.most_bytes() as f64 / MIB as f64
        };
        assert_eq!(reserve_bytes(300 * MIB), 15 * MIB);
        assert_eq!(
            (reserve_bytes(1 << 40), reserve_bytes(MIB)),
            (1 << 30, MIB / 8)
        );
        assert_eq!(most(200, 60), 245.0);
        assert_eq!(most(15, 60), 60.0);
        // Alone in a supply, what is missing comes from this process.
        assert_eq!(most(5, 295), 285.0);
        // One that takes a fifth of what is taken gives back a fifth.
        assert_eq!(most(5, 59), 57.0);
        // Group and process are counted at different moments.
        assert_eq!(most(0, 400), 385.0);
    }

    #[test]
    fn processes_that_look_one_after_the_other_fill_a_supply_and_never_pass_it() {
        const MEMBERS: usize = 7;
        let limit = 300 * MIB;
        let mut used = [2 * MIB; MEMBERS];
        for turn in 0..2000 {
            // All look, and only then does each take what it was granted.
            let left = limit - used.iter().sum::<u64>();
            let granted = used.map(|taken| {
                let look = Look {
                    allowance: Allowance::of_supply(limit, left, taken, false),
                    held_bytes: taken,
                    page_bytes: 4096,
                    used_pages: (taken / 4096) as i64,
                    least_pages: 256,
                    most_pages: i64::MAX,
                    announced: false,
                };
                look.limit_pages() as u64 * 4096
            });
            used = granted;
            assert!(used.iter().sum::<u64>() <= limit, "turn {turn}: {used:?}");
        }
        let all = used.iter().sum::<u64>();
        assert!(all >= limit - 16 * MIB && all <= limit - 14 * MIB, "{all}");
    }

    /// Four grow and give back as they are told; some, with next to nothing, inflate a
    /// balloon for what they miss. All look at the same moment, and only then does each take.
    #[test]
    fn several_with_a_balloon_get_room_and_never_pass_the_limit() {
        for balloons in 1..=4 {
            let limit = 300 * MIB;
            let mut large = [60 * MIB; 4];
            let mut small = vec![5 * MIB; balloons];
            for turn in 0..2000 {
                let used = large.iter().chain(&small).sum::<u64>();
                let left = limit - used;
                large = large.map(|taken| {
                    let allowed = Allowance::of_supply(limit, left, taken, false);
                    let room = allowed.most_bytes().saturating_sub(taken) / 16;
                    allowed.most_bytes().min(taken + room)
                });
                let spare = left.saturating_sub(starved_reserve_bytes(limit));
                for held in &mut small {
                    *held += balloon_step_bytes(spare, (40 * MIB).saturating_sub(*held));
                }
                let used = large.iter().chain(&small).sum::<u64>();
                assert!(used <= limit - 10 * MIB, "turn {turn}: {large:?} {small:?}");
            }
            assert!(small.iter().all(|&held| held == 40 * MIB), "{small:?}");
        }
    }

    #[test]
    fn who_is_starved_beside_others_may_take_a_quarter_of_the_reserve() {
        let most = |starved, taken| {
            let allowed = Allowance::of_supply(300 * MIB, 15 * MIB, taken * MIB, starved);
            allowed.most_bytes() / (MIB / 4)
        };
        assert_eq!((most(false, 60), most(true, 60)), (240, 255));
        // Alone there is nobody to give back.
        assert_eq!(most(true, 280), most(false, 280));
        assert!(!is_starved(10, 70, false) && is_starved(10, 71, false));
        assert!(is_starved(10, 51, true) && !is_starved(10, 50, true));
        assert!(!is_starved(0, 0, true), "who has nothing stored");
    }

    #[test]
    fn a_short_supply_strains_only_those_that_have_little_left_to_give() {
        let strain = |left, used_mib| {
            let look = Look {
                allowance: Allowance::of_supply(300 * MIB, left * MIB, 20 * MIB, false),
                ..look(20, used_mib)
            };
            look.strain()
        };
        assert_eq!(strain(1, 10), Strain::None);
        assert_eq!(
            (strain(1, 1), strain(6, 1)),
            (Strain::Nothing, Strain::NothingNew)
        );
        assert_eq!((strain(8, 1), strain(200, 1)), (Strain::None, Strain::None));
    }

    #[test]
    fn the_tighter_allowance_counts_and_what_is_short_of_either() {
        let own = Allowance::of_bound(100 << 20);
        let supply = Allowance::of_supply(300 * MIB, MIB, 200 * MIB, false);
        let both = own.tighter(supply);
        assert_eq!((both.bytes, both.short_bytes), (100 * MIB, 14 * MIB));
        assert_eq!(Allowance::ALL.tighter(own), own);
        assert_eq!(supply.tighter(Allowance::ALL), supply);
    }

    fn share(others_mib: u64, members: u64, want_mib: u64) -> Share {
        Share {
            bound_bytes: 320 * MIB,
            others_bytes: others_mib * MIB,
            others_needed_bytes: others_mib * MIB / 4,
            unbound_bytes: 0,
            members,
            others_want_bytes: want_mib * MIB,
        }
    }

    #[test]
    fn what_others_leave_may_be_taken_but_for_what_one_of_them_looks_for_in_vain() {
        let most = |share: Share| share.allowance().most_bytes() / MIB;
        assert_eq!(share(10, 2, 0).equal_bytes(), 155 * MIB);
        assert_eq!(most(share(10, 2, 0)), 300, "borrowed");
        assert_eq!(most(share(10, 2, 4)), 296, "what it takes next is there");
        assert_eq!(most(share(100, 2, 4)), 206, "also when it has taken some");
        assert_eq!(most(share(154, 2, 4)), 155, "never less than its part");
        assert_eq!(most(share(200, 2, 4)), 110, "nor more than there is");
        let beside = Share {
            unbound_bytes: 110 * MIB,
            ..share(110, 2, 0)
        };
        assert_eq!(beside.equal_bytes(), 100 * MIB);
    }

    /// Six that do nothing, with 4 MiB resident each, beside one that takes all it can get:
    /// with a sixteenth of what is left each would keep 19 MiB that nobody uses.
    #[test]
    fn who_does_nothing_keeps_little_that_was_granted_and_is_not_used() {
        let idle = Look {
            announced: true,
            allowance: share(0, 7, 0).allowance(),
            ..look(5, 4)
        };
        let unused = idle.limit_pages() - idle.used_pages;
        assert_eq!(mib(unused), 0.5);
        let not_announced = Look {
            announced: false,
            ..idle
        };
        assert!(mib(not_announced.limit_pages() - idle.used_pages) > 19.0);
        // One with hardly a page begins all the same, and grows as it takes what it gets.
        let mut one = Look {
            used_pages: 1,
            ..idle
        };
        let mut looks = 0;
        while mib(one.used_pages) < 150.0 {
            one.used_pages = one.limit_pages();
            looks += 1;
        }
        assert!(looks < 50, "{looks} looks");
    }

    #[test]
    fn what_others_cannot_give_back_is_not_hoped_for() {
        assert_eq!(share(300, 2, 0).obtainable_bytes(), 155 * MIB);
        let dense = Share {
            others_needed_bytes: 290 * MIB,
            ..share(300, 2, 0)
        };
        assert_eq!(dense.obtainable_bytes(), 20 * MIB);
        let more = Share {
            others_needed_bytes: 400 * MIB,
            ..dense
        };
        assert_eq!(more.obtainable_bytes(), 0);
    }

    #[test]
    fn one_that_needs_its_part_gets_it_in_a_few_looks() {
        let (mut full, mut new) = (305 * MIB, MIB);
        for look in 0.. {
            assert!(look < 60, "{} MiB", new / MIB);
            let want = 2 * wanted_bytes(new);
            let full_share = Share {
                others_bytes: new,
                others_want_bytes: want,
                ..share(0, 2, 0)
            };
            full = full.min(full_share.allowance().most_bytes());
            let new_share = Share {
                others_bytes: full,
                ..share(0, 2, 0)
            };
            let looking = Look {
                allowance: new_share.allowance(),
                held_bytes: new,
                used_pages: (new / 4096) as i64,
                announced: true,
                ..self::look(0, 0)
            };
            new = looking.limit_pages() as u64 * 4096;
            assert!(full + new <= 310 * MIB);
            if new >= 150 * MIB {
                break;
            }
        }
    }

    /// One page is missing now and then in a process that has a few: the one that has
    /// nearly all does not give back its equal part for that.
    #[test]
    fn a_small_need_takes_little_from_the_others() {
        let wants = 2 * wanted_bytes(3 * MIB);
        let full = Share {
            others_want_bytes: wants,
            ..share(30, 10, 0)
        };
        assert_eq!(full.equal_bytes(), 31 * MIB);
        assert_eq!(full.allowance().most_bytes(), 280 * MIB - wants);
        assert!(wants <= MIB && wanted_bytes(u64::MAX) == 2 * MIB);
    }
}
