//! A thread of high real-time priority that waits lets the one it waits for run,
//! whose priority is lower, on the only processor that both may use.
#![cfg(target_os = "linux")] // SCHED_FIFO
#![allow(clippy::unwrap_used, clippy::multiple_unsafe_ops_per_block)] // a test ends at the first failure

use std::fs;
use std::io::Write as _;
use std::mem::zeroed;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use ghostmem_fault::TransitionGate;
use ghostmem_os::lock::Lock;
use ghostmem_os::scratch::ScratchPool;

/// Puts the calling thread on processor 0, at a priority of `SCHED_FIFO`;
/// `false` when it may not.
fn take_priority(priority: i32) -> bool {
    // SAFETY: all zeros is an empty set.
    let mut processors: libc::cpu_set_t = unsafe { zeroed() };
    // SAFETY: a number in range.
    unsafe { libc::CPU_SET(0, &mut processors) };
    let size = size_of::<libc::cpu_set_t>();
    let parameters = libc::sched_param {
        sched_priority: priority,
    };
    // SAFETY: whole structures of the calling thread.
    unsafe {
        libc::sched_setaffinity(0, size, &raw const processors) == 0
            && libc::sched_setscheduler(0, libc::SCHED_FIFO, &raw const parameters) == 0
    }
}

/// Ends the process loudly when two threads have got stuck: it has the highest
/// priority of all.
fn watch(what: &'static str) {
    thread::spawn(move || {
        take_priority(9);
        thread::sleep(Duration::from_secs(30));
        let message = format!("watchdog: {what} did not end\n");
        let _closed = std::io::stderr().write_all(message.as_bytes());
        std::process::abort();
    });
}

/// `hold` is called at low priority, and what it returns kept until a thread of
/// high priority is about to `wait`.
fn high_waits_for_low<T>(what: &'static str, hold: impl Fn() -> T + Sync, wait: impl Fn() + Sync) {
    let (held, waiting, refused) = (
        AtomicBool::new(false),
        AtomicBool::new(false),
        AtomicBool::new(false),
    );
    thread::scope(|scope| {
        scope.spawn(|| {
            let holding = hold();
            refused.store(!take_priority(1), Ordering::SeqCst);
            held.store(true, Ordering::SeqCst);
            while !waiting.load(Ordering::SeqCst) {
                thread::sleep(Duration::from_millis(1));
            }
            // For the other one to have begun.
            thread::sleep(Duration::from_millis(20));
            drop(holding);
        });
        scope.spawn(|| {
            while !held.load(Ordering::SeqCst) {
                thread::sleep(Duration::from_millis(1));
            }
            if refused.load(Ordering::SeqCst) || !take_priority(2) {
                eprintln!("SKIPPED, {what}: this machine gives no real-time priority");
                waiting.store(true, Ordering::SeqCst);
                return;
            }
            waiting.store(true, Ordering::SeqCst);
            wait();
        });
    });
}

struct Thaw<'a>(&'a TransitionGate);

impl Drop for Thaw<'_> {
    fn drop(&mut self) {
        self.0.thaw();
    }
}

#[test]
fn waiting_lets_threads_of_lower_priority_run() {
    watch("a thread that waits");
    let gate = TransitionGate::new();
    high_waits_for_low("leaving the gate", || gate.enter(), || gate.synchronize());
    let freeze = || {
        gate.freeze();
        Thaw(&gate)
    };
    high_waits_for_low("a frozen gate", freeze, || drop(freeze()));
    high_waits_for_low("going inside", freeze, || drop(gate.enter()));
    let lock = Lock::new(());
    high_waits_for_low("a lock", || lock.lock(), || drop(lock.lock()));
    let pool = ScratchPool::new(0).unwrap();
    let all = || (0..pool.sets()).map(|_| pool.lease()).collect::<Vec<_>>();
    high_waits_for_low("buffers", all, || drop(pool.lease()));
}

/// Giving up the processor lets nobody of lower priority run, ever: the engine waits
/// by `futex::pause`, which sleeps after a while.
#[test]
fn nobody_in_the_engine_waits_by_giving_up_the_processor_alone() {
    fn look(folder: &Path, seen: &mut usize) {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                // Windows lets a starved thread run now and then; what tests a tier ships
                // with nobody.
                if !path.ends_with("windows") && !path.ends_with("conformance") {
                    look(&path, seen);
                }
                continue;
            }
            let source = fs::read_to_string(&path).unwrap();
            let code = source.split("\nmod tests {").next().unwrap();
            // Where it is, and who sleeps afterwards.
            let may = path.ends_with("thread.rs") || path.ends_with("futex.rs");
            let comment = |line: &&str| line.trim_start().starts_with("//");
            let mut lines = code.lines().filter(|line| !comment(line));
            assert!(
                may || !lines.any(|line| line.contains("yield_now(")),
                "{} waits by yielding",
                path.display()
            );
            *seen += 1;
        }
    }
    let crates = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let mut seen = 0;
    for room in ["-os", "-fault", "-file", "-store", "-pager", "-small", ""] {
        look(&crates.join(format!("ghostmem{room}/src")), &mut seen);
    }
    assert!(seen > 100, "only {seen} sources");
}
