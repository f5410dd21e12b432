//! [`Space`]: what a heap asks of whoever made its arena's range ghost memory.

use ghostmem_os::OsError;
use ghostmem_os::map::Reservation;

/// What a heap needs from whoever made its arena's range ghost memory.
pub trait Space: Send + Sync + 'static {
    /// The contents of these bytes (whole pages, inside the ghost range) are
    /// no longer needed: drop frames and copies. They read as zero or as
    /// before afterwards.
    ///
    /// Called on any thread that uses mimalloc, in the middle of its malloc
    /// or free, also at the end of threads and of the process: it must not
    /// allocate from a mimalloc heap and should not take long.
    fn discard(&self, address: usize, bytes: usize);

    /// A range of the reservation, `offset` and length in bytes, is to be used like
    /// the arena's first ghost range: what that is, this becomes too. It is zero,
    /// readable and writable; a refusal keeps the heap from growing.
    ///
    /// Called in the middle of an allocation; it must not allocate from a mimalloc
    /// heap.
    ///
    /// # Errors
    /// As whoever is asked has them.
    fn adopt(
        &self,
        reservation: &'static Reservation,
        offset: usize,
        bytes: usize,
    ) -> Result<(), OsError> {
        let _ordinary_memory = (reservation, offset, bytes);
        Ok(())
    }

    /// Whether any memory is held at all; one load, as every free asks.
    fn holds_any(&self) -> bool {
        false
    }

    /// Whether some of these bytes are held: used by something that is not the
    /// program, a system call or a device, so that they must not become another
    /// block. Who lets go of some calls [`SmallHeap::let_go`] afterwards.
    ///
    /// [`SmallHeap::let_go`]: super::SmallHeap::let_go
    fn is_held(&self, address: usize, bytes: usize) -> bool {
        let _nothing_is = (address, bytes);
        false
    }
}

/// Passes a purge to the space behind `context`.
///
/// # Safety
/// `context` must point to a live `S`.
pub(super) unsafe fn discard_in<S: Space>(context: *const (), address: usize, bytes: usize) {
    // SAFETY: the caller's promise.
    let space = unsafe { &*context.cast::<S>() };
    space.discard(address, bytes);
}
