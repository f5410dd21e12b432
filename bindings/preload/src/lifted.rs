//! The kernel's side of the limits on address space and data (`RLIMIT_AS`, `RLIMIT_DATA`) that
//! the program sets on itself.
//!
//! To the kernel all counts that the heap reserved, used or not: it would refuse the program
//! its mappings, its objects and the stacks of its threads long before the limit. So the
//! kernel gets a higher limit, by what is reserved and by what blocks may come to need:
//!
//! ```text
//!   the program sets             s                       and is told s
//!   the kernel has               s + reserved + s + room
//!   blocks, mappings, stacks     refused beyond s: see crate::own_limits
//!   a program that is executed   has s
//! ```
//! A limit that somebody else set meanwhile (prlimit(2) from outside) is not ours, and is told
//! as it is.

use core::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use ghostmem_os::doorway;
use ghostmem_os::map::reserved_bytes;

use crate::alone::Alone;
use crate::calls::{load_if, store_if};
use crate::guarded::Touch;
use crate::raw::{Answer, call, failed, own};
use crate::signals::{self, Blocked};
use crate::{ghost, own_limits, raised};

/// A limit as prlimit(2) has it: the soft one and the hard one.
pub(crate) type Pair = [u64; 2];

/// What the engine's own library, stacks and tables may come to need, bytes.
const ROOM_BYTES: u64 = 64 << 20;

/// One of the two limits.
struct Limit {
    resource: u32,
    /// The kernel's is not what the program set.
    is_lifted: AtomicBool,
    programs: [AtomicU64; 2],
    kernels: [AtomicU64; 2],
}

impl Limit {
    const fn new(resource: u32) -> Self {
        Self {
            resource,
            is_lifted: AtomicBool::new(false),
            programs: [const { AtomicU64::new(0) }; 2],
            kernels: [const { AtomicU64::new(0) }; 2],
        }
    }

    /// The kernel's limit, and what of it the program set.
    fn now(&self) -> Option<(Pair, Pair)> {
        let kernels = kernels(self.resource)?;
        let is_ours = self.is_lifted.load(Ordering::Relaxed) && kernels == load(&self.kernels);
        Some((
            kernels,
            if is_ours {
                load(&self.programs)
            } else {
                kernels
            },
        ))
    }

    fn note(&self, programs: &Pair, kernels: &Pair) {
        store(&self.programs, programs);
        store(&self.kernels, kernels);
        self.is_lifted.store(programs != kernels, Ordering::Relaxed);
    }
}

static LIMITS: [Limit; 2] = [Limit::new(libc::RLIMIT_AS), Limit::new(libc::RLIMIT_DATA)];
static CHANGES: Alone = Alone::new();
/// Threads that execute a program, or try to.
static EXECUTING: AtomicUsize = AtomicUsize::new(0);

fn load(pair: &[AtomicU64; 2]) -> Pair {
    pair.each_ref().map(|part| part.load(Ordering::Relaxed))
}

fn store(place: &[AtomicU64; 2], pair: &Pair) {
    for (place, part) in place.iter().zip(pair) {
        place.store(*part, Ordering::Relaxed);
    }
}

fn kernels(resource: u32) -> Option<Pair> {
    let mut limit: Pair = [0; 2];
    let asked = own!(libc::SYS_prlimit64, 0, resource, 0, &raw mut limit);
    (!failed(asked)).then_some(limit)
}

/// Sets a limit by a call of the program's, of this process; the kernel's answer.
fn set(resource: u32, limit: &Pair) -> Answer {
    let (process, none) = (0, 0);
    call!(libc::SYS_prlimit64, process, resource, limit.as_ptr(), none)
}

fn of(resource: usize) -> Option<&'static Limit> {
    LIMITS
        .iter()
        .find(|limit| limit.resource == resource as u32)
}

/// Whether a resource is one of the two.
pub(crate) fn is_one(resource: usize) -> bool {
    of(resource).is_some()
}

/// The soft limit that the program has, bytes; `None` for none.
pub(crate) fn programs(resource: u32) -> Option<u64> {
    let (_, [soft, _hard]) = of(resource as usize)?.now()?;
    // The kernel's own number for none is the largest.
    (soft != libc::RLIM_INFINITY).then_some(soft)
}

/// getrlimit, setrlimit and prlimit64 of one of the two, of this process: the answer. `None`:
/// the call is about something else, is the kernel's to refuse, or has to pass a filter of the
/// program's as it is.
pub(crate) fn asked(number: usize, args: [usize; 6]) -> Touch<Option<Answer>> {
    let (resource, new, place) = match number {
        97 => (args[0], 0, args[1]),
        160 => (args[0], args[1], 0),
        _ if raised::is_this_process(args[0]) => (args[1], args[2], args[3]),
        _ => return Ok(None),
    };
    let asks_nothing = new == 0 && place == 0;
    let Some(limit) = of(resource).filter(|_| !asks_nothing && !doorway::is_confined()) else {
        return Ok(None);
    };
    let wanted: Option<Pair> = load_if(new)?;
    let mut old: Pair = [0; 2];
    let answer = alone(|| {
        let Some((kernels, programs)) = limit.now() else {
            return -(libc::EINVAL as Answer);
        };
        old = programs;
        wanted.map_or(0, |wanted| limit.change(&wanted, &kernels, &programs))
    });
    if !failed(answer) {
        store_if(place, old)?;
    }
    Ok(Some(answer))
}

impl Limit {
    /// The program sets the limit; the kernel's answer.
    fn change(&self, wanted: &Pair, kernels: &Pair, programs: &Pair) -> Answer {
        let [soft, hard] = *wanted;
        if soft > hard {
            return -(libc::EINVAL as Answer);
        }
        let [_, hard_before] = *programs;
        let [_, most_before] = *kernels;
        let above = most_before.saturating_add(1);
        // A child of vfork has limits of its own, and executes something else.
        if signals::in_vfork_child() || ghost::heap().is_none() {
            // Whether it may be more than it was is the kernel's to say.
            let is_raised = hard > hard_before && kernels != programs;
            let raised = if is_raised {
                set(self.resource, &[soft, hard.max(above)])
            } else {
                0
            };
            return if failed(raised) {
                raised
            } else {
                set(self.resource, wanted)
            };
        }
        let most = match hard.cmp(&hard_before) {
            core::cmp::Ordering::Less => lifted(hard).min(most_before),
            core::cmp::Ordering::Equal => most_before,
            core::cmp::Ordering::Greater => lifted(hard).max(above),
        };
        let granted = [lifted(soft).min(most), most];
        let answer = set(self.resource, &granted);
        if !failed(answer) {
            self.note(wanted, &granted);
            own_limits::look();
        }
        answer
    }
}

/// What the kernel gets for a limit of so many bytes.
fn lifted(bytes: u64) -> u64 {
    if bytes == libc::RLIM_INFINITY {
        return bytes;
    }
    let beside = reserved_bytes() as u64 + ROOM_BYTES;
    bytes.saturating_mul(2).saturating_add(beside)
}

/// Runs `body` as the only thread that changes these limits.
fn alone<R>(body: impl FnOnce() -> R) -> R {
    let _blocked = Blocked::new();
    // The child of a vfork has its parent's memory, and may not wait for its threads.
    let _alone = (!signals::in_vfork_child()).then(|| CHANGES.take());
    body()
}

/// In a forked child: whoever was here in the parent is not. One that was about to execute
/// something may have lowered the limits.
pub(crate) fn forget_others() {
    CHANGES.forget_others();
    EXECUTING.store(0, Ordering::Relaxed);
    if is_any() && !doorway::is_confined() {
        raise_again();
    }
}

/// A filter of the program's comes into force: nothing can be set any more, and what is executed
/// has to have the program's limits. From here on the kernel counts as it does.
pub(crate) fn end() {
    if is_any() && !signals::in_vfork_child() {
        alone(|| {
            lower();
            for limit in &LIMITS {
                limit.is_lifted.store(false, Ordering::Relaxed);
            }
        });
        own_limits::look();
    }
}

/// Whether the kernel has a higher limit than the program.
pub(crate) fn is_any() -> bool {
    let mut limits = LIMITS.iter();
    limits.any(|limit| limit.is_lifted.load(Ordering::Relaxed))
}

/// Executes a program, which gets the limits as this one set them. Comes back where that is
/// refused, as it was before.
pub(crate) fn around_exec(execute: impl FnOnce() -> Answer) -> Answer {
    // A filter of the program's own may end the process for such a call.
    if !is_any() || doorway::is_confined() {
        return execute();
    }
    // A child of vfork has limits of its own, and ends, or executes something else.
    if signals::in_vfork_child() {
        lower();
        return execute();
    }
    // Nothing is blocked meanwhile: what is executed has the mask of this thread.
    alone(|| {
        EXECUTING.fetch_add(1, Ordering::Relaxed);
        lower();
    });
    let answer = execute();
    alone(|| {
        if EXECUTING.fetch_sub(1, Ordering::Relaxed) == 1 {
            raise_again();
        }
    });
    answer
}

/// The kernel gets the program's limits.
fn lower() {
    for limit in &LIMITS {
        if let Some((kernels, programs)) = limit.now()
            && kernels != programs
        {
            let _refused_if = set(limit.resource, &programs);
        }
    }
}

/// The kernel gets the higher limits again, where it has the program's.
fn raise_again() {
    let lifted = |limit: &&Limit| limit.is_lifted.load(Ordering::Relaxed);
    for limit in LIMITS.iter().filter(lifted) {
        let (programs, lifted) = (load(&limit.programs), load(&limit.kernels));
        if kernels(limit.resource) != Some(programs) || !failed(set(limit.resource, &lifted)) {
            continue;
        }
        // A hard limit that was lowered stays so, but for root.
        let ([_, hard], [soft, _]) = (programs, lifted);
        let left = [soft.min(hard), hard];
        if !failed(set(limit.resource, &left)) {
            limit.note(&programs, &left);
        }
    }
}
