//! [`Options`]: where the file is and what it may become.

use std::path::{Path, PathBuf};

use crate::faults::Faults;

/// Default of [`Options::nonce_bits`]: a new key after 2^16 segments, at most
/// 64 GiB, 2^32 blocks of AES. The bound on what GCM may encrypt under one key lies
/// far beyond.
const NONCE_BITS: u32 = 16;

/// How to open a tier.
#[derive(Debug, Clone)]
#[must_use = "does nothing until a tier is opened with it"]
#[cfg_attr(windows, allow(dead_code, reason = "there is no tier to read them"))]
pub struct Options {
    pub(crate) path: PathBuf,
    pub(crate) is_named: bool,
    pub(crate) limit_bytes: u64,
    pub(crate) encrypt: bool,
    pub(crate) direct: bool,
    pub(crate) nonce_bits: u32,
    pub(crate) on_disk_only: bool,
    pub(crate) faults: Option<&'static dyn Faults>,
}

impl Options {
    /// A file without a name in the file system of a directory: nothing is left of
    /// it however the process ends.
    pub fn unnamed(dir: impl AsRef<Path>) -> Self {
        Self {
            path: dir.as_ref().to_path_buf(),
            is_named: false,
            limit_bytes: u64::MAX,
            encrypt: true,
            direct: true,
            nonce_bits: NONCE_BITS,
            on_disk_only: false,
            faults: None,
        }
    }

    /// A file at a path of its own: locked against other users, removed when the
    /// tier is dropped. A spill file that a killed process left there is taken over;
    /// any other file is refused.
    pub fn named(path: impl AsRef<Path>) -> Self {
        Self {
            is_named: true,
            ..Self::unnamed(path)
        }
    }

    /// Most bytes of blocks the file may take. Default: no limit.
    pub const fn limit_bytes(mut self, bytes: u64) -> Self {
        self.limit_bytes = bytes;
        self
    }

    /// Whether records are encrypted (the default) or only checksummed.
    pub const fn encrypt(mut self, yes: bool) -> Self {
        self.encrypt = yes;
        self
    }

    /// Whether to go around the page cache where the file system can (the default);
    /// otherwise pages are dropped from the cache after each use.
    pub const fn direct(mut self, yes: bool) -> Self {
        self.direct = yes;
        self
    }

    /// Whether a folder that is known to keep its files in memory is refused (default:
    /// no).
    pub const fn on_disk_only(mut self, yes: bool) -> Self {
        self.on_disk_only = yes;
        self
    }

    /// What keeps the files of the folder in memory, if that is known of it.
    #[cfg(not(windows))]
    #[must_use]
    pub fn kept_in_memory_by(&self) -> Option<&'static str> {
        let folder = match self.path.parent() {
            Some(parent) if self.is_named && parent.as_os_str().is_empty() => Path::new("."),
            Some(parent) if self.is_named => parent,
            _ => &self.path,
        };
        ghostmem_os::medium::in_memory(folder)
    }

    /// How many bits the counter in a nonce has, 1 to 56, before there is a new
    /// key. For tests of what happens at its end.
    pub const fn nonce_bits(mut self, bits: u32) -> Self {
        self.nonce_bits = if bits < 1 {
            1
        } else if bits > 56 {
            56
        } else {
            bits
        };
        self
    }

    /// Makes file operations fail as a test wants.
    #[doc(hidden)]
    pub const fn faults(mut self, faults: &'static dyn Faults) -> Self {
        self.faults = Some(faults);
        self
    }
}
