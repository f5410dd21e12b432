//! Swap areas of ours: the header by which they are known, on and off.

use std::fs;
use std::io::{Read, Write};
use std::path::Path;

use crate::buffer::PAGE_SIZE;
use crate::error::{Error, Result};
use crate::sys;

/// Volume label of our swap areas: [`super::zram::remove_leftovers`] and its
/// like touch no other.
const LABEL: &[u8; 16] = b"ghostmem-bench\0\0";
const LABEL_AT: usize = 1052;
/// Above anything a distribution sets up.
const PRIORITY: i32 = 32000;

/// Makes the first `bytes` of a device or file a swap area and turns it on.
///
/// # Errors
/// [`Error::Skipped`] when the kernel refuses it as swap.
pub(crate) fn turn_on(path: &str, bytes: u64) -> Result<()> {
    write_header(path, bytes)?;
    sys::swap_on(path, PRIORITY).map_err(|err| Error::Skipped(format!("swapon {path}: {err}")))
}

/// Writes the header of a swap area, as mkswap(8) does (layout: `union
/// swap_header` in the kernel's include/linux/swap.h).
fn write_header(path: &str, bytes: u64) -> Result<()> {
    let mut header = vec![0_u8; PAGE_SIZE];
    let last_page = u32::try_from(bytes / PAGE_SIZE as u64 - 1)
        .map_err(|_| Error::Failed("swap area too large".into()))?;
    header[1024..1028].copy_from_slice(&1_u32.to_le_bytes());
    header[1028..1032].copy_from_slice(&last_page.to_le_bytes());
    header[LABEL_AT..LABEL_AT + LABEL.len()].copy_from_slice(LABEL);
    header[PAGE_SIZE - 10..].copy_from_slice(b"SWAPSPACE2");
    let mut file = fs::OpenOptions::new()
        .write(true)
        .open(path)
        .map_err(|err| Error::io(path, &err))?;
    file.write_all(&header)
        .and_then(|()| file.sync_all())
        .map_err(|err| Error::io(path, &err))
}

/// Whether a device or file carries our label.
pub(crate) fn is_ours(path: &Path) -> bool {
    let mut header = vec![0_u8; PAGE_SIZE];
    fs::File::open(path)
        .and_then(|mut file| file.read_exact(&mut header))
        .is_ok_and(|()| header[LABEL_AT..LABEL_AT + LABEL.len()] == *LABEL)
}

/// Paths of the areas that are on.
pub(crate) fn in_use() -> Result<Vec<String>> {
    let swaps = fs::read_to_string("/proc/swaps").map_err(|err| Error::io("/proc/swaps", &err))?;
    Ok(swaps
        .lines()
        .skip(1)
        .filter_map(|line| line.split_whitespace().next())
        .map(str::to_owned)
        .collect())
}
