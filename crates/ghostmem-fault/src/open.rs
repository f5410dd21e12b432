//! The descriptors that exist once in the process, and what a forked child does with
//! those it inherits.

use core::sync::atomic::{AtomicBool, Ordering};
use std::sync::OnceLock;

use ghostmem_os::descriptor::{self, Spare};
use ghostmem_os::shards::shards;
use ghostmem_os::thread::SignalsBlocked;
use ghostmem_os::uffd::{
    self, FEATURE_EXACT_ADDRESS, FEATURE_SIGBUS, FEATURE_THREAD_ID, FEATURE_WP, Source, Uffd,
};
use ghostmem_os::{OsError, doorway, machine, ranges, trial};

use crate::die::die;
use crate::monitor::Monitor;
use crate::once::{OPENING, get_or_open};
use crate::probe;

static INLINE: OnceLock<Uffd> = OnceLock::new();
static MONITOR: OnceLock<Monitor> = OnceLock::new();
/// A number for a forked child's userfaultfd, where the process may open no more.
static SPARE: Spare = Spare::new();
/// A forked child has only the first of the descriptors whose faults are signals:
/// [`before_a_thread`] opens the others.
static LANES_WAIT: AtomicBool = AtomicBool::new(false);

/// Makes what exists once in the process, and the spare for its children.
fn get_or_open_uffd<T>(
    cell: &'static OnceLock<T>,
    open: impl FnOnce() -> Result<T, OsError>,
) -> Result<&'static T, OsError> {
    get_or_open(cell, || open().inspect(|_| SPARE.hold()))
}

/// Where a filter of system calls may end the process for what `open` does: tries it
/// in a child first.
fn try_first<T>(
    cell: &OnceLock<T>,
    open: impl FnOnce() -> Result<Uffd, OsError>,
) -> Result<(), OsError> {
    if cell.get().is_none() && trial::is_needed() {
        uffd::try_call();
        trial::ask("userfaultfd", || open().map(|_| 0))?;
        ranges::try_vectored();
        if probe::memory_files().is_err() {
            descriptor::hold_no_spares();
        }
    }
    Ok(())
}

/// The descriptor whose faults are signals.
///
/// # Errors
/// What the kernel refused.
pub(crate) fn inline() -> Result<&'static Uffd, OsError> {
    try_first(&INLINE, open_inline)?;
    get_or_open_uffd(&INLINE, open_inline)
}

/// The fault monitor; its threads start with [`Monitor::uffd`].
///
/// # Errors
/// What the kernel refused.
pub(crate) fn monitor() -> Result<&'static Monitor, OsError> {
    try_first(&MONITOR, open_monitor)?;
    get_or_open_uffd(&MONITOR, || open_monitor().map(Monitor::new))
}

/// As many lanes as there are processors to use them at once.
fn open_inline() -> Result<Uffd, OsError> {
    open_with(lanes())
}

fn lanes() -> usize {
    if machine::cpus() > 1 { shards() } else { 1 }
}

fn open_with(lanes: usize) -> Result<Uffd, OsError> {
    // Full mode buys nothing here: a kernel access raises no SIGBUS.
    let features = FEATURE_SIGBUS | FEATURE_WP;
    let open = |source| Uffd::open_lanes(source, features, lanes);
    open(Source::UserModeOnly).or_else(|first| {
        open(Source::Syscall)
            .or_else(|_| open(Source::Device))
            .map_err(|_| first)
    })
}

/// A descriptor whose faults are messages.
///
/// # Errors
/// What the kernel refused.
pub(crate) fn open_monitor() -> Result<Uffd, OsError> {
    let features = FEATURE_WP | FEATURE_THREAD_ID;
    let open = |features| {
        Uffd::open(Source::Device, features).or_else(|_| {
            Uffd::open(Source::Syscall, features)
                .or_else(|first| Uffd::open(Source::UserModeOnly, features).map_err(|_| first))
        })
    };
    // A program that touches what it has freed is told where (since 5.18; the page
    // alone before).
    open(features | FEATURE_EXACT_ADDRESS).or_else(|_| open(features))
}

/// In a forked child: the descriptors inherited from the parent still speak
/// for the parent. The monitor's regions are the faulting thread's to serve for
/// now: there are no engine threads, and none can be made yet.
///
/// One descriptor serves all regions. More of them only keep threads apart that fault at
/// once, and the child has one thread: with `lanes_wait` they wait for
/// [`before_a_thread`].
pub(crate) fn reopen_in_child(lanes_wait: bool) {
    let opened = || {
        let monitor = MONITOR.get().map(Monitor::uffd_in_child);
        INLINE.get().into_iter().chain(monitor)
    };
    if opened().next().is_none() {
        return;
    }
    // Their numbers may be the only ones that the child can have.
    opened().for_each(Uffd::close);
    // None is kept on a table that is another process's, too; and the monitor's own
    // descriptor may take two numbers for a moment.
    if descriptor::is_shared() || MONITOR.get().is_some() {
        SPARE.let_go();
    }
    for uffd in opened() {
        let opened = open_with(1).or_else(|error| match SPARE.let_go() {
            true => open_with(1),
            false => Err(error),
        });
        match opened {
            Ok(fresh) => uffd.replace(fresh),
            Err(error) => die("a forked child cannot open userfaultfd", error.errno),
        }
    }
    if lanes_wait {
        LANES_WAIT.store(true, Ordering::Relaxed);
    } else {
        add_lanes();
    }
    SPARE.hold();
}

fn add_lanes() {
    if let Some(uffd) = INLINE.get() {
        uffd.add_lanes(lanes(), || open_with(1));
    }
}

/// The program is about to make a thread, which may fault beside this one. One load, but
/// for the first time in a forked child. Without the lanes, where they cannot be had,
/// threads wait for each other a little longer.
pub(crate) fn before_a_thread() {
    if !LANES_WAIT.load(Ordering::Relaxed) {
        return;
    }
    // A handler that forks would wait for the lock of the thread that it interrupted.
    let _blocked = SignalsBlocked::all_but_faults();
    let _opening = OPENING.lock();
    // A filter of the program's own may end the process for opening anything.
    if LANES_WAIT.swap(false, Ordering::Relaxed) && !doorway::is_confined() {
        add_lanes();
    }
}

/// In a forked child: the monitor, if there is one to be started again.
pub(crate) fn monitor_in_child() -> Option<&'static Monitor> {
    MONITOR.get().filter(|monitor| monitor.was_started())
}
