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

impl Plan {
    /// The page that faulted, alone.
    pub const ONE: Self = Self {
        stride: 1,
        count: 1,
        proven: 0,
    };
}

/// A run of one thread's faults. Small enough to live in one 64-bit word
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
    /// Runs that began since it went on, at most [`RESTS_MAX`].
    rests: u8,
}

/// Strides of at most this many pages are followed.
const STRIDE_MAX: i64 = 32;

/// A run goes on although it passed over this many of its pages without a
/// fault: they were resident already.
const SKIP_MAX: i64 = 32;

/// A run that rests while so many others begin is over.
const RESTS_MAX: u8 = 127;

/// A run that rests for longer goes on exactly where it said it would, or a
/// program that touches pages at random would find it by chance.
const RESTS_PASSING: u8 = 4;

/// See [`Stream::density`].
const ALL_PAGES: u32 = 1 << 16;

/// The greatest number that divides both.
const fn gcd(mut a: u8, mut b: u8) -> u8 {
    while b != 0 {
        (a, b) = (b, a % b);
    }
    a
}

impl Stream {
    /// No run.
    const NONE: Self = Self::from_bits(0);

    /// Unpacks a stream from the word it was kept in.
    #[must_use]
    pub const fn from_bits(bits: u64) -> Self {
        Self {
            next: bits & ((1 << 40) - 1),
            stride: (bits >> 40) as u8 as i8,
            window: (bits >> 48) as u8,
            confirmed: bits >> 56 & 1 == 1,
            rests: (bits >> 57) as u8,
        }
    }

    /// Packs the stream into one word. A fresh stream is 0.
    #[must_use]
    pub const fn to_bits(self) -> u64 {
        self.next
            | ((self.stride as u8 as u64) << 40)
            | ((self.window as u64) << 48)
            | ((self.confirmed as u64) << 56)
            | ((self.rests as u64) << 57)
    }

    /// Whether a fault on `page` is the run's next step, no page passed over.
    #[must_use]
    #[inline]
    pub const fn goes_on_at(self, page: u64) -> bool {
        self.window > 0 && self.stride != 0 && page == self.next
    }

    /// A fault on `page` (below 2^40), where the run goes on: what to restore, and
    /// the run after. Each such fault doubles the window, up to [`WINDOW_MAX`].
    #[must_use]
    pub const fn go_on(self, page: u64) -> (Plan, Self) {
        let window = self.window as u32;
        // The first step along a guessed stride confirms it; only then
        // are pages restored that nobody asked for.
        let count = if !self.confirmed {
            2
        } else if window * 2 > WINDOW_MAX {
            WINDOW_MAX
        } else {
            window * 2
        };
        let plan = Plan {
            stride: self.stride as i32,
            count,
            proven: window - 1,
        };
        let ahead = page as i64 + count as i64 * self.stride as i64;
        let run = if ahead < 0 {
            Self::NONE
        } else {
            Self {
                next: ahead as u64,
                stride: self.stride,
                window: count as u8,
                confirmed: true,
                rests: 0,
            }
        };
        (plan, run)
    }

    /// A run that may begin with a fault on `page`, with a guess at its stride:
    /// the distance from `near`, the fault it may be the second one after.
    const fn begin(page: u64, near: Option<i64>) -> Self {
        let stride = match near {
            Some(step) => step,
            None => 1,
        };
        let next = page as i64 + stride;
        Self {
            next: if next < 0 { 0 } else { next as u64 },
            stride: stride as i8,
            window: 1,
            confirmed: near.is_some(),
            rests: 0,
        }
    }

    /// How far `page` is from the run's only fault, if that is close enough to
    /// be its stride.
    const fn step_to(self, page: u64) -> Option<i64> {
        let last = self.next as i64 - self.stride as i64;
        let step = page as i64 - last;
        if self.window == 1 && step != 0 && step.abs() <= STRIDE_MAX {
            Some(step)
        } else {
            None
        }
    }

    /// What part of the pages on its way a run steps on, of [`ALL_PAGES`].
    const fn density(self) -> u32 {
        ALL_PAGES / self.stride.unsigned_abs() as u32
    }

    /// Whether the two runs go through the same pages in the same direction, and each
    /// steps on pages that the other passes over.
    fn fills_gaps_of(self, other: Self) -> bool {
        let goes_on = |run: Self| run.confirmed && run.window > 1;
        if !goes_on(self) || !goes_on(other) || self.stride.signum() != other.stride.signum() {
            return false;
        }
        let apart = self.next.abs_diff(other.next);
        let reach = |run: Self| u64::from(run.window) * u64::from(run.stride.unsigned_abs());
        let common = gcd(self.stride.unsigned_abs(), other.stride.unsigned_abs());
        apart <= reach(self).max(reach(other)) && !apart.is_multiple_of(u64::from(common))
    }

    /// The run, one page after the other.
    const fn of_all_pages(self) -> Self {
        Self {
            stride: self.stride.signum(),
            ..self
        }
    }

    /// Whether a fault on `page` is where the run goes on.
    const fn is_continued_by(self, page: u64) -> bool {
        if self.stride == 0 || self.window == 0 {
            return false;
        }
        let distance = page as i64 - self.next as i64;
        // Most faults are far from most runs, and a division is dear.
        if distance.unsigned_abs() > SKIP_MAX as u64 * STRIDE_MAX as u64 {
            return false;
        }
        let skipped = distance / self.stride as i64;
        let most = if self.confirmed && self.rests <= RESTS_PASSING {
            SKIP_MAX
        } else {
            0
        };
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
            return Self::NONE;
        }
        Self {
            next: next as u64,
            stride: self.stride,
            window: restored as u8,
            confirmed: self.confirmed,
            rests: self.rests,
        }
    }
}

/// Runs that are followed for each thread.
pub const RUNS: usize = 4;

/// So many of them at least have not gone on yet, where faults find no run: two
/// that begin side by side can both go on.
const BEGINNINGS_MIN: usize = 2;

/// The runs of one thread, that of its last fault first. A program goes through
/// several places in turn: an allocator fills a group of pages for each size, a
/// loop reads one array and writes another, a list is walked and each of its
/// entries looked up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Runs([Stream; RUNS]);

impl Runs {
    /// Unpacks runs from the words they were kept in.
    #[must_use]
    pub fn from_words(words: [u64; RUNS]) -> Self {
        Self(words.map(Stream::from_bits))
    }

    /// Packs each run into a word. No run is 0.
    #[must_use]
    pub fn to_words(self) -> [u64; RUNS] {
        self.0.map(Stream::to_bits)
    }

    /// A fault on `page` (below 2^40): what to restore.
    ///
    /// Where a run said it would continue, it does, and comes first. Any other
    /// fault begins one, with a window of one page.
    #[must_use]
    pub fn fault(&mut self, page: u64) -> Plan {
        // A run that passed over pages may have come to one of another run.
        let exact = self.0.iter().position(|run| run.goes_on_at(page));
        let found = exact.or_else(|| self.0.iter().position(|run| run.is_continued_by(page)));
        let (place, (plan, run)) = match found {
            Some(place) => {
                self.join(place);
                (place, self.0[place].go_on(page))
            }
            None => {
                let steps = self.0.iter().filter_map(|run| run.step_to(page));
                let near = steps.min_by_key(|step| step.abs());
                for run in &mut self.0 {
                    run.rests = (run.rests + 1).min(RESTS_MAX);
                }
                (self.given_up(), (Plan::ONE, Stream::begin(page, near)))
            }
        };
        self.0.copy_within(..place, 1);
        self.0[0] = run;
        plan
    }

    /// Makes one run of a strided one and of those that fill its gaps, where together
    /// they step on more than half of the pages: each would restore pages one by one
    /// between those of the other. A scan comes to this where every second page of a
    /// stretch was resident when it passed.
    fn join(&mut self, place: usize) {
        let run = self.0[place];
        if run.stride.unsigned_abs() <= 1 {
            return;
        }
        let fills = self.0.map(|other| run.fills_gaps_of(other));
        let others = self.0.iter().zip(fills).filter(|&(_, fills)| fills);
        let density: u32 = others.map(|(other, _)| other.density()).sum();
        if run.density() + density <= ALL_PAGES / 2 {
            return;
        }
        for (other, fills) in self.0.iter_mut().zip(fills) {
            if fills {
                *other = Stream::NONE;
            }
        }
        self.0[place] = run.of_all_pages();
    }

    /// The run that one which begins takes the place of: one that is over, else one
    /// that never went on, while there are enough of them, else the one that has
    /// rested for longest.
    fn given_up(&self) -> usize {
        let is_over = |run: &Stream| run.window == 0 || run.rests == RESTS_MAX;
        let is_new = |run: &Stream| run.window == 1;
        let new = self.0.iter().filter(|run| is_new(run)).count();
        let over = self.0.iter().rposition(is_over);
        over.or_else(|| {
            self.0
                .iter()
                .rposition(is_new)
                .filter(|_| new >= BEGINNINGS_MIN)
        })
        .unwrap_or(RUNS - 1)
    }

    /// Of the last fault's plan, made on `first`, only `restored` steps were put
    /// in place: its run continues right after the last of them.
    pub fn cut_short(&mut self, plan: Plan, first: u64, restored: u32) {
        self.0[0] = self.0[0].cut_short(plan, first, restored);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Feeds a run of touches, counting faults when every planned page is
    /// restored.
    fn faults(touches: impl Iterator<Item = u64>) -> (usize, usize) {
        let mut runs = Runs::default();
        let mut resident = std::collections::HashSet::new();
        let (mut faults, mut restored) = (0, 0);
        for page in touches {
            if resident.contains(&page) {
                continue;
            }
            faults += 1;
            let plan = runs.fault(page);
            assert_eq!(Runs::from_words(runs.to_words()), runs);
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

    /// Takes one touch of each in turn.
    fn in_turn<const N: usize>(mut each: [Box<dyn Iterator<Item = u64>>; N]) -> Vec<u64> {
        let mut touches = Vec::new();
        while let Some(turn) = each.each_mut().map(Iterator::next).into_iter().collect() {
            let turn: Vec<u64> = turn;
            touches.extend(turn);
        }
        touches
    }

    #[test]
    fn runs_in_several_places_are_each_followed() {
        let places = [
            [5_u64, 1 << 20, 2 << 20, 3 << 20],
            // So close together that one may look like a step of another.
            [1000, 3000, 3016, 5020],
        ];
        for at in places {
            let touches =
                in_turn(at.map(|at| Box::new(at..at + 1500) as Box<dyn Iterator<Item = _>>));
            let (faults, restored) = faults(touches.into_iter());
            assert!(faults <= 4 * 35, "{faults} faults for four runs");
            assert!(restored <= 6000 + 4 * 64);
        }
    }

    #[test]
    fn runs_of_other_directions_and_strides_are_followed_side_by_side() {
        let touches = in_turn([
            Box::new((1_u64 << 20..(1 << 20) + 1600).rev()) as Box<dyn Iterator<Item = u64>>,
            Box::new(0..1600),
            Box::new((0..1600).map(|step| (2 << 20) + step * 4)),
        ]);
        let (faults, _) = faults(touches.into_iter());
        assert!(faults <= 3 * 45, "{faults} faults for three runs");
    }

    /// Faults of a scan over `pages` of which `resident` are there, and the plans made.
    fn scan(
        runs: &mut Runs,
        pages: impl Iterator<Item = u64>,
        resident: impl Fn(u64) -> bool,
    ) -> Vec<Plan> {
        let mut restored: std::collections::HashSet<u64> = std::collections::HashSet::new();
        let mut plans = Vec::new();
        for page in pages.filter(|&page| !resident(page)) {
            if restored.contains(&page) {
                continue;
            }
            let plan = runs.fault(page);
            let steps = 0..i64::from(plan.count);
            restored
                .extend(steps.map(|step| page.wrapping_add_signed(step * i64::from(plan.stride))));
            plans.push(plan);
        }
        plans
    }

    #[test]
    fn runs_that_fill_each_others_gaps_become_one() {
        // Every second page of the scan's first stretch is resident.
        let resident = |page: u64| page < 100 && !page.is_multiple_of(2);
        let plans = scan(&mut Runs::default(), 0..3000, resident);
        assert!(plans.iter().any(|plan| plan.stride == 2));
        let last = &plans[plans.len() - 40..];
        let all = Plan {
            stride: 1,
            count: WINDOW_MAX,
            proven: WINDOW_MAX - 1,
        };
        assert!(last.iter().all(|plan| *plan == all), "{last:?}");
        // The other way, and two pages of three.
        let resident = |page: u64| page > 2900 && !page.is_multiple_of(3);
        let plans = scan(&mut Runs::default(), (0..3000).rev(), resident);
        assert!(plans.iter().any(|plan| plan.stride == -3));
        let last = &plans[plans.len() - 20..];
        assert!(last.iter().all(|plan| plan.stride == -1), "{last:?}");
    }

    #[test]
    fn columns_of_a_matrix_stay_runs_of_their_own() {
        // Four of the eight pages of a row, the first rows of each by themselves.
        let place = |column: u64, row: u64| 2 * column + row * 8;
        let begin = (0..4).flat_map(|column| (0..8).map(move |row| place(column, row)));
        let go_on = (8..800).flat_map(|row| (0..4).map(move |column| place(column, row)));
        let (faults, restored) = faults(begin.chain(go_on));
        assert!(faults <= 4 * 25, "{faults} faults for four columns");
        assert!(restored <= 4 * (800 + 64), "{restored} pages for 3200");
    }

    #[test]
    fn a_run_goes_on_after_faults_elsewhere() {
        let mut state = 1_u64;
        // One touch of two is anywhere: a table, read while a list is walked.
        let touches = (0..6400_u64).flat_map(move |page| {
            let mut anywhere = || {
                state = state
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(1);
                (1 << 30) + (state >> 33) % (1 << 30)
            };
            [page, anywhere()]
        });
        let (faults, _) = faults(touches);
        assert!(faults <= 6400 + 110, "{faults} faults");
    }

    #[test]
    fn a_run_that_passed_over_pages_does_not_take_those_of_another() {
        let mut runs = Runs::default();
        for page in [100, 101, 140, 141, 103, 107] {
            let _ = runs.fault(page);
        }
        // It might be 28 pages further on, as they were resident; but another run
        // is to go on right there.
        assert_eq!(runs.fault(143).proven, 1);
        assert_eq!(runs.fault(115).proven, 7);
        assert_eq!(runs.fault(147).proven, 3);
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
        let mut runs = Runs::default();
        let mut page = 100;
        let mut plan = Plan::ONE;
        for _ in 0..6 {
            plan = runs.fault(page);
            page += u64::from(plan.count);
        }
        let first = page - u64::from(plan.count);
        runs.cut_short(plan, first, 3);
        let next = runs.fault(first + 3);
        assert_eq!((next.stride, next.count, next.proven), (1, 6, 2));
    }
}
