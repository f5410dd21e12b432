//! Memory that is committed when it is touched.
//!
//! The engine's tables are far larger than what is used of them. Linux backs a
//! page when it is written first; Windows counts memory from the moment it is
//! committed, so tables are only reserved, and the process's exception handler
//! commits page by page what is touched.
//!
//! ```text
//!   63           33 32                        1  0
//!  ┌───────────────┬───────────────────────────┬───┐
//!  │ base / 64 KiB │ length / 64 KiB           │ P │   one word for each range
//!  └───────────────┴───────────────────────────┴───┘
//!   P  the range is made of placeholders: 64 KiB of it are replaced at a time
//! ```
//! A whole entry is one word, so that the handler never sees half of one. Two
//! threads that touch one page both commit it, which does no harm; but a
//! placeholder is replaced by one thread at a time, for the first step towards it
//! turns what another has just put there, and used, into a placeholder again.

use core::ffi::c_void;
use core::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use windows_sys::Win32::System::Memory::{MEM_COMMIT, PAGE_READWRITE, VirtualAlloc};

use crate::error::{ENOSPC, OsError};
use crate::map::PAGE_SIZE;
use crate::{placeholder, signal, stop, thread};

/// Reservations start at multiples of this (`dwAllocationGranularity`).
pub(crate) const GRANULE: usize = 1 << 16;
/// Most ranges at once.
const RANGES_MAX: usize = 1 << 14;

static RANGES: [AtomicU64; RANGES_MAX] = [const { AtomicU64::new(0) }; RANGES_MAX];
/// Entries from here on were never used.
static USED: AtomicUsize = AtomicUsize::new(0);

const fn word(base: usize, len: usize, placeholders: bool) -> u64 {
    let granules = len.div_ceil(GRANULE) as u64;
    ((base / GRANULE) as u64) << 33 | granules << 1 | placeholders as u64
}

/// An entry; it ends when this is dropped.
#[derive(Debug)]
pub(crate) struct Lazy {
    entry: usize,
}

impl Lazy {
    /// Commits what is touched of a range from now on.
    ///
    /// # Errors
    /// `ENOSPC` when there are far too many ranges; a refused handler.
    pub(crate) fn new(base: usize, len: usize, placeholders: bool) -> Result<Self, OsError> {
        signal::ensure()?;
        let new = word(base, len, placeholders);
        for (entry, range) in RANGES.iter().enumerate() {
            let free = range.compare_exchange(0, new, Ordering::AcqRel, Ordering::Relaxed);
            if free.is_ok() {
                USED.fetch_max(entry + 1, Ordering::AcqRel);
                return Ok(Self { entry });
            }
        }
        Err(OsError::new("a table of the engine's", ENOSPC))
    }

    /// Changes how much of the range it is about.
    pub(crate) fn set_len(&self, len: usize) {
        let range = &RANGES[self.entry];
        let before = range.load(Ordering::Acquire);
        let base = (before >> 33) as usize * GRANULE;
        range.store(word(base, len, before & 1 == 1), Ordering::Release);
    }

    /// Leaves the entry to whoever calls [`forget`].
    pub(crate) fn leak(self) {
        core::mem::forget(self);
    }
}

impl Drop for Lazy {
    fn drop(&mut self) {
        RANGES[self.entry].store(0, Ordering::Release);
    }
}

/// Ends the entry of a range by its first address.
pub(crate) fn forget(base: usize) {
    let at = (base / GRANULE) as u64;
    for range in &RANGES[..USED.load(Ordering::Acquire)] {
        if range.load(Ordering::Acquire) >> 33 == at {
            range.store(0, Ordering::Release);
        }
    }
}

/// In the exception handler: commits what an address needs; `false` when it
/// lies in none of the ranges.
pub(crate) fn on_fault(address: usize) -> bool {
    let granule = (address / GRANULE) as u64;
    let hit = |range: &AtomicU64| {
        let range = range.load(Ordering::Acquire);
        let granules = range >> 1 & u64::from(u32::MAX);
        (granule.wrapping_sub(range >> 33) < granules).then_some(range & 1 == 1)
    };
    let used = &RANGES[..USED.load(Ordering::Acquire)];
    let Some(placeholders) = used.iter().find_map(hit) else {
        return false;
    };
    let done = if placeholders {
        replace(address & !(GRANULE - 1))
    } else {
        commit(address & !(PAGE_SIZE - 1))
    };
    if !done {
        stop::complain(b"ghostmem: the system has no memory left for a table of the engine's\n");
    }
    done
}

fn commit(page: usize) -> bool {
    // SAFETY: a page of a range that the engine reserved for its own use;
    // committing what is committed changes nothing.
    let got = unsafe { VirtualAlloc(page as *const c_void, PAGE_SIZE, MEM_COMMIT, PAGE_READWRITE) };
    !got.is_null()
}

/// Set while a thread replaces a piece whose number leaves this index over.
/// Nothing that such a thread does can fault.
static REPLACING: [AtomicBool; 64] = [const { AtomicBool::new(false) }; 64];

fn replace(piece: usize) -> bool {
    let replacing = &REPLACING[piece / GRANULE % REPLACING.len()];
    while replacing.swap(true, Ordering::Acquire) {
        thread::yield_now();
    }
    let is_there = placeholder::query(piece).is_some_and(|found| found.State == MEM_COMMIT);
    let done = is_there || {
        // SAFETY: a piece of a range that the engine reserved for its own use,
        // and no memory yet; refused when it is a placeholder of its own already.
        unsafe { placeholder::split(piece, GRANULE) };
        // SAFETY: as above.
        unsafe { placeholder::fill_private(piece, GRANULE) }.is_ok()
    };
    replacing.store(false, Ordering::Release);
    done
}
