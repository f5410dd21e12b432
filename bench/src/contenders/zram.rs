//! zram: swap on a compressed RAM disk.
//!
//! [`Swap`] belongs to the parent process: it makes one unused zram device a
//! swap device and undoes that on drop. What is measured is `kernel::Anonymous`.

use std::fs;
use std::path::Path;
use std::time::Duration;

use super::area;
use crate::error::{Error, Result};
use crate::sys;

const CONTROL: &str = "/sys/class/zram-control";

/// One zram device in use as swap by this process; undone on drop.
#[derive(Debug)]
pub(crate) struct Swap {
    name: String,
    added: bool,
    swapping: bool,
}

impl Swap {
    /// Sets up swap of `bytes` on an unused zram device, compressed by
    /// `algorithm`. Creates a device when none is free.
    pub(crate) fn set_up(bytes: u64, algorithm: &str) -> Result<Self> {
        if !sys::is_root() {
            return Err(Error::Skipped("zram needs root".into()));
        }
        if !Path::new(CONTROL).exists() {
            let _ = std::process::Command::new("modprobe").arg("zram").status();
        }
        if !Path::new(CONTROL).exists() {
            return Err(Error::Skipped("this kernel has no zram".into()));
        }
        let mut swap = Self::claim()?;
        swap.prepare(bytes, algorithm)?;
        Ok(swap)
    }

    fn claim() -> Result<Self> {
        let mut names: Vec<String> = fs::read_dir("/sys/block")
            .map_err(|err| Error::io("/sys/block", &err))?
            .flatten()
            .map(|entry| entry.file_name().to_string_lossy().into_owned())
            .filter(|name| name.starts_with("zram"))
            .collect();
        names.sort();
        let free = names
            .into_iter()
            .find(|name| read_sys(name, "disksize").is_ok_and(|size| size == "0"));
        let (name, added) = match free {
            Some(name) => (name, false),
            None => {
                let number = fs::read_to_string(format!("{CONTROL}/hot_add"))
                    .map_err(|err| Error::Skipped(format!("no free zram device: {err}")))?;
                (format!("zram{}", number.trim()), true)
            }
        };
        Ok(Self {
            name,
            added,
            swapping: false,
        })
    }

    fn prepare(&mut self, bytes: u64, algorithm: &str) -> Result<()> {
        if write_sys(&self.name, "comp_algorithm", algorithm).is_err() {
            return Err(Error::Skipped(format!(
                "this kernel's zram has no {algorithm}"
            )));
        }
        write_sys(&self.name, "disksize", &bytes.to_string())?;
        let path = self.path();
        if !Path::new(&path).exists() {
            return Err(Error::Skipped(format!("{path} does not exist")));
        }
        area::turn_on(&path, bytes)?;
        self.swapping = true;
        Ok(())
    }

    /// Name below `/sys/block` and `/dev`.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    fn path(&self) -> String {
        format!("/dev/{}", self.name)
    }
}

impl Drop for Swap {
    fn drop(&mut self) {
        if self.swapping
            && let Err(err) = sys::swap_off(&self.path())
        {
            eprintln!(
                "swapoff {}: {err}; run `ghostmem-bench cleanup`",
                self.path()
            );
            return;
        }
        if let Err(err) = reset(&self.name) {
            eprintln!("{err}; run `ghostmem-bench cleanup`");
            return;
        }
        if self.added {
            let number = self.name.trim_start_matches("zram");
            if let Err(err) = fs::write(format!("{CONTROL}/hot_remove"), number) {
                eprintln!("removing {}: {err}", self.name);
            }
        }
    }
}

/// Compressors that this kernel's zram has, lz4 first; empty when there is no
/// device to ask.
pub(crate) fn compressors() -> Vec<String> {
    let text = read_sys("zram0", "comp_algorithm").unwrap_or_default();
    let mut names: Vec<String> = text
        .split_whitespace()
        .map(|name| name.trim_matches(['[', ']']).to_owned())
        .collect();
    names.sort_by_key(|name| name != "lz4");
    names
}

/// Compressed bytes on a device, bytes held for them, and the most ever held
/// (`mm_stat`, Documentation/admin-guide/blockdev/zram.rst of the kernel).
pub(crate) fn device_bytes(name: &str) -> Result<[u64; 3]> {
    let text = read_sys(name, "mm_stat")?;
    let fields: Vec<u64> = text
        .split_whitespace()
        .filter_map(|field| field.parse().ok())
        .collect();
    match fields[..] {
        [_, compressed, held, _, peak, ..] => Ok([compressed, held, peak]),
        _ => Err(Error::Failed(format!("unknown mm_stat: {text}"))),
    }
}

fn read_sys(name: &str, file: &str) -> Result<String> {
    let path = format!("/sys/block/{name}/{file}");
    fs::read_to_string(&path)
        .map(|text| text.trim().to_owned())
        .map_err(|err| Error::io(path, &err))
}

fn write_sys(name: &str, file: &str, value: &str) -> Result<()> {
    let path = format!("/sys/block/{name}/{file}");
    fs::write(&path, value).map_err(|err| Error::io(path, &err))
}

/// Empties a device; retried while something (udev) still has it open.
fn reset(name: &str) -> Result<()> {
    let mut outcome = Ok(());
    for _ in 0..50 {
        outcome = write_sys(name, "reset", "1");
        if outcome.is_ok() {
            break;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    outcome
}

/// Swaps off and empties zram devices that carry our label, left behind by a
/// run that was killed; returns their names.
pub(crate) fn remove_leftovers() -> Result<Vec<String>> {
    let swaps = area::in_use()?;
    let mut removed = Vec::new();
    let names: Vec<String> = fs::read_dir("/sys/block")
        .map_err(|err| Error::io("/sys/block", &err))?
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .filter(|name| name.starts_with("zram"))
        .collect();
    for name in names {
        let path = format!("/dev/{name}");
        if !area::is_ours(Path::new(&path)) {
            continue;
        }
        if swaps.contains(&path) {
            sys::swap_off(&path).map_err(|err| Error::io(format!("swapoff {path}"), &err))?;
        }
        reset(&name)?;
        removed.push(path);
    }
    Ok(removed)
}
