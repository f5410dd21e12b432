//! What a test wants of a file.

use core::fmt::Debug;

/// What a test wants to happen instead of a file operation.
#[doc(hidden)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Injected {
    /// What was asked for.
    Nothing,
    /// The call fails and does nothing.
    Errno(i32),
    /// Only the first bytes are read; or written, and then the call fails.
    Short(usize, i32),
    /// A bit is wrong: of byte `.0` modulo the length, what is set in `.1`.
    Flip(usize, u8),
    /// A write that reports success and does nothing.
    Lost,
}

/// Decides over every file operation, for tests.
#[doc(hidden)]
pub trait Faults: Debug + Sync {
    /// Before `len` bytes are read at `offset`.
    fn read(&self, offset: u64, len: usize) -> Injected;
    /// Before `len` bytes are written at `offset`.
    fn write(&self, offset: u64, len: usize) -> Injected;
    /// Before blocks are given back.
    fn punch(&self, offset: u64, len: u64) -> Injected;
    /// Before blocks are reserved.
    fn reserve(&self, _offset: u64, _len: u64) -> Injected {
        Injected::Nothing
    }
}
