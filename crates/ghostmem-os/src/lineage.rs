//! Is this still the process that set things up?
//!
//! A child made by a raw clone(2) runs none of our fork hooks: it has our
//! signal handlers and a copy of our tables, but descriptors that act on the
//! *parent's* memory. A page the kernel wipes in every child
//! (`MADV_WIPEONFORK`, madvise(2), Linux 4.14) tells.

use core::sync::atomic::{AtomicU64, Ordering};
use std::sync::OnceLock;

use crate::error::OsError;
use crate::map::{Access, PAGE_SIZE, Reservation};

static PAGE: OnceLock<Reservation> = OnceLock::new();

fn mark(page: &Reservation) -> &AtomicU64 {
    // SAFETY: the page is mapped readable and writable for ever, aligned, and
    // zero is a value of the atomic.
    unsafe { &*(page.base() as *const AtomicU64) }
}

/// Claims the process at the first call: [`is_ours`] is true in it, and false in
/// children but for those that [`claim_child`] speaks for. One thread at a time.
///
/// # Errors
/// The kernel's refusal to map a page or to wipe it in children; `EPERM` in a
/// [stranger](is_stranger), which can have no heap of its own.
pub fn claim_process() -> Result<(), OsError> {
    if PAGE.get().is_some() {
        return refuse_stranger();
    }
    let page = Reservation::new(PAGE_SIZE, PAGE_SIZE, Access::ReadWrite)?;
    page.advise(0, PAGE_SIZE, libc::MADV_WIPEONFORK)?;
    mark(PAGE.get_or_init(|| page)).store(1, Ordering::Release);
    Ok(())
}

/// In a forked child, by the fork hook: claims it, if its parent was claimed.
pub fn claim_child() {
    if let Some(page) = PAGE.get() {
        mark(page).store(1, Ordering::Release);
    }
}

/// Whether this is a copy of a claimed process that no fork hook spoke for: what
/// it does through its descriptors happens to its parent's memory.
/// Async-signal-safe.
#[must_use]
pub fn is_stranger() -> bool {
    PAGE.get()
        .is_some_and(|page| mark(page).load(Ordering::Acquire) == 0)
}

/// Keeps a [stranger](is_stranger) from what only the process itself may do.
/// Async-signal-safe.
///
/// # Errors
/// `EPERM` in a stranger.
pub fn refuse_stranger() -> Result<(), OsError> {
    if is_stranger() {
        Err(OsError::new(
            "ghost memory in a child that ran no fork handlers",
            libc::EPERM,
        ))
    } else {
        Ok(())
    }
}

/// Whether the process was claimed, rather than copied from one that was. One
/// load; async-signal-safe.
#[must_use]
pub fn is_ours() -> bool {
    PAGE.get()
        .is_some_and(|page| mark(page).load(Ordering::Acquire) == 1)
}
