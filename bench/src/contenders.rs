//! The rivals: each holds a buffer of which only a part is resident.

pub(crate) mod area;
pub(crate) mod ghost;
pub(crate) mod kernel;
pub(crate) mod peer;
pub(crate) mod swapfile;
pub(crate) mod zram;
pub(crate) mod zswap;

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::Value;

use crate::buffer::Buffer;
use crate::error::Result;

/// Who is measured. As text: what `--contenders` takes and tables show.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    /// Ordinary memory without a limit: the floor.
    Plain,
    /// GhostMem, by its fault backend.
    Ghost(&'static str),
    /// GhostMem with a file beside: resident pages, compressed pages and tables
    /// together within the limit, the rest on the disk.
    Spill,
    /// GhostMem with a file that it never needs.
    SpillIdle,
    /// Swap on zram, by its compressor.
    Zram(String),
    /// Swap on a file behind the kernel's compressed cache.
    Zswap,
    /// Swap on a file.
    Disk,
    /// A file, mapped and shared.
    File,
    /// A shared library with the C++ interface of `GhostMemoryManager`.
    Peer,
}

/// GhostMem's backends; the first is the one others are compared with.
pub(crate) const BACKENDS: [&str; 4] = ["inline", "monitor", "guard", "guard-mprotect"];

impl Kind {
    /// GhostMem as most users get it.
    pub(crate) const INLINE: Self = Self::Ghost(BACKENDS[0]);

    /// Everything there is: each compressor that this kernel's zram has (lz4
    /// where that cannot be read, to be skipped with a reason), and the peer if
    /// one was given.
    pub(crate) fn all(peer: bool) -> Vec<Self> {
        let mut all = vec![Self::Plain, Self::INLINE];
        let mut compressors = zram::compressors();
        if compressors.is_empty() {
            compressors.push("lz4".to_owned());
        }
        all.extend(compressors.into_iter().map(Self::Zram));
        all.extend([
            Self::Zswap,
            Self::Disk,
            Self::File,
            Self::Spill,
            Self::SpillIdle,
        ]);
        all.extend(BACKENDS[1..].iter().copied().map(Self::Ghost));
        if peer {
            all.push(Self::Peer);
        }
        all
    }

    /// Whether it is GhostMem.
    pub(crate) const fn is_ghost(&self) -> bool {
        matches!(self, Self::Ghost(_) | Self::Spill | Self::SpillIdle)
    }

    /// Whether it is so slow that an eighth of the touches is enough.
    pub(crate) fn is_slow(&self) -> bool {
        match self {
            Self::Ghost(backend) => *backend != BACKENDS[0],
            Self::Disk | Self::File | Self::Spill | Self::Peer => true,
            Self::Plain | Self::SpillIdle | Self::Zram(_) | Self::Zswap => false,
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Plain => f.write_str("plain"),
            Self::Ghost(backend) => f.write_str(backend),
            Self::Spill => f.write_str("spill"),
            Self::SpillIdle => f.write_str("spill-idle"),
            Self::Zram(compressor) => write!(f, "zram-{compressor}"),
            Self::Zswap => f.write_str("zswap"),
            Self::Disk => f.write_str("disk"),
            Self::File => f.write_str("file"),
            Self::Peer => f.write_str("peer"),
        }
    }
}

impl FromStr for Kind {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        if let Some(backend) = BACKENDS.iter().find(|backend| **backend == text) {
            return Ok(Self::Ghost(backend));
        }
        match text.split_once('-') {
            Some(("zram", compressor)) if !compressor.is_empty() => {
                return Ok(Self::Zram(compressor.to_owned()));
            }
            _ => {}
        }
        match text {
            "plain" => Ok(Self::Plain),
            "zswap" => Ok(Self::Zswap),
            "spill" => Ok(Self::Spill),
            "spill-idle" => Ok(Self::SpillIdle),
            "disk" => Ok(Self::Disk),
            "file" => Ok(Self::File),
            "peer" => Ok(Self::Peer),
            _ => Err(format!(
                "no contender named {text}: plain, {}, zram-COMPRESSOR, zswap, disk, file, spill, \
                 spill-idle, peer",
                BACKENDS.join(", ")
            )),
        }
    }
}

impl Serialize for Kind {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Kind {
    fn deserialize<D: Deserializer<'de>>(from: D) -> std::result::Result<Self, D::Error> {
        let text = String::deserialize(from)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// What a contender holds and spends, bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
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
    /// together by the kernel's count: what the cgroup was charged since before
    /// the buffer was made (without a cgroup, growth of the process), and what
    /// is held outside of it.
    pub(crate) peak: u64,
}

/// Reads figures from a thread beside the touching ones.
pub(crate) type Probe = Box<dyn Fn() -> Result<Figures> + Send + Sync>;

/// A buffer under a memory limit, in this process.
pub(crate) trait Contender {
    /// The memory under test.
    fn buffer(&self) -> Buffer<'_>;
    /// Called once after the buffer has been filled: brings the limit to its
    /// exact value if that could not be known before.
    fn settle(&mut self) -> Result<()>;
    /// Gives everything in the buffer up, so that it can be filled anew.
    fn forget(&mut self) -> Result<()>;
    /// Faults so far.
    fn faults(&self) -> u64;
    /// What reads the figures, usable for the life of the process.
    fn probe(&self) -> Probe;
    /// The contender's own counters since its start, for the record.
    fn counters(&self) -> Value {
        Value::Null
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Proves that every contender is found by the name that it is shown by,
    /// and that others are refused.
    #[test]
    fn names() {
        let mut all = Kind::all(true);
        all.push(Kind::Zram("lzo-rle".to_owned()));
        for kind in all {
            assert_eq!(kind.to_string().parse(), Ok(kind));
        }
        for name in ["", "zram", "zram-", "Inline", "swap"] {
            assert!(name.parse::<Kind>().is_err(), "{name}");
        }
    }
}
