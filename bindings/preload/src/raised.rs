//! Limits on open files and on processes (setrlimit(2)) that leave the engine nothing.
//!
//! The heap opens descriptors when it is made, and a forked child opens its own. Each of them
//! begins at a number below the soft limit, before it is moved out of the way; and the engine
//! has a thread. Where a limit leaves no room for that it is raised for as long: the soft one
//! as far as the hard one goes, and the hard one, too, where the process may do that. The
//! program finds both as they were.
//!
//! Limits are the process's, and several of its threads may fork at once. So what is raised for
//! forks is raised once, and put back behind the last of them; each child puts it back for
//! itself. Whoever asks meanwhile is told what the program has. A child on the same memory, of
//! another thread, may have come with the raised one: it puts it back as it executes a program.

use core::mem::ManuallyDrop;
use core::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use ghostmem_os::doorway;

use crate::alone::Alone;
use crate::calls::{Done, load_if, store_if};
use crate::guarded::Touch;
use crate::raw::{self, Answer, call, failed, own};
use crate::signals::{self, Blocked};
use crate::thread::Thread;
use crate::{begin, ghost};

/// From so many open files on the engine finds a number for each of its own, or keeps one.
const FEW: u64 = 64;
/// What the limit on them is raised to: the engine's numbers are below. No number that a program
/// would choose.
const ENOUGH: u64 = 4099;

/// A limit as prlimit(2) has it: the soft one and the hard one.
type Pair = [u64; 2];

/// A limit that is higher than the program set it, until this is dropped.
pub(crate) struct Raised(Option<(u32, Pair, Pair)>);

impl Raised {
    /// The limit on open files, if it is low.
    pub(crate) fn files() -> Self {
        let resource = libc::RLIMIT_NOFILE;
        match limit_of(resource) {
            Some(before @ [soft, hard]) if soft < FEW => {
                let most = if hard > FEW { hard - 1 } else { hard };
                let wanted = [[ENOUGH, hard.max(ENOUGH)], [most, hard]];
                Self::first_of(resource, before, &wanted)
            }
            _ => Self(None),
        }
    }

    /// The limit on the user's processes and threads, as far as the hard one goes.
    pub(crate) fn threads() -> Self {
        let resource = libc::RLIMIT_NPROC;
        match limit_of(resource) {
            Some(before @ [soft, hard]) if soft < hard => {
                Self::first_of(resource, before, &[[hard, hard]])
            }
            _ => Self(None),
        }
    }

    /// Sets the first of these limits that the kernel grants.
    fn first_of(resource: u32, before: Pair, wanted: &[Pair]) -> Self {
        // A filter of the program's own may end the process for such a call.
        let granted = wanted
            .iter()
            .filter(|_| !doorway::is_confined())
            .find(|wanted| **wanted != before && set(resource, wanted));
        Self(granted.map(|granted| (resource, before, *granted)))
    }
}

impl Drop for Raised {
    fn drop(&mut self) {
        // What another thread of the program set meanwhile stays.
        if let Some((resource, before, raised)) = self.0
            && limit_of(resource) == Some(raised)
        {
            set(resource, &before);
        }
    }
}

/// How many threads fork, and what they have raised the limit on open files to.
static FORKS: AtomicUsize = AtomicUsize::new(0);
static IS_RAISED: AtomicBool = AtomicBool::new(false);
/// What it is now, or was the last time, and what it was before.
static RAISED: [AtomicU64; 2] = [const { AtomicU64::new(0) }; 2];
static BEFORE: [AtomicU64; 2] = [const { AtomicU64::new(0) }; 2];
static CHANGES: Alone = Alone::new();

fn pair_of(pair: &[AtomicU64; 2]) -> Pair {
    let [soft, hard] = pair;
    [soft.load(Ordering::Relaxed), hard.load(Ordering::Relaxed)]
}

/// Runs `body` as the only thread that raises the limit for a fork or puts it back. A handler
/// that forks comes behind it.
fn alone<R>(body: impl FnOnce() -> R) -> R {
    let _blocked = Blocked::new();
    let _alone = CHANGES.take();
    body()
}

/// A fork begins on this thread: the child opens its descriptors under the limit that it is
/// made with. Until [`after_a_fork`], or [`in_a_child`].
pub(crate) fn for_a_fork(thread: &Thread) {
    if ghost::heap().is_none() || begin::is_waiting() {
        return;
    }
    alone(|| {
        // A handler of the program's may fork between the handlers of a fork.
        if thread.raises.replace(thread.raises.get() + 1) > 0 {
            return;
        }
        FORKS.fetch_add(1, Ordering::Relaxed);
        let is_up = IS_RAISED.load(Ordering::Relaxed);
        // What the program set meanwhile is another limit.
        if is_up && limit_of(libc::RLIMIT_NOFILE) == Some(pair_of(&RAISED)) {
            return;
        }
        raise();
    });
}

/// Raises the limit, if it is low, and notes what it was.
fn raise() {
    let Raised(raised) = &*ManuallyDrop::new(Raised::files());
    if let Some((_, before, raised)) = raised {
        store_pair(&RAISED, raised);
        store_pair(&BEFORE, before);
    }
    IS_RAISED.store(raised.is_some(), Ordering::Relaxed);
}

fn store_pair(place: &[AtomicU64; 2], pair: &Pair) {
    for (place, part) in place.iter().zip(pair) {
        place.store(*part, Ordering::Relaxed);
    }
}

/// The end of [`for_a_fork`] in the parent.
pub(crate) fn after_a_fork(thread: &Thread) {
    if thread.raises.get() > 0 {
        alone(|| {
            let is_last = thread.raises.replace(thread.raises.get() - 1) == 1;
            if is_last && FORKS.fetch_sub(1, Ordering::Relaxed) == 1 {
                put_back();
            }
        });
    }
}

/// In a forked child, before any handler of the program's: whoever was here in the parent is
/// not.
pub(crate) fn forget_others() {
    CHANGES.forget_others();
}

/// The end of [`for_a_fork`] in the child: whoever else forked is not here. Nobody raised the
/// limit anew while this thread forked.
pub(crate) fn in_a_child(thread: &Thread) {
    thread.raises.set(0);
    FORKS.store(0, Ordering::Relaxed);
    put_back();
}

fn put_back() {
    if IS_RAISED.swap(false, Ordering::Relaxed) {
        let (before, raised) = (pair_of(&BEFORE), pair_of(&RAISED));
        drop(Raised(Some((libc::RLIMIT_NOFILE, before, raised))));
    }
}

/// Whether prlimit64 is asked about the caller, by this number.
pub(crate) fn is_this_process(process: usize) -> bool {
    [0, own!(libc::SYS_getpid) as u32].contains(&(process as u32))
}

/// prlimit64 that asks for the limit on open files, or sets it: it is told what the program has,
/// and not what another thread raised it to. `None`: it is about something else.
pub(crate) fn asked(args: [usize; 6]) -> Touch<Option<Done>> {
    let [process, resource, new, place, ..] = args;
    let is_about_it = resource as u32 == libc::RLIMIT_NOFILE && is_this_process(process);
    if !is_about_it || new == place || signals::in_vfork_child() {
        return Ok(None);
    }
    let wanted: Option<Pair> = load_if(new)?;
    let mut old: Pair = [0; 2];
    let answer = alone(|| {
        let is_up = IS_RAISED.load(Ordering::Relaxed);
        let is_it = is_up && limit_of(libc::RLIMIT_NOFILE) == Some(pair_of(&RAISED));
        if is_it {
            old = pair_of(&BEFORE);
            if let Some(wanted) = &wanted {
                return set_meanwhile(wanted);
            }
            return 0;
        }
        let wanted = wanted.as_ref().map_or(0, |pair| pair.as_ptr() as usize);
        call!(libc::SYS_prlimit64, process, resource, wanted, &raw mut old)
    });
    if !failed(answer) {
        store_if(place, old)?;
    }
    Ok(Some(Done::With(answer)))
}

/// The program sets the limit while it is raised for a fork: that goes on with it raised, and
/// finds what the program set behind it. The answer to the call.
fn set_meanwhile(wanted: &Pair) -> Answer {
    let ([soft, hard], [_, before]) = (*wanted, pair_of(&BEFORE));
    let [raised, _] = pair_of(&RAISED);
    // The kernel grants that to every process (setrlimit(2)). More than it is now is to be
    // had at once.
    if soft <= raised && soft <= hard && hard <= before {
        store_pair(&BEFORE, wanted);
        return 0;
    }
    let (process, none) = (0, 0);
    let wanted = wanted.as_ptr();
    let answer = call!(
        libc::SYS_prlimit64,
        process,
        libc::RLIMIT_NOFILE,
        wanted,
        none
    );
    if !failed(answer) {
        raise();
    }
    answer
}

/// A program is about to be executed, while another thread forks, or by a child that has its
/// parent's memory and was made while another thread forked.
pub(crate) fn before_exec() {
    let [soft, hard] = pair_of(&RAISED);
    // Never, as a rule.
    if [soft, hard] == [0; 2] {
        return;
    }
    if !signals::in_vfork_child() {
        return alone(put_back);
    }
    // What is raised as far as it goes may be the child's own wish.
    let is_ours = soft == ENOUGH || soft != hard;
    if is_ours && limit_of(libc::RLIMIT_NOFILE) == Some([soft, hard]) {
        set(libc::RLIMIT_NOFILE, &pair_of(&BEFORE));
    }
}

/// A fork was refused, as the child could not have its memory: says so once where the limit
/// on open files is the cause.
pub(crate) fn say_why_no_fork() {
    static SAID: AtomicBool = AtomicBool::new(false);
    if few_files().is_some() && !SAID.swap(true, Ordering::Relaxed) {
        raw::say(
            b"ghostmem: fork is refused: the limit on open files (ulimit -n) leaves none for the \
              child's memory\n",
        );
    }
}

/// How many files the process may have open, if those are few.
pub(crate) fn few_files() -> Option<u64> {
    let [soft, _hard] = limit_of(libc::RLIMIT_NOFILE)?;
    (soft < FEW).then_some(soft)
}

fn limit_of(resource: u32) -> Option<Pair> {
    let mut limit: Pair = [0; 2];
    let asked = own!(libc::SYS_prlimit64, 0, resource, 0, &raw mut limit);
    (!failed(asked)).then_some(limit)
}

/// Sets a limit; whether that was granted.
fn set(resource: u32, limit: &Pair) -> bool {
    let answer = own!(
        libc::SYS_prlimit64,
        0,
        resource,
        core::ptr::from_ref(limit),
        0
    );
    !failed(answer)
}
