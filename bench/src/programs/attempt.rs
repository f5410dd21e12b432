//! One run of a program, watched from outside.
//!
//! A single thread starts the program, looks at its memory every few milliseconds, and
//! waits for it, so that it never signals a process that is gone.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::hash::{DefaultHasher, Hasher};
use std::io::{BufRead, BufReader};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use ghostmem_os::report::field_bytes;

use super::swap::{Loans, SwapGroup};
use crate::contenders::zram;
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
    /// Name of the zram device that its memory goes to.
    device: Option<String>,
    /// Where GhostMem writes its statistics.
    stats: Option<PathBuf>,
}

/// What a program printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Output {
    bytes: u64,
    hash: u64,
}

/// What a run took.
#[derive(Debug, Clone)]
pub(super) struct Ended {
    pub(super) seconds: f64,
    pub(super) spent: Spent,
    /// Processor time of the engine's threads among it, nanoseconds.
    pub(super) engine_ns: u64,
    /// The most that was held at once: resident, page tables, zram.
    pub(super) total_bytes: u64,
    /// The most that zram held.
    pub(super) zram_bytes: u64,
    /// Faults on memory that had been evicted or swapped out.
    pub(super) faults: u64,
    /// What the group was lent.
    pub(super) lent: Loans,
    pub(super) output: Output,
    pub(super) status: ExitStatus,
    /// The last line on standard error.
    pub(super) complaint: String,
}

impl Ended {
    /// Itself, if the program ended well.
    pub(super) fn succeeded(self, name: &str, contender: &str) -> Result<Self> {
        if self.status.success() {
            return Ok(self);
        }
        Err(Error::Failed(format!(
            "{name}, {contender}: {}: {}",
            self.status, self.complaint
        )))
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

    /// The program with GhostMem under a limit.
    pub(super) fn ghost(
        ghostmem: &Path,
        limit: u64,
        options: &[&str],
        command: &[String],
        work: &'a Path,
    ) -> Self {
        let stats = work.join("stats.json");
        let mut ghost = Command::new(ghostmem);
        ghost
            .args(["run", "--limit", &limit.to_string()])
            .args(options)
            .arg("--stats-json")
            .arg(&stats)
            .arg("--")
            .args(command);
        Self {
            stats: Some(stats),
            ..Self::new(ghost, work)
        }
    }

    /// The program in a group that swaps.
    pub(super) fn in_group(place: &SwapGroup, command: &[String], work: &'a Path) -> Self {
        let mut shell = Command::new("/bin/sh");
        shell
            .args(["-c", "echo $$ >\"$0\" && exec \"$@\""])
            .arg(place.group().dir().join("cgroup.procs"))
            .args(command);
        Self {
            device: Some(place.device().to_owned()),
            ..Self::new(shell, work)
        }
    }

    fn new(mut command: Command, work: &'a Path) -> Self {
        command
            .stdin(Stdio::null())
            // The same addresses in every run, as far as Python chooses them.
            .env("PYTHONHASHSEED", "0")
            .env_remove("PYTHONMALLOC");
        Self {
            command,
            work,
            device: None,
            stats: None,
        }
    }

    /// Runs it. After `timeout` seconds the program is killed.
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
            let _none_before = fs::remove_file(stats);
        }
        let program = self.command.get_program().to_string_lossy().into_owned();
        let start = Instant::now();
        let child = self.command.spawn();
        let child = child.map_err(|err| Error::io(&program, &err))?;
        let mut watch = Watch::new(child, self.device);
        let (status, spent) = watch.until_end(start, timeout)?;
        let seconds = start.elapsed().as_secs_f64();
        watch.look();
        let faults = match &self.stats {
            Some(stats) if status.success() => refaults(stats)?,
            _ => spent.major_faults,
        };
        Ok(Ended {
            seconds,
            spent,
            engine_ns: watch.engine.values().sum(),
            // The kernel misses no peak of what is resident.
            total_bytes: watch.total.max(spent.peak_rss_bytes),
            zram_bytes: watch.zram,
            faults,
            lent: Loans::default(),
            output: output(&out)?,
            status,
            complaint: last_line(&err),
        })
    }
}

/// A program that runs. Dropped before its end, it is killed.
struct Watch {
    child: Option<Child>,
    process: u32,
    device: Option<String>,
    total: u64,
    zram: u64,
    /// Nanoseconds by thread.
    engine: BTreeMap<String, u64>,
}

impl Watch {
    fn new(child: Child, device: Option<String>) -> Self {
        Self {
            process: child.id(),
            child: Some(child),
            device,
            total: 0,
            zram: 0,
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

    /// Adds up what the program holds now.
    fn look(&mut self) {
        let mut held = 0;
        if self.child.is_some() {
            let status = fs::read(format!("/proc/{}/status", self.process)).unwrap_or_default();
            let field = |name| field_bytes(&status, name).unwrap_or(0);
            held = field("VmRSS") + field("VmPTE");
        }
        if let Some([_, zram, peak]) = self
            .device
            .as_deref()
            .and_then(|name| zram::device_bytes(name).ok())
        {
            held += zram;
            self.zram = self.zram.max(peak);
        }
        self.total = self.total.max(held);
    }

    /// Notes how long each of the engine's threads has run.
    fn look_at_threads(&mut self) {
        let Ok(threads) = fs::read_dir(format!("/proc/{}/task", self.process)) else {
            return;
        };
        for thread in threads.flatten() {
            let read = |file| fs::read_to_string(thread.path().join(file)).unwrap_or_default();
            // The first thread is the program's, whatever its name.
            let number = thread.file_name().to_string_lossy().into_owned();
            if number == self.process.to_string() || !read("comm").starts_with("ghost") {
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

impl Drop for Watch {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Faults on evicted pages, as `ghostmem run --stats-json` wrote them.
fn refaults(stats: &Path) -> Result<u64> {
    let text = fs::read(stats).map_err(|err| {
        Error::Failed(format!(
            "{}: {err}: the program ran without GhostMem",
            stats.display()
        ))
    })?;
    serde_json::from_slice::<serde_json::Value>(&text)
        .ok()
        .and_then(|stats| stats["refaults"].as_u64())
        .ok_or_else(|| Error::Failed(format!("{}: no refaults in it", stats.display())))
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
