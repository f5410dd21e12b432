//! The processes of a run, and what they hold.
//!
//! Whatever a program starts belongs to the run, orphans too, which this process adopts.
//! They are looked at a hundred times a second, so a look is cheap: the list is made anew
//! only when a process was made since, and how much of its memory a process shares with
//! others is read ten times a second at most.

use std::collections::BTreeMap;
use std::fs;
use std::time::{Duration, Instant};

use ghostmem_os::report::field_bytes;

use crate::sys;

/// Between two readings of what processes share.
const READ_PARTS: Duration = Duration::from_millis(100);
/// Such readings take no larger share of the time than one in so many.
const READ_PARTS_SHARE: u32 = 20;
/// A process with less is not asked what it shares, bytes.
const SHARED_MIN: u64 = 1 << 20;

/// What memory of a process counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Counted {
    /// What is resident and what is swapped out: swap is no way to be small.
    All,
    /// What is resident: what is swapped out is in zram, and counted there.
    Resident,
}

/// All processes below one.
pub(super) struct Processes {
    /// Whose descendants they are; itself not among them.
    root: u32,
    counted: Counted,
    members: BTreeMap<u32, Member>,
    /// The number of the process that was made last when the list was made.
    newest: Option<u64>,
    parts_due: Instant,
}

struct Member {
    parent: u32,
    /// Whether it was there at an earlier look. Only then it counts: a process made by
    /// vfork(2) shows its parent's memory until it becomes another program.
    seen: bool,
    /// `None`: to be read.
    part: Option<Part>,
}

/// A process's memory when it was asked what it shares.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Part {
    /// All that it had.
    all: u64,
    /// The same, each shared page divided among those that share it.
    part: u64,
}

impl Part {
    /// The part of a process that has `all` bytes now: what came since counts as its own.
    fn now(self, all: u64) -> u64 {
        (self.part + all).saturating_sub(self.all)
    }
}

impl Processes {
    pub(super) fn below(root: u32, counted: Counted) -> Self {
        Self {
            root,
            counted,
            members: BTreeMap::new(),
            newest: None,
            parts_due: Instant::now(),
        }
    }

    /// Their numbers.
    pub(super) fn numbers(&mut self) -> Vec<u32> {
        self.list();
        self.members.keys().copied().collect()
    }

    /// Bytes they hold now: anonymous and shared memory, page tables. A page that several
    /// share counts once, and a process from the second look on.
    pub(super) fn held(&mut self) -> u64 {
        self.list();
        let now = Instant::now();
        if now >= self.parts_due {
            for member in self.members.values_mut() {
                member.part = None;
            }
            self.parts_due = now + READ_PARTS;
        }
        let alone = self.members.len() == 1;
        let mut sum = 0;
        let mut ended = Vec::new();
        for (&number, member) in &mut self.members {
            let status = fs::read(format!("/proc/{number}/status")).unwrap_or_default();
            if status.is_empty() {
                ended.push((number, member.parent));
                continue;
            }
            if !std::mem::replace(&mut member.seen, true) {
                continue;
            }
            let all = all_bytes(&status, self.counted);
            sum += field_bytes(&status, "VmPTE").unwrap_or(0);
            if alone || all < SHARED_MIN {
                sum += all;
                continue;
            }
            let part = *member.part.get_or_insert_with(|| {
                let rollup = fs::read(format!("/proc/{number}/smaps_rollup")).unwrap_or_default();
                let part = part_bytes(&rollup, self.counted).unwrap_or(all);
                Part { all, part }
            });
            sum += part.now(all);
        }
        let took = now.elapsed() * READ_PARTS_SHARE;
        self.parts_due = self.parts_due.max(now + took.min(Duration::from_secs(1)));
        for (number, parent) in ended {
            self.members.remove(&number);
            self.ask_again(parent);
        }
        sum
    }

    /// What a process shares has changed.
    fn ask_again(&mut self, number: u32) {
        if let Some(member) = self.members.get_mut(&number) {
            member.part = None;
        }
    }

    /// Brings the list up to date.
    fn list(&mut self) {
        let newest = newest_process();
        if newest.is_some() && newest == self.newest {
            return;
        }
        self.newest = newest;
        let found = descendants(self.root, &parents());
        self.members.retain(|number, _| found.contains_key(number));
        for (number, parent) in found {
            let known = self.members.get_mut(&number);
            if let Some(member) = known {
                member.parent = parent;
            } else {
                let member = Member {
                    parent,
                    seen: false,
                    part: None,
                };
                self.members.insert(number, member);
                self.ask_again(parent);
            }
        }
    }
}

/// Ends all processes below this one and waits until they are gone; a few seconds at most.
pub(super) fn end_all() {
    let own = std::process::id();
    for _ in 0..500 {
        let left = descendants(own, &parents());
        if left.is_empty() {
            return;
        }
        for (number, parent) in left {
            sys::send_signal(number, libc::SIGKILL);
            if parent == own {
                sys::reap(number);
            }
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    eprintln!("a process of the program does not end");
}

/// Anonymous and shared memory in the text of a `status` file, bytes.
fn all_bytes(status: &[u8], counted: Counted) -> u64 {
    let field = |name| field_bytes(status, name).unwrap_or(0);
    let swapped = match counted {
        Counted::All => field("VmSwap"),
        Counted::Resident => 0,
    };
    field("RssAnon") + field("RssShmem") + swapped
}

/// The same, shared pages divided, in the text of a `smaps_rollup` file (Linux 5.3).
fn part_bytes(rollup: &[u8], counted: Counted) -> Option<u64> {
    let swapped = match counted {
        Counted::All => field_bytes(rollup, "SwapPss").unwrap_or(0),
        Counted::Resident => 0,
    };
    Some(field_bytes(rollup, "Pss_Anon")? + field_bytes(rollup, "Pss_Shmem")? + swapped)
}

/// The number of the process or thread that was made last, proc_loadavg(5).
fn newest_process() -> Option<u64> {
    let text = fs::read_to_string("/proc/loadavg").ok()?;
    text.split_whitespace().last()?.parse().ok()
}

/// The parent of every process.
fn parents() -> BTreeMap<u32, u32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let numbers = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    numbers
        .filter_map(|number: u32| {
            let stat = fs::read(format!("/proc/{number}/stat")).ok()?;
            Some((number, parent_in(&stat)?))
        })
        .collect()
}

/// The parent in the text of a `stat` file: the second word behind the name, which stands
/// in brackets and may hold anything.
fn parent_in(stat: &[u8]) -> Option<u32> {
    let name_end = stat.iter().rposition(|&byte| byte == b')')?;
    let text = std::str::from_utf8(&stat[name_end + 1..]).ok()?;
    text.split_whitespace().nth(1)?.parse().ok()
}

/// All that have `root` among their parents' parents, and their parents.
fn descendants(root: u32, parents: &BTreeMap<u32, u32>) -> BTreeMap<u32, u32> {
    let mut found = BTreeMap::new();
    let mut open = vec![root];
    while let Some(parent) = open.pop() {
        for (&number, _) in parents.iter().filter(|(_, of)| **of == parent) {
            if found.insert(number, parent).is_none() {
                open.push(number);
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader};
    use std::process::{Command, Stdio};

    use super::*;

    /// Proves what is counted of a process: files never, swap only where it is not zram.
    #[test]
    fn files_do_not_count_and_swap_counts_once() {
        let status = b"VmHWM:\t  900 kB\nVmRSS:\t  700 kB\nRssAnon:\t  100 kB\n\
            RssFile:\t  550 kB\nRssShmem:\t   50 kB\nVmPTE:\t   8 kB\nVmSwap:\t  30 kB\n";
        assert_eq!(all_bytes(status, Counted::Resident), 150 << 10);
        assert_eq!(all_bytes(status, Counted::All), 180 << 10);
        let rollup = b"Rss:   700 kB\nPss:   400 kB\nPss_Anon:   60 kB\nPss_File:   10 kB\n\
            Pss_Shmem:   25 kB\nSwap:   30 kB\nSwapPss:   15 kB\n";
        assert_eq!(part_bytes(rollup, Counted::Resident), Some(85 << 10));
        assert_eq!(part_bytes(rollup, Counted::All), Some(100 << 10));
        assert_eq!(part_bytes(b"Rss:  1 kB\n", Counted::All), None);
    }

    /// Proves that what a process takes or gives back after a reading is its own.
    #[test]
    fn between_two_readings_every_page_is_the_processes_own() {
        let part = Part { all: 100, part: 60 };
        assert_eq!(part.now(100), 60);
        assert_eq!(part.now(130), 90);
        assert_eq!(part.now(70), 30);
        assert_eq!(part.now(10), 0);
    }

    /// Proves that a process is found by its parents whatever its name.
    #[test]
    fn a_family_is_found() {
        assert_eq!(parent_in(b"77 (a) b) R) S 12 77 77 0"), Some(12));
        assert_eq!(parent_in(b"77 (a"), None);
        let parents = BTreeMap::from([(2, 1), (3, 1), (4, 3), (5, 4), (6, 9), (9, 0)]);
        let found: Vec<u32> = descendants(3, &parents).into_keys().collect();
        assert_eq!(found, [4, 5]);
        assert!(descendants(6, &parents).is_empty());
    }

    /// Proves that what a program starts is part of what it holds, and is no more when it
    /// has ended.
    #[test]
    fn the_memory_of_children_counts_as_long_as_they_live() {
        // Below this shell, one that holds 8 MB.
        let script = "(v=$(head -c 8000000 /dev/zero | tr '\\0' x); echo held; read -r _)
            echo gone; read -r _";
        let mut child = Command::new("/bin/sh")
            .args(["-c", script])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut processes = Processes::below(child.id(), Counted::All);
        assert_eq!(lines.next().unwrap().unwrap(), "held");
        assert_eq!(processes.held(), 0, "counted at the first look");
        let held = processes.held();
        assert!(held > 8_000_000, "{held}");
        let stdin = child.stdin.as_mut().unwrap();
        std::io::Write::write_all(stdin, b"\n").unwrap();
        assert_eq!(lines.next().unwrap().unwrap(), "gone");
        assert!(processes.held() < 8_000_000);
        drop(child.stdin.take());
        child.wait().unwrap();
    }
}
