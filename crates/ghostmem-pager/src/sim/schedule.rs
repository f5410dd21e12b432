//! Who goes on: the actors of a run, each on a stack of its own, one at a time.
//!
//! ```text
//!   actors 1..8   threads of the program, an operation each
//!   actor 9       a turn of the reclaimer
//!   actor 10      a turn of the demoter
//!
//!   point         before each change of a page word, before and after each call of the
//!                 kernel, at each wait and each wake: a *step* goes from one to the next.
//!                 A look at a page word is a point, too, and a step only where another
//!                 actor goes on there.
//! ```
//! At each point the plan decides whether the actor goes on, another one does, or the next
//! operation begins. In most runs some actors that give way are stalled: the others do up to
//! some hundred operations before these go on. An actor that sleeps goes on when it is
//! woken, or when the clock has come to the end of its sleep; the clock is put forward when
//! nobody else can run.

use std::cell::{Cell, RefCell};

use ghostmem_fault::sim::{Simulation, give_way};
use ghostmem_os::sim as system;

use crate::sim::plan::{END, Op, Plan, Script, Verb};

mod kernel;
mod options;

/// Threads of the program.
pub(crate) const PROGRAM: usize = 8;
const RECLAIMER: usize = PROGRAM;
const DEMOTER: usize = PROGRAM + 1;
pub(crate) const ACTORS: usize = PROGRAM + 2;
const NOBODY: usize = ACTORS;

/// Time that a step takes, and a wait for another actor.
const STEP_NS: u64 = 100;
const PAUSE_NS: u64 = 5_000;

/// Points without an operation that ends, before the run counts as hung.
const HUNG: u64 = 20_000_000;

/// What an actor is about.
pub(crate) struct Actor {
    /// It is in the middle of this operation.
    busy: Cell<bool>,
    op: Cell<u32>,
    pub(crate) job: Cell<Op>,
    /// Points that it has come to.
    point: Cell<u32>,
    /// When it wakes by itself; 0: it is awake.
    until_ns: Cell<u64>,
    /// On what it sleeps.
    word: Cell<usize>,
    /// It stays where it is until the run has so many steps.
    stalled_until: Cell<u64>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Next {
    Start,
    Resume(usize),
}

/// What was done.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Counts {
    pub(crate) steps: u64,
    /// Looks at page words at which the actor went on.
    pub(crate) looks: u64,
    pub(crate) switches: u64,
    pub(crate) ops: u64,
    pub(crate) runs: u64,
}

pub(crate) struct Schedule {
    plan: RefCell<Plan>,
    pub(crate) actors: [Actor; ACTORS],
    current: Cell<usize>,
    next: Cell<Option<Next>>,
    /// The actor that is alone.
    alone: Cell<bool>,
    counts: Cell<Counts>,
    /// Of this run.
    steps: Cell<u64>,
    since_end: Cell<u64>,
    /// Operations and decisions are printed.
    pub(crate) tells: Cell<bool>,
}

std::thread_local! {
    static HERE: Cell<Option<&'static Schedule>> = const { Cell::new(None) };
}

pub(crate) fn here(act: impl FnOnce(&'static Schedule)) {
    if let Some(schedule) = HERE.get() {
        act(schedule);
    }
}

impl Schedule {
    /// The calling thread's, which lives as long as the process.
    pub(crate) fn new() -> &'static Self {
        let idle = Op {
            verb: Verb::Time,
            at: 0,
            how: 0,
        };
        let actor = || Actor {
            busy: Cell::new(false),
            op: Cell::new(0),
            job: Cell::new(idle),
            point: Cell::new(0),
            until_ns: Cell::new(0),
            word: Cell::new(0),
            stalled_until: Cell::new(0),
        };
        let schedule: &'static Self = Box::leak(Box::new(Self {
            plan: RefCell::new(Plan::of_seed(0, 0, false)),
            actors: core::array::from_fn(|_| actor()),
            current: Cell::new(NOBODY),
            next: Cell::new(None),
            alone: Cell::new(false),
            counts: Cell::default(),
            steps: Cell::new(0),
            since_end: Cell::new(0),
            tells: Cell::new(false),
        }));
        HERE.set(Some(schedule));
        schedule
    }

    /// The calling thread's, if there is one.
    pub(crate) fn current() -> Option<&'static Self> {
        HERE.get()
    }

    pub(crate) fn counts(&self) -> Counts {
        self.counts.get()
    }

    fn count(&self, act: impl FnOnce(&mut Counts)) {
        let mut counts = self.counts.get();
        act(&mut counts);
        self.counts.set(counts);
    }

    pub(crate) fn steps(&self) -> u64 {
        self.steps.get()
    }

    /// What was recorded so far.
    pub(crate) fn recorded(&self) -> Option<Script> {
        self.plan.try_borrow().ok()?.record.clone()
    }

    /// Of the actor that runs, for messages.
    pub(crate) fn whereabouts(&self) -> String {
        match self.actors.get(self.current.get()) {
            Some(actor) => format!(
                "operation {} ({}), point {}",
                actor.op.get(),
                actor.job.get().verb.name(),
                actor.point.get()
            ),
            None => "between operations".to_owned(),
        }
    }

    /// Runs `act` without a point in it.
    pub(crate) fn at_once<R>(&self, act: impl FnOnce() -> R) -> R {
        let current = self.current.replace(NOBODY);
        let result = act();
        self.current.set(current);
        result
    }

    /// Something gets on within an operation that takes very long.
    pub(crate) fn gets_on(&self) {
        self.since_end.set(0);
    }

    fn tell(&self, what: impl FnOnce() -> String) {
        if self.tells.get() {
            println!("{}", what());
        }
    }

    // Points.

    fn next_point(&self, actor: &Actor) -> (u32, u32) {
        let point = actor.point.get() + 1;
        actor.point.set(point);
        let since = self.since_end.get() + 1;
        self.since_end.set(since);
        assert!(since < HUNG, "no operation gets to its end");
        (actor.op.get(), point)
    }

    fn step(&self) {
        self.steps.set(self.steps.get() + 1);
        self.count(|counts| counts.steps += 1);
    }

    pub(crate) fn at_point(&self, is_look: bool) {
        let current = self.current.get();
        let Some(actor) = self.actors.get(current) else {
            return;
        };
        let at = self.next_point(actor);
        let switch = self.plan.borrow().setting.switch;
        let odds = match is_look {
            true => switch / 8,
            false => switch,
        };
        if !is_look {
            self.step();
            system::advance(STEP_NS);
        }
        let Some(next) = self.decide(current, at, Some(odds)) else {
            if is_look {
                self.count(|counts| counts.looks += 1);
            }
            return;
        };
        if is_look {
            self.step();
        }
        self.stall(actor, at);
        self.go_on_elsewhere(at, Some(next));
    }

    fn go_on_elsewhere(&self, (op, point): (u32, u32), next: Option<Next>) {
        self.count(|counts| counts.switches += 1);
        if let Some(next) = next {
            let to = self.choice_of(next);
            self.tell(|| format!("    operation {op} is at its point {point}: {to}"));
        }
        self.next.set(next);
        give_way();
    }

    /// The actor that runs cannot go on now.
    fn block(&self, actor: &Actor) {
        let at = self.next_point(actor);
        self.step();
        let next = self.decide(self.current.get(), at, None);
        self.go_on_elsewhere(at, next);
        actor.until_ns.set(0);
    }

    pub(crate) fn wait(&self, word: usize, until_ns: u64) {
        let now = system::now_ns().unwrap_or(0);
        let Some(actor) = self.actors.get(self.current.get()) else {
            return system::advance(until_ns - now);
        };
        actor.word.set(word);
        actor.until_ns.set(until_ns.max(now + 1));
        self.block(actor);
    }

    pub(crate) fn wake(&self, word: usize) {
        for actor in &self.actors {
            if actor.until_ns.get() != 0 && actor.word.get() == word {
                actor.until_ns.set(0);
            }
        }
        self.at_point(false);
    }

    pub(crate) fn pause(&self) {
        system::advance(PAUSE_NS);
        if let Some(actor) = self.actors.get(self.current.get()) {
            self.block(actor);
        }
    }

    // A run.

    /// A run begins.
    pub(crate) fn begin_run(&self, plan: Plan) {
        *self.plan.borrow_mut() = plan;
        self.steps.set(0);
        self.since_end.set(0);
        self.count(|counts| counts.runs += 1);
    }

    /// Who goes on now; `None`: the run is over.
    pub(crate) fn next(&self) -> Option<usize> {
        loop {
            match self.next.take().or_else(|| self.pick())? {
                Next::Resume(at) => return Some(at),
                // Nothing begins where the steps ended with the one that chose it.
                Next::Start => match self.begin() {
                    Some(at) => return Some(at),
                    None => continue,
                },
            }
        }
    }

    /// Who goes on when nobody was chosen: whoever can, or who wakes first.
    fn pick(&self) -> Option<Next> {
        let (options, count) = self.options(NOBODY);
        if count > 0 {
            return Some(options[0]);
        }
        let asleep = (0..ACTORS).filter(|&at| self.actors[at].busy.get());
        let first = asleep.min_by_key(|&at| self.actors[at].until_ns.get())?;
        let until = self.actors[first].until_ns.get();
        system::advance(until.saturating_sub(system::now_ns().unwrap_or(0)));
        Some(Next::Resume(first))
    }

    /// Gives the next operation to an actor.
    fn begin(&self) -> Option<usize> {
        let next = self.plan.borrow().peek(self.steps.get());
        let (id, op) = next?;
        self.plan.borrow_mut().advance(Some((id, op)));
        let at = match op.verb {
            Verb::Reclaimer => RECLAIMER,
            Verb::Demoter => DEMOTER,
            _ => (0..PROGRAM).find(|&at| !self.actors[at].busy.get())?,
        };
        self.tell(|| format!("operation {id}, actor {}: {}", at + 1, op.verb.name()));
        let actor = &self.actors[at];
        actor.busy.set(true);
        actor.op.set(id);
        actor.job.set(op);
        actor.point.set(0);
        actor.until_ns.set(0);
        actor.stalled_until.set(0);
        self.alone.set(op.verb.is_alone());
        Some(at)
    }

    /// An actor goes on, as soon as its stack is resumed.
    pub(crate) fn enter(&self, sim: &Simulation, at: usize) {
        let actor = &self.actors[at];
        sim.set_step(self.steps.get());
        sim.note(u64::from(actor.op.get()) << 32 | u64::from(actor.point.get()));
        self.current.set(at);
        system::set_actor(at + 1);
    }

    /// It gave way, with its operation over or not.
    pub(crate) fn leave(&self, at: usize, is_over: bool) {
        let actor = &self.actors[at];
        system::set_actor(0);
        self.current.set(NOBODY);
        if is_over {
            actor.busy.set(false);
            self.alone.set(false);
            self.gets_on();
            self.count(|counts| counts.ops += 1);
            self.step();
            let next = self.decide(at, (actor.op.get(), END), None);
            self.next.set(next);
        }
    }
}
