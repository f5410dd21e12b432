//! [`GhostSlice`]: a typed slice in ghost memory.

use core::alloc::Layout;
use core::marker::PhantomData;
use core::ops::{Deref, DerefMut};
use core::ptr::NonNull;

use crate::{Error, Heap};

/// A fixed number of values in ghost memory; a `Box<[T]>` on a [`Heap`].
///
/// ```
/// use ghostmem::Heap;
/// let heap = Heap::builder().resident_limit(64 << 10).build()?;
/// let mut squares = heap.slice_from_fn(100_000, |i| i as u64 * i as u64)?;
/// squares[7] += 1;
/// assert_eq!(squares[7], 50);
/// assert_eq!(squares.iter().copied().max(), Some(99_999 * 99_999));
/// # Ok::<(), ghostmem::Error>(())
/// ```
#[derive(Debug)]
pub struct GhostSlice<T> {
    start: NonNull<T>,
    len: usize,
    layout: Layout,
    heap: Heap,
    marker: PhantomData<T>,
}

// SAFETY: it owns its values, as a `Box<[T]>` does.
unsafe impl<T: Send> Send for GhostSlice<T> {}
// SAFETY: as above.
unsafe impl<T: Sync> Sync for GhostSlice<T> {}

impl Heap {
    /// A slice of `len` values made by `value(index)`.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`].
    pub fn slice_from_fn<T>(
        &self,
        len: usize,
        mut value: impl FnMut(usize) -> T,
    ) -> Result<GhostSlice<T>, Error> {
        let layout =
            Layout::array::<T>(len).map_err(|_| Error::OutOfMemory { bytes: usize::MAX })?;
        let start = self.allocate(layout)?.cast::<T>();
        // Grows as values are made, so that a panic in `value` drops those
        // that exist.
        let mut slice = GhostSlice {
            start,
            len: 0,
            layout,
            heap: self.clone(),
            marker: PhantomData,
        };
        for index in 0..len {
            // SAFETY: inside the block, which has room for `len` values.
            let at = unsafe { start.add(index) };
            // SAFETY: aligned, in bounds, nothing there yet.
            unsafe { at.write(value(index)) };
            slice.len = index + 1;
        }
        Ok(slice)
    }

    /// A slice with copies of `values`.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`].
    pub fn slice_from<T: Clone>(&self, values: &[T]) -> Result<GhostSlice<T>, Error> {
        self.slice_from_fn(values.len(), |index| values[index].clone())
    }
}

impl<T> GhostSlice<T> {
    /// The heap it lives in.
    #[must_use]
    pub fn heap(&self) -> &Heap {
        &self.heap
    }
}

impl<T> Deref for GhostSlice<T> {
    type Target = [T];
    fn deref(&self) -> &[T] {
        // SAFETY: `len` values were written from `start` on, and the block
        // lives as long as `self`.
        unsafe { core::slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }
}

impl<T> DerefMut for GhostSlice<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        // SAFETY: as in `deref`, and `self` is borrowed exclusively.
        unsafe { core::slice::from_raw_parts_mut(self.start.as_ptr(), self.len) }
    }
}

impl<T> Drop for GhostSlice<T> {
    fn drop(&mut self) {
        let values: *mut [T] = &raw mut **self;
        // SAFETY: the values are dropped once, here.
        unsafe { core::ptr::drop_in_place(values) };
        // SAFETY: nobody uses the block any more, and this is its layout.
        let _freed = unsafe { self.heap.deallocate(self.start.cast(), self.layout) };
    }
}
