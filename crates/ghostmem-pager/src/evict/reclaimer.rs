//! The background thread: keeps frames free ahead of demand, and the store
//! dense.
//!
//! Where faulting threads keep every processor busy it would only take turns
//! with them, and where interrupts are dear its calls take more of the program than
//! they save ([`Turns`]): it stands back then, and they evict for themselves, a batch
//! when there is no frame left. What changes no page table of the program, the
//! compaction of the store, stays its own.
//!
//! It owns no ghost memory (its stack is our own mapping and it allocates
//! nothing), so it never faults on what it manages.

use core::fmt::Write as _;
use core::sync::atomic::Ordering;
use core::time::Duration;

use ghostmem_os::map::MapArc;
use ghostmem_os::message::Line;
use ghostmem_os::thread::EngineThread;
use ghostmem_os::{OsError, PAGE_SIZE, clock, futex, machine, stop};
use ghostmem_policy::costs::{Evictor, Period, Turns};
use ghostmem_policy::hand::{self, EVICT_BATCH_PAGES};
use ghostmem_policy::pace::Pace;
use ghostmem_policy::thrash::{Spent, Thrash};

use crate::evict::slowdown::SlowdownLooks;
use crate::parts::bound::ProcessBound;
use crate::parts::engine::Engine;
use crate::parts::metrics::Counter;

/// How long the thread sleeps between two looks at a heap in use.
const TICK: Duration = Duration::from_millis(200);

/// How long it stands back before it looks again whether a processor is free, and what
/// the store needs.
const STANDS_BACK: Duration = Duration::from_millis(20);

/// How long the thread of a heap that nobody uses sleeps.
const IDLE: Duration = Duration::from_secs(2);

/// What the background thread remembers from turn to turn.
pub(crate) struct Reclaimer {
    processors: usize,
    pace: Pace,
    /// Evictions at the end of the last turn.
    evictions: u64,
    thrash: Thrash,
    slowdown: SlowdownLooks,
    /// The standard error stream as it was: a program may have put data of its own there
    /// since, which gets no advice.
    error_stream: Option<[u64; 2]>,
    turns: Turns,
    /// What had happened when the period began that `turns` hears of next.
    begun: Period,
}

impl Reclaimer {
    pub(crate) fn new(processors: usize) -> Self {
        Self {
            processors,
            pace: Pace::new(clock::now_ns()),
            evictions: 0,
            thrash: Thrash::default(),
            slowdown: SlowdownLooks::default(),
            error_stream: stop::error_stream(),
            turns: Turns::default(),
            begun: Period::default(),
        }
    }
}

impl Engine {
    pub(crate) fn start_worker(this: &MapArc<Self>) -> Result<(), OsError> {
        let thread = EngineThread::spawn_with(c"ghost-evict", this.clone(), reclaimer_main)?;
        *this.worker.thread.lock() = Some(thread);
        Ok(())
    }

    /// Waits for the worker to end, which [`Engine::ends_threads`] tells it; whether there was one.
    pub(crate) fn stop_worker(&self) -> bool {
        let thread = self.worker.thread.lock().take();
        let was_there = thread.is_some();
        if let Some(thread) = thread {
            self.worker.asleep.store(0, Ordering::Release);
            futex::wake_all(&self.worker.asleep);
            thread.join();
        }
        was_there
    }

    /// In a forked child the worker does not exist; start a new one, or go on
    /// without (faulting threads then evict for themselves). `stood_aside`: there may have been
    /// one that its parent waits for.
    pub(crate) fn restart_worker_after_fork(&self, stood_aside: bool) {
        let lost = self.worker.thread.lock().take();
        if lost.is_some() || stood_aside && self.config.background {
            if let Some(lost) = lost {
                lost.forget_after_fork();
            }
            let handle = self.handle();
            if let Some(handle) = handle.filter(|_| self.config.background_in_children) {
                let _without = Self::start_worker(&handle);
            }
        }
    }

    /// Fewer free frames than this wake the worker; 0 where faulting threads
    /// evict for themselves.
    pub(crate) fn low_watermark(&self) -> i64 {
        if !self.config.background || self.worker.stands_back.load(Ordering::Relaxed) {
            return 0;
        }
        hand::low_watermark(self.budget.limit())
    }

    pub(crate) fn wake_worker(&self) {
        if !self.worker.stands_back.load(Ordering::Relaxed) {
            self.worker.rouse();
        }
    }

    /// One turn of the background thread: how long it rests now, unless it is woken;
    /// `None` when it goes on at once.
    pub(crate) fn reclaimer_step(&self, reclaimer: &mut Reclaimer) -> Option<Duration> {
        self.worker.asleep.store(0, Ordering::Relaxed);
        self.look_at_slowdown(&mut reclaimer.slowdown);
        let filled = self.refill(reclaimer);
        self.compact_if_needed(&mut reclaimer.pace);
        if self.config.report_thrashing {
            self.look_for_thrashing(reclaimer);
        }
        let crowded = self.threads.active_since() >= reclaimer.processors;
        self.take_turns(reclaimer);
        let is_faulting = reclaimer.turns.evictor() == Evictor::Faulting;
        self.worker
            .stands_back
            .store(crowded || is_faulting, Ordering::Relaxed);
        self.worker.asleep.store(1, Ordering::SeqCst);
        // When nothing can be evicted, trying again at once would only burn
        // the processor.
        let rest = !filled || self.budget.free() >= self.low_watermark();
        if !rest || self.ends_threads() {
            return None;
        }
        // An idle heap needs no looking after.
        let idle = self.evictions() == reclaimer.evictions;
        let nap = match (crowded || is_faulting, idle && filled) {
            (true, false) => STANDS_BACK,
            // Nobody wakes it.
            (true, true) => TICK,
            (false, true) => IDLE,
            (false, false) => TICK,
        };
        let unwatched = |bound: &ProcessBound| bound.unwatched(self.budget.used());
        let nap = self
            .bound
            .as_ref()
            .map_or(nap, |bound| nap.min(unwatched(bound)));
        let nap = match &self.slowdown {
            Some(_) => nap.min(reclaimer.slowdown.nap()),
            None => nap,
        };
        let nap_for_store = reclaimer.pace.nap();
        reclaimer.evictions = self.evictions();
        Some(nap_for_store.map_or(nap, |nap_for_store| nap.min(nap_for_store)))
    }

    /// Says once that the program does little but fault.
    fn look_for_thrashing(&self, reclaimer: &mut Reclaimer) {
        let now_ns = clock::now_ns();
        if !reclaimer.thrash.is_due(now_ns) {
            return;
        }
        let Some(processor_ns) = clock::process_ns() else {
            return;
        };
        let spent = Spent {
            now_ns,
            faults_ns: self.metrics.latency().total_ns() + self.costs.background_ns(),
            processor_ns,
        };
        let is_there = stop::error_stream().is_some_and(|now| reclaimer.error_stream == Some(now));
        if reclaimer.thrash.look(spent) && is_there {
            say_thrashing(self.budget.limit(), self.plain_bytes(), self.bound.as_ref());
        }
    }

    /// Evicts until the high watermark is reached; `false` when nothing more
    /// goes before that.
    fn refill(&self, reclaimer: &mut Reclaimer) -> bool {
        let low = self.low_watermark();
        let high = hand::high_watermark(low);
        self.look();
        while self.budget.free() < high && !self.ends_threads() {
            let Ok(pool) = ghostmem_fault::scratch() else {
                return false;
            };
            if self.is_demoter_behind() {
                // Ahead of demand is too soon; who writes waits for the file.
                return false;
            }
            let inside = ghostmem_fault::gate().enter();
            let mut scratch = pool.lease();
            let start = clock::now_ns();
            let freed = self.reclaim(EVICT_BATCH_PAGES, Evictor::Background, &mut scratch);
            self.costs.evicted_in_background(clock::now_ns() - start);
            drop(scratch);
            drop(inside);
            if freed == 0 {
                return false;
            }
            self.compact_if_needed(&mut reclaimer.pace);
            self.look();
            self.look_at_slowdown(&mut reclaimer.slowdown);
            self.take_turns(reclaimer);
            if self.worker.stands_back.load(Ordering::Relaxed) {
                break;
            }
        }
        true
    }

    /// Decides who evicts, once enough was evicted since the last time to tell.
    fn take_turns(&self, reclaimer: &mut Reclaimer) {
        let evictions = self.evictions();
        if evictions.saturating_sub(reclaimer.begun.evictions) < reclaimer.turns.evictions() {
            return;
        }
        let now = self.so_far(evictions);
        let begun = core::mem::replace(&mut reclaimer.begun, now);
        let period = Period {
            evictions: now.evictions - begun.evictions,
            faults: now.faults.saturating_sub(begun.faults),
            fault_ns: now.fault_ns.saturating_sub(begun.fault_ns),
            interrupts: now.interrupts.saturating_sub(begun.interrupts),
            background_ns: now.background_ns.saturating_sub(begun.background_ns),
            elapsed_ns: now.elapsed_ns.saturating_sub(begun.elapsed_ns),
        };
        let before = reclaimer.turns.evictor();
        let interrupt_ns = self.costs.of(Evictor::Background).interrupt_ns();
        reclaimer.turns.ended(&period, interrupt_ns);
        let evictor = reclaimer.turns.evictor();
        if evictor != before {
            self.metrics.add(Counter::evictor_changes, 1);
            let stands_back = evictor == Evictor::Faulting;
            self.worker
                .stands_back
                .store(stands_back, Ordering::Relaxed);
        }
    }

    /// What happened since the heap was made.
    fn so_far(&self, evictions: u64) -> Period {
        let sum = |counter| self.metrics.sum(counter);
        Period {
            evictions,
            faults: sum(Counter::faults)
                + sum(Counter::write_faults)
                + sum(Counter::opened_between)
                + sum(Counter::evictions_cancelled),
            fault_ns: sum(Counter::fault_ns),
            interrupts: self.costs.interrupts(),
            background_ns: self.costs.background_ns(),
            elapsed_ns: clock::now_ns(),
        }
    }
}

/// One line, without an allocation, with the number that would help.
#[cold]
fn say_thrashing(limit_pages: i64, plain_bytes: usize, bound: Option<&ProcessBound>) {
    let mib = |bytes: usize| bytes.div_ceil(1 << 20);
    let resident = limit_pages.max(0) as usize * PAGE_SIZE;
    let mut line = Line::new();
    // Cut off where it is too long.
    let _written = write!(
        line,
        "for some seconds most of the time went into faults: {} of {} MiB of pages may \
         stay uncompressed; ",
        mib(resident),
        mib(plain_bytes)
    );
    let _written = match bound {
        // An eighth at most stays free.
        Some(bound) => write!(
            line,
            "with memory of {}M all would",
            mib((plain_bytes + bound.other_bytes()) / 7 * 8)
        ),
        None => write!(line, "with a limit of {}M all would", mib(plain_bytes)),
    };
    let _written = line.write_str(", and less than that may do: see docs/run.md");
    line.print();
}

fn reclaimer_main(engine: &Engine) {
    let mut reclaimer = Reclaimer::new(machine::cpus());
    while !engine.ends_threads() {
        if let Some(nap) = engine.reclaimer_step(&mut reclaimer) {
            futex::wait(&engine.worker.asleep, 1, nap);
        }
    }
}
