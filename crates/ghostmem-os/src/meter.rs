//! What this process takes of the machine, and what is left of each supply it takes it
//! from: memory groups of each level, and the machine.
//!
//! ```text
//!   /proc/self/status      what this process takes
//!   /proc/self/cgroup      whether it is in another group now
//!   /proc/self/smaps_rollup  its part of what it shares with processes of a fork
//!   /proc/meminfo          what the machine has left
//!   each level of groups   its limits; where there is one, usage and file cache as well
//! ```
//! All are [`KeptFile`]s: a look costs a pread(2) for each, needs no free descriptor, and
//! can be made in a fault handler. Whoever looks holds the right to look: one at a time.
//! Everything here is async-signal-safe.
//!
//! What cannot be read is said so, and opened again at most once in `RETRY_NS`, unless
//! a filter of the program's may end it for that.

use core::cell::UnsafeCell;
use core::ffi::CStr;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crate::kept::KeptFile;
use crate::report::group::{self, Group, Level};
use crate::report::{self, Reports, field_bytes};
use crate::{calls, clock, doorway, machine};

/// Levels of groups that are looked at, the process's own first.
const LEVELS_MAX: usize = 12;

/// Longest report: `/proc/self/status` has some 1600 bytes, `memory.stat` 2500.
const TEXT_BYTES: usize = 8 << 10;

/// Time between two tries to open what cannot be read, or was not there, and between two
/// looks at which group the process is in, nanoseconds.
const RETRY_NS: u64 = 1_000_000_000;

/// A level with this part of its limit free is not asked for its file cache.
const PLENTY_SHARE: u64 = 4;

/// Time for which a small file cache is taken as it was, nanoseconds.
const CACHE_NS: u64 = 10_000_000;

const STATUS: &CStr = c"/proc/self/status";
const PARTS: &CStr = c"/proc/self/smaps_rollup";

/// What memory is taken from: a level of groups, or the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Supply {
    /// All of it, bytes.
    pub limit_bytes: u64,
    /// What is left, or can be had without harm: clean file cache counts as left.
    pub left_bytes: u64,
    /// Bytes that can be swapped out when nothing is left.
    pub swap_bytes: u64,
}

/// The files of a level of groups.
#[derive(Debug)]
struct LevelFiles {
    /// As [`Version::limit_files`] names them; one that is not there is no limit.
    ///
    /// [`Version::limit_files`]: group::Version::limit_files
    limits: [KeptFile; 2],
    usage: KeptFile,
    stat: KeptFile,
    /// File cache as it was seen last, bytes, and when that was.
    cache_bytes: AtomicU64,
    cache_ns: AtomicU64,
}

impl LevelFiles {
    const fn new() -> Self {
        Self {
            limits: [const { KeptFile::new() }; 2],
            usage: KeptFile::new(),
            stat: KeptFile::new(),
            cache_bytes: AtomicU64::new(0),
            cache_ns: AtomicU64::new(0),
        }
    }

    fn close(&self) {
        for file in self.limits.iter().chain([&self.usage, &self.stat]) {
            file.close();
        }
        self.cache_ns.store(0, Ordering::Relaxed);
    }

    /// Opens the files with a limit that are not open; whether one came.
    fn open_limits(&self, level: &Level<'_>) -> bool {
        let mut came = false;
        for (file, name) in self.limits.iter().zip(level.version().limit_files()) {
            came |= !file.is_open() && find_of(level, name, file);
        }
        came
    }

    fn open_later(level: &Level<'_>, name: &str, file: &KeptFile) -> bool {
        !doorway::is_confined() && open_of(level, name, file)
    }

    /// The smallest of this level's limits, bytes: `Ok(None)` where it has none.
    fn limit(&self, text: &mut [u8]) -> Result<Option<u64>, Unseen> {
        let mut least: Option<u64> = None;
        // The root of version 2 has no such file, nor has a level without the controller.
        for file in self.limits.iter().filter(|file| file.is_open()) {
            let said = file.read(text).and_then(group::limit_in).ok_or(Unseen)?;
            least = least.into_iter().chain(said).min();
        }
        Ok(least)
    }

    /// What is left of this level's limit: `Ok(None)` where it has none, `Err` where that
    /// cannot be seen.
    fn look(&self, level: &Level<'_>, text: &mut [u8]) -> Result<Option<Supply>, Unseen> {
        let Some(limit_bytes) = self.limit(text)? else {
            return Ok(None);
        };
        let version = level.version();
        if !self.usage.is_there() && !Self::open_later(level, version.usage_file(), &self.usage) {
            return Err(Unseen);
        }
        let usage = self.usage.read(text);
        let usage = usage.and_then(|text| report::number(text.trim_ascii()));
        let free = limit_bytes.saturating_sub(usage.ok_or(Unseen)?);
        let mut left_bytes = free;
        if free < limit_bytes / PLENTY_SHARE {
            // Where it cannot be seen there may be none.
            left_bytes += self.cache(level, text, limit_bytes).unwrap_or(0);
        }
        Ok(Some(Supply {
            limit_bytes,
            left_bytes: left_bytes.min(limit_bytes),
            swap_bytes: 0,
        }))
    }

    /// The level's clean file cache. Little of it is little a moment later, too; much may
    /// have gone.
    fn cache(&self, level: &Level<'_>, text: &mut [u8], limit_bytes: u64) -> Option<u64> {
        let seen = self.cache_bytes.load(Ordering::Relaxed);
        let now = clock::now_ns();
        let fresh = now.saturating_sub(self.cache_ns.load(Ordering::Relaxed)) < CACHE_NS;
        if fresh && seen < limit_bytes / 64 {
            return Some(seen);
        }
        if !self.stat.is_there() && !Self::open_later(level, "memory.stat", &self.stat) {
            return None;
        }
        let cache = group::clean_cache_in(self.stat.read(text)?, level.version())?;
        self.cache_bytes.store(cache, Ordering::Relaxed);
        self.cache_ns.store(now.max(1), Ordering::Relaxed);
        Some(cache)
    }
}

fn open_of(level: &Level<'_>, name: &str, file: &KeptFile) -> bool {
    level.with_path(name, |path| file.open(path)) == Some(true)
}

/// As [`open_of`] for a file that may never come: it is looked for first, which takes no
/// number of the program's.
fn find_of(level: &Level<'_>, name: &str, file: &KeptFile) -> bool {
    level.with_path(name, |path| calls::is_there(path) && file.open(path)) == Some(true)
}

/// A report could not be read.
struct Unseen;

/// The kept files, and room for what they say.
pub struct Meter {
    status: KeptFile,
    parts: KeptFile,
    own_group: KeptFile,
    meminfo: KeptFile,
    levels: [LevelFiles; LEVELS_MAX],
    /// Changed while the room is held.
    group: UnsafeCell<Option<Group>>,
    /// What `/proc/self/cgroup` said, as a number.
    group_mark: AtomicU64,
    /// When groups were compared, or something was opened again.
    tried_ns: AtomicU64,
    /// When the parts were opened again.
    parts_tried_ns: AtomicU64,
    text: UnsafeCell<[u8; TEXT_BYTES]>,
    busy: AtomicBool,
}

// SAFETY: the two cells are reached through `Room` alone, of which there is one at a time.
unsafe impl Sync for Meter {}
// SAFETY: nothing in it belongs to a thread.
unsafe impl Send for Meter {}

/// The right to the cells.
struct Room<'m>(&'m Meter);

impl Room<'_> {
    fn parts(&mut self) -> (&mut Option<Group>, &mut [u8; TEXT_BYTES]) {
        // SAFETY: one `Room` at a time, borrowed alone for as long as the group is.
        let group = unsafe { &mut *self.0.group.get() };
        // SAFETY: as above, for the text.
        let text = unsafe { &mut *self.0.text.get() };
        (group, text)
    }

    fn text(&mut self) -> &mut [u8; TEXT_BYTES] {
        self.parts().1
    }
}

impl Drop for Room<'_> {
    fn drop(&mut self) {
        self.0.busy.store(false, Ordering::Release);
    }
}

impl Meter {
    /// One that has nothing open yet.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            status: KeptFile::new(),
            parts: KeptFile::new(),
            own_group: KeptFile::new(),
            meminfo: KeptFile::new(),
            levels: [const { LevelFiles::new() }; LEVELS_MAX],
            group: UnsafeCell::new(None),
            group_mark: AtomicU64::new(0),
            tried_ns: AtomicU64::new(0),
            parts_tried_ns: AtomicU64::new(0),
            text: UnsafeCell::new([0; TEXT_BYTES]),
            busy: AtomicBool::new(false),
        }
    }

    /// Opens what this process takes, and with `supplies` also what is left.
    pub fn open(&self, supplies: bool) {
        let _there = self.status.open(STATUS);
        if supplies && let Some(mut room) = self.room() {
            let _there = self.meminfo.open(c"/proc/meminfo");
            let _there = self.own_group.open(c"/proc/self/cgroup");
            self.open_levels(&mut room);
        }
    }

    /// Opens what says the process's part of memory that it shares.
    pub fn open_parts(&self) {
        let _there = self.parts.open(PARTS);
    }

    /// What this process takes, of pages that it shares with others only its part; `None`
    /// where the kernel does not say. Takes a millisecond for some 100 MiB.
    pub fn part_bytes(&self) -> Option<u64> {
        let mut room = self.room()?;
        let tables = report::field_bytes(self.status.read(room.text())?, "VmPTE")?;
        if !self.parts.is_there() && may_try(&self.parts_tried_ns) {
            self.open_parts();
        }
        Some(report::part_bytes_in(self.parts.read(room.text())?)? + tables)
    }

    /// In a forked child: what is open says what its parent takes.
    pub fn after_fork_in_child(&self) {
        self.busy.store(false, Ordering::Release);
        self.tried_ns.store(0, Ordering::Relaxed);
        self.parts_tried_ns.store(0, Ordering::Relaxed);
        let with_group = self.own_group.is_there();
        let with_parts = self.parts.is_there();
        self.status.close();
        self.parts.close();
        self.own_group.close();
        if !doorway::is_confined() {
            let _there = self.status.open(STATUS);
            if with_parts {
                self.open_parts();
            }
            if with_group {
                let _there = self.own_group.open(c"/proc/self/cgroup");
            }
        }
    }

    fn room(&self) -> Option<Room<'_>> {
        let free = !self.busy.swap(true, Ordering::Acquire);
        // Not made where it is not free: its end would free it.
        free.then(|| Room(self))
    }

    fn open_levels(&self, room: &mut Room<'_>) {
        let (group, text) = room.parts();
        *group = Reports::of_this_machine().memory_group();
        let mark = self.own_group.read(text).map_or(0, mark_of);
        self.group_mark.store(mark, Ordering::Relaxed);
        for files in &self.levels {
            files.close();
        }
        self.open_limits(room);
    }

    /// Opens the files with a limit that are there by now, as when a memory controller was
    /// turned on for a level; whether one came.
    fn open_limits(&self, room: &mut Room<'_>) -> bool {
        let (Some(group), text) = room.parts() else {
            return false;
        };
        let mut came = false;
        for (files, level) in self.levels.iter().zip(group.levels()) {
            if files.open_limits(&level) {
                came = true;
                // Now, while files can be opened; another level may get a limit later.
                let _sees_usage = files.look(&level, text);
            }
        }
        came
    }

    /// What this process takes of the machine, see [`Reports::process_bytes`]; `None`
    /// where that cannot be seen.
    pub fn process_bytes(&self) -> Option<u64> {
        let mut room = self.room()?;
        let seen = self.status.read(room.text());
        if let Some(bytes) = seen.and_then(report::process_bytes_in) {
            return Some(bytes);
        }
        if may_try(&self.tried_ns) && self.status.open(STATUS) {
            return report::process_bytes_in(self.status.read(room.text())?);
        }
        None
    }

    /// Tells each supply that memory is taken from; `false` where one of them cannot be
    /// seen.
    pub fn supplies(&self, mut each: impl FnMut(Supply)) -> bool {
        let Some(mut room) = self.room() else {
            return false;
        };
        let mut all = self.groups(&mut room, &mut each);
        if !all && may_try(&self.tried_ns) {
            self.open_levels(&mut room);
            all = self.groups(&mut room, &mut each);
        } else if all && may_try(&self.tried_ns) {
            let mark = self.own_group.read(room.text()).map(mark_of);
            let moved = mark.is_some_and(|mark| mark != self.group_mark.load(Ordering::Relaxed));
            if moved {
                self.open_levels(&mut room);
            }
            if moved || self.open_limits(&mut room) {
                all = self.groups(&mut room, &mut each);
            }
        }
        let meminfo = self.meminfo.read(room.text());
        let machine = meminfo.and_then(machine_in);
        if let Some(supply) = machine {
            each(supply);
        }
        all && machine.is_some()
    }

    fn groups(&self, room: &mut Room<'_>, each: &mut impl FnMut(Supply)) -> bool {
        let (Some(group), text) = room.parts() else {
            return true;
        };
        let mut all = true;
        for (files, level) in self.levels.iter().zip(group.levels()) {
            match files.look(&level, text) {
                Ok(Some(supply)) => each(supply),
                Ok(None) => {}
                Err(Unseen) => all = false,
            }
        }
        all
    }

    /// The smaller of the limits on address space and data, which bound what a process
    /// takes as well, bytes; `None` for none.
    #[must_use]
    pub fn own_limit_bytes(&self) -> Option<u64> {
        let limits = [machine::address_space_limit(), machine::data_limit()];
        limits.into_iter().flatten().min()
    }
}

impl Default for Meter {
    fn default() -> Self {
        Self::new()
    }
}

impl core::fmt::Debug for Meter {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Meter")
            .field("status", &self.status)
            .field("meminfo", &self.meminfo)
            .finish_non_exhaustive()
    }
}

/// Whether something may be tried that is tried rarely, and was last at `tried_ns`.
fn may_try(tried_ns: &AtomicU64) -> bool {
    let now = clock::now_ns();
    let due = now.saturating_sub(tried_ns.load(Ordering::Relaxed)) >= RETRY_NS;
    if due {
        tried_ns.store(now, Ordering::Relaxed);
    }
    due && !doorway::is_confined()
}

/// What the text of `/proc/meminfo` says of the machine.
fn machine_in(text: &[u8]) -> Option<Supply> {
    Some(Supply {
        limit_bytes: field_bytes(text, "MemTotal")?,
        left_bytes: field_bytes(text, "MemAvailable")?,
        swap_bytes: field_bytes(text, "SwapFree").unwrap_or(0),
    })
}

/// A text as a number (FNV-1a): whether it changed.
fn mark_of(text: &[u8]) -> u64 {
    text.iter().fold(0xcbf2_9ce4_8422_2325, |mark, &byte| {
        (mark ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_meter_sees_what_the_reports_say() {
        let meter = Meter::new();
        assert!(meter.process_bytes().is_some(), "opened when asked");
        meter.open(true);
        let block = vec![1_u8; 8 << 20];
        assert!(meter.process_bytes().unwrap() > 4 << 20);
        drop(block);
        let mut machine = None;
        assert!(meter.supplies(|supply| {
            assert!(supply.left_bytes <= supply.limit_bytes, "{supply:?}");
            machine = Some(supply);
        }));
        // The machine is told last.
        let total = Reports::of_this_machine().meminfo_bytes("MemTotal");
        assert_eq!(machine.map(|supply| supply.limit_bytes), total);
    }

    #[test]
    fn parts_that_could_not_be_opened_are_opened_when_asked() {
        let meter = Meter::new();
        meter.open(false);
        assert!(meter.part_bytes().is_some());
        // Not again at once.
        meter.parts.close();
        assert_eq!(meter.part_bytes(), None);
    }

    /// A process in `/a/b` of version 2 groups, `b` without a memory controller yet.
    struct Saved(std::path::PathBuf);

    impl Saved {
        fn new(name: &str) -> Self {
            let root = std::env::temp_dir().join(format!("ghostmem-{name}-{}", std::process::id()));
            let _from_before = std::fs::remove_dir_all(&root);
            let saved = Self(root);
            saved.set("proc/self/cgroup", "0::/a/b\n");
            let mount = "30 20 0:26 / /groups rw - cgroup2 cgroup2 rw\n";
            saved.set("proc/self/mountinfo", mount);
            saved.set("groups/a/memory.max", "500000\n");
            saved.set("groups/a/memory.high", "max\n");
            saved.set("groups/a/memory.current", "100000\n");
            saved.set("groups/a/b/cgroup.procs", "1\n");
            saved
        }

        fn set(&self, path: &str, text: &str) {
            let path = self.0.join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }

        /// A meter that looks at these groups.
        fn meter(&self) -> Meter {
            let meter = Meter::new();
            let mut room = meter.room().unwrap();
            *room.parts().0 = Reports::below(&self.0).memory_group();
            meter.open_limits(&mut room);
            drop(room);
            meter
        }
    }

    impl Drop for Saved {
        fn drop(&mut self) {
            std::fs::remove_dir_all(&self.0).unwrap();
        }
    }

    /// Limit and what is left of each level with one, a second after the last look.
    fn levels(meter: &Meter) -> Vec<(u64, u64)> {
        meter.tried_ns.store(0, Ordering::Relaxed);
        let mut last = Vec::new();
        // Levels are told again when a file came: the last of each counts.
        meter.supplies(|supply| {
            last.retain(|&(limit, _)| limit != supply.limit_bytes);
            last.push((supply.limit_bytes, supply.left_bytes));
        });
        last
    }

    #[test]
    fn a_level_is_held_to_the_smaller_of_its_limits_as_they_change() {
        let saved = Saved::new("high");
        let meter = saved.meter();
        assert_eq!(levels(&meter), [(500_000, 400_000)]);
        saved.set("groups/a/memory.high", "300000\n");
        assert_eq!(levels(&meter), [(300_000, 200_000)]);
        saved.set("groups/a/memory.max", "200000\n");
        assert_eq!(levels(&meter), [(200_000, 100_000)]);
        saved.set("groups/a/memory.max", "max\n");
        saved.set("groups/a/memory.high", "150000\n");
        assert_eq!(levels(&meter), [(150_000, 50_000)]);
        saved.set("groups/a/memory.high", "max\n");
        assert_eq!(levels(&meter), []);
    }

    #[test]
    fn a_limit_whose_file_comes_later_is_found() {
        let saved = Saved::new("late");
        let meter = saved.meter();
        assert_eq!(levels(&meter), [(500_000, 400_000)]);
        saved.set("groups/a/b/memory.high", "90000\n");
        saved.set("groups/a/b/memory.max", "max\n");
        saved.set("groups/a/b/memory.current", "10000\n");
        assert_eq!(levels(&meter), [(90_000, 80_000), (500_000, 400_000)]);
    }

    #[test]
    fn a_forked_child_sees_itself() {
        let meter = Meter::new();
        meter.open(true);
        // Shared with nobody: the child gives its own back.
        let block = vec![1_u8; 64 << 20];
        let fell = crate::stack::forked(|| {
            meter.after_fork_in_child();
            let before = meter.process_bytes().unwrap_or(0);
            let at = (block.as_ptr() as usize).next_multiple_of(4096);
            // SAFETY: whole pages within the block.
            unsafe { libc::madvise(at as *mut libc::c_void, 32 << 20, libc::MADV_DONTNEED) };
            let after = meter.process_bytes().unwrap_or(0);
            (before.saturating_sub(after) >> 20) as i32
        });
        drop(block);
        assert!((30..=34).contains(&fell), "{fell} MiB");
    }
}
