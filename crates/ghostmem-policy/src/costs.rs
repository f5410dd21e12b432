//! What reclaim costs the program, as measured in this process, and what follows from it.
//!
//! A change of the program's page tables interrupts each processor that the program runs
//! on. That is a microsecond where processors tell each other cheaply, or where only one
//! of them runs the program; in a virtual machine it is twenty. No constant is right for
//! both, so nothing here is one: [`Costs`] are running medians of what calls took, and
//! [`Turns`] tries who evicts.
//!
//! ```text
//!   victims      V . . V V    w V           w: a written page that stays
//!   one call     ╰──────────────╯           w is protected too, and may fault
//!   two calls    ╰───────╯      V           the second call costs its price
//! ```

use crate::hand::DIRTY_CREDIT_MIN;

/// What a signal costs beside what its handler does, nanoseconds: fault, delivery, return.
pub const SIGNAL_NS: u64 = 1300;

/// What a call that interrupts nobody takes at most, nanoseconds; what it takes beyond
/// that, it takes of those who are interrupted.
const ALONE_NS: u64 = 1000;

/// Parts of which chances are given.
pub const WHOLE: u64 = 1024;

/// A sample counts for an eighth of a running mean.
const SHARE: u64 = 8;

/// Whose thread evicts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Evictor {
    /// The one that found no frame.
    Faulting = 0,
    /// The engine's own, ahead of demand.
    Background = 1,
}

impl Evictor {
    const fn other(self) -> Self {
        match self {
            Self::Faulting => Self::Background,
            Self::Background => Self::Faulting,
        }
    }
}

/// A running mean after another sample; 0 is no sample yet. One sample counts for four
/// times the mean at most.
#[must_use]
#[inline]
pub const fn mean(before: u64, sample: u64) -> u64 {
    if before == 0 {
        return sample;
    }
    let most = before.saturating_mul(4);
    let sample = if sample > most { most } else { sample };
    let after = (before * (SHARE - 1) + sample) / SHARE;
    if after == 0 { 1 } else { after }
}

/// A running median after another sample; 0 is no sample yet. What takes long because the
/// thread was taken off its processor moves it as little as anything above it.
#[must_use]
#[inline]
pub const fn median(before: u64, sample: u64) -> u64 {
    /// Part of the median that a sample moves it by at most.
    const STEP: u64 = 16;
    if before == 0 {
        return sample;
    }
    let step = before / STEP + 1;
    let (low, high) = (before.saturating_sub(step), before + step);
    let after = if sample < low {
        low
    } else if sample > high {
        high
    } else {
        sample
    };
    if after == 0 { 1 } else { after }
}

/// How often `hits` of `tries` is, of [`WHOLE`]; `guess` while there are few tries.
#[must_use]
#[inline]
pub const fn chance(hits: u64, tries: u64, guess: u64) -> u64 {
    /// Tries that the guess weighs as much as.
    const GUESSED: u64 = 32;
    let hits = if hits > tries { tries } else { hits };
    (hits * WHOLE + guess * GUESSED) / (tries + GUESSED)
}

/// A stretch of more pages is long: the first of them is protected by a call of its own,
/// which is timed alone. Otherwise a stretch that is long because calls are thought dear
/// would make them look dear.
pub const LONG_STRETCH_PAGES: u64 = 64;

/// What a page in a call is thought to take before that was measured, nanoseconds.
const PAGE_GUESS_NS: u64 = 60;

/// Calls of one batch that protected pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Protected {
    /// The first call, for one page, timed alone; 0: all are in what follows.
    pub alone_ns: u64,
    /// The other calls.
    pub calls: u64,
    /// Pages that these protected, those that stay among them.
    pub pages: u64,
    /// What these took.
    pub ns: u64,
}

impl Protected {
    /// Calls in all, the one that was timed alone among them.
    #[must_use]
    pub const fn all_calls(&self) -> u64 {
        self.calls + (self.alone_ns > 0) as u64
    }
}

/// What a call that protects pages takes, in two parts. Running medians; 0: none was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct CallPrice {
    /// The call.
    pub call_ns: u64,
    /// Each page in it.
    pub page_ns: u64,
}

impl CallPrice {
    /// The price after another batch. Calls for few pages tell what a call takes, those
    /// for many what a page does.
    #[must_use]
    pub const fn after(self, made: &Protected) -> Self {
        const fn or_least(ns: u64) -> u64 {
            if ns == 0 { 1 } else { ns }
        }
        let Self {
            mut call_ns,
            mut page_ns,
        } = self;
        if made.alone_ns > 0 {
            call_ns = median(call_ns, made.alone_ns);
        }
        if made.calls == 0 {
            return Self { call_ns, page_ns };
        }
        if made.pages < LONG_STRETCH_PAGES * made.calls {
            let page = if page_ns == 0 { PAGE_GUESS_NS } else { page_ns };
            let pages_ns = made.pages * page;
            let each = made.ns.saturating_sub(pages_ns) / made.calls;
            call_ns = median(call_ns, or_least(each));
        } else if call_ns > 0 {
            let calls_ns = made.calls * call_ns;
            let each = made.ns.saturating_sub(calls_ns) / made.pages;
            page_ns = median(page_ns, or_least(each));
        }
        Self { call_ns, page_ns }
    }
}

/// What things cost, nanoseconds, for the thread that is to do them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Costs {
    /// A call that protects a stretch of pages, beside what each page takes.
    pub call_ns: u64,
    /// A page in such a call.
    pub page_ns: u64,
    /// A store to a protected page: the fault, and the call that opens the page.
    pub open_ns: u64,
    /// Compressing a page.
    pub pack_ns: u64,
    /// Comparing a page with its copy.
    pub compare_ns: u64,
    /// Of [`WHOLE`] written pages that were protected between two victims, those that
    /// were stored to before they left.
    pub stored: u64,
    /// Of [`WHOLE`] pages that were compared with their copies, those that were as they
    /// had been.
    pub unchanged: u64,
}

impl Costs {
    /// What was measured, or a guess for what was not (0).
    #[must_use]
    pub const fn or_guessed(self) -> Self {
        const fn or(measured: u64, guess: u64) -> u64 {
            if measured == 0 { guess } else { measured }
        }
        Self {
            call_ns: or(self.call_ns, 1000),
            page_ns: or(self.page_ns, PAGE_GUESS_NS),
            open_ns: or(self.open_ns, 3300),
            pack_ns: or(self.pack_ns, 4400),
            compare_ns: or(self.compare_ns, 1600),
            stored: self.stored,
            unchanged: self.unchanged,
        }
    }

    /// Whether keeping copies of pages that are stored to is worth the comparison: it
    /// saves compressing those that are as they were.
    #[must_use]
    #[inline]
    pub const fn compares(self) -> bool {
        self.unchanged * self.pack_ns > WHOLE * self.compare_ns
    }

    /// What it costs to protect a written page that stays.
    const fn between_ns(self) -> u64 {
        self.page_ns + self.stored * self.open_ns / WHOLE
    }

    /// Whether two victims with `between` written pages between them, which stay, are
    /// protected in one call.
    #[must_use]
    #[inline]
    pub const fn joins(self, between: u64) -> bool {
        between.saturating_mul(self.between_ns()) <= self.call_ns
    }

    /// The credit from which a written page is spared. Sparing it costs another call, or
    /// its protection between two others. Where that is less than half of compressing the
    /// page, written pages are spared as others are. Half: as many pages leave all the
    /// same, and what is saved is a part of the compressions, that of pages which are
    /// stored to again before others would be.
    #[must_use]
    #[inline]
    pub const fn spares_from(self) -> u8 {
        let (call, between) = (self.call_ns, self.between_ns());
        let price = if call < between { call } else { between };
        if 2 * price <= self.pack_ns {
            1
        } else {
            DIRTY_CREDIT_MIN
        }
    }

    /// What one call of the background thread takes of the program: who makes it waits
    /// for the other processor's answer, in a virtual machine twice as long as that one
    /// is kept from its work (7 to 10 us of calls of 18 to 21, a thread that counts beside
    /// one that protects; x86-64, Linux 6.18, KVM).
    #[must_use]
    #[inline]
    pub const fn interrupt_ns(self) -> u64 {
        self.call_ns.saturating_sub(ALONE_NS) / 2
    }
}

/// What happened while some pages were evicted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Period {
    /// Pages evicted.
    pub evictions: u64,
    /// Faults, those that only opened a page among them.
    pub faults: u64,
    /// Time that these took, nanoseconds.
    pub fault_ns: u64,
    /// Calls of the background thread that changed the program's page tables.
    pub interrupts: u64,
    /// Time that the background thread evicted, nanoseconds.
    pub background_ns: u64,
    /// Time that passed, nanoseconds.
    pub elapsed_ns: u64,
}

impl Period {
    /// Part of the time that one thread of the program was in no fault, of [`WHOLE`].
    fn outside(&self) -> u64 {
        let inside = self.fault_ns + self.faults * SIGNAL_NS;
        let outside = self.elapsed_ns.saturating_sub(inside);
        outside * WHOLE / self.elapsed_ns.max(1)
    }

    /// What the program lost for each page evicted, nanoseconds, where an interrupt
    /// takes `interrupt_ns` of it. One that comes in the middle of a fault makes that
    /// longer, and counts there.
    fn loss(&self, interrupt_ns: u64) -> u64 {
        /// The background thread's processor is wanted by others now and then.
        const BACKGROUND_SHARE: u64 = 8;
        let lost = self.fault_ns
            + self.faults * SIGNAL_NS
            + self.interrupts * interrupt_ns * self.outside() / WHOLE
            + self.background_ns / BACKGROUND_SHARE;
        lost / self.evictions.max(1)
    }

    /// What it would lose if its threads did what the background thread did, in their
    /// faults: that one's calls wait twice as long as they interrupt, theirs do not.
    fn loss_without(&self, interrupt_ns: u64) -> u64 {
        let waited = 2 * self.interrupts * interrupt_ns;
        let work = self.background_ns.saturating_sub(waited);
        let lost = self.fault_ns + self.faults * SIGNAL_NS + work;
        lost / self.evictions.max(1)
    }
}

/// Pages evicted in a period: eight batches, so that one of them is little of it.
const PERIOD_EVICTIONS: u64 = 2048;

/// Pages evicted after a change before a period is judged: frames and protections of the
/// time before are gone then.
const SETTLING_EVICTIONS: u64 = 512;

/// Periods of a trial.
const TRIAL_PERIODS: u32 = 3;

/// Periods from one trial to the next, and before the first: as many at first, and at
/// most.
const PATIENCE_MIN: u32 = 64;
const PATIENCE_MAX: u32 = 192;

/// A trial of the faulting threads that does not promise much is made in the place of so
/// many. Trials cost programs 3 to 8 parts in 100 of their time where the other processor
/// was idle, and were an eighth of their evictions.
const UNLIKELY: u32 = 16;

/// Who evicts: judged by what the program loses, each tried now and then.
///
/// The faulting threads are tried where it looks as if they could be cheaper (what the
/// background thread does would take them less than its calls take of the program), and
/// else now and then. What is evicted first after a change is not judged. A trial ends with the first period
/// after which it does not look like a change for the better. The longer one is better,
/// the less often the other one is tried. Where both cost about the same the background
/// thread evicts: what a period costs is not known to an eighth.
#[derive(Debug, Clone, Copy)]
pub struct Turns {
    evictor: Evictor,
    /// What the one that evicts, and the other one, cost; 0: not known.
    loss: u64,
    other_loss: u64,
    /// What it is thought to cost without the background thread, while that one evicts.
    without: u64,
    /// Trials that were not made, as they promised little.
    skipped: u32,
    is_trial: bool,
    is_settling: bool,
    /// Periods until the next decision.
    left: u32,
    patience: u32,
}

impl Default for Turns {
    fn default() -> Self {
        Self {
            evictor: Evictor::Background,
            loss: 0,
            other_loss: 0,
            without: 0,
            skipped: 0,
            is_trial: false,
            is_settling: true,
            left: PATIENCE_MIN,
            patience: PATIENCE_MIN,
        }
    }
}

impl Turns {
    /// Who evicts now.
    #[must_use]
    pub const fn evictor(&self) -> Evictor {
        self.evictor
    }

    /// Pages to be evicted until [`ended`](Self::ended) is called next.
    #[must_use]
    pub const fn evictions(&self) -> u64 {
        if self.is_settling {
            SETTLING_EVICTIONS
        } else {
            PERIOD_EVICTIONS
        }
    }

    /// A period ended; an interrupt takes `interrupt_ns` of the program.
    pub fn ended(&mut self, period: &Period, interrupt_ns: u64) {
        if self.is_settling {
            self.is_settling = false;
            return;
        }
        let loss = period.loss(interrupt_ns).max(1);
        self.left = self.left.saturating_sub(1);
        if self.is_trial {
            let before = u64::from(TRIAL_PERIODS - 1 - self.left);
            self.loss = (self.loss * before + loss) / (before + 1);
            if self.left == 0 || self.loss > self.most_in_a_trial() {
                self.decide();
            }
            return;
        }
        self.loss = mean(self.loss, loss);
        self.without = mean(self.without, period.loss_without(interrupt_ns).max(1));
        if self.left == 0 {
            if !self.promises() && self.skipped < UNLIKELY - 1 {
                self.skipped += 1;
                self.left = self.patience;
                return;
            }
            self.skipped = 0;
            self.change();
            self.loss = 0;
            (self.is_trial, self.left) = (true, TRIAL_PERIODS);
        }
    }

    /// Whether the other evictor may be cheaper: the faulting threads by what is known of
    /// the work. No allowance: a part of all that is lost is more than what they differ in.
    const fn promises(&self) -> bool {
        match self.evictor {
            Evictor::Faulting => true,
            Evictor::Background => self.without < self.loss,
        }
    }

    /// What a trial costs at most to go on: the faulting threads have to be cheaper in the
    /// end, the background thread is to be seen to be dearer.
    const fn most_in_a_trial(&self) -> u64 {
        match self.evictor {
            Evictor::Faulting => self.other_loss,
            Evictor::Background => self.other_loss + self.other_loss / 4,
        }
    }

    /// A trial is over: the cheaper one goes on, the faulting threads if they are so by an
    /// eighth.
    fn decide(&mut self) {
        let (background, faulting) = match self.evictor {
            Evictor::Background => (self.loss, self.other_loss),
            Evictor::Faulting => (self.other_loss, self.loss),
        };
        let better = if faulting < background - background / 8 {
            Evictor::Faulting
        } else {
            Evictor::Background
        };
        if better == self.evictor {
            self.patience = PATIENCE_MIN;
        } else {
            self.change();
            self.patience = (2 * self.patience).min(PATIENCE_MAX);
        }
        (self.is_trial, self.left) = (false, self.patience);
    }

    const fn change(&mut self) {
        self.evictor = self.evictor.other();
        (self.loss, self.other_loss) = (self.other_loss, self.loss);
        self.without = 0;
        self.is_settling = true;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a page in a call takes.
    const PAGE_NS: u64 = 50;

    /// Bare metal, or one processor: a call costs what it does. `stored` of 1024.
    const fn free(stored: u64) -> Costs {
        Costs {
            call_ns: 900,
            page_ns: PAGE_NS,
            open_ns: 3300,
            pack_ns: 4400,
            compare_ns: 1600,
            stored,
            unchanged: 0,
        }
    }

    /// A virtual machine whose other processor runs the program.
    const fn dear(stored: u64) -> Costs {
        Costs {
            call_ns: 17_000,
            page_ns: PAGE_NS,
            open_ns: 20_000,
            pack_ns: 4400,
            compare_ns: 1600,
            stored,
            unchanged: 0,
        }
    }

    #[test]
    fn victims_are_joined_while_what_lies_between_costs_less_than_a_call() {
        for costs in [free(1024), dear(1024), free(0), dear(0)] {
            assert!(costs.joins(0), "nothing lies between");
        }
        // Every page between is stored to: a call each, whatever calls cost.
        assert!(!free(1024).joins(1) && !dear(1024).joins(1));
        // None is: one call, while the pages take less.
        assert!(free(0).joins(18) && !free(0).joins(19));
        assert!(dear(0).joins(340) && !dear(0).joins(341));
        // One in ten is.
        assert!(free(100).joins(2) && !free(100).joins(3));
        assert!(dear(100).joins(8) && !dear(100).joins(9));
    }

    /// A program of whose written pages `between` lie between any two victims, and what
    /// calls take there.
    struct Program {
        between: u64,
        call_ns: u64,
        page_ns: u64,
    }

    impl Program {
        /// A batch of 128 victims, by what is thought of calls.
        fn batch(&self, price: CallPrice) -> Protected {
            let costs = Costs {
                call_ns: price.call_ns,
                page_ns: price.page_ns,
                ..free(20)
            };
            let costs = costs.or_guessed();
            let took = |pages| self.call_ns + pages * self.page_ns;
            if !costs.joins(self.between) {
                return Protected {
                    alone_ns: 0,
                    calls: 128,
                    pages: 128,
                    ns: 128 * took(1),
                };
            }
            // All in one stretch, which is long.
            let pages = 127 + 127 * self.between;
            Protected {
                alone_ns: took(1),
                calls: 1,
                pages,
                ns: took(pages),
            }
        }
    }

    #[test]
    fn what_pages_take_makes_no_call_dear() {
        for call_ns in [900, 17_000] {
            for between in [0, 1, 5, 40, 700] {
                for page_ns in [50, 200] {
                    let program = Program {
                        between,
                        call_ns,
                        page_ns,
                    };
                    // Nothing known, and calls thought ten times as dear as they are.
                    let dear = CallPrice {
                        call_ns: 10 * call_ns,
                        page_ns: 1,
                    };
                    for mut price in [CallPrice::default(), dear] {
                        for _ in 0..200 {
                            price = price.after(&program.batch(price));
                        }
                        let found = price.call_ns;
                        assert!(
                            (call_ns * 9 / 10..=call_ns * 5 / 4).contains(&found),
                            "a call of {call_ns} ns, {page_ns} a page, {between} pages \
                             between: {price:?}"
                        );
                    }
                }
            }
        }
    }

    #[test]
    fn written_pages_are_spared_where_that_costs_less_than_compressing_them() {
        assert_eq!(free(1024).spares_from(), 1);
        assert_eq!(dear(1024).spares_from(), DIRTY_CREDIT_MIN);
        // Pages between are hardly stored to.
        assert_eq!(dear(100).spares_from(), 1);
        assert_eq!(dear(150).spares_from(), DIRTY_CREDIT_MIN);
        let unknown = Costs {
            call_ns: 0,
            page_ns: 0,
            open_ns: 0,
            pack_ns: 0,
            compare_ns: 0,
            stored: WHOLE / 2,
            unchanged: 0,
        };
        assert_eq!(unknown.or_guessed().spares_from(), 1);
    }

    #[test]
    fn copies_are_compared_where_enough_pages_are_what_they_were() {
        let compares = |unchanged, compare_ns| {
            Costs {
                unchanged,
                compare_ns,
                ..free(0)
            }
            .compares()
        };
        // 93 % are in a dictionary of Python's, 15 % in arrays that are counted up.
        assert!(compares(WHOLE * 93 / 100, 1600));
        assert!(!compares(WHOLE * 15 / 100, 1600));
        // A codec that compresses as fast as a page is compared.
        assert!(!compares(WHOLE, 4400));
    }

    #[test]
    fn means_follow_and_outliers_move_them_little() {
        assert_eq!(mean(0, 700), 700);
        let mut now = 1000;
        for _ in 0..60 {
            now = mean(now, 17_000);
        }
        assert!((15_000..=17_000).contains(&now), "{now}");
        assert_eq!(mean(1000, 50_000_000), 1375);
        assert_eq!(mean(1, 0), 1, "0 means that nothing was measured");
    }

    #[test]
    fn medians_follow_and_outliers_do_not_count_by_their_size() {
        assert_eq!(median(0, 700), 700);
        let mut now = 1_000_000;
        for _ in 0..200 {
            now = median(now, 900);
        }
        assert!((800..=1000).contains(&now), "{now}");
        // Two calls of five are interrupted for a millisecond.
        for call in 0..1000 {
            now = median(now, if call % 5 < 2 { 1_000_000 } else { 900 });
        }
        assert!((800..=1100).contains(&now), "{now}");
        assert_eq!(median(1, 0), 1, "0 means that nothing was measured");
    }

    #[test]
    fn chances_begin_with_the_guess_and_forget_it() {
        assert_eq!(chance(0, 0, 512), 512);
        assert!(chance(0, 4096, 512) < 8);
        assert!(chance(4096, 4096, 512) > 1016);
        assert!(chance(9, 4, 512) <= WHOLE, "more hits than tries");
    }

    /// A machine: what a period costs under each evictor. A faulting thread compresses
    /// for itself; the background thread interrupts with `calls` calls a batch of 128,
    /// and each page opened costs more while it runs.
    struct Machine {
        interrupt_ns: u64,
        calls: u64,
        opened: u64,
    }

    impl Machine {
        fn period(&self, evictor: Evictor) -> Period {
            let evictions = PERIOD_EVICTIONS;
            let batches = evictions / 128;
            let open_ns = 3000;
            let restore_ns = 3000 * evictions;
            let faults = evictions + self.opened * batches;
            // Few of the interrupts come in the middle of a fault.
            let elapsed_ns = 40 * restore_ns;
            match evictor {
                Evictor::Faulting => Period {
                    elapsed_ns,
                    evictions,
                    faults,
                    fault_ns: restore_ns
                        + 4400 * evictions
                        + batches * (self.calls * 1000 + self.opened * open_ns),
                    interrupts: 0,
                    background_ns: 0,
                },
                Evictor::Background => Period {
                    elapsed_ns,
                    evictions,
                    faults,
                    fault_ns: restore_ns + batches * self.opened * (open_ns + self.interrupt_ns),
                    interrupts: batches * self.calls,
                    background_ns: 4400 * evictions + batches * self.calls * self.interrupt_ns,
                },
            }
        }

        /// Of so many periods, those in which the background thread evicted.
        fn background(&self, periods: usize) -> usize {
            let mut turns = Turns::default();
            let mut background = 0;
            for _ in 0..periods {
                background += usize::from(turns.evictor() == Evictor::Background);
                turns.ended(&self.period(turns.evictor()), self.interrupt_ns);
            }
            background
        }
    }

    #[test]
    fn where_interrupts_are_free_the_background_thread_evicts() {
        let machine = Machine {
            interrupt_ns: 0,
            calls: 60,
            opened: 40,
        };
        assert!(machine.background(1000) > 900);
    }

    #[test]
    fn where_interrupts_cost_the_faulting_thread_evicts_what_takes_many() {
        let machine = Machine {
            interrupt_ns: 17_000,
            calls: 60,
            opened: 40,
        };
        assert!(machine.background(1000) < 100);
    }

    #[test]
    fn where_interrupts_cost_the_background_thread_evicts_what_takes_few() {
        let machine = Machine {
            interrupt_ns: 17_000,
            calls: 2,
            opened: 0,
        };
        assert!(machine.background(1000) > 900);
    }

    #[test]
    fn who_evicts_changes_with_the_program() {
        let many = Machine {
            interrupt_ns: 17_000,
            calls: 60,
            opened: 40,
        };
        let few = Machine {
            calls: 2,
            opened: 0,
            ..many
        };
        let mut turns = Turns::default();
        for machine in [&few, &many, &few] {
            for _ in 0..400 {
                turns.ended(&machine.period(turns.evictor()), machine.interrupt_ns);
            }
            let mut background = 0;
            for _ in 0..100 {
                background += u32::from(turns.evictor() == Evictor::Background);
                turns.ended(&machine.period(turns.evictor()), machine.interrupt_ns);
            }
            let expected = machine.calls == 2;
            assert_eq!(background > 50, expected, "{background} of 100");
        }
    }

    #[test]
    fn where_both_cost_about_the_same_the_background_thread_evicts() {
        let dear = Machine {
            interrupt_ns: 8000,
            calls: 60,
            opened: 40,
        };
        let mut turns = Turns::default();
        for _ in 0..400 {
            turns.ended(&dear.period(turns.evictor()), dear.interrupt_ns);
        }
        assert_eq!(turns.evictor(), Evictor::Faulting);
        // The faulting threads cost a sixteenth less, then as much.
        for less in [960, 1024] {
            for period in 0..600_u64 {
                let cost = match turns.evictor() {
                    Evictor::Background => 1024,
                    Evictor::Faulting => less,
                };
                // Seen with an error of a sixteenth.
                let seen = cost * (15 + period * 7 % 3) / 16;
                let period = Period {
                    evictions: PERIOD_EVICTIONS,
                    fault_ns: 10 * seen * PERIOD_EVICTIONS,
                    ..Period::default()
                };
                turns.ended(&period, 0);
            }
            assert_eq!(turns.evictor(), Evictor::Background);
        }
    }

    #[test]
    fn interrupts_of_a_program_that_does_little_but_fault_count_once() {
        let period = |elapsed_ns| Period {
            evictions: 2048,
            faults: 2048,
            fault_ns: 2048 * 13_000,
            interrupts: 1200,
            background_ns: 0,
            elapsed_ns,
        };
        let inside = 2048 * (13_000 + SIGNAL_NS);
        let alone = period(inside).loss(0);
        assert_eq!(period(inside).loss(9000), alone);
        assert_eq!(period(2 * inside).loss(9000), alone + 1200 * 4500 / 2048);
        // Two threads in faults at once.
        assert_eq!(period(inside / 2).loss(9000), alone);
    }

    /// Of so many periods that are judged, those in which the faulting threads evict.
    fn faulting(periods: u32, interrupt_ns: u64, mut period: impl FnMut(Evictor) -> Period) -> u32 {
        let mut turns = Turns::default();
        let (mut faulting, mut judged) = (0, 0);
        while judged < periods {
            let is_judged = !turns.is_settling;
            judged += u32::from(is_judged);
            faulting += u32::from(is_judged && turns.evictor() == Evictor::Faulting);
            turns.ended(&period(turns.evictor()), interrupt_ns);
        }
        faulting
    }

    #[test]
    fn a_trial_that_is_no_better_is_over_after_a_period() {
        // The background thread looks as if it did nothing but wait.
        let lost = |ns| Period {
            evictions: PERIOD_EVICTIONS,
            fault_ns: ns * PERIOD_EVICTIONS,
            background_ns: 10 * PERIOD_EVICTIONS,
            ..Period::default()
        };
        let same = |evictor| match evictor {
            Evictor::Background => Period {
                interrupts: PERIOD_EVICTIONS,
                elapsed_ns: 1 << 40,
                ..lost(4000)
            },
            Evictor::Faulting => lost(4002),
        };
        // As cheap as that is, each goes on for three.
        assert_eq!(faulting(1000, 10, same), 3 * 6);
        let dearer = |evictor| match evictor {
            Evictor::Background => same(evictor),
            Evictor::Faulting => lost(4100),
        };
        // After 64, 128, and 192 each time.
        assert_eq!(faulting(1000, 10, dearer), 6);
    }

    #[test]
    fn what_promises_little_is_hardly_ever_tried() {
        let free = Machine {
            interrupt_ns: 0,
            calls: 2,
            opened: 0,
        };
        // Evicting in its fault takes a thread longer than having it done by another.
        let periods = UNLIKELY * PATIENCE_MIN;
        assert_eq!(faulting(periods, 0, |evictor| free.period(evictor)), 0);
        assert_eq!(faulting(periods + 2, 0, |evictor| free.period(evictor)), 1);
    }

    #[test]
    fn a_short_program_is_no_place_for_a_trial() {
        let mut turns = Turns::default();
        let free = Machine {
            interrupt_ns: 0,
            calls: 2,
            opened: 0,
        };
        assert_eq!(turns.evictions(), SETTLING_EVICTIONS);
        for _ in 0..PATIENCE_MIN {
            turns.ended(&free.period(turns.evictor()), 0);
            assert_eq!(turns.evictor(), Evictor::Background);
            assert_eq!(turns.evictions(), PERIOD_EVICTIONS);
        }
    }
}
