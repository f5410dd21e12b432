//! What the program used, said once when it ends.
//!
//! The report is made in the process that `ghostmem run` became, at its
//! exit_group system call: exit(3), _exit(2) and a return from main all end
//! there. Where a signal ends it, the report is made before (see [`crate::endings`]).

use core::sync::atomic::{AtomicBool, AtomicI32, AtomicU64, Ordering};
use std::ffi::OsString;
use std::fmt::Write as _;
use std::fs;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use ghostmem::{Heap, Stats};
use ghostmem_os::doorway;
use ghostmem_os::report::Reports;

use crate::patch;
use crate::raw::{failed, own, say};
use crate::settings::Settings;
use crate::signals::{self, Blocked};
use crate::thread::{self, EngineScope};
use crate::{ghost, mappings, ordinary, start};
pub(crate) use ahead::settle;
use write::{write_all, write_anew};

mod ahead;
mod write;

/// Stands for the process's number in the name of the file.
const PROCESS: &[u8] = b"%p";

/// The thread that makes the report, or made it; 0: none yet.
static MAKER: AtomicI32 = AtomicI32::new(0);
/// It is made.
static MADE: AtomicBool = AtomicBool::new(false);
/// Where the report goes: a copy of standard error, as many programs close
/// theirs before they end. Standard error itself, where there is no copy.
static STDERR: AtomicI32 = AtomicI32::new(2);
/// The file that standard error was at the start: device and number.
static FILE: [AtomicU64; 2] = [const { AtomicU64::new(0) }; 2];

/// The file of the program that runs, where it was asked ahead.
static PROGRAM: OnceLock<String> = OnceLock::new();

/// In a forked child: the file that was opened ahead is its parent's, and so is a report
/// that another thread began.
pub(crate) fn forget_in_child() {
    MAKER.store(0, Ordering::Relaxed);
    MADE.store(false, Ordering::Relaxed);
    ahead::forget_in_child();
}

/// Whether this process writes the file of that name.
fn owes_json(path: &Path) -> bool {
    let every = names_process(path.as_os_str().as_bytes()).is_some();
    start::settings().is_some_and(is_reporter) || every && !signals::in_vfork_child()
}

/// Copies a descriptor to a high number, closed in programs started; -1 where there
/// is none.
fn move_up(file: i32) -> i32 {
    let copies = [1000, 200, 20].map(|lowest| (file, lowest));
    copies
        .into_iter()
        .map(|(file, lowest)| own!(libc::SYS_fcntl, file, libc::F_DUPFD_CLOEXEC, lowest))
        .find(|&copy| !failed(copy))
        .map_or(-1, |copy| i32::try_from(copy).unwrap_or(-1))
}

/// Whether a descriptor is the copy, which the program must not close or list.
pub(crate) fn owns(fd: i32) -> bool {
    fd > 2 && [STDERR.load(Ordering::Relaxed), ahead::file()].contains(&fd)
}

/// Which file a descriptor is.
fn file_of(fd: i32) -> Option<[u64; 2]> {
    // SAFETY: all zero is a valid stat structure.
    let mut stat: libc::stat = unsafe { core::mem::zeroed() };
    let answer = own!(libc::SYS_fstat, fd, &raw mut stat);
    (!failed(answer)).then_some([stat.st_dev, stat.st_ino])
}

/// Says what is in place, under `--verbose`.
pub(crate) fn started(settings: &Settings, heap: &Heap, patched: patch::Report) {
    if is_owed(settings) {
        keep_stderr();
    }
    ahead::keep_named(settings);
    if doorway::is_confined() {
        ahead::open_under_filter(settings);
    }
    if !settings.verbose {
        return;
    }
    let stats = heap.stats();
    let line = format!(
        "ghostmem: process {}: backend {}, limit {} bytes, {} system calls of libc redirected, {} \
         left as they are\n",
        std::process::id(),
        heap.backend(),
        stats.resident_limit_bytes,
        patched.patched,
        patched.left,
    );
    say(line.as_bytes());
}

/// Makes the report, if this process owes one. May be called in a signal handler.
pub(crate) fn at_exit() {
    let Some(settings) = start::settings() else {
        return;
    };
    // A file for each process, or one report of the first.
    let reporter = is_reporter(settings);
    if !is_owed(settings) || (!reporter && signals::in_vfork_child()) {
        return;
    }
    let me = own!(libc::SYS_gettid) as i32;
    match MAKER.compare_exchange(0, me, Ordering::AcqRel, Ordering::Acquire) {
        Ok(_) => {
            make(settings, reporter);
            MADE.store(true, Ordering::Release);
        }
        Err(_) => wait_until_made(),
    }
}

/// Another thread is about to end the process, too: its report is not cut short. It may be
/// held up by whoever reads it, and then nobody waits for ever. Where a signal came in the
/// midst of this thread's, the process ends with what there is.
pub(crate) fn wait_until_made() {
    const STEPS: u32 = 1000;
    let (never, step) = (0_u32, [0_u64, 1_000_000]);
    let me = own!(libc::SYS_gettid) as i32;
    for _ in 0..STEPS {
        if MADE.load(Ordering::Acquire) || MAKER.load(Ordering::Acquire) == me {
            return;
        }
        let wait = libc::FUTEX_WAIT | libc::FUTEX_PRIVATE_FLAG;
        let _time_went_by = own!(libc::SYS_futex, &raw const never, wait, 0, &raw const step);
    }
}

/// The report.
fn make(settings: &Settings, reporter: bool) {
    let path = settings.stats_json.as_deref();
    let Some(heap) = ghost::heap() else { return };
    let _inside = EngineScope::new(thread::current());
    ordinary::leave_libc_alone();
    // A handler of the program's would find the heap in the midst of it.
    let blocked = Blocked::new();
    ghost::tell(thread::current());
    let figures = Figures {
        peak_rss: peak_rss_bytes().unwrap_or(0),
        peak_allocated: ghost::peak_bytes(),
        user_seconds: user_seconds(),
        backend: heap.backend().to_string(),
        stats: heap.stats(),
    };
    drop(blocked);
    if settings.stats && reporter {
        let table = figures.table();
        say_at_end(&table);
    }
    if let Some(path) = path {
        let (path, ahead) = (with_process(path), ahead::file());
        let confined = doorway::is_confined();
        if confined && ahead < 0 {
            return;
        }
        let json = figures.json();
        let written = match ahead {
            0.. => write_all(ahead as isize, json.as_bytes()),
            _ => write_anew(&path, &json),
        };
        if let Err(error) = written
            && !confined
        {
            say_at_end(&format!(
                "ghostmem: cannot write {}: {error}\n",
                path.display()
            ));
        }
    }
}

/// Writes to what standard error was at the start.
fn say_at_end(text: &str) {
    let fd = STDERR.load(Ordering::Relaxed);
    // A number that has become another file's is none of ours.
    let before = [0, 1].map(|word| FILE[word].load(Ordering::Relaxed));
    if file_of(fd) == Some(before) {
        let _unheard = write_all(fd as isize, text.as_bytes());
    }
}

/// Whether this process reports at its end.
pub(crate) fn is_owed(settings: &Settings) -> bool {
    let path = settings.stats_json.as_deref();
    let every = path.is_some_and(|path| names_process(path.as_os_str().as_bytes()).is_some());
    every || ((settings.stats || path.is_some()) && is_reporter(settings))
}

/// Where the sign for the process's number is in a name.
fn names_process(path: &[u8]) -> Option<usize> {
    path.windows(PROCESS.len()).position(|part| part == PROCESS)
}

/// A name with the process's number in place of each sign for it.
fn with_process(path: &Path) -> PathBuf {
    let number = own!(libc::SYS_getpid).to_string();
    let mut name = Vec::new();
    let mut rest = path.as_os_str().as_bytes();
    while let Some(at) = names_process(rest) {
        name.extend_from_slice(&rest[..at]);
        name.extend_from_slice(number.as_bytes());
        rest = &rest[at + PROCESS.len()..];
    }
    name.extend_from_slice(rest);
    PathBuf::from(OsString::from_vec(name))
}

/// Asks for the program's name ahead: a report may be made in a signal handler.
pub(crate) fn know_program() {
    let _asked_once = PROGRAM.get_or_init(program);
}

/// The file of the program that runs, as a string of JSON.
fn program() -> String {
    let path = fs::read_link("/proc/self/exe").unwrap_or_default();
    let mut text = String::from("\"");
    for letter in path.to_string_lossy().chars() {
        let _written = match letter {
            '"' | '\\' => write!(text, "\\{letter}"),
            '\0'..='\x1f' => write!(text, "\\u{:04x}", u32::from(letter)),
            _ => write!(text, "{letter}"),
        };
    }
    text.push('"');
    text
}

pub(crate) fn is_reporter(settings: &Settings) -> bool {
    own!(libc::SYS_getpid) == settings.reporter as isize
}

/// Copies standard error to a high number, closed in programs started.
fn keep_stderr() {
    for (place, word) in FILE.iter().zip(file_of(2).unwrap_or_default()) {
        place.store(word, Ordering::Relaxed);
    }
    let copy = move_up(2);
    if copy >= 0 {
        STDERR.store(copy, Ordering::Relaxed);
    }
}

/// The kernel's count of the most memory the process had resident.
fn peak_rss_bytes() -> Option<u64> {
    if doorway::is_confined() {
        // No file can be opened any more. The same figure, in KiB.
        // SAFETY: all zero is a valid structure of numbers.
        let mut usage: libc::rusage = unsafe { core::mem::zeroed() };
        let asked = own!(libc::SYS_getrusage, libc::RUSAGE_SELF, &raw mut usage);
        return (!failed(asked)).then_some(usage.ru_maxrss as u64 * 1024);
    }
    Reports::of_this_machine().status_bytes("VmHWM")
}

/// User time of the process, all threads together.
fn user_seconds() -> f64 {
    // SAFETY: all zero is a valid structure of numbers.
    let mut usage: libc::rusage = unsafe { core::mem::zeroed() };
    let asked = own!(libc::SYS_getrusage, libc::RUSAGE_SELF, &raw mut usage);
    let time = usage.ru_utime;
    if failed(asked) {
        return 0.0;
    }
    time.tv_sec as f64 + time.tv_usec as f64 / 1e6
}

struct Figures {
    peak_rss: u64,
    peak_allocated: usize,
    /// User time of the process.
    user_seconds: f64,
    backend: String,
    stats: Stats,
}

impl Figures {
    /// Uncompressed bytes in the store for each compressed one.
    fn ratio(&self) -> f64 {
        let stored = self.stats.stored_pages as f64 * 4096.0;
        stored / (self.stats.store_data_bytes.max(1) as f64)
    }

    /// Time spent in faults, as each was timed.
    fn fault_seconds(&self) -> f64 {
        self.stats.fault_ns as f64 / 1e9
    }

    /// That as a part of it and of the program's own time.
    fn fault_share(&self) -> f64 {
        let faults = self.fault_seconds();
        faults / (faults + self.user_seconds).max(1e-9)
    }

    fn table(&self) -> String {
        let stats = &self.stats;
        let mut table = String::from("ghostmem: what the program used\n");
        let mut row = |name: &str, value: String| {
            // Writing to a string does not fail.
            let _written = writeln!(table, "  {name:<34} {value}");
        };
        row("peak resident memory (kernel)", mib(self.peak_rss));
        row(
            "resident limit of ghost memory",
            mib(stats.resident_limit_bytes as u64),
        );
        if stats.process_bound_bytes > 0 {
            row(
                "bound on the process, most it took",
                format!(
                    "{}, {}",
                    mib(stats.process_bound_bytes as u64),
                    mib(stats.process_peak_bytes as u64)
                ),
            );
            for (name, bytes) in [
                ("  of which uncompressed pages", stats.peak_resident_bytes),
                ("  compressed pages", stats.peak_stored_bytes),
                ("  copies of uncompressed pages", stats.peak_copies_bytes),
                ("  tables", stats.peak_tables_bytes),
                ("  ordinary memory", stats.peak_ordinary_bytes),
            ] {
                row(name, mib(bytes as u64));
            }
            row(
                "it would have taken, about",
                mib(stats.plain_peak_bytes as u64),
            );
        }
        row(
            "most ghost memory allocated",
            mib(self.peak_allocated.max(stats.allocated_bytes) as u64),
        );
        row(
            "ghost memory resident at the end",
            mib(stats.resident_bytes as u64),
        );
        row(
            "pages in the store at the end",
            format!("{} ({:.2} to 1)", stats.stored_pages, self.ratio()),
        );
        row("store and metadata", {
            mib((stats.store_held_bytes + stats.metadata_bytes) as u64)
        });
        if stats.pages_spilled > 0 || stats.spill_write_errors > 0 {
            row(
                "pages moved to the file, read back",
                format!("{}, {}", stats.pages_spilled, stats.spilled_reads),
            );
            row("file at the end", mib(stats.file_bytes));
        }
        if stats.spill_write_errors > 0 {
            row(
                "writes the file refused",
                stats.spill_write_errors.to_string(),
            );
        }
        row(
            "faults, of those on evicted pages",
            format!("{}, {}", stats.faults, stats.refaults),
        );
        row(
            "first writes to clean pages",
            stats.write_faults.to_string(),
        );
        row("time in faults", {
            let (faults, user) = (self.fault_seconds(), self.user_seconds);
            let percent = self.fault_share() * 100.0;
            format!("{faults:.3} s, {percent:.1} % of that and {user:.3} s of user time")
        });
        if stats.slowdown_asked_ppm > 0 {
            row("slowdown asked for, reached", {
                let [asked, reached] =
                    [stats.slowdown_asked_ppm, stats.slowdown_reached_ppm].map(percent);
                format!("{asked}, {reached}")
            });
        }
        row(
            "pages evicted, compressed / clean",
            format!("{} / {}", stats.evictions_dirty, stats.evictions_clean),
        );
        row(
            "evictions that a touch cancelled",
            stats.evictions_cancelled.to_string(),
        );
        row(
            "copies kept at the end, given up",
            format!("{}, {}", stats.kept_copies, stats.copies_shed),
        );
        for figure in stats.figures() {
            if figure.in_table && figure.value > 0 {
                row(&figure.name.replace('_', " "), figure.value.to_string());
            }
        }
        let (mappings, bytes) = mappings::left_ordinary();
        if mappings > 0 {
            row(
                "mappings left ordinary",
                format!("{mappings} ({})", mib(bytes as u64)),
            );
        }
        row("backend", self.backend.clone());
        table.push_str("  of this process; --stats-json FILE-%p writes a report of each one\n");
        table
    }

    fn json(&self) -> String {
        let stats = &self.stats;
        let mut json = format!("{{\"program\":{},", PROGRAM.get_or_init(program));
        let mut field = |name: &str, value: u64| {
            let _written = write!(json, "\"{name}\":{value},");
        };
        field("process_id", own!(libc::SYS_getpid) as u64);
        field("peak_rss_bytes", self.peak_rss);
        field("peak_allocated_bytes", self.peak_allocated as u64);
        let (mappings, bytes) = mappings::left_ordinary();
        field("ordinary_mappings", mappings as u64);
        field("ordinary_mapped_bytes", bytes as u64);
        for figure in stats.figures() {
            field(figure.name, figure.value);
        }
        let _written = writeln!(
            json,
            "\"compression_ratio\":{:.3},\"fault_seconds\":{:.6},\"user_seconds\":{:.6},\
             \"fault_share\":{:.6},\"backend\":\"{}\"}}",
            self.ratio(),
            self.fault_seconds(),
            self.user_seconds,
            self.fault_share(),
            self.backend
        );
        json
    }
}

/// Millionths, as people read them.
fn percent(ppm: u64) -> String {
    format!("{:.2} %", ppm as f64 / 1e4)
}

fn mib(bytes: u64) -> String {
    format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20))
}
