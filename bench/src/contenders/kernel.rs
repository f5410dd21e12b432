//! The kernel's ways, measured: anonymous memory that swaps, and a mapped
//! file, in a memory cgroup; and anonymous memory without a limit.
//!
//! What the limit leaves: everything the process needs beside the buffer
//! (program, touch orders, expected values) is allocated and locked first and
//! added to the limit as the kernel counts it; page tables and swap
//! bookkeeping, which the kernel charges too, are found by filling the buffer
//! and comparing what is resident with what was wanted, then raising the limit
//! by the difference. zram's memory is not charged to the cgroup, nor is
//! zswap's with version 1; with version 2 the raising makes up for it. All of
//! this is in the kernel's favour or neutral.

use std::fs;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::{Contender, Figures, Probe, zram, zswap};
use crate::buffer::{Buffer, PAGE_SIZE};
use crate::cgroup::Cgroup;
use crate::error::{Error, Result};
use crate::report::status_bytes;
use crate::sys::{self, Mapping};

/// Where pages go that are not resident.
#[derive(Debug, Clone)]
pub(crate) enum Beyond {
    /// Nowhere: there is no limit.
    Nothing,
    /// A zram device, by name.
    Zram(String),
    /// zswap; what it held before is subtracted.
    Zswap(u64),
    /// A swap file.
    Disk,
    /// The mapped file itself.
    File,
}

/// Memory that the kernel manages.
#[derive(Debug)]
pub(crate) struct Kernel {
    mapping: Mapping,
    beyond: Beyond,
    group: Option<Arc<Cgroup>>,
    limit: u64,
    wanted: u64,
    /// Charged to the group before the buffer was filled, bytes.
    charged: u64,
    /// Resident beside the buffer, bytes.
    beside: u64,
    /// The most seen outside of the group, bytes.
    outside_peak: Arc<AtomicU64>,
}

impl Kernel {
    /// Maps a buffer of `pages` pages, of which the group, which the caller has
    /// joined, is to keep `resident` bytes in memory. What the caller has
    /// allocated so far is locked and does not count. A file is made in
    /// `scratch`, without a name.
    pub(crate) fn open(
        beyond: Beyond,
        group: Option<Cgroup>,
        pages: u32,
        resident: u64,
        scratch: &Path,
    ) -> Result<Self> {
        sys::lock_current_memory().map_err(|err| Error::io("mlockall", &err))?;
        let len = pages as usize * PAGE_SIZE;
        let mapping = match beyond {
            Beyond::File => Mapping::file(&unnamed_file(scratch, len as u64)?, len),
            _ => Mapping::anonymous(len),
        };
        let mapping = mapping.map_err(|err| Error::io("mmap", &err))?;
        let charged = group.as_ref().map_or(Ok(0), Cgroup::usage)?;
        let limit = charged + resident + len as u64 / 512;
        match (&beyond, &group) {
            (Beyond::Nothing, _) => {}
            (_, Some(group)) => group.set_limit(limit)?,
            (_, None) => {
                return Err(Error::Failed("a limit needs a cgroup".into()));
            }
        }
        Ok(Self {
            mapping,
            beyond,
            group: group.map(Arc::new),
            limit,
            wanted: resident,
            charged,
            beside: status_bytes("RssAnon"),
            outside_peak: Arc::default(),
        })
    }

    fn resident(&self) -> u64 {
        status_bytes("RssAnon").saturating_sub(self.beside)
    }
}

/// A file of `len` bytes in `scratch` that no name leads to, blocks reserved.
fn unnamed_file(scratch: &Path, len: u64) -> Result<fs::File> {
    let file = fs::OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_TMPFILE)
        .mode(0o600)
        .open(scratch)
        .map_err(|err| Error::Skipped(format!("a file in {}: {err}", scratch.display())))?;
    sys::allocate_blocks(&file, len).map_err(|err| {
        Error::Skipped(format!(
            "no room for the file in {}: {err}",
            scratch.display()
        ))
    })?;
    Ok(file)
}

impl Contender for Kernel {
    fn buffer(&self) -> Buffer<'_> {
        self.mapping.buffer()
    }

    fn settle(&mut self) -> Result<()> {
        let Some(group) = &self.group else {
            return Ok(());
        };
        if matches!(self.beyond, Beyond::Nothing | Beyond::File) {
            return Ok(());
        }
        // Raise the limit, use it, look again: the kernel's bookkeeping grows
        // a little with what is swapped.
        for _ in 0..8 {
            let short = self.wanted.saturating_sub(self.resident());
            if short < 1 << 20 {
                break;
            }
            self.limit += short;
            group.set_limit(self.limit)?;
            let buffer = self.buffer();
            for page in 0..buffer.pages() {
                std::hint::black_box(buffer.load(page, 0));
            }
        }
        Ok(())
    }

    fn forget(&mut self) -> Result<()> {
        self.mapping
            .forget(matches!(self.beyond, Beyond::File))
            .map_err(|err| Error::io("madvise", &err))
    }

    fn faults(&self) -> u64 {
        sys::usage().major_faults
    }

    fn probe(&self) -> Probe {
        let (beyond, group) = (self.beyond.clone(), self.group.clone());
        let (charged, beside) = (self.charged, self.beside);
        let outside_peak = Arc::clone(&self.outside_peak);
        Box::new(move || {
            let usage = || -> Result<u64> {
                let usage = group.as_ref().map_or(Ok(0), |group| group.usage())?;
                Ok(usage.saturating_sub(charged))
            };
            let (data, held, held_peak) = match &beyond {
                Beyond::Zram(device) => zram::device_bytes(device)?.into(),
                Beyond::Zswap(before) => {
                    let held = zswap::pool_bytes().saturating_sub(*before);
                    let peak = outside_peak.fetch_max(held, Ordering::Relaxed).max(held);
                    // With version 2 the pool is in the group's own count.
                    let outside = group.as_ref().is_some_and(|group| group.is_version_1());
                    (held, held, if outside { peak } else { 0 })
                }
                Beyond::Nothing | Beyond::Disk | Beyond::File => (0, 0, 0),
            };
            let resident = match beyond {
                // Pages of a file count whether they are mapped or not.
                Beyond::File => usage()?,
                _ => status_bytes("RssAnon").saturating_sub(beside),
            };
            let peak = match &group {
                Some(group) => group.peak()?.saturating_sub(charged),
                None => status_bytes("VmHWM").saturating_sub(beside),
            };
            Ok(Figures {
                resident,
                data,
                held,
                metadata: 0,
                peak: peak + held_peak,
            })
        })
    }
}
