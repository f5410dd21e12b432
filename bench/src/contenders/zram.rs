//! The kernel's way: swap on a compressed RAM disk, under a memory cgroup.
//!
//! Two halves. [`Swap`] belongs to the parent process: it makes one unused zram
//! device a swap device and undoes that on drop. [`Zram`] belongs to the
//! measured child: an ordinary anonymous mapping in a cgroup whose limit leaves
//! the wanted number of bytes resident.
//!
//! What the limit leaves: everything the child needs beside the buffer (program,
//! touch orders, expected values) is allocated and locked first and added to
//! the limit as the kernel counts it; page tables and swap bookkeeping, which
//! the kernel charges too, are found by filling the buffer and comparing what
//! is resident with what was wanted, then raising the limit by the difference.
//! zram's own memory is not charged to the cgroup. All of this is in zram's
//! favour or neutral.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::{Contender, Figures};
use crate::buffer::{Buffer, PAGE};
use crate::cgroup::Cgroup;
use crate::error::{Error, Result};
use crate::report::status_bytes;
use crate::sys::{self, Mapping};

/// Volume label of our swap areas: [`remove_leftovers`] touches no other.
const LABEL: &[u8; 16] = b"ghostmem-bench\0\0";
const LABEL_AT: usize = 1052;
/// Above anything a distribution sets up.
const PRIORITY: i32 = 32000;
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
        write_header(&path, bytes)?;
        sys::swap_on(&path, PRIORITY)
            .map_err(|err| Error::Skipped(format!("swapon {path}: {err}")))?;
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

/// Writes the header of a swap area, as mkswap(8) does (layout: `union
/// swap_header` in the kernel's include/linux/swap.h).
fn write_header(path: &str, bytes: u64) -> Result<()> {
    let mut header = vec![0_u8; PAGE];
    let last_page = u32::try_from(bytes / PAGE as u64 - 1)
        .map_err(|_| Error::Failed("swap area too large".into()))?;
    header[1024..1028].copy_from_slice(&1_u32.to_le_bytes());
    header[1028..1032].copy_from_slice(&last_page.to_le_bytes());
    header[LABEL_AT..LABEL_AT + LABEL.len()].copy_from_slice(LABEL);
    header[PAGE - 10..].copy_from_slice(b"SWAPSPACE2");
    let mut file = fs::OpenOptions::new()
        .write(true)
        .open(path)
        .map_err(|err| Error::io(path, &err))?;
    std::io::Write::write_all(&mut file, &header)
        .and_then(|()| file.sync_all())
        .map_err(|err| Error::io(path, &err))
}

/// Swaps off and empties zram devices that carry our label, left behind by a
/// run that was killed; returns their names.
pub(crate) fn remove_leftovers() -> Result<Vec<String>> {
    let swaps = fs::read_to_string("/proc/swaps").map_err(|err| Error::io("/proc/swaps", &err))?;
    let mut removed = Vec::new();
    let names: Vec<String> = fs::read_dir("/sys/block")
        .map_err(|err| Error::io("/sys/block", &err))?
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .filter(|name| name.starts_with("zram"))
        .collect();
    for name in names {
        let path = format!("/dev/{name}");
        let mut header = vec![0_u8; PAGE];
        let read = fs::File::open(&path)
            .and_then(|mut file| std::io::Read::read_exact(&mut file, &mut header));
        if read.is_err() || header[LABEL_AT..LABEL_AT + LABEL.len()] != *LABEL {
            continue;
        }
        if swaps
            .lines()
            .any(|line| line.split_whitespace().next() == Some(&path))
        {
            sys::swap_off(&path).map_err(|err| Error::io(format!("swapoff {path}"), &err))?;
        }
        reset(&name)?;
        removed.push(path);
    }
    Ok(removed)
}

/// The measured half: anonymous memory in a limited cgroup.
#[derive(Debug)]
pub(crate) struct Zram {
    mapping: Mapping,
    device: String,
    group: Cgroup,
    limit: u64,
    wanted: u64,
    /// Charged to the group before the buffer was filled, bytes.
    charged: u64,
    /// Resident beside the buffer, bytes.
    beside: u64,
}

impl Zram {
    /// Joins the cgroup at `group` and maps the buffer. What the caller has
    /// allocated so far is locked and does not count towards `resident`.
    pub(crate) fn open(group: PathBuf, device: String, pages: u32, resident: u64) -> Result<Self> {
        let group = Cgroup::open(group);
        sys::lock_current_memory().map_err(|err| Error::io("mlockall", &err))?;
        let len = pages as usize * PAGE;
        let mapping = Mapping::anonymous(len).map_err(|err| Error::io("mmap", &err))?;
        let charged = group.usage()?;
        let limit = charged + resident + len as u64 / 512;
        group.set_limit(limit)?;
        Ok(Self {
            mapping,
            device,
            group,
            limit,
            wanted: resident,
            charged,
            beside: status_bytes("RssAnon"),
        })
    }

    fn resident(&self) -> u64 {
        status_bytes("RssAnon").saturating_sub(self.beside)
    }

    /// `mm_stat` of the device: original, compressed and held bytes, and the
    /// most ever held.
    fn device_bytes(&self) -> Result<[u64; 4]> {
        let text = read_sys(&self.device, "mm_stat")?;
        let fields: Vec<u64> = text
            .split_whitespace()
            .filter_map(|field| field.parse().ok())
            .collect();
        match fields[..] {
            [original, compressed, held, _, peak, ..] => Ok([original, compressed, held, peak]),
            _ => Err(Error::Failed(format!("unknown mm_stat: {text}"))),
        }
    }
}

impl Contender for Zram {
    fn buffer(&self) -> Buffer<'_> {
        self.mapping.buffer()
    }

    fn settle(&mut self) -> Result<()> {
        // Raise the limit, use it, look again: the kernel's bookkeeping grows
        // a little with what is swapped.
        for _ in 0..4 {
            let short = self.wanted.saturating_sub(self.resident());
            if short < 1 << 20 {
                break;
            }
            self.limit += short;
            self.group.set_limit(self.limit)?;
            let buffer = self.buffer();
            for page in 0..buffer.pages() {
                std::hint::black_box(buffer.load(page, 0));
            }
        }
        Ok(())
    }

    fn faults(&self) -> u64 {
        sys::usage().major_faults
    }

    fn figures(&self) -> Result<Figures> {
        let [_, compressed, held, peak_held] = self.device_bytes()?;
        Ok(Figures {
            resident: self.resident(),
            data: compressed,
            held,
            metadata: 0,
            peak: self.group.peak()?.saturating_sub(self.charged) + peak_held,
        })
    }
}
