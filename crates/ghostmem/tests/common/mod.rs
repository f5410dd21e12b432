//! What the integration tests share: data that can be checked anywhere,
//! watchdogs, and processes of their own.
#![allow(clippy::unwrap_used, clippy::multiple_unsafe_ops_per_block)] // a test ends at the first failure
#![allow(dead_code, reason = "each test file uses its own part")]

use std::io::Write as _;
#[cfg(unix)]
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use ghostmem::{Backend, Heap, Stats};

pub(crate) use ghostmem_os::PAGE_SIZE;

/// Every backend there is on Windows.
#[cfg(windows)]
pub(crate) const BACKENDS: [Backend; 1] = [Backend::Veh];
/// Every backend there is on Linux.
#[cfg(not(windows))]
pub(crate) const BACKENDS: [Backend; 4] = [
    Backend::Inline,
    Backend::Monitor,
    Backend::Guard,
    Backend::GuardMprotect,
];

/// A heap on `backend` with `pages` resident at most.
pub(crate) fn heap(backend: Backend, pages: usize) -> Heap {
    Heap::builder()
        .resident_limit(pages * PAGE_SIZE)
        .backend(backend)
        .build()
        .unwrap()
}

/// How many steps of a long test to take: a fault under Wine takes a hundred
/// times what it takes elsewhere.
pub(crate) fn steps(most: usize) -> usize {
    if cfg!(windows) { most / 8 } else { most }
}

/// The heap's figures once it holds no page, or as they are when it holds some
/// for good: a monitor may be at the end of a fault still, with frames taken
/// that it gives back.
pub(crate) fn stats_at_rest(heap: &Heap) -> Stats {
    let end = Instant::now() + Duration::from_secs(10);
    loop {
        let stats = heap.stats();
        let held = stats.resident_bytes + stats.stored_pages;
        if held == 0 || Instant::now() > end {
            return stats;
        }
        thread::yield_now();
    }
}

/// A word that depends on its place and its round, compressible on half of
/// the pages only.
pub(crate) fn word(index: usize, round: u64) -> u64 {
    let mixed = (index as u64 ^ (round << 40)).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    if index & 512 == 0 {
        mixed
    } else {
        mixed >> (index % 61)
    }
}

/// A word that tells its round: `round` in the upper half, a mix of the place
/// and the round in the lower.
pub(crate) fn stamped(index: usize, round: u64) -> u64 {
    let mixed = (index as u64 + 1)
        .wrapping_mul(0x9E37_79B9_7F4A_7C15)
        .rotate_left(round as u32);
    (round << 32) | (mixed >> 32)
}

/// xorshift64*: the same numbers from the same seed.
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    pub(crate) fn below(&mut self, end: usize) -> usize {
        (self.next() >> 16) as usize % end
    }
}

/// How many times longer than elsewhere a hang has to last to be one: under Wine a
/// fault takes a hundred times as long.
const PATIENCE: u64 = if cfg!(windows) { 10 } else { 1 };

/// Ends the process loudly when it is not dropped in time: a hang becomes a
/// failure. Seconds in which nothing runs, because the machine sleeps or the
/// process is stopped, do not count. See [`PATIENCE`].
pub(crate) struct Watchdog {
    _alive: mpsc::Sender<()>,
}

impl Watchdog {
    pub(crate) fn new(what: &'static str, seconds: u64) -> Self {
        let seconds = seconds * PATIENCE;
        let (alive, gone) = mpsc::channel::<()>();
        thread::spawn(move || {
            for _ in 0..seconds {
                if gone.recv_timeout(Duration::from_secs(1)) != Err(mpsc::RecvTimeoutError::Timeout)
                {
                    return;
                }
            }
            // Not by `eprintln`, whose text the test harness keeps to itself.
            let message = format!("watchdog: {what} did not end within {seconds} s\n");
            let _closed = std::io::stderr().write_all(message.as_bytes());
            std::process::abort();
        });
        Self { _alive: alive }
    }
}

const ROLE: &str = "GHOSTMEM_TEST_ROLE";

/// What this process was started for by [`run_alone`], if it was.
pub(crate) fn role() -> Option<String> {
    std::env::var(ROLE).ok()
}

/// Runs the test `name` of this binary again in a process of its own, with
/// `role` to tell it so; how it ended. Killed after 60 s, see [`PATIENCE`].
pub(crate) fn run_alone(name: &str, role: &str, envs: &[(&str, &str)]) -> ExitStatus {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", name, "--nocapture", "--test-threads=1"])
        .env(ROLE, role)
        .envs(envs.iter().copied())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    // Waits, and not seconds, as in `Watchdog`.
    for _ in 0..60 * 500 * PATIENCE {
        if let Some(status) = child.try_wait().unwrap() {
            return status;
        }
        thread::sleep(Duration::from_millis(2));
    }
    child.kill().unwrap();
    let status = child.wait().unwrap();
    panic!("{name} as {role} did not end in time: {status}");
}

/// Runs `body` in a process of its own: the test `name` (this one) is started
/// again with nothing beside it.
pub(crate) fn alone(name: &str, body: impl FnOnce()) {
    alone_with(name, &[], body);
}

/// As [`alone`], with additions to the environment.
pub(crate) fn alone_with(name: &str, envs: &[(&str, &str)], body: impl FnOnce()) {
    if role().is_some() {
        body();
    } else {
        let status = run_alone(name, "alone", envs);
        assert!(status.success(), "{name} in its own process: {status}");
    }
}

/// As [`alone`], in one process for each backend.
pub(crate) fn alone_on_each(name: &str, body: impl FnOnce(Backend)) {
    if let Some(role) = role() {
        body(*BACKENDS.iter().find(|b| b.to_string() == role).unwrap());
    } else {
        for backend in BACKENDS {
            let status = run_alone(name, &backend.to_string(), &[]);
            assert!(status.success(), "{name} on {backend}: {status}");
        }
    }
}

/// Waits for a forked child, killing it after 30 s.
#[cfg(unix)]
pub(crate) fn wait_for(pid: libc::pid_t) -> ExitStatus {
    let end = Instant::now() + Duration::from_secs(30);
    let mut status = 0;
    loop {
        // SAFETY: a valid place for the status.
        let rc = unsafe { libc::waitpid(pid, &raw mut status, libc::WNOHANG) };
        if rc == pid {
            return ExitStatus::from_raw(status);
        }
        assert!(
            rc == 0 || std::io::Error::last_os_error().kind() == std::io::ErrorKind::Interrupted,
            "waitpid: {}",
            std::io::Error::last_os_error()
        );
        if Instant::now() > end {
            // SAFETY: our own child, not waited for yet.
            unsafe { libc::kill(pid, libc::SIGKILL) };
            panic!("the forked child {pid} did not end within 30 s");
        }
        thread::sleep(Duration::from_millis(1));
    }
}

/// Forks; the child runs `body` and ends, with status 0 unless it panics.
#[cfg(unix)]
pub(crate) fn fork(body: impl FnOnce()) -> libc::pid_t {
    // SAFETY: the child runs `body` on its only thread and ends by _exit.
    let pid = unsafe { libc::fork() };
    assert!(pid >= 0, "fork: {}", std::io::Error::last_os_error());
    if pid == 0 {
        // One that hangs must not outlive the test.
        // SAFETY: no preconditions.
        unsafe { libc::alarm(60) };
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(body));
        // SAFETY: no destructor of the parent's may run here.
        unsafe { libc::_exit(if result.is_ok() { 0 } else { 101 }) };
    }
    pid
}
