//! What the kernel reports about memory: `/proc`, and control groups beside it
//! in [`group`].
//!
//! The one reader of these files. A parser takes bytes and answers a number, so
//! that trees of fixtures test it without the kernel they came from; a [`Reports`]
//! says below which folder the trees lie. Nothing is taken from the heap for a
//! path of less than 384 bytes, as the engine reads before there is a heap. A
//! report that is missing or says something else is `None`, never a zero.
//!
//! Formats: proc_meminfo(5), proc_pid_status(5), and the kernel's
//! `Documentation/accounting/psi.rst`.

pub mod group;

use std::ffi::{CStr, OsStr};
use std::io::{self, ErrorKind, Read};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use crate::calls;
use crate::error::errno;

pub use group::{Group, Level, Mount, Version};

/// Longest path that is read, bytes: `PATH_MAX` is 4096, groups are shallow.
const PATH_MAX: usize = 1024;
/// Longest line that is seen; longer ones (overlay mounts with many layers) are
/// passed over, and hold nothing that is asked for.
const LINE_MAX: usize = 2048;

/// The kernel's reports, below a folder.
#[derive(Clone, Copy, Debug)]
pub struct Reports<'a> {
    root: &'a [u8],
}

impl Reports<'static> {
    /// Those of the machine this process runs on.
    #[must_use]
    pub const fn of_this_machine() -> Self {
        Self { root: b"" }
    }
}

impl<'a> Reports<'a> {
    /// Those of a tree that was saved: `proc` and `sys` lie in `root`.
    #[must_use]
    pub fn below(root: &'a Path) -> Self {
        Self {
            root: root.as_os_str().as_bytes(),
        }
    }

    /// A field of `/proc/meminfo` such as `MemAvailable`, bytes.
    #[must_use]
    pub fn meminfo_bytes(&self, field: &str) -> Option<u64> {
        self.path(&[b"/proc/meminfo"])?
            .find(|line| field_bytes(line, field))
    }

    /// A field of `/proc/self/status` such as `VmHWM`, bytes; a field without a
    /// unit as it is.
    #[must_use]
    pub fn status_bytes(&self, field: &str) -> Option<u64> {
        self.path(&[b"/proc/self/status"])?
            .find(|line| field_bytes(line, field))
    }

    /// What this process takes of the machine, as the kernel charges it: anonymous and
    /// shared memory, page tables, and what is swapped out, bytes. Pages of files, which
    /// the kernel can drop, do not count.
    ///
    /// The kernel adds up counters of its processors that lag by some dozen pages each.
    #[must_use]
    pub fn process_bytes(&self) -> Option<u64> {
        let mut charge = Charge::default();
        self.path(&[b"/proc/self/status"])?
            .find(|line| charge.is_whole_with(line).then_some(()));
        charge.bytes()
    }

    /// `/proc/pressure/memory`: how long tasks of the machine waited for memory
    /// (Linux 4.20, where it is built in and not turned off).
    #[must_use]
    pub fn pressure(&self) -> Option<Pressure> {
        self.path(&[b"/proc/pressure/memory"])?.pressure()
    }

    /// The number that a small file such as a sysctl holds.
    #[must_use]
    pub fn number_in(&self, path: &str) -> Option<u64> {
        self.path(&[path.as_bytes()])?.number()
    }

    fn path(&self, parts: &[&[u8]]) -> Option<PathBytes> {
        let mut path = PathBytes::new();
        path.push(self.root)?;
        for part in parts {
            path.push(part)?;
        }
        Some(path)
    }
}

/// The sum of [`Reports::process_bytes`], line by line.
#[derive(Default)]
struct Charge {
    sum: u64,
    seen: usize,
}

impl Charge {
    const PARTS: [&'static str; 4] = ["RssAnon", "RssShmem", "VmPTE", "VmSwap"];

    /// Adds what a line says; whether all parts are there now.
    fn is_whole_with(&mut self, line: &[u8]) -> bool {
        let part = Self::PARTS.iter().find_map(|part| field_bytes(line, part));
        self.sum = self.sum.saturating_add(part.unwrap_or(0));
        self.seen += usize::from(part.is_some());
        self.seen == Self::PARTS.len()
    }

    fn bytes(&self) -> Option<u64> {
        // A kernel without swap has no line for it.
        (self.seen + 1 >= Self::PARTS.len()).then_some(self.sum)
    }
}

/// What [`Reports::process_bytes`] says, in the text of a `status` file.
#[must_use]
pub fn process_bytes_in(text: &[u8]) -> Option<u64> {
    let mut charge = Charge::default();
    text.split(|&byte| byte == b'\n')
        .find(|line| charge.is_whole_with(line));
    charge.bytes()
}

/// A process's part of the memory that it shares with others, and all that it has alone, in
/// the text of a `smaps_rollup` file (Linux 5.3): what is anonymous, shared or swapped out,
/// bytes, page tables not counted.
#[must_use]
pub fn part_bytes_in(text: &[u8]) -> Option<u64> {
    let anonymous = field_bytes(text, "Pss_Anon")?;
    let shared = field_bytes(text, "Pss_Shmem")?;
    let swapped = field_bytes(text, "SwapPss").unwrap_or(0);
    anonymous.checked_add(shared)?.checked_add(swapped)
}

/// The value of `field` in a text of `Name:   value kB` lines, bytes; a value
/// without a unit as it is.
#[must_use]
pub fn field_bytes(text: &[u8], field: &str) -> Option<u64> {
    text.split(|&byte| byte == b'\n').find_map(|line| {
        let value = line.strip_prefix(field.as_bytes())?.strip_prefix(b":")?;
        let mut words = words(value);
        let number = number(words.next()?)?;
        match words.next() {
            Some(b"kB") => number.checked_mul(1024),
            _ => Some(number),
        }
    })
}

/// The value of `key` in a text of `key value` lines, as `memory.stat` has them.
#[must_use]
pub fn keyed(text: &[u8], key: &str) -> Option<u64> {
    text.split(|&byte| byte == b'\n').find_map(|line| {
        let mut words = words(line);
        (words.next()? == key.as_bytes()).then_some(())?;
        number(words.next()?)
    })
}

/// How long tasks waited for memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pressure {
    /// At least one task waited.
    pub some: Stall,
    /// All tasks that were not idle waited.
    pub full: Stall,
}

/// One line of a pressure report.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stall {
    /// Share of the last ten seconds, hundredths of a percent.
    pub avg10_hundredths: u32,
    /// Since the start, microseconds.
    pub total_us: u64,
}

impl Stall {
    /// A line after its first word: `avg10=1.50 avg60=0.30 avg300=0.06 total=1234`.
    fn parse(line: &[u8]) -> Option<Self> {
        let mut stall = None::<u32>;
        let mut total_us = None;
        for word in words(line) {
            if let Some(share) = word.strip_prefix(b"avg10=") {
                let point = share.iter().position(|&byte| byte == b'.')?;
                let (whole, part) = (&share[..point], &share[point + 1..]);
                (part.len() == 2).then_some(())?;
                let hundredths = number(whole)?
                    .checked_mul(100)?
                    .checked_add(number(part)?)?;
                stall = Some(u32::try_from(hundredths).ok()?);
            } else if let Some(total) = word.strip_prefix(b"total=") {
                total_us = Some(number(total)?);
            }
        }
        Some(Self {
            avg10_hundredths: stall?,
            total_us: total_us?,
        })
    }
}

/// The text of a pressure file, of the machine or of a group.
#[must_use]
pub fn pressure(text: &[u8]) -> Option<Pressure> {
    let line = |kind: &[u8]| {
        let mut lines = text.split(|&byte| byte == b'\n');
        Stall::parse(lines.find_map(|line| line.strip_prefix(kind)?.strip_prefix(b" "))?)
    };
    Some(Pressure {
        some: line(b"some")?,
        full: line(b"full")?,
    })
}

fn words(text: &[u8]) -> impl Iterator<Item = &[u8]> {
    text.split(u8::is_ascii_whitespace)
        .filter(|word| !word.is_empty())
}

/// Decimal digits and nothing else.
pub(crate) fn number(text: &[u8]) -> Option<u64> {
    core::str::from_utf8(text).ok()?.parse().ok()
}

/// A path in a buffer of its own.
#[derive(Clone, Copy)]
struct PathBytes {
    bytes: [u8; PATH_MAX],
    len: usize,
}

impl PathBytes {
    const fn new() -> Self {
        Self {
            bytes: [0; PATH_MAX],
            len: 0,
        }
    }

    /// Appends; `None` when there is no room.
    fn push(&mut self, part: &[u8]) -> Option<()> {
        // The last byte stays zero, and ends the path.
        let room = self.bytes[..PATH_MAX - 1].get_mut(self.len..)?;
        let room = room.get_mut(..part.len())?;
        room.copy_from_slice(part);
        self.len += part.len();
        Some(())
    }

    fn as_bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }

    fn as_c_str(&self) -> Option<&CStr> {
        CStr::from_bytes_until_nul(&self.bytes).ok()
    }

    fn as_path(&self) -> &Path {
        Path::new(OsStr::from_bytes(self.as_bytes()))
    }

    fn open(&self) -> Option<File> {
        File::open(self.as_c_str()?)
    }

    /// The first answer of `ask` over the file's lines.
    fn find<T>(&self, ask: impl FnMut(&[u8]) -> Option<T>) -> Option<T> {
        find_line(self.open()?, ask)
    }

    fn number(&self) -> Option<u64> {
        self.find(|line| Some(number(line.trim_ascii())))?
    }

    fn pressure(&self) -> Option<Pressure> {
        let mut text = [0; LINE_MAX];
        let len = read_up_to(&mut self.open()?, &mut text);
        pressure(&text[..len])
    }
}

/// A file that is read without a point of thread cancellation: the engine reads under
/// its locks too.
struct File(i32);

impl File {
    fn open(path: &CStr) -> Option<Self> {
        let fd = calls::open(path, libc::O_RDONLY, 0);
        (fd >= 0).then(|| Self(fd))
    }
}

impl Read for File {
    fn read(&mut self, room: &mut [u8]) -> io::Result<usize> {
        usize::try_from(calls::read(self.0, room))
            .map_err(|_| io::Error::from_raw_os_error(errno()))
    }
}

impl Drop for File {
    fn drop(&mut self) {
        calls::close(self.0);
    }
}

/// Fills `room` as far as the file goes; the bytes read.
fn read_up_to(file: &mut impl Read, room: &mut [u8]) -> usize {
    let mut len = 0;
    while len < room.len() {
        match file.read(&mut room[len..]) {
            Ok(0) => break,
            Ok(got) => len += got,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(_) => break,
        }
    }
    len
}

/// The first answer of `ask` over the lines of a file, however long the file is.
fn find_line<T>(mut file: impl Read, mut ask: impl FnMut(&[u8]) -> Option<T>) -> Option<T> {
    let mut buffer = [0; LINE_MAX];
    let mut len = 0;
    // The line in hand began before the buffer: it is passed over to its end.
    let mut overlong = false;
    loop {
        let got = read_up_to(&mut file, &mut buffer[len..]);
        len += got;
        let mut start = 0;
        while let Some(end) = buffer[start..len].iter().position(|&byte| byte == b'\n') {
            let line = &buffer[start..start + end];
            start += end + 1;
            if !core::mem::take(&mut overlong)
                && let Some(answer) = ask(line)
            {
                return Some(answer);
            }
        }
        if got == 0 {
            let last = &buffer[start..len];
            return (!overlong && !last.is_empty()).then(|| ask(last)).flatten();
        }
        if start == 0 && len == buffer.len() {
            overlong = true;
            start = len;
        }
        buffer.copy_within(start..len, 0);
        len -= start;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_found_by_their_whole_name() {
        let text = b"MemTotal:       24689764 kB\nMemAvailable:   23000000 kB\nHugePages_Total:       3\nSeccomp:\t2\n";
        assert_eq!(field_bytes(text, "MemAvailable"), Some(23_000_000 * 1024));
        assert_eq!(field_bytes(text, "HugePages_Total"), Some(3));
        assert_eq!(field_bytes(text, "Seccomp"), Some(2));
        assert_eq!(field_bytes(text, "Mem"), None);
        assert_eq!(field_bytes(text, "MemFree"), None);
        assert_eq!(field_bytes(b"MemFree: many kB\n", "MemFree"), None);
        assert_eq!(
            field_bytes(b"MemFree: 18446744073709551615 kB\n", "MemFree"),
            None
        );
        assert_eq!(field_bytes(b"VmRSS:\t 12 kB", "VmRSS"), Some(12 << 10));
    }

    #[test]
    fn what_a_process_is_charged_for_is_a_sum_of_four() {
        let text = b"Name:\tx\nRssAnon:\t 10 kB\nRssFile:\t 99 kB\nRssShmem:\t 5 kB\nVmPTE:\t 1 kB\nVmSwap:\t 2 kB\n";
        assert_eq!(process_bytes_in(text), Some(18 << 10));
        let end = text.len() - b"VmSwap:\t 2 kB\n".len();
        assert_eq!(process_bytes_in(&text[..end]), Some(16 << 10), "no swap");
        assert_eq!(process_bytes_in(&text[..end - 12]), None, "cut off");
    }

    #[test]
    fn keys_are_whole_words() {
        let text = b"inactive_file 5\ntotal_inactive_file 7\nfile 4096\n";
        assert_eq!(keyed(text, "inactive_file"), Some(5));
        assert_eq!(keyed(text, "total_inactive_file"), Some(7));
        assert_eq!(keyed(text, "file"), Some(4096));
        assert_eq!(keyed(text, "anon"), None);
    }

    #[test]
    fn pressure_is_read_to_the_hundredth() {
        let text = b"some avg10=1.05 avg60=0.30 avg300=0.06 total=123456\nfull avg10=100.00 avg60=0.00 avg300=0.00 total=99\n";
        let some = Stall {
            avg10_hundredths: 105,
            total_us: 123_456,
        };
        let full = Stall {
            avg10_hundredths: 10_000,
            total_us: 99,
        };
        assert_eq!(pressure(text), Some(Pressure { some, full }));
        for broken in [
            &b""[..],
            b"some avg10=1.05 total=1\n",
            b"some avg10=1.5 total=1\nfull avg10=0.00 total=1\n",
            b"some avg10=0.00\nfull avg10=0.00 total=1\n",
            b"some avg10=99999999999999999999.00 total=1\nfull avg10=0.00 total=1\n",
        ] {
            assert_eq!(pressure(broken), None, "{}", broken.escape_ascii());
        }
    }

    /// Hands out `step` bytes at a time.
    struct Slowly<'a>(&'a [u8], usize);

    impl Read for Slowly<'_> {
        fn read(&mut self, room: &mut [u8]) -> std::io::Result<usize> {
            let len = self.1.min(room.len()).min(self.0.len());
            room[..len].copy_from_slice(&self.0[..len]);
            self.0 = &self.0[len..];
            Ok(len)
        }
    }

    #[test]
    fn lines_are_whole_whatever_the_reads_are_and_long_ones_are_passed_over() {
        let long = "x".repeat(3 * LINE_MAX);
        let just = "y".repeat(LINE_MAX - 1);
        let text = format!("one\n{long}\ntwo\n\n{just}\n{long}z\nthree\n{long}");
        for step in [1, 7, LINE_MAX - 1, LINE_MAX, 1 << 20] {
            let mut seen = Vec::new();
            let none = find_line(Slowly(text.as_bytes(), step), |line| {
                seen.push(String::from_utf8_lossy(line).into_owned());
                None::<()>
            });
            assert_eq!(none, None);
            assert_eq!(seen, ["one", "two", "", just.as_str(), "three"], "{step}");
        }
        let last = find_line(&b"a\nb"[..], |line| (line == b"b").then_some(1));
        assert_eq!(last, Some(1), "a last line without an end");
    }
}
