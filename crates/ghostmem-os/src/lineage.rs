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

/// Claims the process: [`is_ours`] is true in it, and false in children until
/// they call this too.
///
/// # Errors
/// The kernel's refusal to map a page or to wipe it in children.
pub fn claim_process() -> Result<(), OsError> {
    let page = if let Some(page) = PAGE.get() {
        page
    } else {
        let page = Reservation::new(PAGE_SIZE, PAGE_SIZE, Access::ReadWrite)?;
        page.advise(0, PAGE_SIZE, libc::MADV_WIPEONFORK)?;
        PAGE.get_or_init(|| page)
    };
    mark(page).store(1, Ordering::Release);
    Ok(())
}

/// In a forked child, by the fork hook: claims it, if its parent was claimed.
pub fn claim_child() {
    if let Some(page) = PAGE.get() {
        mark(page).store(1, Ordering::Release);
    }
}

/// Whether the process was claimed, rather than copied from one that was. One
/// load; async-signal-safe.
#[must_use]
pub fn is_ours() -> bool {
    PAGE.get()
        .is_some_and(|page| mark(page).load(Ordering::Acquire) == 1)
}
