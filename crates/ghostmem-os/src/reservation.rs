//! Address space by mmap(2): see [`Reservation`].

use core::sync::atomic::{AtomicUsize, Ordering};

use crate::error::OsError;
use crate::kernel;
use crate::map::{Access, PAGE_SIZE, Span, round_up_to_page};
use crate::ranges::{self, NO_RANGE, drop_range};

const fn prot(access: Access) -> i32 {
    match access {
        Access::None => libc::PROT_NONE,
        Access::Read => libc::PROT_READ,
        Access::ReadWrite => libc::PROT_READ | libc::PROT_WRITE,
    }
}

/// Reservations of so many bytes are left out of core dumps: the engine's tables and
/// its store, which are long and mostly empty, and which no debugger can read.
const LEFT_OUT_FROM: usize = 1 << 20;

/// Bytes that this process has mapped here and not released.
static RESERVED_BYTES: AtomicUsize = AtomicUsize::new(0);

/// Address space that the engine has reserved, used or not, bytes. To limits on address space
/// (`RLIMIT_AS`) all of it counts.
#[must_use]
pub fn reserved_bytes() -> usize {
    RESERVED_BYTES.load(Ordering::Relaxed)
}

/// Counts what was mapped just now, here or for the engine elsewhere.
pub fn count_reserved(bytes: usize) {
    RESERVED_BYTES.fetch_add(bytes, Ordering::Relaxed);
}

/// Counts what was unmapped.
pub fn count_released(bytes: usize) {
    let less = |all: usize| Some(all.saturating_sub(bytes));
    let _all = RESERVED_BYTES.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less);
}

/// A contiguous range of address space this value owns; unmapped on drop.
#[derive(Debug)]
pub struct Reservation {
    base: usize,
    len: usize,
}

impl Reservation {
    /// Reserves `len` bytes (rounded up to pages), aligned to `align` bytes (a
    /// power of two of at least a page), private, anonymous, without reserving
    /// commit charge (`MAP_NORESERVE`, mmap(2)).
    ///
    /// # Errors
    /// The kernel's refusal; `EINVAL` for a bad alignment, `ENOMEM` when the
    /// size overflows.
    pub fn new(len: usize, align: usize, access: Access) -> Result<Self, OsError> {
        if !align.is_power_of_two() || align < PAGE_SIZE {
            return Err(OsError::new("mmap", libc::EINVAL));
        }
        let overflow = OsError::new("mmap", libc::ENOMEM);
        let len = round_up_to_page(len.max(1)).ok_or(overflow)?;
        let reservation = match aligned_nearby(len, align, access) {
            Some(base) => Self { base, len },
            None => Self::within_more(len, align, access)?,
        };
        if len >= LEFT_OUT_FROM {
            ranges::set_dumped(reservation.base, len, false);
        }
        Ok(reservation)
    }

    /// As [`Reservation::new`], wherever there is room.
    fn within_more(len: usize, align: usize, access: Access) -> Result<Self, OsError> {
        let overflow = OsError::new("mmap", libc::ENOMEM);
        // Ask for enough that an aligned run must lie inside, then give back
        // both ends.
        let slack = if align > PAGE_SIZE { align } else { 0 };
        let asked = len.checked_add(slack).ok_or(overflow)?;
        let raw = map_anonymous(asked, access)?;
        let base = (raw + align - 1) & !(align - 1);
        let reservation = Self { base, len };
        release(raw, base - raw);
        release(base + len, raw + asked - (base + len));
        Ok(reservation)
    }

    /// First address.
    #[must_use]
    pub const fn base(&self) -> usize {
        self.base
    }

    /// Length in bytes.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.len
    }

    /// Whether the range is empty: never, a reservation has at least one page.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// A part of the range, for whoever works on it while the reservation
    /// lives.
    ///
    /// # Errors
    /// `EINVAL` when the part is not made of whole pages of the range.
    pub fn span(&self, offset: usize, len: usize) -> Result<Span, OsError> {
        self.check("span", offset, len)?;
        if !len.is_multiple_of(PAGE_SIZE) || len == 0 {
            return Err(OsError::new("span", libc::EINVAL));
        }
        Ok(Span::new(self.base + offset, len))
    }

    /// Changes the access of a part of the range.
    ///
    /// # Errors
    /// `EINVAL` when the part does not lie in the range; the kernel's refusal
    /// (`ENOMEM` when the process has too many mappings).
    pub fn protect(&self, offset: usize, len: usize, access: Access) -> Result<(), OsError> {
        self.check("mprotect", offset, len)?;
        let at = (self.base + offset) as *mut libc::c_void;
        // SAFETY: the range lies in memory this reservation owns; no
        // reference into a reservation is ever handed out, so changing its
        // protection cannot break one.
        let rc = unsafe { kernel::mprotect(at, len, prot(access)) };
        if rc == 0 {
            Ok(())
        } else {
            Err(OsError::last("mprotect"))
        }
    }

    /// Applies an `madvise` value to a part of the range.
    ///
    /// # Errors
    /// `EINVAL` when the part does not lie in the range; the kernel's refusal.
    pub fn advise(&self, offset: usize, len: usize, advice: i32) -> Result<(), OsError> {
        self.check("madvise", offset, len)?;
        let at = (self.base + offset) as *mut libc::c_void;
        // SAFETY: the range lies in memory this reservation owns.
        let rc = unsafe { kernel::madvise(at, len, advice) };
        if rc == 0 {
            Ok(())
        } else {
            Err(OsError::last("madvise"))
        }
    }

    /// Replaces a part of the range by fresh, zero, private memory with the
    /// given access, dropping what was there and any registration it had.
    ///
    /// # Errors
    /// As [`Reservation::protect`].
    pub fn remap(&self, offset: usize, len: usize, access: Access) -> Result<(), OsError> {
        self.check("mmap", offset, len)?;
        let at = (self.base + offset) as *mut libc::c_void;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE | libc::MAP_FIXED;
        // SAFETY: MAP_FIXED replaces only pages inside memory this
        // reservation owns.
        let got = unsafe { kernel::mmap(at, len, prot(access), flags, -1, 0) };
        if got == libc::MAP_FAILED {
            return Err(OsError::last("mmap"));
        }
        if len >= LEFT_OUT_FROM {
            ranges::set_dumped(at as usize, len, false);
        }
        Ok(())
    }

    /// Keeps the kernel from putting a huge page here, which would back what
    /// was never touched. A kernel without them has no such advice.
    pub fn keep_pages_small(&self) {
        let _without = self.advise(0, self.len, libc::MADV_NOHUGEPAGE);
    }

    /// Gives the memory behind ranges of whole pages (offset, length) back to the kernel
    /// (`MADV_DONTNEED`, madvise(2)), several in a call: they are zero afterwards.
    ///
    /// # Errors
    /// The kernel's refusal; some of the memory then stays.
    pub(crate) fn give_back(&self, ranges: &[(usize, usize)]) -> Result<(), OsError> {
        const CALL: usize = 32;
        for chunk in ranges.chunks(CALL) {
            let mut wanted = [NO_RANGE; CALL];
            for (range, &(offset, len)) in wanted.iter_mut().zip(chunk) {
                self.check("madvise", offset, len)?;
                *range = drop_range(self.base + offset, len);
            }
            // SAFETY: private memory of this reservation, whose contents the caller does not
            // need.
            unsafe { ranges::give_back(&wanted[..chunk.len()]) }?;
        }
        Ok(())
    }

    /// How many bytes of it are backed by memory, by mincore(2).
    pub(crate) fn backed_bytes(&self) -> usize {
        backed_bytes(self.base, self.len)
    }

    /// Keeps the mapping for the rest of the process and gives up the handle.
    pub fn leak(self) -> (usize, usize) {
        let parts = (self.base, self.len);
        core::mem::forget(self);
        parts
    }

    fn check(&self, call: &'static str, offset: usize, len: usize) -> Result<(), OsError> {
        let end = offset.checked_add(len);
        if offset.is_multiple_of(PAGE_SIZE) && end.is_some_and(|end| end <= self.len) {
            Ok(())
        } else {
            Err(OsError::new(call, libc::EINVAL))
        }
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        release(self.base, self.len);
    }
}

fn map_anonymous(len: usize, access: Access) -> Result<usize, OsError> {
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
    // SAFETY: a fresh anonymous mapping at an address of the kernel's choice
    // touches nothing that exists.
    let got = unsafe { kernel::mmap(core::ptr::null_mut(), len, prot(access), flags, -1, 0) };
    if got == libc::MAP_FAILED {
        Err(OsError::last("mmap"))
    } else {
        count_reserved(len);
        Ok(got as usize)
    }
}

/// Maps `len` bytes aligned to more than a page without asking for more, which a limit
/// on address space may not allow: where the kernel would put them, or at an aligned
/// address below that nobody uses.
fn aligned_nearby(len: usize, align: usize, access: Access) -> Option<usize> {
    const TRIES: usize = 16;
    if align <= PAGE_SIZE {
        return None;
    }
    let found = map_anonymous(len, access).ok()?;
    if found.is_multiple_of(align) {
        return Some(found);
    }
    release(found, len);
    let flags =
        libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE | libc::MAP_FIXED_NOREPLACE;
    let below = found & !(align - 1);
    for base in (1..=TRIES).filter_map(|step| below.checked_sub((step - 1) * align)) {
        let at = base as *mut libc::c_void;
        // SAFETY: a fresh anonymous mapping; nothing that exists is replaced.
        let got = unsafe { kernel::mmap(at, len, prot(access), flags, -1, 0) };
        if got == libc::MAP_FAILED {
            continue;
        }
        count_reserved(len);
        if got == at {
            return Some(base);
        }
        // A kernel before 4.17 takes the address for a hint.
        release(got as usize, len);
    }
    None
}

/// Unmaps a range that was [leaked](Reservation::leak), or part of one.
pub(crate) fn release(base: usize, len: usize) {
    if len > 0 {
        // SAFETY: callers pass ranges they mapped themselves and own.
        let rc = unsafe { kernel::munmap(base as *mut libc::c_void, len) };
        debug_assert_eq!(rc, 0, "munmap of an owned range cannot fail");
        count_released(len);
    }
}

/// Which pages of a mapped range of private memory are there, one byte each
/// with bit 0 set (mincore(2)). Async-signal-safe.
///
/// # Errors
/// `EINVAL` when `out` has fewer bytes than the range has pages; the kernel's
/// refusal (`ENOMEM` when part of the range is not mapped).
pub fn mapped_pages(base: usize, len: usize, out: &mut [u8]) -> Result<(), OsError> {
    if out.len() < len.div_ceil(PAGE_SIZE) {
        return Err(OsError::new("mincore", libc::EINVAL));
    }
    // SAFETY: `out` has a byte for each page of the range, whose contents are
    // not looked at.
    let rc = unsafe { kernel::mincore(base as *mut libc::c_void, len, out.as_mut_ptr()) };
    if rc == 0 {
        Ok(())
    } else {
        Err(OsError::last("mincore"))
    }
}

/// How many bytes of a mapped range are backed by memory, by mincore(2).
fn backed_bytes(base: usize, len: usize) -> usize {
    let mut seen = [0_u8; 1024];
    let mut total = 0;
    let mut at = base;
    let end = base + len;
    while at < end {
        let span = (end - at).min(seen.len() * PAGE_SIZE);
        if mapped_pages(at, span, &mut seen).is_err() {
            return total;
        }
        total += seen[..span.div_ceil(PAGE_SIZE)]
            .iter()
            .filter(|&&b| b & 1 == 1)
            .count()
            * PAGE_SIZE;
        at += span;
    }
    total
}
