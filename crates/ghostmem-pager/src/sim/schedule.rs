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

use ghostmem_fault::sim::{Answer, Call, Simulation, give_way};
use ghostmem_os::sim as system;

use crate::sim::plan::{Choice, Drawn, END, Op, Plan, Script, Verb};

/// Threads of the program.
pub(crate) const PROGRAM: usize = 8;
const RECLAIMER: usize = PROGRAM;
const DEMOTER: usize = PROGRAM + 1;
pub(crate) const ACTORS: usize = PROGRAM + 2;
const NOBODY: usize = ACTORS;

/// Time that a step takes, and a wait for another actor.
const STEP_NS: u64 = 100;
const PAUSE_NS: u64 = 5_000;

/// Steps that a stalled actor stays where it is, at least; 128 times as many at most.
const STALL_STEPS: u64 = 32;

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

    /// The verb of the operation that runs.
    fn verb(&self) -> Option<Verb> {
        Some(self.actors.get(self.current.get())?.job.get().verb)
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

    // Who could go on.

    fn can_run(&self, at: usize) -> bool {
        let actor = &self.actors[at];
        let until = actor.until_ns.get();
        actor.busy.get() && (until == 0 || until <= system::now_ns().unwrap_or(0))
    }

    /// Whether the next operation can begin. Turns of a thread that is in the middle of
    /// one are left out.
    fn can_start(&self) -> bool {
        if self.alone.get() {
            return false;
        }
        loop {
            let next = self.plan.borrow().peek(self.steps.get());
            let Some((_, op)) = next else {
                return false;
            };
            return match op.verb {
                Verb::Reclaimer if self.actors[RECLAIMER].busy.get() => {
                    self.plan.borrow_mut().advance(None);
                    continue;
                }
                Verb::Demoter if self.actors[DEMOTER].busy.get() => {
                    self.plan.borrow_mut().advance(None);
                    continue;
                }
                Verb::Reclaimer | Verb::Demoter => true,
                verb if verb.is_alone() => !self.actors.iter().any(|actor| actor.busy.get()),
                _ => self.actors[..PROGRAM].iter().any(|actor| !actor.busy.get()),
            };
        }
    }

    /// Everybody but `not` who could go on, the default first.
    fn options(&self, not: usize) -> ([Next; ACTORS + 1], usize) {
        let mut options = [Next::Start; ACTORS + 1];
        let mut count = 0;
        for step in 1..=ACTORS {
            let at = (not + step) % (ACTORS + 1);
            if at < ACTORS && at != not && self.can_run(at) {
                options[count] = Next::Resume(at);
                count += 1;
            }
        }
        if self.can_start() {
            options[count] = Next::Start;
            count += 1;
        }
        (options, count)
    }

    fn choice_of(&self, next: Next) -> Choice {
        match next {
            Next::Start => Choice::Start,
            Next::Resume(at) => Choice::Run(self.actors[at].op.get()),
        }
    }

    /// Who goes on instead of actor `not`, where it may not, or the plan wants somebody else
    /// to in so many of 1024 cases.
    fn decide(&self, not: usize, (op, point): (u32, u32), odds: Option<u64>) -> Option<Next> {
        let drawn = self.plan.borrow().drawn(op, point);
        if let (Drawn::Random(random), Some(odds)) = (&drawn, odds)
            && random & 1023 >= odds
        {
            return None;
        }
        if let (Drawn::Written(None), Some(_)) = (&drawn, odds) {
            return None;
        }
        let (options, count) = self.options(not);
        let options = &options[..count];
        let next = match drawn {
            Drawn::Random(_) if count == 0 => None,
            Drawn::Random(random) => Some(self.draw(options, random >> 32)),
            Drawn::Written(choice) => {
                let written = options
                    .iter()
                    .find(|&&next| choice == Some(self.choice_of(next)));
                // What must go on somewhere does so at the default.
                let default = options.first().filter(|_| odds.is_none());
                written.or(default).copied()
            }
        }?;
        if odds.is_some() || Some(&next) != options.first() {
            let choice = self.choice_of(next);
            self.plan.borrow_mut().note(op, point, choice);
        }
        Some(next)
    }

    /// One of `options`; a stalled actor only where all of them are stalled.
    fn draw(&self, options: &[Next], random: u64) -> Next {
        let steps = self.steps.get();
        let goes_on = |next: &&Next| match **next {
            Next::Resume(at) => self.actors[at].stalled_until.get() <= steps,
            Next::Start => true,
        };
        let count = options.iter().filter(goes_on).count();
        let drawn = match count {
            0 => options.get(random as usize % options.len()),
            _ => options.iter().filter(goes_on).nth(random as usize % count),
        };
        *drawn.expect("somebody could go on")
    }

    /// An actor that gives way stays where it is for long, now and then, while others do
    /// many operations. A script says who goes on, and stalls no actor.
    fn stall(&self, actor: &Actor, (op, point): (u32, u32)) {
        let plan = self.plan.borrow();
        if let Drawn::Random(random) = plan.drawn(op, point)
            && random >> 10 & 1023 < plan.setting.stall
        {
            let steps = STALL_STEPS << (random >> 20 & 7);
            actor.stalled_until.set(self.steps.get() + steps);
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

    // The kernel.

    /// What becomes of a call.
    pub(crate) fn answer(&self, call: Call) -> Answer {
        let Some(actor) = self.actors.get(self.current.get()) else {
            return Answer::Done;
        };
        let (op, point) = self.next_point(actor);
        let drawn = self.plan.borrow().drawn(op, point);
        let choice = match drawn {
            Drawn::Written(choice) => choice.filter(|&choice| may_answer(call, choice)),
            Drawn::Random(random) => self.random_answer(call, random),
        };
        let Some(choice) = choice else {
            return Answer::Done;
        };
        self.tell(|| format!("    operation {op} is at its point {point}: {call:?} {choice}"));
        let answer = match choice {
            Choice::Errno(errno) => Answer::Refused(errno),
            Choice::Part => Answer::Part,
            Choice::Lie(how) => Answer::Lie(how),
            Choice::Slow(us) => {
                system::advance(u64::from(us) * 1000);
                Answer::Done
            }
            Choice::Run(_) | Choice::Start => return Answer::Done,
        };
        self.plan.borrow_mut().note(op, point, choice);
        answer
    }

    fn random_answer(&self, call: Call, random: u64) -> Option<Choice> {
        let setting = self.plan.borrow().setting;
        let (draw, how) = (random >> 10 & 1023, (random >> 20) as u32);
        if setting.wrong == 0 {
            return None;
        }
        let errno = |odds, errno| (draw < odds).then_some(Choice::Errno(errno));
        let lies = |odds: u64| match draw {
            _ if setting.lies == 0 => None,
            draw if draw < odds => Some(Choice::Lie(how)),
            draw if draw < 2 * odds => Some(Choice::Part),
            _ => None,
        };
        // A block of which the kernel keeps a page is nobody's for ever.
        let gone = matches!(self.verb(), Some(Verb::Free | Verb::Resize | Verb::Unpin));
        let wrong = match call {
            Call::Install => (draw < 100).then_some(Choice::Part),
            Call::Protect if gone => None,
            Call::Protect if how & 1 == 0 => errno(30, 12),
            Call::Protect => errno(30, 11),
            Call::Read => errno(20, 14),
            Call::Drop if gone => errno(1, 22),
            Call::Drop => errno(10, 22),
            Call::Unlock => errno(20, 12),
            Call::DiskRead => lies(6).or(match setting.lies {
                1 if draw > 1020 => Some(Choice::Errno(5)),
                _ => None,
            }),
            Call::DiskWrite => errno(60, 28).or(match draw {
                60..90 if setting.lies == 1 => Some(Choice::Lie(how)),
                90..120 => Some(Choice::Part),
                _ => None,
            }),
            Call::DiskPunch => errno(20, 95),
            Call::DiskReserve => errno(20, 28),
            Call::Zero | Call::Unprotect => None,
        };
        wrong.or((draw > 1019).then_some(Choice::Slow(how % 5000)))
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

/// Whether a call may be answered so: where operations are left out, a script's answer
/// may meet a call that it was not for.
const fn may_answer(call: Call, choice: Choice) -> bool {
    let of_disk = matches!(
        call,
        Call::DiskRead | Call::DiskWrite | Call::DiskPunch | Call::DiskReserve
    );
    match choice {
        Choice::Errno(errno) => match call {
            Call::Protect | Call::Unlock => errno == 11 || errno == 12,
            Call::Read => errno == 14,
            Call::Drop => errno == 22,
            _ => of_disk,
        },
        Choice::Part => of_disk || matches!(call, Call::Install),
        Choice::Lie(_) => of_disk,
        Choice::Slow(_) => true,
        Choice::Run(_) | Choice::Start => false,
    }
}
