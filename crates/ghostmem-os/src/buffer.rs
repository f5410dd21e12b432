//! [`Buffer`]: bytes of one owner in a mapping of their own.
//!
//! For what the engine's threads assemble or read into. It never calls the
//! program's allocator, which may hand out ghost memory, and starts on a page
//! boundary, as direct I/O wants it.

use core::ops::{Deref, DerefMut};

use crate::error::OsError;
use crate::map::{Access, PAGE_SIZE, Reservation};

/// A fixed number of bytes, all zero at first; only the pages written are
/// backed by memory. Unmapped on drop.
#[derive(Debug)]
pub struct Buffer {
    map: Reservation,
}

impl Buffer {
    /// A buffer of at least `len` bytes: whole pages.
    ///
    /// # Errors
    /// The kernel's refusal to map it.
    pub fn new(len: usize) -> Result<Self, OsError> {
        Ok(Self {
            map: Reservation::new(len, PAGE_SIZE, Access::ReadWrite)?,
        })
    }
}

impl Deref for Buffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: the mapping is `len` readable bytes, zero or written through
        // `deref_mut`, and lives as long as `self`; nobody else has its
        // address.
        unsafe { core::slice::from_raw_parts(self.map.base() as *const u8, self.map.len()) }
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above, and `self` is borrowed exclusively.
        unsafe { core::slice::from_raw_parts_mut(self.map.base() as *mut u8, self.map.len()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_stay_and_begin_on_a_page() {
        let mut buffer = Buffer::new(5000).unwrap();
        assert_eq!(buffer.len(), 2 * PAGE_SIZE);
        assert!(buffer.as_ptr().addr().is_multiple_of(PAGE_SIZE));
        assert!(buffer.iter().all(|&byte| byte == 0));
        buffer[4999] = 7;
        assert_eq!((buffer[4998], buffer[4999]), (0, 7));
    }
}
