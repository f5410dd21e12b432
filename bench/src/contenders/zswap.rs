//! zswap's switch: a compressed cache between the cgroup and any swap area.
//!
//! It is one for the whole machine. What it was before is kept in a file until
//! it has been put back, so that `cleanup` can do so after a kill.

use std::fs;
use std::path::Path;

use crate::error::{Error, Result};
use crate::report::meminfo_bytes;
use crate::sys;

const SWITCH: &str = "/sys/module/zswap/parameters/enabled";
const KEPT: &str = "/run/ghostmem-bench-zswap";

/// zswap switched as wanted; put back on drop.
#[derive(Debug)]
pub(crate) struct Switch;

impl Switch {
    /// Turns zswap on or off; `None` when it is as wanted already, or the
    /// kernel has none and none is wanted.
    pub(crate) fn set(on: bool) -> Result<Option<Self>> {
        let Some(was) = state() else {
            return if on {
                Err(Error::Skipped("this kernel has no zswap".into()))
            } else {
                Ok(None)
            };
        };
        let wanted = if on { "Y" } else { "N" };
        if was == wanted {
            return Ok(None);
        }
        if !sys::is_root() {
            return Err(Error::Skipped("switching zswap needs root".into()));
        }
        fs::write(KEPT, was).map_err(|err| Error::io(KEPT, &err))?;
        let switch = Self;
        fs::write(SWITCH, wanted)
            .map_err(|err| Error::Skipped(format!("zswap cannot be switched: {err}")))?;
        Ok(Some(switch))
    }
}

impl Drop for Switch {
    fn drop(&mut self) {
        if let Err(err) = put_back() {
            eprintln!("{err}; run `ghostmem-bench cleanup`");
        }
    }
}

/// `Y` or `N`; `None` without zswap.
fn state() -> Option<String> {
    let text = fs::read_to_string(SWITCH).ok()?;
    Some(text.trim().to_owned())
}

fn put_back() -> Result<Option<String>> {
    if !Path::new(KEPT).exists() {
        return Ok(None);
    }
    let was = fs::read_to_string(KEPT).map_err(|err| Error::io(KEPT, &err))?;
    fs::write(SWITCH, was.trim()).map_err(|err| Error::io(SWITCH, &err))?;
    fs::remove_file(KEPT).map_err(|err| Error::io(KEPT, &err))?;
    Ok(Some(format!("our setting of zswap, {was} again")))
}

/// Puts back what a killed run changed.
pub(crate) fn remove_leftovers() -> Result<Option<String>> {
    put_back()
}

/// What zswap was given and what it occupies, bytes, of the whole machine
/// (`Zswapped`, `Zswap` of /proc/meminfo, Linux 5.19).
pub(crate) fn pool_bytes() -> u64 {
    meminfo_bytes("Zswap")
}
