//! Limits on open files and on processes (setrlimit(2)) that leave the engine nothing.
//!
//! The heap opens descriptors when it is made, and a forked child opens its own. Each of them
//! begins at a number below the soft limit, before it is moved out of the way; and the engine
//! has a thread. Where a limit leaves no room for that it is raised for as long: the soft one
//! as far as the hard one goes, and the hard one, too, where the process may do that. The
//! program finds both as they were.

use core::mem::ManuallyDrop;
use core::sync::atomic::{AtomicBool, Ordering};

use ghostmem_os::doorway;

use crate::raw::{self, failed, own};
use crate::thread::Thread;
use crate::{begin, ghost};

/// From so many open files on the engine finds a number for each of its own, or keeps one.
const FEW: u64 = 64;
/// What the limit on them is raised to: the engine's numbers are below.
const ENOUGH: u64 = 4096;

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
                let wanted = [[ENOUGH, hard.max(ENOUGH)], [hard, hard]];
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

/// A fork begins on this thread: the child opens its descriptors under the limit that it is
/// made with. Until [`after_a_fork`], in either process.
pub(crate) fn for_a_fork(thread: &Thread) {
    // A handler of the program's may fork between the handlers of a fork.
    let is_within = thread.files.get()[1] != [0; 2];
    if ghost::heap().is_some() && !begin::is_waiting() && !is_within {
        let Raised(raised) = &*ManuallyDrop::new(Raised::files());
        let pair = |of: fn(&(u32, Pair, Pair)) -> Pair| raised.as_ref().map_or([0; 2], of);
        thread
            .files
            .set([pair(|raised| raised.1), pair(|raised| raised.2)]);
    }
}

/// The end of [`for_a_fork`].
pub(crate) fn after_a_fork(thread: &Thread) {
    let [before, raised] = thread.files.replace([[0; 2]; 2]);
    if raised != [0; 2] {
        drop(Raised(Some((libc::RLIMIT_NOFILE, before, raised))));
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
