//! One run of a program, watched from outside.
//!
//! A single thread starts the program, looks at its memory a hundred times a second, and
//! waits for it, so that it never signals a process that is gone. The same looks are taken
//! whoever runs the program.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::hash::{DefaultHasher, Hasher};
use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use ghostmem_os::report::field_bytes;

use super::peak::Peak;
use super::processes::{self, Counted, Processes};
use super::swap::{Loans, SwapGroup};
use crate::error::{Error, Result};
use crate::sys::{self, Spent};

/// Between two questions whether the program has ended: what its time is uncertain by.
const WAIT: Duration = Duration::from_millis(1);
/// Between two looks at its memory.
const LOOK: Duration = Duration::from_millis(10);
/// Between two looks at the engine's threads.
const LOOK_AT_THREADS: Duration = Duration::from_millis(100);

/// A run to come.
pub(super) struct Attempt<'a> {
    command: Command,
    work: &'a Path,
    /// The group that swaps.
    place: Option<&'a SwapGroup>,
    /// The folder in which each process under GhostMem leaves its statistics.
    stats: Option<PathBuf>,
}

/// What a program printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Output {
    bytes: u64,
    hash: u64,
}

/// The figures of a run.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Figures {
    pub(super) seconds: f64,
    pub(super) spent: Spent,
    /// Processor time of the engine's threads among it, nanoseconds.
    pub(super) engine_ns: u64,
    /// The most that was held at one look.
    pub(super) peak: Peak,
    /// The most of the first process that is a file's, and that does not count.
    pub(super) file_bytes: u64,
    /// Faults on memory that had been evicted or swapped out.
    pub(super) faults: u64,
    /// What the group was lent.
    pub(super) lent: Loans,
}

/// How a run ended.
#[derive(Debug, Clone)]
pub(super) struct Ended {
    pub(super) figures: Figures,
    pub(super) output: Output,
    pub(super) status: ExitStatus,
    /// The last line on standard error.
    complaint: String,
}

impl Ended {
    /// Itself, if the program ended well.
    ///
    /// # Errors
    /// How it ended, in words.
    pub(super) fn succeeded(self) -> std::result::Result<Self, String> {
        if self.status.success() {
            return Ok(self);
        }
        Err(match self.complaint.as_str() {
            "" => self.status.to_string(),
            complaint => format!("{}: {complaint}", self.status),
        })
    }

    /// Whether the kernel ended it.
    pub(super) fn was_killed(&self) -> bool {
        self.status.signal() == Some(libc::SIGKILL)
    }
}

impl<'a> Attempt<'a> {
    /// The program as it is.
    pub(super) fn plain(command: &[String], work: &'a Path) -> Self {
        let mut plain = Command::new(&command[0]);
        plain.args(&command[1..]);
        Self::new(plain, work)
    }

    /// The program with GhostMem, which holds it to so many bytes.
    pub(super) fn ghost(
        ghostmem: &Path,
        memory: u64,
        options: &[String],
        command: &[String],
        work: &'a Path,
    ) -> Self {
        let stats = work.join("stats");
        let mut ghost = Command::new(ghostmem);
        ghost
            .args(["run", "--memory", &memory.to_string()])
            .args(options)
            .arg("--stats-json")
            .arg(stats.join("%p.json"))
            .arg("--")
            .args(command);
        Self {
            stats: Some(stats),
            ..Self::new(ghost, work)
        }
    }

    /// The program in a group that swaps.
    pub(super) fn in_group(place: &'a SwapGroup, command: &[String], work: &'a Path) -> Self {
        let mut shell = Command::new("/bin/sh");
        shell
            .args(["-c", "echo $$ >\"$0\" && exec \"$@\""])
            .arg(place.group().dir().join("cgroup.procs"))
            .args(command);
        Self {
            place: Some(place),
            ..Self::new(shell, work)
        }
    }

    fn new(mut command: Command, work: &'a Path) -> Self {
        command
            .stdin(Stdio::null())
            // An interrupt of the terminal is the bench's, which ends the program.
            .process_group(0)
            // The same addresses in every run, as far as Python chooses them.
            .env("PYTHONHASHSEED", "0")
            .env_remove("PYTHONMALLOC");
        Self {
            command,
            work,
            place: None,
            stats: None,
        }
    }

    /// Runs it. After `timeout` seconds the program is killed. No process of it is left.
    ///
    /// # Errors
    /// [`Error::Skipped`] when that took too long, [`Error::Interrupted`]; else what
    /// prevented the run. How the program ended is in the answer.
    pub(super) fn run(mut self, timeout: u64) -> Result<Ended> {
        let (out, err) = (self.work.join("stdout"), self.work.join("stderr"));
        let create = |path: &Path| {
            File::create(path)
                .map(Stdio::from)
                .map_err(|err| Error::io(path.display(), &err))
        };
        self.command.stdout(create(&out)?).stderr(create(&err)?);
        if let Some(stats) = &self.stats {
            empty_for_all(stats)?;
        }
        let program = self.command.get_program().to_string_lossy().into_owned();
        let start = Instant::now();
        let child = self.command.spawn();
        let child = child.map_err(|err| Error::io(&program, &err))?;
        let mut watch = Watch::new(child, self.place);
        let (status, spent) = watch.until_end(start, timeout)?;
        let seconds = start.elapsed().as_secs_f64();
        let faults = match &self.stats {
            Some(stats) if status.success() => refaults(stats)?,
            _ => spent.major_faults,
        };
        Ok(Ended {
            figures: Figures {
                seconds,
                spent,
                engine_ns: watch.engine.values().sum(),
                peak: watch.peak,
                file_bytes: watch.file_bytes,
                faults,
                lent: Loans::default(),
            },
            output: output(&out)?,
            status,
            complaint: last_line(&err),
        })
    }
}

/// A program that runs. Dropped, whatever is left of it is killed.
struct Watch<'a> {
    child: Option<Child>,
    first: u32,
    processes: Processes,
    place: Option<&'a SwapGroup>,
    peak: Peak,
    file_bytes: u64,
    /// Nanoseconds by thread.
    engine: BTreeMap<String, u64>,
}

impl<'a> Watch<'a> {
    fn new(child: Child, place: Option<&'a SwapGroup>) -> Self {
        let counted = if place.is_some() {
            Counted::Resident
        } else {
            Counted::All
        };
        Self {
            first: child.id(),
            child: Some(child),
            processes: Processes::below(std::process::id(), counted),
            place,
            peak: Peak::default(),
            file_bytes: 0,
            engine: BTreeMap::new(),
        }
    }

    fn until_end(&mut self, start: Instant, timeout: u64) -> Result<(ExitStatus, Spent)> {
        let (mut next, mut next_threads) = (start, start);
        loop {
            if let Some(child) = &self.child {
                let ended = sys::try_wait(child).map_err(|err| Error::io("wait4", &err))?;
                if let Some(ended) = ended {
                    self.child = None;
                    return Ok(ended);
                }
            }
            if sys::interrupted() {
                return Err(Error::Interrupted);
            }
            let now = Instant::now();
            if now.duration_since(start) > Duration::from_secs(timeout) {
                return Err(Error::Skipped(format!(
                    "took more than {timeout} s (--timeout)"
                )));
            }
            if now >= next {
                self.look();
                next = now + LOOK;
            }
            if now >= next_threads {
                self.look_at_threads();
                next_threads = now + LOOK_AT_THREADS;
            }
            std::thread::sleep(WAIT);
        }
    }

    /// Adds up what the program holds now, and what is mapped of files.
    fn look(&mut self) {
        let status = fs::read(format!("/proc/{}/status", self.first)).unwrap_or_default();
        let files = field_bytes(&status, "RssFile").unwrap_or(0);
        self.file_bytes = self.file_bytes.max(files);
        if self.place.is_some_and(SwapGroup::is_lent) {
            return;
        }
        let processes = self.processes.held();
        let zram = self.place.map_or(0, SwapGroup::swapped_bytes);
        self.peak.see(processes, zram);
    }

    /// Notes how long each of the engine's threads has run.
    fn look_at_threads(&mut self) {
        for process in self.processes.numbers() {
            let threads = fs::read_dir(format!("/proc/{process}/task"));
            for thread in threads.into_iter().flatten().flatten() {
                let read = |file| fs::read_to_string(thread.path().join(file)).unwrap_or_default();
                // The first thread is the program's, whatever its name.
                let number = thread.file_name().to_string_lossy().into_owned();
                if number == process.to_string() || !read("comm").starts_with("ghost") {
                    continue;
                }
                let statistics = read("schedstat");
                let ran = statistics.split_whitespace().next();
                if let Some(ran) = ran.and_then(|ran| ran.parse().ok()) {
                    self.engine.insert(number, ran);
                }
            }
        }
    }
}

impl Drop for Watch<'_> {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
        processes::end_all();
    }
}

/// An empty folder to which processes of any user may write.
pub(super) fn empty_for_all(folder: &Path) -> Result<()> {
    let _none_before = fs::remove_dir_all(folder);
    fs::create_dir(folder)
        .and_then(|()| fs::set_permissions(folder, fs::Permissions::from_mode(0o1777)))
        .map_err(|err| Error::io(folder.display(), &err))
}

/// Faults on evicted pages, of all processes that `ghostmem run --stats-json` wrote of.
fn refaults(stats: &Path) -> Result<u64> {
    let entries = fs::read_dir(stats).map_err(|err| Error::io(stats.display(), &err))?;
    let mut files = entries.flatten().map(|entry| entry.path()).peekable();
    if files.peek().is_none() {
        return Err(Error::Failed(
            "the program ran without GhostMem: it left no statistics".into(),
        ));
    }
    files.try_fold(0, |sum, file| {
        let text = fs::read(&file).map_err(|err| Error::io(file.display(), &err))?;
        let refaults = serde_json::from_slice::<serde_json::Value>(&text)
            .ok()
            .and_then(|stats| stats["refaults"].as_u64())
            .ok_or_else(|| Error::Failed(format!("{}: no refaults in it", file.display())))?;
        Ok(sum + refaults)
    })
}

fn output(path: &Path) -> Result<Output> {
    let file = File::open(path).map_err(|err| Error::io(path.display(), &err))?;
    let mut file = BufReader::new(file);
    let (mut hasher, mut bytes) = (DefaultHasher::new(), 0);
    loop {
        let part = file.fill_buf();
        let part = part.map_err(|err| Error::io(path.display(), &err))?;
        if part.is_empty() {
            break;
        }
        // Byte by byte, or the hash would depend on where parts end.
        part.iter().for_each(|&byte| hasher.write_u8(byte));
        let len = part.len();
        file.consume(len);
        bytes += len as u64;
    }
    Ok(Output {
        bytes,
        hash: hasher.finish(),
    })
}

fn last_line(path: &Path) -> String {
    let text = fs::read(path).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    text.lines().last().unwrap_or_default().to_owned()
}
