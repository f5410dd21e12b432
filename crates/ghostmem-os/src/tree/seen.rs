//! What `/proc` says of another process. Async-signal-safe; files are opened for it, so it
//! is asked where the program's numbers are not taken ([`crate::apart`]).

use core::ffi::CStr;
use core::fmt::Write as _;

use crate::error::errno;
use crate::{apart, calls, report};

/// What `/proc/PID/stat` says.
#[derive(Debug, Clone, Copy)]
pub(super) struct Stat {
    /// Minor faults.
    pub(super) faults: u64,
    /// Threads that have not ended, and the first one.
    threads: u64,
    /// When the process started, in ticks since the machine did.
    pub(super) start: u64,
}

/// What there is to see of a process.
#[derive(Debug, Clone, Copy)]
pub(super) enum Seen {
    There(Stat),
    /// There is no such process, or it has ended and only waits to be asked how.
    Gone,
    /// Nobody can tell: this process may open no file, or not that one.
    Hidden,
}

pub(super) fn stat_of(process: u64) -> Seen {
    let mut text = [0; 512];
    let text = match read(process, "stat", &mut text) {
        Ok(text) => text,
        // Without a /proc, as in another root, nobody is to be seen, not this process either.
        Err(libc::ENOENT | libc::ESRCH) if is_seen() => return Seen::Gone,
        Err(_) => return Seen::Hidden,
    };
    seen_in(text)
}

/// What the text of `/proc/PID/stat` shows. The first thread of a process may end before
/// the others, and waits as one that ended does until they have.
fn seen_in(text: &[u8]) -> Seen {
    match stat_in(text) {
        Some((b"X", _)) => Seen::Gone,
        Some((b"Z", stat)) if stat.threads <= 1 => Seen::Gone,
        Some((_, stat)) => Seen::There(stat),
        None => Seen::Hidden,
    }
}

/// Whether `/proc` shows this process.
fn is_seen() -> bool {
    let mut text = [0; 64];
    let process = u64::try_from(apart::process()).ok();
    process.is_some_and(|process| read(process, "stat", &mut text).is_ok())
}

/// The state of a process, and what else `/proc/PID/stat` says of it.
fn stat_in(text: &[u8]) -> Option<(&[u8], Stat)> {
    // The name in brackets may hold anything, brackets too.
    let end = text.iter().rposition(|&byte| byte == b')')?;
    let mut words = text[end + 1..]
        .split(u8::is_ascii_whitespace)
        .filter(|word| !word.is_empty());
    let state = words.next()?;
    // Fields 10, 20 and 22; the state is field 3 (proc_pid_stat(5)).
    let faults = words.nth(6).and_then(report::number)?;
    let threads = words.nth(9).and_then(report::number)?;
    let start = words.nth(1).and_then(report::number)?;
    let stat = Stat {
        faults,
        threads,
        start,
    };
    Some((state, stat))
}

/// What the kernel charges a process for, and its part of that where it shares pages with
/// others of a fork; all of it where the kernel does not tell the parts.
pub(super) fn taken_by(process: u64) -> Option<(u64, u64)> {
    let mut text = [0; 2048];
    let status = read(process, "status", &mut text).ok()?;
    let whole = report::process_bytes_in(status)?;
    let tables = report::field_bytes(status, "VmPTE").unwrap_or(0);
    let parts = read(process, "smaps_rollup", &mut text).ok();
    let parts = parts.and_then(report::part_bytes_in);
    let part = parts.map_or(whole, |parts| whole.min(parts + tables));
    Some((whole, part))
}

/// A file of a process's; `errno` where it cannot be read.
fn read<'t>(process: u64, file: &str, text: &'t mut [u8]) -> Result<&'t [u8], i32> {
    let mut path = Name::new();
    let written = write!(path, "/proc/{process}/{file}");
    let path = written.ok().and_then(|()| path.as_c_str());
    let path = path.ok_or(libc::ENAMETOOLONG)?;
    let fd = calls::open(path, libc::O_RDONLY, 0);
    if fd < 0 {
        return Err(errno());
    }
    let got = calls::read_at(fd, text, 0);
    let failed = errno();
    calls::close(fd);
    let got = usize::try_from(got).map_err(|_| failed)?;
    text.get(..got).ok_or(libc::EIO)
}

/// A short path, in a buffer of its own.
pub(super) struct Name {
    bytes: [u8; 64],
    len: usize,
}

impl Name {
    pub(super) const fn new() -> Self {
        Self {
            bytes: [0; 64],
            len: 0,
        }
    }

    pub(super) fn as_c_str(&self) -> Option<&CStr> {
        CStr::from_bytes_until_nul(&self.bytes).ok()
    }
}

impl core::fmt::Write for Name {
    fn write_str(&mut self, text: &str) -> core::fmt::Result {
        // The last byte stays zero.
        let room = self.bytes[..63].get_mut(self.len..).unwrap_or_default();
        let room = room.get_mut(..text.len()).ok_or(core::fmt::Error)?;
        room.copy_from_slice(text.as_bytes());
        self.len += text.len();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_whose_first_thread_ended_is_there_while_others_run() {
        let seen = |state: &str, threads: u64| {
            let text = format!(
                "70 (a b) c) {state} 1 70 70 0 -1 4194560 321 0 0 0 5 3 0 0 20 0 {threads} 0 987 0 0"
            );
            match seen_in(text.as_bytes()) {
                Seen::There(stat) => Some((stat.faults, stat.start)),
                Seen::Gone => None,
                Seen::Hidden => panic!("{text}"),
            }
        };
        assert_eq!(seen("R", 1), Some((321, 987)));
        assert_eq!(seen("Z", 2), Some((321, 987)));
        assert_eq!(seen("Z", 1), None);
        assert_eq!(seen("Z", 0), None);
        assert_eq!(seen("X", 2), None);
    }
}
