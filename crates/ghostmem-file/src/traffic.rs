//! [`FileStats`]: what a tier holds and did.

/// Figures of a tier at one moment; each is right, together they may be of
/// neighbouring moments.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct FileStats {
    /// Packed bytes of the pages that are in the file.
    pub live_bytes: u64,
    /// Pages in the file.
    pub slots: u64,
    /// Bytes of blocks the process's own file takes on the disk.
    pub file_bytes: u64,
    /// Of these, bytes that would be free if no forked child could still read them.
    pub frozen_bytes: u64,
    /// What `file_bytes` may be; `u64::MAX` when only the file system limits it.
    pub limit_bytes: u64,
    /// Memory that tables and buffers take, bytes.
    pub metadata_bytes: u64,
    /// Pages written since the tier was opened, moved ones not counted.
    pub pages_written: u64,
    /// Bytes written, padding and moved pages included.
    pub bytes_written: u64,
    /// Pages that cleaning has moved.
    pub pages_moved: u64,
    /// Pages read.
    pub pages_read: u64,
    /// Pages that could not be read.
    pub read_errors: u64,
    /// Batches that could not be written.
    pub write_errors: u64,
    /// Keys made.
    pub keys: u64,
}
