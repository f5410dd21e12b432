//! How many frames a heap may hold.
//!
//! ```text
//!            limit                      read by all, written rarely
//!   ──────────────────────────
//!   used │ last                         one line: frames taken, and by whom last
//!   ──────────────────────────
//!   cache 0 │ cache 1 │ ...             a line each: frames taken, and not in use yet
//! ```
//! A frame is taken before a page is put in place and given back after its mapping is
//! gone, so the number of mapped pages never exceeds what was taken.
//!
//! Where processors take frames in turn, each takes some more than it needs, into a cache
//! of its own, and then asks nobody for a while. A processor that took last, too, has the
//! line already and takes what it needs: one thread alone fills no cache.
//!
//! * Frames in caches count as taken. So the sum of all that is in use never exceeds the
//!   limit, and a frame out of a cache asks for none.
//! * Nothing is held back: a processor that finds neither a frame of its own nor a free
//!   one takes those of the others, one by one, before it says that there is none.
//! * While more is taken than the limit allows no cache has a frame: who lowers the limit
//!   or passes it empties them, and who fills one looks again afterwards. Each of the two
//!   writes, fences, and then looks at what the other wrote.
//! * Below [`CACHING_PAGES_MIN`] there are no caches.

use super::sync::{AtomicI64, AtomicUsize, Caches, Line, Ordering, Refused, fence, shard};

/// Most frames that a cache takes at once.
const CACHE_FRAMES: i64 = 16;

/// Caches together hold at most this part of the limit.
const CACHED_PART: i64 = 16;

/// The smallest limit with caches, pages.
const CACHING_PAGES_MIN: i64 = 1024;

/// The processor that took last, before there is one.
const NONE: usize = usize::MAX;

/// Frames in use against a limit.
#[derive(Debug)]
#[repr(C)]
pub(crate) struct Budget {
    limit: AtomicI64,
    caches: Caches,
    _written: Line,
    /// Frames taken, those in caches among them.
    used: AtomicI64,
    /// The shard of the processor that took frames last.
    last: AtomicUsize,
    _end: Line,
}

/// Frames that a cache takes in advance under such a limit.
fn frames_ahead(limit: i64, shards: usize) -> i64 {
    if limit < CACHING_PAGES_MIN {
        return 0;
    }
    (limit / CACHED_PART / shards.max(1) as i64).min(CACHE_FRAMES)
}

/// Takes up to `wanted` frames out of a cache; how many it got.
fn take_from(cache: &AtomicI64, wanted: i64) -> i64 {
    let mut held = cache.load(Ordering::Relaxed);
    loop {
        let got = wanted.min(held);
        if got <= 0 {
            return 0;
        }
        match cache.compare_exchange_weak(held, held - got, Ordering::AcqRel, Ordering::Relaxed) {
            Ok(_) => return got,
            Err(now) => held = now,
        }
    }
}

impl Budget {
    /// A budget with a cache for each of `shards` processors.
    ///
    /// # Errors
    /// The kernel's refusal of memory.
    pub(crate) fn new(limit_pages: i64, shards: usize) -> Result<Self, Refused> {
        Ok(Self {
            limit: AtomicI64::new(limit_pages),
            caches: Caches::new(shards)?,
            _written: Line,
            used: AtomicI64::new(0),
            last: AtomicUsize::new(NONE),
            _end: Line,
        })
    }

    pub(crate) fn limit(&self) -> i64 {
        self.limit.load(Ordering::Relaxed)
    }

    pub(crate) fn set_limit(&self, pages: i64) {
        // The line is read by every fault.
        if self.limit() == pages {
            return;
        }
        let before = self.limit.swap(pages, Ordering::Relaxed);
        if pages < before {
            self.empty_caches();
        }
    }

    /// Lowers the limit by so many frames, but not below `least`, nor where it is lower.
    pub(crate) fn lower_limit(&self, frames: i64, least: i64) {
        let mut limit = self.limit();
        loop {
            let lower = limit.saturating_sub(frames).max(least);
            if lower >= limit {
                return;
            }
            match self.limit.compare_exchange_weak(
                limit,
                lower,
                Ordering::Relaxed,
                Ordering::Relaxed,
            ) {
                Ok(_) => break,
                Err(now) => limit = now,
            }
        }
        self.empty_caches();
    }

    /// Frames in use: exact while nobody takes any, read from every cache.
    pub(crate) fn used(&self) -> i64 {
        let cached = self
            .caches
            .iter()
            .map(|cache| cache[0].load(Ordering::Acquire));
        let cached: i64 = cached.sum();
        (self.taken() - cached).max(0)
    }

    /// Frames taken, with those in caches: as many as are in use or a few more, read from
    /// one word.
    pub(crate) fn taken(&self) -> i64 {
        self.used.load(Ordering::Relaxed)
    }

    /// Frames still free; negative after a limit was lowered.
    pub(crate) fn free(&self) -> i64 {
        self.limit() - self.used()
    }

    /// Whether fewer frames than `low` are free. A processor with frames of its own says
    /// no, and looks nowhere else: it asks once in so many faults.
    pub(crate) fn is_below(&self, low: i64) -> bool {
        self.is_below_at(self.shard(), low)
    }

    fn is_below_at(&self, shard: usize, low: i64) -> bool {
        self.caches[shard][0].load(Ordering::Relaxed) == 0
            && self.limit() - self.taken() < low
            && self.free() < low
    }

    fn shard(&self) -> usize {
        shard(self.caches.len())
    }

    /// Takes up to `wanted` frames; how many it got.
    pub(crate) fn take_up_to(&self, wanted: i64) -> i64 {
        self.take_at(self.shard(), wanted)
    }

    /// The same on the processor of a shard.
    pub(crate) fn take_at(&self, shard: usize, wanted: i64) -> i64 {
        let mut got = take_from(&self.caches[shard][0], wanted);
        if got < wanted {
            got += self.take_free(shard, wanted - got);
        }
        if got < wanted {
            got += self.take_cached(shard, wanted - got);
        }
        got
    }

    /// Takes up to `wanted` free frames, and some for the cache where another processor
    /// took the last ones.
    fn take_free(&self, shard: usize, wanted: i64) -> i64 {
        let limit = self.limit();
        let last = self.last.load(Ordering::Relaxed);
        let ahead = if last == shard || last == NONE {
            0
        } else {
            frames_ahead(limit, self.caches.len())
        };
        let mut used = self.used.load(Ordering::Relaxed);
        loop {
            let got = wanted.min(limit - used);
            if got <= 0 {
                return 0;
            }
            // Of few that are left each takes half.
            let ahead = ahead.min((limit - used - got) / 2);
            let new = used + got + ahead;
            match self
                .used
                .compare_exchange_weak(used, new, Ordering::AcqRel, Ordering::Relaxed)
            {
                Ok(_) => {
                    if last != shard {
                        self.last.store(shard, Ordering::Relaxed);
                    }
                    if ahead > 0 {
                        self.fill_cache(shard, ahead, limit);
                    }
                    return got;
                }
                Err(now) => used = now,
            }
        }
    }

    /// Puts frames that were taken under `limit` into a cache.
    fn fill_cache(&self, shard: usize, frames: i64, limit: i64) {
        let cache = &self.caches[shard][0];
        cache.fetch_add(frames, Ordering::AcqRel);
        // Pairs with the one in `empty_caches`: either whoever lowered or passed the limit
        // finds the frames, or we find that out.
        fence(Ordering::SeqCst);
        let now = self.limit();
        if now < limit || self.taken() > now {
            self.empty(cache);
        }
    }

    /// Takes up to `wanted` frames out of the caches, none but which is left.
    #[cold]
    fn take_cached(&self, shard: usize, wanted: i64) -> i64 {
        let count = self.caches.len();
        if frames_ahead(self.limit(), count) == 0 {
            return 0;
        }
        let mut got = 0;
        for step in 0..count {
            got += take_from(&self.caches[(shard + step) % count][0], wanted - got);
            if got == wanted {
                break;
            }
        }
        got
    }

    /// Gives all frames in caches back.
    fn empty_caches(&self) {
        fence(Ordering::SeqCst);
        self.caches.iter().for_each(|cache| self.empty(&cache[0]));
    }

    fn empty(&self, cache: &AtomicI64) {
        if cache.load(Ordering::Relaxed) != 0 {
            self.give_back(cache.swap(0, Ordering::AcqRel));
        }
    }

    /// Takes one frame unless that would exceed the limit by more than `most`:
    /// the way out when nothing can be evicted and a thread must go on.
    #[cold]
    pub(crate) fn overdraw(&self, most: i64) -> bool {
        // Free frames first.
        self.empty_caches();
        let limit = self.limit();
        let end = limit.saturating_add(most);
        let mut used = self.used.load(Ordering::Relaxed);
        while used < end {
            match self.used.compare_exchange_weak(
                used,
                used + 1,
                Ordering::AcqRel,
                Ordering::Relaxed,
            ) {
                Ok(_) => {
                    if used >= limit {
                        self.empty_caches();
                    }
                    return true;
                }
                Err(now) => used = now,
            }
        }
        false
    }

    pub(crate) fn give_back(&self, frames: i64) {
        if frames != 0 {
            self.used.fetch_sub(frames, Ordering::AcqRel);
        }
    }

    /// In a forked child: so many frames are in use. What a thread of the parent had
    /// taken out of a cache and not given back yet, no thread of the child has.
    pub(crate) fn repair_after_fork(&self, in_use: i64) {
        for cache in self.caches.iter() {
            cache[0].store(0, Ordering::Relaxed);
        }
        self.used.store(in_use, Ordering::Release);
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Words on the same line.
    #[test]
    fn what_all_read_is_not_where_all_write() {
        use core::mem::offset_of;
        let line = |offset: usize| offset / align_of::<Line>();
        assert_eq!(size_of::<Budget>() % align_of::<Line>(), 0);
        assert_ne!(
            line(offset_of!(Budget, limit)),
            line(offset_of!(Budget, used))
        );
        assert_ne!(
            line(offset_of!(Budget, caches)),
            line(offset_of!(Budget, used))
        );
        assert_eq!(
            line(offset_of!(Budget, used)),
            line(offset_of!(Budget, last))
        );
    }

    #[test]
    fn one_thread_fills_no_cache_and_two_in_turn_do() {
        let budget = Budget::new(4096, 2).unwrap();
        for taken in 1..100 {
            assert_eq!(budget.take_at(1, 1), 1);
            assert_eq!((budget.taken(), budget.used()), (taken, taken));
        }
        assert_eq!(budget.take_at(0, 1), 1);
        assert_eq!(budget.taken(), 100 + CACHE_FRAMES);
        // So many more ask nobody.
        for used in 101..=100 + CACHE_FRAMES {
            assert_eq!(budget.take_at(0, 1), 1);
            assert_eq!((budget.taken(), budget.used()), (100 + CACHE_FRAMES, used));
            assert_eq!(budget.free(), 4096 - used);
        }
        assert_eq!(budget.take_at(1, 1), 1);
        assert_eq!(budget.taken(), 101 + 2 * CACHE_FRAMES);
    }

    #[test]
    fn a_limit_is_lowered_by_what_was_stored_but_never_below_the_least() {
        let budget = Budget::new(4096, 2).unwrap();
        budget.lower_limit(96, 256);
        assert_eq!(budget.limit(), 4000);
        budget.lower_limit(10_000, 256);
        assert_eq!(budget.limit(), 256);
        budget.set_limit(100);
        budget.lower_limit(5, 256);
        assert_eq!(budget.limit(), 100, "a lower one stays");
    }

    #[test]
    fn a_small_limit_has_no_caches() {
        for limit in [5, 68, CACHING_PAGES_MIN - 1] {
            let budget = Budget::new(limit, 2).unwrap();
            for used in 1..=limit {
                assert_eq!(budget.take_at(used as usize % 2, 1), 1);
                assert_eq!(budget.taken(), used);
            }
            assert_eq!(budget.take_at(0, 1), 0);
        }
        // Nor has one that is small for so many processors.
        assert_eq!(frames_ahead(CACHING_PAGES_MIN, 256), 0);
        assert_eq!(frames_ahead(1 << 20, 256), CACHE_FRAMES);
    }

    #[test]
    fn frames_in_caches_are_free_ones_to_whoever_asks_how_many_there_are() {
        let budget = Budget::new(2048, 4).unwrap();
        (0..4).for_each(|shard| assert_eq!(budget.take_at(shard, 1), 1));
        assert!(budget.taken() > budget.used());
        assert!(!budget.is_below_at(0, 2044) && !budget.is_below_at(1, 2045));
        assert!(
            budget.is_below_at(0, 2045),
            "it took first and has no cache"
        );
    }

    #[test]
    fn a_child_has_the_frames_that_a_lost_thread_was_about_to_give_back() {
        let budget = Budget::new(4096, 2).unwrap();
        assert_eq!((budget.take_at(0, 1), budget.take_at(1, 1)), (1, 1));
        // The process forks while a thread lowers the limit.
        let held = budget.caches[1][0].swap(0, Ordering::AcqRel);
        assert_eq!((held, budget.used()), (CACHE_FRAMES, 2 + CACHE_FRAMES));
        budget.repair_after_fork(2);
        assert_eq!((budget.taken(), budget.used()), (2, 2));
        assert_eq!(budget.take_at(0, 4096), 4094);
    }

    proptest! {
        /// Whatever is where, the answers are those of one plain counter.
        #[test]
        fn it_grants_what_one_counter_would(
            shards in 1_usize..9,
            limit in 1_i64..5000,
            steps in proptest::collection::vec((0_u8..8, 0_usize..8, 1_i64..2000), 1..300),
        ) {
            let budget = Budget::new(limit, shards).unwrap();
            let (mut limit, mut used) = (limit, 0_i64);
            for (what, shard, number) in steps {
                match what {
                    0 => {
                        budget.set_limit(number);
                        limit = number;
                    }
                    1 => {
                        let frames = number.min(used);
                        budget.give_back(frames);
                        used -= frames;
                    }
                    2 => {
                        let most = number % 70;
                        let got = budget.overdraw(most);
                        prop_assert_eq!(got, used < limit + most);
                        used += i64::from(got);
                    }
                    _ => {
                        let wanted = if what == 3 { number } else { 1 };
                        let got = budget.take_at(shard % shards, wanted);
                        prop_assert_eq!(got, wanted.min(limit - used).max(0));
                        used += got;
                    }
                }
                prop_assert_eq!(budget.used(), used);
                prop_assert!(budget.taken() == used || budget.taken() <= limit);
                prop_assert_eq!(budget.free(), limit - used);
                // Not while there are frames; a processor that has some may say no.
                let below = budget.is_below_at(shard % shards, 100);
                prop_assert!(!below || limit - used < 100);
            }
        }
    }

    #[test]
    fn eight_threads_never_hold_more_than_the_limit_and_leave_nothing_behind() {
        const LIMIT: i64 = 2000;
        let budget = Budget::new(LIMIT, 8).unwrap();
        let held = AtomicI64::new(0);
        let give = |frames: i64| {
            held.fetch_sub(frames, Ordering::SeqCst);
            budget.give_back(frames);
        };
        std::thread::scope(|scope| {
            for shard in 0..8 {
                let (budget, held, give) = (&budget, &held, &give);
                scope.spawn(move || {
                    let mut mine = 0;
                    for round in 0..20_000_i64 {
                        let wanted = if round % 50 == 0 { 60 } else { 1 };
                        let got = budget.take_at(shard, wanted);
                        let all = held.fetch_add(got, Ordering::SeqCst) + got;
                        assert!(all <= LIMIT, "{all} frames of {LIMIT}");
                        mine += got;
                        // As a batch of evictions does, by whoever found none.
                        if got == 0 || mine > 400 {
                            give(mine.min(256));
                            mine -= mine.min(256);
                        }
                    }
                    give(mine);
                });
            }
        });
        assert_eq!(held.load(Ordering::SeqCst), 0);
        assert_eq!((budget.used(), budget.free()), (0, LIMIT));
        // What is in caches is to be had, on any processor.
        assert_eq!(budget.take_at(5, LIMIT), LIMIT);
        assert_eq!(budget.take_at(2, 1), 0);
    }
}
