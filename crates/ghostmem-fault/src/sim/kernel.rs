//! What the simulated kernel answers, and what of it is said to the test.

use core::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::{Arc, Once};

use ghostmem_os::sim as system;

use crate::sim::space::Space;

/// A call of a backend on its kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Call {
    /// Pages are put in place.
    Install,
    /// A page of zeros is put in place.
    Zero,
    /// Pages are protected.
    Protect,
    /// Pages are opened.
    Unprotect,
    /// A page is copied out.
    Read,
    /// Frames are taken away.
    Drop,
    /// The program's lock is taken off.
    Unlock,
    /// A tier reads from its disk.
    DiskRead,
    /// A tier writes to its disk.
    DiskWrite,
    /// A tier gives blocks of its disk back.
    DiskPunch,
    /// A tier asks for blocks of its disk.
    DiskReserve,
}

/// What becomes of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// It works.
    Done,
    /// It fails with this errno and does nothing. A page that is to be dropped is kept.
    Refused(i32),
    /// It works for the first page only, or the first bytes of a disk's.
    Part,
    /// It says that it worked; of a disk that is not true, in a way that the number says.
    Lie(u32),
}

/// How often calls that are not scripted go wrong, in 1024.
#[derive(Debug, Clone, Copy, Default)]
pub struct Odds {
    /// An installing call ends after its first page.
    pub part: u16,
    /// A protecting call is refused (`ENOMEM`, `EAGAIN`).
    pub protect: u16,
    /// A page cannot be read.
    pub unread: u16,
    /// A page's frame is kept when it is to be dropped.
    pub kept: u16,
    /// A write to a disk fails (`ENOSPC`).
    pub disk_full: u16,
    /// A call takes milliseconds.
    pub slow: u16,
}

pub(crate) type Hook = Rc<dyn Fn(Call)>;
pub(crate) type Decider = Rc<dyn Fn(Call) -> Answer>;

/// One simulation, of the calling thread; see the module.
pub struct Simulation {
    seed: u64,
    random: Cell<u64>,
    /// Of all calls and answers so far: two runs of one seed have the same.
    digest: Cell<u64>,
    step: Cell<u64>,
    odds: Cell<Odds>,
    script: RefCell<VecDeque<(Call, Answer)>>,
    hook: RefCell<Option<Hook>>,
    decider: RefCell<Option<Decider>>,
    /// The kernel has no `MADV_DONTNEED_LOCKED` (before Linux 5.18).
    pub(crate) keeps_locked: Cell<bool>,
    pub(crate) spaces: RefCell<Vec<Arc<Space>>>,
    broken: RefCell<Option<String>>,
}

std::thread_local! {
    static CURRENT: RefCell<Option<Rc<Simulation>>> = const { RefCell::new(None) };
}

/// The calling thread's simulation.
///
/// # Panics
/// When there is none: regions of sim work only inside of one.
pub(crate) fn current() -> Rc<Simulation> {
    Simulation::current().expect("a region of sim is used by the thread of its simulation")
}

/// Calls `act` with the calling thread's simulation, if there is one.
pub(crate) fn if_current(act: impl FnOnce(&Simulation)) {
    if let Some(current) = Simulation::current() {
        act(&current);
    }
}

/// Ends the simulation whatever way its body ends.
struct Ending;

impl Drop for Ending {
    fn drop(&mut self) {
        CURRENT.set(None);
        system::end();
    }
}

/// Has the seed printed with whatever goes wrong, also where a panic ends the process.
fn tell_seeds() {
    static TOLD: Once = Once::new();
    TOLD.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            let at = CURRENT.with(|current| {
                let current = current.try_borrow().ok()?;
                current.as_ref().map(|sim| (sim.seed, sim.step.get()))
            });
            if let Some((seed, step)) = at {
                eprintln!("simulation of seed {seed:#x}, step {step}:");
            }
            before(panic);
        }));
    });
}

impl Simulation {
    /// Runs `body` in a simulation of its own, decided by `seed`.
    pub fn run<R>(seed: u64, body: impl FnOnce(&Rc<Self>) -> R) -> R {
        tell_seeds();
        let simulation = Rc::new(Self {
            seed,
            random: Cell::new(seed),
            digest: Cell::new(0),
            step: Cell::new(0),
            odds: Cell::new(Odds::default()),
            script: RefCell::new(VecDeque::new()),
            hook: RefCell::new(None),
            decider: RefCell::new(None),
            keeps_locked: Cell::new(false),
            spaces: RefCell::new(Vec::new()),
            broken: RefCell::new(None),
        });
        let _ending = Ending;
        CURRENT.set(Some(simulation.clone()));
        // Not 0, which stands for no time in places.
        system::begin(1_000_000_000);
        let result = body(&simulation);
        // What the hook holds may be of this simulation.
        simulation.hook.take();
        simulation.decider.take();
        result
    }

    /// The calling thread's, if it is in one: for what cannot be given it, as a disk.
    pub fn current() -> Option<Rc<Self>> {
        CURRENT.with_borrow(Clone::clone)
    }

    /// A call of somebody else than a backend, on the page or place `at`: what becomes
    /// of it, after others acted.
    pub fn call(&self, call: Call, at: usize) -> Answer {
        self.meanwhile(call);
        self.ask(call, at)
    }

    /// The next random number (SplitMix64).
    pub fn random(&self) -> u64 {
        let state = self.random.get().wrapping_add(0x9E37_79B9_7F4A_7C15);
        self.random.set(state);
        let mixed = (state ^ state >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ mixed >> 31
    }

    /// A random number below `bound`, which is not 0.
    pub fn below(&self, bound: usize) -> usize {
        (self.random() % bound as u64) as usize
    }

    /// Whether something happens that does so `odds` times in 1024.
    pub fn happens(&self, odds: u16) -> bool {
        odds > 0 && self.random() % 1024 < u64::from(odds)
    }

    /// The test's own count of its steps, for messages.
    pub fn set_step(&self, step: u64) {
        self.step.set(step);
    }

    /// Lets time pass.
    pub fn advance(&self, ns: u64) {
        system::advance(ns);
    }

    /// How often calls go wrong from now on.
    pub fn set_odds(&self, odds: Odds) {
        self.odds.set(odds);
    }

    /// How often calls go wrong now.
    pub fn odds(&self) -> Odds {
        self.odds.get()
    }

    /// The next call of this kind gets this answer, after those that were given before.
    pub fn answer_next(&self, call: Call, answer: Answer) {
        self.script.borrow_mut().push_back((call, answer));
    }

    /// Answers that no call has asked for.
    pub fn answers_left(&self) -> usize {
        self.script.borrow().len()
    }

    /// Called before and after each call from now on, with nothing of the simulation
    /// held: others may act there.
    pub fn set_hook(&self, hook: impl Fn(Call) + 'static) {
        *self.hook.borrow_mut() = Some(Rc::new(hook));
    }

    /// No hook any more.
    pub fn clear_hook(&self) {
        self.hook.take();
    }

    /// All answers are this function's from now on, instead of the odds'.
    pub fn set_decider(&self, decider: impl Fn(Call) -> Answer + 'static) {
        *self.decider.borrow_mut() = Some(Rc::new(decider));
    }

    /// Whether the kernel keeps locked pages whatever it is asked, as before Linux 5.18.
    pub fn set_keeps_locked(&self, keeps: bool) {
        self.keeps_locked.set(keeps);
    }

    /// A number that two runs of one seed have in common, if they did the same.
    pub fn digest(&self) -> u64 {
        self.digest.get()
    }

    /// Takes something into the digest.
    pub fn note(&self, value: u64) {
        let mixed = (self.digest.get() ^ value).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        self.digest.set(mixed ^ mixed >> 32);
    }

    /// The first thing that a backend was asked and must not be.
    pub fn broken(&self) -> Option<String> {
        self.broken.borrow().clone()
    }

    pub(crate) fn break_off(&self, what: impl FnOnce() -> String) {
        let mut broken = self.broken.borrow_mut();
        if broken.is_none() {
            *broken = Some(what());
        }
    }

    /// Frames behind pages of all regions.
    pub fn frames(&self) -> usize {
        let spaces = self.spaces.borrow();
        spaces.iter().map(|space| space.frames_used()).sum()
    }

    /// Lets others act.
    pub(crate) fn meanwhile(&self, call: Call) {
        let hook = self.hook.borrow().clone();
        if let Some(hook) = hook {
            hook(call);
        }
    }

    /// What becomes of a call on a page.
    pub(crate) fn ask(&self, call: Call, page: usize) -> Answer {
        let decider = self.decider.borrow().clone();
        if let Some(decider) = decider {
            let answer = decider(call);
            self.note_call(call, page, answer);
            return answer;
        }
        let odds = self.odds.get();
        system::advance(self.random() % 2000);
        if self.happens(odds.slow) {
            system::advance(self.random() % 5_000_000);
        }
        let scripted = {
            let mut script = self.script.borrow_mut();
            let at = script.iter().position(|&(of, _)| of == call);
            at.and_then(|at| script.remove(at))
        };
        let refused = |odds, errno| match self.happens(odds) {
            true => Answer::Refused(errno),
            false => Answer::Done,
        };
        let answer = scripted
            .map(|(_, answer)| answer)
            .unwrap_or_else(|| match call {
                Call::Install if self.happens(odds.part) => Answer::Part,
                Call::Protect if self.random() & 1 == 0 => refused(odds.protect, libc::ENOMEM),
                Call::Protect => refused(odds.protect, libc::EAGAIN),
                Call::Read => refused(odds.unread, libc::EFAULT),
                Call::Drop => refused(odds.kept, libc::EINVAL),
                Call::DiskWrite => refused(odds.disk_full, libc::ENOSPC),
                _ => Answer::Done,
            });
        self.note_call(call, page, answer);
        answer
    }

    fn note_call(&self, call: Call, page: usize, answer: Answer) {
        let kind = match answer {
            Answer::Done => 0,
            Answer::Part => 1,
            Answer::Refused(errno) => 2 + errno as u64,
            Answer::Lie(how) => 1 << 10 | u64::from(how),
        };
        self.note((page as u64) << 16 | (call as u64) << 12 | kind);
    }
}
