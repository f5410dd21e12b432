//! Readahead: is a thread's fault the next step of a run, and how far ahead is
//! it worth restoring?

/// Most pages one readahead restores.
pub const WINDOW_MAX: u32 = 64;

/// Most pages that readahead restores beside the one that faulted, under a resident
/// limit of `limit_pages`.
#[must_use]
#[inline]
pub const fn ahead_pages_max(limit_pages: i64) -> i64 {
    limit_pages / 8
}

/// What to restore: `count` pages, the first being the one that faulted, each
/// `stride` pages from the one before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Plan {
    /// Distance between pages; never 0.
    pub stride: i32,
    /// Number of pages, at least 1.
    pub count: u32,
    /// How many pages the previous window restored ahead that this fault
    /// proves used.
    pub proven: u32,
}

/// One thread's recent faults. Small enough to live in one 64-bit word
/// ([`Stream::to_bits`]), so that it can be kept without a lock.
///
/// ```text
///   next: the page a run would fault on now   stride: pages per step   window: pages restored last time
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Stream {
    /// Page (40 bits) after the last one restored, in the run's direction.
    next: u64,
    stride: i8,
    window: u8,
    /// The last fault was already one step of this stride.
    confirmed: bool,
}

/// Strides of at most this many pages are followed.
const STRIDE_MAX: i64 = 32;

/// A run goes on although it passed over this many of its pages without a
/// fault: they were resident already.
const SKIP_MAX: i64 = 32;

impl Stream {
    /// Unpacks a stream from the word it was kept in.
    #[must_use]
    pub const fn from_bits(bits: u64) -> Self {
        Self {
            next: bits & ((1 << 40) - 1),
            stride: (bits >> 40) as u8 as i8,
            window: (bits >> 48) as u8,
            confirmed: bits >> 56 & 1 == 1,
        }
    }

    /// Packs the stream into one word. A fresh stream is 0.
    #[must_use]
    pub const fn to_bits(self) -> u64 {
        self.next
            | ((self.stride as u8 as u64) << 40)
            | ((self.window as u64) << 48)
            | ((self.confirmed as u64) << 56)
    }

    /// A fault on `page` (below 2^40): what to restore, and the stream after.
    ///
    /// A fault where the run said it would continue doubles the window up to
    /// [`WINDOW_MAX`]; any other fault starts over with a window of one page
    /// and a guess at the stride.
    #[must_use]
    pub const fn fault(self, page: u64) -> (Plan, Self) {
        if self.window > 0 && self.is_continued_by(page) {
            let window = self.window as u32;
            // The first step along a guessed stride confirms it; only then
            // are pages restored that nobody asked for.
            let count = if self.confirmed {
                if window * 2 > WINDOW_MAX {
                    WINDOW_MAX
                } else {
                    window * 2
                }
            } else {
                2
            };
            let plan = Plan {
                stride: self.stride as i32,
                count,
                proven: window - 1,
            };
            let ahead = page as i64 + count as i64 * self.stride as i64;
            if ahead < 0 {
                return (
                    plan,
                    Self {
                        next: 0,
                        stride: 0,
                        window: 0,
                        confirmed: false,
                    },
                );
            }
            let stream = Self {
                next: ahead as u64,
                stride: self.stride,
                window: count as u8,
                confirmed: true,
            };
            return (plan, stream);
        }
        // Not a continuation. The distance from the last fault is the guess.
        let last = self.next as i64 - self.stride as i64;
        let step = page as i64 - last;
        let stride = if self.window <= 1 && step != 0 && step >= -STRIDE_MAX && step <= STRIDE_MAX {
            step
        } else {
            1
        };
        let next = page as i64 + stride;
        let next = if next < 0 { 0 } else { next as u64 };
        let stream = Self {
            next,
            stride: stride as i8,
            window: 1,
            confirmed: stride == step,
        };
        (
            Plan {
                stride: 1,
                count: 1,
                proven: 0,
            },
            stream,
        )
    }

    /// Whether a fault on `page` is where the run goes on.
    const fn is_continued_by(self, page: u64) -> bool {
        if self.stride == 0 {
            return false;
        }
        let distance = page as i64 - self.next as i64;
        let skipped = distance / self.stride as i64;
        let most = if self.confirmed { SKIP_MAX } else { 0 };
        distance % self.stride as i64 == 0 && skipped >= 0 && skipped <= most
    }

    /// Fewer pages than planned were restored: the run continues right after
    /// the last of them.
    #[must_use]
    pub const fn cut_short(self, plan: Plan, first: u64, restored: u32) -> Self {
        if restored >= plan.count || restored == 0 || self.stride == 0 {
            return self;
        }
        let next = first as i64 + restored as i64 * self.stride as i64;
        if next < 0 {
            return Self {
                next: 0,
                stride: 0,
                window: 0,
                confirmed: false,
            };
        }
        Self {
            next: next as u64,
            stride: self.stride,
            window: restored as u8,
            confirmed: self.confirmed,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Feeds a run of touches, counting faults when every planned page is
    /// restored.
    fn faults(touches: impl Iterator<Item = u64>) -> (usize, usize) {
        let mut stream = Stream::default();
        let mut resident = std::collections::HashSet::new();
        let (mut faults, mut restored) = (0, 0);
        for page in touches {
            if resident.contains(&page) {
                continue;
            }
            faults += 1;
            let (plan, after) = stream.fault(page);
            stream = Stream::from_bits(after.to_bits());
            assert_eq!(stream, after);
            for step in 0..i64::from(plan.count) {
                let page = page as i64 + step * i64::from(plan.stride);
                if page >= 0 {
                    resident.insert(page as u64);
                    restored += 1;
                }
            }
        }
        (faults, restored)
    }

    #[test]
    fn a_sequential_run_ends_up_with_whole_windows() {
        let (faults, restored) = faults(5..5 + 6400);
        assert!(faults <= 110, "{faults} faults for 6400 pages");
        assert!(restored <= 6400 + 64);
    }

    #[test]
    fn backwards_and_strided_runs_are_followed() {
        assert!(faults((0..6400).rev()).0 <= 112);
        assert!(faults((0..1600).map(|i| i * 4)).0 <= 40);
    }

    #[test]
    fn random_touches_restore_almost_nothing_extra() {
        let mut state = 1_u64;
        let touches = (0..10_000).map(move |_| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            (state >> 33) % (1 << 30)
        });
        let (faults, restored) = faults(touches);
        assert!(
            restored - faults <= faults / 100,
            "{restored} restored for {faults} faults"
        );
    }

    #[test]
    fn a_run_goes_on_past_pages_that_were_resident() {
        // One page in four is resident already and never faults.
        let (faults, _) = faults((0..6400).filter(|page| page % 4 != 1));
        assert!(faults <= 110, "{faults} faults");
    }

    #[test]
    fn a_window_cut_short_goes_on_where_it_ended() {
        let mut stream = Stream::default();
        let mut page = 100;
        let mut plan = Plan {
            stride: 1,
            count: 1,
            proven: 0,
        };
        for _ in 0..6 {
            (plan, stream) = stream.fault(page);
            page += u64::from(plan.count);
        }
        let first = page - u64::from(plan.count);
        let stream = stream.cut_short(plan, first, 3);
        let (next, _) = stream.fault(first + 3);
        assert_eq!((next.stride, next.count, next.proven), (1, 6, 2));
    }
}
