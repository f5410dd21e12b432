//! Address space and engine-owned memory.
//!
//! * [`Reservation`]: a range of address space, nothing behind it.
//! * [`ZeroArray`]: an array of atomics straight from the kernel, all zero,
//!   materialised page by page as it is written.
//! * [`MapArc`]: a reference-counted value in a mapping of its own.
//!
//! None of these ever calls the program's allocator: GhostMem may *be* the
//! program's allocator.

use core::marker::PhantomData;
use core::ops::Deref;
use core::ptr::NonNull;
use core::sync::atomic::{
    AtomicI64, AtomicU8, AtomicU16, AtomicU32, AtomicU64, AtomicUsize, Ordering, fence,
};

use crate::error::{ENOMEM, OsError};
pub use crate::reservation::Reservation;
use crate::reservation::release;
#[cfg(not(windows))]
pub use crate::reservation::{count_released, count_reserved, mapped_pages, reserved_bytes};

/// The only page size the engine works with, bytes. x86-64 has no other base
/// page; [`crate::machine::page_size_is_supported`] refuses kernels that do.
pub const PAGE_SIZE: usize = 4096;

/// No block is as long as this, nor aligned to this, bytes: a process's addresses end
/// here, but for mappings that ask for an address beyond (x86-64: mmap(2),
/// `Documentation/arch/x86/x86_64/5level-paging.rst`; `VirtualAlloc`).
pub const ADDRESS_SPACE_BYTES: usize = 1 << 47;

/// Rounds `bytes` up to whole pages; `None` when that overflows.
#[must_use]
pub const fn round_up_to_page(bytes: usize) -> Option<usize> {
    match bytes.checked_add(PAGE_SIZE - 1) {
        Some(sum) => Some(sum & !(PAGE_SIZE - 1)),
        None => None,
    }
}

/// How a reserved range may be accessed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Not at all: every touch raises SIGSEGV.
    None,
    /// Loads only.
    Read,
    /// Loads and stores.
    ReadWrite,
}

/// Whole pages of somebody's [`Reservation`].
///
/// Proves that the range was reserved address space when the span was made.
/// Does *not* prove that it still is: whoever keeps a span keeps the
/// reservation beside it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span {
    base: usize,
    len: usize,
}

impl Span {
    /// Whole pages of a live reservation, as its owner says.
    pub(crate) const fn new(base: usize, len: usize) -> Self {
        Self { base, len }
    }

    /// First address.
    #[must_use]
    pub const fn base(self) -> usize {
        self.base
    }

    /// Length in bytes.
    #[must_use]
    pub const fn len(self) -> usize {
        self.len
    }

    /// Whether the span is empty: never.
    #[must_use]
    pub const fn is_empty(self) -> bool {
        self.len == 0
    }

    /// Number of pages.
    #[must_use]
    pub const fn pages(self) -> usize {
        self.len / PAGE_SIZE
    }

    /// Some of its pages.
    ///
    /// # Panics
    /// When the span has not as many.
    #[must_use]
    pub const fn part(self, page: usize, pages: usize) -> Self {
        assert!(page + pages <= self.pages(), "pages outside the span");
        Self {
            base: self.base + page * PAGE_SIZE,
            len: pages * PAGE_SIZE,
        }
    }
}

/// Types for which all-zero bytes are a valid value and which may be shared
/// between threads.
///
/// # Safety
/// Every bit pattern of all zeros must be a valid value of the type.
pub unsafe trait ZeroValid: Sync {}

macro_rules! zero_valid {
    ($($t:ty),*) => {
        // SAFETY: these atomics have the layout of their integer, for which
        // zero is a value.
        $(unsafe impl ZeroValid for $t {})*
    };
}
zero_valid!(
    AtomicU8,
    AtomicU16,
    AtomicU32,
    AtomicU64,
    AtomicUsize,
    AtomicI64
);
// SAFETY: an array of zero-valid values is zero-valid.
unsafe impl<T: ZeroValid, const N: usize> ZeroValid for [T; N] {}

/// A fixed-length array of atomics in its own mapping, all zero at first.
///
/// Only the pages written are ever backed by memory, so an array for a huge
/// region costs what is used of it.
#[derive(Debug)]
pub struct ZeroArray<T: ZeroValid> {
    map: Reservation,
    len: usize,
    marker: PhantomData<T>,
}

impl<T: ZeroValid> ZeroArray<T> {
    /// An array of `len` zeros.
    ///
    /// # Errors
    /// The kernel's refusal to map it.
    pub fn new(len: usize) -> Result<Self, OsError> {
        let bytes = len
            .checked_mul(size_of::<T>())
            .ok_or(OsError::new("an array of this length", ENOMEM))?;
        let map = Reservation::new(bytes, PAGE_SIZE, Access::ReadWrite)?;
        // A huge page would back what was never written.
        map.keep_pages_small();
        Ok(Self {
            map,
            len,
            marker: PhantomData,
        })
    }

    /// Bytes of this array that are backed by memory now.
    /// Takes time linear in the array; meant for reports.
    #[must_use]
    pub fn backed_bytes(&self) -> usize {
        self.map.backed_bytes()
    }

    /// Gives the memory behind ranges of whole pages (offset, length, bytes) back
    /// to the system: they are zero afterwards. Async-signal-safe.
    ///
    /// # Errors
    /// The system's refusal; some of the memory then stays, never harm.
    pub(crate) fn give_back(&self, ranges: &[(usize, usize)]) -> Result<(), OsError> {
        // The only references into the array are to atomics, for which zero is
        // an ordinary new value.
        self.map.give_back(ranges)
    }
}

impl<T: ZeroValid> Deref for ZeroArray<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        // SAFETY: the mapping is page aligned, at least `len * size_of::<T>()`
        // bytes long and lives as long as `self`; all-zero bytes are valid
        // values (`ZeroValid`), and every later write goes through `&T`.
        unsafe { core::slice::from_raw_parts(self.map.base() as *const T, self.len) }
    }
}

struct Counted<T> {
    references: AtomicUsize,
    value: T,
}

/// A reference-counted value in a mapping of its own: an `Arc` that never
/// calls the program's allocator.
#[derive(Debug)]
pub struct MapArc<T: Send + Sync> {
    at: NonNull<Counted<T>>,
}

// SAFETY: like `Arc`, it hands out only `&T` and drops `T` on whichever
// thread lets go last, which `T: Send + Sync` allows.
unsafe impl<T: Send + Sync> Send for MapArc<T> {}
// SAFETY: as above.
unsafe impl<T: Send + Sync> Sync for MapArc<T> {}

impl<T: Send + Sync> MapArc<T> {
    /// Moves `value` into a fresh mapping.
    ///
    /// # Errors
    /// The kernel's refusal to map it.
    pub fn new(value: T) -> Result<Self, OsError> {
        const { assert!(align_of::<Counted<T>>() <= PAGE_SIZE) };
        let map = Reservation::new(size_of::<Counted<T>>(), PAGE_SIZE, Access::ReadWrite)?;
        let (base, _) = map.leak();
        let at = base as *mut Counted<T>;
        // SAFETY: the fresh mapping is writable, large enough and page aligned.
        unsafe {
            at.write(Counted {
                references: AtomicUsize::new(1),
                value,
            })
        };
        // SAFETY: mmap never returns the null page without MAP_FIXED.
        let at = unsafe { NonNull::new_unchecked(at) };
        Ok(Self { at })
    }

    /// The address of the value, stable while any handle lives. Says nothing
    /// about how long that is.
    #[must_use]
    pub fn as_ptr(this: &Self) -> *const T {
        &raw const this.counted().value
    }

    /// Gives up the handle without dropping it.
    #[must_use]
    pub fn into_raw(this: Self) -> *const T {
        let raw = Self::as_ptr(&this);
        core::mem::forget(this);
        raw
    }

    /// Takes a handle back.
    ///
    /// # Safety
    /// `raw` must come from [`MapArc::into_raw`] of the same `T`, each such
    /// pointer taken back once.
    #[must_use]
    pub unsafe fn from_raw(raw: *const T) -> Self {
        let offset = core::mem::offset_of!(Counted<T>, value);
        // SAFETY: `raw` points to the `value` field of a live `Counted<T>`.
        let at = unsafe { raw.byte_sub(offset) };
        let at = at.cast::<Counted<T>>().cast_mut();
        // SAFETY: an address inside a mapping is not null.
        let at = unsafe { NonNull::new_unchecked(at) };
        Self { at }
    }

    /// How many handles exist at this moment.
    #[must_use]
    pub fn count(this: &Self) -> usize {
        this.counted().references.load(Ordering::Relaxed)
    }

    fn counted(&self) -> &Counted<T> {
        // SAFETY: `at` stays valid until the last handle is dropped, and
        // `self` is a handle.
        unsafe { self.at.as_ref() }
    }
}

impl<T: Send + Sync> Clone for MapArc<T> {
    fn clone(&self) -> Self {
        let before = self.counted().references.fetch_add(1, Ordering::Relaxed);
        assert!(before < usize::MAX / 2, "reference count overflow");
        Self { at: self.at }
    }
}

impl<T: Send + Sync> Deref for MapArc<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.counted().value
    }
}

impl<T: Send + Sync> Drop for MapArc<T> {
    fn drop(&mut self) {
        if self.counted().references.fetch_sub(1, Ordering::Release) != 1 {
            return;
        }
        fence(Ordering::Acquire);
        let at = self.at.as_ptr();
        // SAFETY: this was the last handle, so nobody else can reach the
        // value, and it is dropped exactly once.
        unsafe { core::ptr::drop_in_place(at) };
        let len = size_of::<Counted<T>>().max(1).next_multiple_of(PAGE_SIZE);
        release(at as usize, len);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reservation_is_aligned_and_its_ends_are_given_back() {
        let map = Reservation::new(3 * PAGE_SIZE, 1 << 26, Access::None).unwrap();
        assert_eq!(map.base() % (1 << 26), 0);
        assert_eq!(map.len(), 3 * PAGE_SIZE);
        assert!(map.span(4 * PAGE_SIZE, PAGE_SIZE).is_err());
    }

    #[test]
    fn impossible_sizes_are_errors() {
        assert_eq!(
            Reservation::new(usize::MAX, PAGE_SIZE, Access::None)
                .unwrap_err()
                .errno,
            ENOMEM
        );
        assert_eq!(
            Reservation::new(1 << 60, PAGE_SIZE, Access::None)
                .unwrap_err()
                .errno,
            ENOMEM
        );
        assert_eq!(
            Reservation::new(1, 3, Access::None).unwrap_err().errno,
            crate::error::EINVAL
        );
    }

    #[test]
    fn a_zero_array_is_backed_only_where_it_was_written() {
        let array = ZeroArray::<AtomicU64>::new(1 << 20).unwrap();
        assert!(
            array
                .iter()
                .step_by(4096)
                .all(|w| w.load(Ordering::Relaxed) == 0)
        );
        let array = ZeroArray::<AtomicU64>::new(1 << 20).unwrap();
        array[600_000].store(7, Ordering::Relaxed);
        assert_eq!(array.backed_bytes(), PAGE_SIZE);
        assert_eq!(array[600_000].load(Ordering::Relaxed), 7);
    }

    #[test]
    fn map_arc_drops_its_value_once_with_the_last_handle() {
        struct Tally<'a>(&'a AtomicUsize);
        impl Drop for Tally<'_> {
            fn drop(&mut self) {
                self.0.fetch_add(1, Ordering::Relaxed);
            }
        }
        let drops = AtomicUsize::new(0);
        let first = MapArc::new(Tally(&drops)).unwrap();
        let second = first.clone();
        drop(first);
        assert_eq!(drops.load(Ordering::Relaxed), 0);
        drop(second);
        assert_eq!(drops.load(Ordering::Relaxed), 1);
    }
}
