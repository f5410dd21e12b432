//! The rivals: each holds a buffer of which only a part is resident.

pub(crate) mod ghost;
pub(crate) mod zram;

use serde_json::Value;

use crate::buffer::Buffer;
use crate::error::Result;

/// What a contender holds and spends, bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Figures {
    /// Uncompressed pages of the buffer in memory.
    pub(crate) resident: u64,
    /// Compressed pages, net.
    pub(crate) data: u64,
    /// Memory that the compressed pages occupy, gaps and headers included.
    pub(crate) held: u64,
    /// Tables beside that, as far as the contender counts them.
    pub(crate) metadata: u64,
    /// The most that resident and compressed pages and tables ever took
    /// together by the kernel's count: growth of the process's memory since
    /// before the buffer was made, and for zram the most the device ever held.
    pub(crate) peak: u64,
}

/// A buffer under a memory limit, in this process.
pub(crate) trait Contender {
    /// The memory under test.
    fn buffer(&self) -> Buffer<'_>;
    /// Called once after the buffer has been filled: brings the limit to its
    /// exact value if that could not be known before.
    fn settle(&mut self) -> Result<()>;
    /// Faults so far.
    fn faults(&self) -> u64;
    /// What it holds now.
    fn figures(&self) -> Result<Figures>;
    /// The contender's own counters since its start, for the JSON record.
    fn counters(&self) -> Value {
        Value::Null
    }
}
