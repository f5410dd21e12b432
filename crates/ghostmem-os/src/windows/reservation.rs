//! Address space by `VirtualAlloc`: see [`Reservation`].
//!
//! Memory that can be read and written is committed when it is touched (see
//! [`lazy`](crate::lazy)), but for small pieces, which are committed at once.

use core::ffi::c_void;

use windows_sys::Win32::System::Memory::{
    MEM_COMMIT, MEM_DECOMMIT, MEM_RELEASE, MEM_RESERVE, PAGE_READWRITE, VirtualAlloc, VirtualFree,
};

use crate::error::{EINVAL, ENOMEM, OsError};
use crate::lazy::{self, Lazy};
use crate::map::{ADDRESS_SPACE_BYTES, Access, PAGE_SIZE, Span, round_up_to_page};
use crate::placeholder;

/// Reservations up to this many bytes are committed as a whole.
const COMMIT_AT_ONCE_BYTES: usize = lazy::GRANULE;

/// A contiguous range of address space this value owns; unmapped on drop.
///
/// Aligned to more than a page, it is made of placeholders, and a part of it can
/// [become ghost memory](Reservation::become_ghost).
#[derive(Debug)]
pub struct Reservation {
    base: usize,
    len: usize,
    placeholders: bool,
    lazy: Option<Lazy>,
}

impl Reservation {
    /// Reserves `len` bytes (rounded up to pages), aligned to `align` bytes (a
    /// power of two of at least a page).
    ///
    /// # Errors
    /// The system's refusal; `EINVAL` for a bad alignment, `ENOMEM` when the
    /// size overflows.
    pub fn new(len: usize, align: usize, access: Access) -> Result<Self, OsError> {
        if !align.is_power_of_two() || align < PAGE_SIZE {
            return Err(OsError::new("VirtualAlloc", EINVAL));
        }
        // More than the address space there is would be refused as a bad
        // argument.
        let len = round_up_to_page(len.max(1))
            .filter(|&len| len < ADDRESS_SPACE_BYTES)
            .ok_or(OsError::new("VirtualAlloc", ENOMEM))?;
        let placeholders = align > PAGE_SIZE;
        let whole = access == Access::ReadWrite && len <= COMMIT_AT_ONCE_BYTES && !placeholders;
        let base = if placeholders {
            placeholder::reserve(len, align.max(lazy::GRANULE))?
        } else {
            allocate(
                len,
                if whole {
                    MEM_RESERVE | MEM_COMMIT
                } else {
                    MEM_RESERVE
                },
            )?
        };
        let mut reservation = Self {
            base,
            len,
            placeholders,
            lazy: None,
        };
        if access == Access::ReadWrite && !whole {
            reservation.lazy = Some(Lazy::new(base, len, placeholders)?);
        }
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
        Ok(Span::new(self.base + offset, len))
    }

    /// Makes the range from `offset` on (a multiple of 64 KiB) empty
    /// placeholders, which are no longer memory when they are touched.
    ///
    /// # Errors
    /// `EINVAL` when the part does not reach to the end, or the reservation is
    /// not made of placeholders.
    pub fn become_ghost(&self, offset: usize, len: usize) -> Result<(), OsError> {
        self.check("becoming ghost memory", offset, len)?;
        let whole = self.placeholders && offset.is_multiple_of(lazy::GRANULE);
        let (Some(lazy), true) = (&self.lazy, whole && offset + len == self.len) else {
            return Err(OsError::new("becoming ghost memory", EINVAL));
        };
        lazy.set_len(offset);
        // SAFETY: the range is ours, no reference into a reservation is ever
        // handed out, and pieces begin and end at multiples of 64 KiB.
        unsafe { placeholder::clear(self.base + offset, len, true) };
        Ok(())
    }

    /// Makes a part of the range (up to its end) fresh, zero memory again.
    ///
    /// # Errors
    /// As [`Reservation::become_ghost`].
    pub fn remap(&self, offset: usize, len: usize, access: Access) -> Result<(), OsError> {
        self.become_ghost(offset, len)?;
        if let (Some(lazy), Access::ReadWrite) = (&self.lazy, access) {
            lazy.set_len(self.len);
        }
        Ok(())
    }

    /// Windows uses large pages only where they are asked for.
    pub const fn keep_pages_small(&self) {}

    /// Gives the memory behind ranges of whole pages (offset, length) back to the system: they
    /// are zero afterwards.
    ///
    /// # Errors
    /// The system's refusal; some of the memory then stays.
    pub(crate) fn give_back(&self, ranges: &[(usize, usize)]) -> Result<(), OsError> {
        let mut ranges = ranges.iter();
        ranges.try_for_each(|&(offset, len)| self.give_back_one(offset, len))
    }

    fn give_back_one(&self, offset: usize, len: usize) -> Result<(), OsError> {
        self.check("VirtualFree", offset, len)?;
        let at = (self.base + offset) as *mut c_void;
        // SAFETY: memory of this reservation, whose contents the caller does
        // not need.
        if unsafe { VirtualFree(at, len, MEM_DECOMMIT) } == 0 {
            return Err(OsError::last("VirtualFree"));
        }
        if self.lazy.is_none() {
            // SAFETY: as above.
            let got = unsafe { VirtualAlloc(at, len, MEM_COMMIT, PAGE_READWRITE) };
            if got.is_null() {
                return Err(OsError::last("VirtualAlloc"));
            }
        }
        Ok(())
    }

    /// How many bytes of it are backed by memory.
    pub(crate) fn backed_bytes(&self) -> usize {
        placeholder::committed(self.base, self.len)
    }

    /// Keeps the memory for the rest of the process and gives up the handle.
    pub fn leak(mut self) -> (usize, usize) {
        let parts = (self.base, self.len);
        if let Some(lazy) = self.lazy.take() {
            lazy.leak();
        }
        core::mem::forget(self);
        parts
    }

    fn check(&self, call: &'static str, offset: usize, len: usize) -> Result<(), OsError> {
        let end = offset.checked_add(len);
        let whole = offset.is_multiple_of(PAGE_SIZE) && len.is_multiple_of(PAGE_SIZE) && len > 0;
        if whole && end.is_some_and(|end| end <= self.len) {
            Ok(())
        } else {
            Err(OsError::new(call, EINVAL))
        }
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        // Whatever is touched from here on is a crash.
        self.lazy = None;
        if self.placeholders {
            // SAFETY: all of it is ours and nobody uses it any more.
            unsafe { placeholder::clear(self.base, self.len, false) };
        } else {
            free(self.base);
        }
    }
}

fn allocate(len: usize, how: u32) -> Result<usize, OsError> {
    // SAFETY: fresh memory at an address of the system's choice touches nothing
    // that exists.
    let got = unsafe { VirtualAlloc(core::ptr::null(), len, how, PAGE_READWRITE) };
    if got.is_null() {
        Err(OsError::last("VirtualAlloc"))
    } else {
        Ok(got as usize)
    }
}

fn free(base: usize) {
    // SAFETY: callers pass what they allocated themselves and own.
    let ok = unsafe { VirtualFree(base as *mut c_void, 0, MEM_RELEASE) };
    debug_assert_ne!(ok, 0, "releasing owned memory cannot fail");
}

/// Unmaps a range that was [leaked](Reservation::leak).
pub(crate) fn release(base: usize, len: usize) {
    if len > COMMIT_AT_ONCE_BYTES {
        lazy::forget(base);
    }
    free(base);
}
