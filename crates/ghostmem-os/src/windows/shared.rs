//! Words that two processes share: on Windows only the process's own so far.

use core::ffi::CStr;
use core::ops::Deref;
use core::sync::atomic::AtomicU64;

use crate::error::{EINVAL, ENOSYS, OsError};
use crate::map::ZeroArray;

/// An array of 64-bit atomics, all zero at first.
#[derive(Debug)]
pub struct SharedWords {
    words: ZeroArray<AtomicU64>,
}

impl SharedWords {
    /// `len` new words.
    ///
    /// # Errors
    /// The system's refusal of memory; `EINVAL` for no words at all.
    pub fn create(len: usize) -> Result<Self, OsError> {
        if len == 0 {
            return Err(OsError::new("sharing no words", EINVAL));
        }
        Ok(Self {
            words: ZeroArray::new(len)?,
        })
    }

    /// Maps the words that another process created.
    ///
    /// # Errors
    /// `ENOSYS`: not on Windows.
    pub const fn open(_path: &CStr) -> Result<Self, OsError> {
        Err(OsError::new("opening another process's words", ENOSYS))
    }

    /// The descriptor for others to open: there is none.
    #[must_use]
    pub const fn file(&self) -> Option<i32> {
        None
    }
}

impl Deref for SharedWords {
    type Target = [AtomicU64];

    fn deref(&self) -> &[AtomicU64] {
        &self.words
    }
}
