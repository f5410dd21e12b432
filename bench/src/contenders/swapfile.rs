//! Swap on a file of the local disk, for `disk` and behind `zswap`.
//!
//! The file lies in the scratch directory, is fully allocated (the kernel swaps
//! to no file with holes) and goes when its value is dropped.

use std::fs;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use super::area;
use crate::error::{Error, Result};
use crate::sys;

/// Start of the names of our swap files, followed by a process number.
const PREFIX: &str = "ghostmem-bench-swap-";

/// One file in use as swap by this process; undone on drop.
#[derive(Debug)]
pub(crate) struct SwapFile {
    path: PathBuf,
    swapping: bool,
}

impl SwapFile {
    /// Makes a file of `bytes` in `scratch` and swaps to it.
    pub(crate) fn set_up(bytes: u64, scratch: &Path) -> Result<Self> {
        if !sys::is_root() {
            return Err(Error::Skipped("swapping to a file needs root".into()));
        }
        let path = scratch.join(format!("{PREFIX}{}", std::process::id()));
        let file = fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&path)
            .map_err(|err| Error::Skipped(format!("{}: {err}", path.display())))?;
        let mut swap = Self {
            path,
            swapping: false,
        };
        sys::allocate_blocks(&file, bytes).map_err(|err| {
            Error::Skipped(format!(
                "no room for a swap file in {}: {err}",
                scratch.display()
            ))
        })?;
        drop(file);
        area::turn_on(&swap.name(), bytes)?;
        swap.swapping = true;
        Ok(swap)
    }

    fn name(&self) -> String {
        self.path.display().to_string()
    }
}

impl Drop for SwapFile {
    fn drop(&mut self) {
        if self.swapping
            && let Err(err) = sys::swap_off(&self.name())
        {
            eprintln!(
                "swapoff {}: {err}; run `ghostmem-bench cleanup`",
                self.name()
            );
            return;
        }
        if let Err(err) = fs::remove_file(&self.path) {
            eprintln!("removing {}: {err}", self.name());
        }
    }
}

/// Swaps off and removes files that a killed run left in use; returns their
/// names.
pub(crate) fn remove_leftovers() -> Result<Vec<String>> {
    let mut removed = Vec::new();
    for name in area::in_use()? {
        let path = Path::new(&name);
        let ours = path
            .file_name()
            .is_some_and(|file| file.to_string_lossy().starts_with(PREFIX));
        if !ours || !area::is_ours(path) {
            continue;
        }
        sys::swap_off(&name).map_err(|err| Error::io(format!("swapoff {name}"), &err))?;
        fs::remove_file(path).map_err(|err| Error::io(&name, &err))?;
        removed.push(name);
    }
    Ok(removed)
}
