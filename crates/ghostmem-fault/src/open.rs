//! The descriptors that exist once in the process, and what a forked child does with
//! those it inherits.

use std::sync::OnceLock;

use ghostmem_os::descriptor::{self, Spare};
use ghostmem_os::uffd::{
    self, FEATURE_EXACT_ADDRESS, FEATURE_SIGBUS, FEATURE_THREAD_ID, FEATURE_WP, Source, Uffd,
};
use ghostmem_os::{OsError, machine, ranges, trial};

use crate::die::die;
use crate::monitor::Monitor;
use crate::once::get_or_open;
use crate::probe;

static INLINE: OnceLock<Uffd> = OnceLock::new();
static MONITOR: OnceLock<Monitor> = OnceLock::new();
/// A number for a forked child's userfaultfd, where the process may open no more.
static SPARE: Spare = Spare::new();

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

fn open_inline() -> Result<Uffd, OsError> {
    // Full mode buys nothing here: a kernel access raises no SIGBUS.
    let features = FEATURE_SIGBUS | FEATURE_WP;
    let lanes = if machine::cpus() > 1 { 8 } else { 1 };
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
pub(crate) fn reopen_in_child() {
    let opened = || {
        let monitor = MONITOR.get().map(Monitor::uffd_in_child);
        INLINE.get().into_iter().chain(monitor)
    };
    // Their numbers may be the only ones that the child can have.
    opened().for_each(Uffd::close);
    if opened().next().is_some() {
        SPARE.let_go();
    }
    for uffd in opened() {
        match open_inline() {
            Ok(fresh) => uffd.replace(fresh),
            Err(error) => die("a forked child cannot open userfaultfd", error.errno),
        }
    }
    if opened().next().is_some() {
        SPARE.hold();
    }
}

/// In a forked child: the monitor, if there is one to be started again.
pub(crate) fn monitor_in_child() -> Option<&'static Monitor> {
    MONITOR.get().filter(|monitor| monitor.was_started())
}
