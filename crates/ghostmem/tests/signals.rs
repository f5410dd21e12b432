//! Signals: handlers that touch ghost memory at any moment, the program's own
//! handlers for SIGSEGV and SIGBUS, and faults that are nobody's. Each case in
//! a process of its own.
#![cfg(target_os = "linux")] // signals
#![allow(clippy::unwrap_used, clippy::multiple_unsafe_ops_per_block)] // a test ends at the first failure

use std::mem::{MaybeUninit, zeroed};
use std::os::unix::process::ExitStatusExt;
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU64, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use common::{BACKENDS, PAGE_SIZE, Random, Watchdog, alone, alone_on_each, fork, heap};
use common::{wait_for, word};
use ghostmem::{Backend, Heap};

mod common;

/// Ghost words the storm's handler counts in, one page apart.
static STORM: AtomicPtr<AtomicU64> = AtomicPtr::new(ptr::null_mut());
const STORM_PAGES: usize = 64;
static SIGNALS: AtomicU64 = AtomicU64::new(0);

extern "C" fn count_in_ghost_memory(_signal: i32) {
    let words = STORM.load(Ordering::Relaxed);
    let number = SIGNALS.fetch_add(1, Ordering::Relaxed) as usize;
    for step in [0, 31] {
        let page = (number + step) % STORM_PAGES;
        // SAFETY: the block has that many pages and outlives the storm.
        let count = unsafe { &*words.add(page * PAGE_SIZE / 8) };
        // A load, then a store.
        std::hint::black_box(count.load(Ordering::Relaxed));
        count.fetch_add(1, Ordering::Relaxed);
    }
}

fn install(signal: i32, handler: usize, flags: i32, blocked: &[i32]) {
    // SAFETY: all zeros is a valid sigaction.
    let mut action: libc::sigaction = unsafe { zeroed() };
    action.sa_sigaction = handler;
    action.sa_flags = flags;
    for &other in blocked {
        // SAFETY: a valid set and number.
        unsafe { libc::sigaddset(&raw mut action.sa_mask, other) };
    }
    // SAFETY: fully initialised; the callers' handlers fit their flags.
    let rc = unsafe { libc::sigaction(signal, &raw const action, ptr::null_mut()) };
    assert_eq!(rc, 0);
}

/// A timer that sends SIGALRM to this thread every millisecond.
struct ThreadTimer(libc::timer_t);

impl ThreadTimer {
    fn start() -> Self {
        // SAFETY: all zeros is a valid sigevent.
        let mut event: libc::sigevent = unsafe { zeroed() };
        event.sigev_notify = libc::SIGEV_THREAD_ID;
        event.sigev_signo = libc::SIGALRM;
        // SAFETY: no preconditions.
        event.sigev_notify_thread_id = unsafe { libc::gettid() };
        let mut timer = MaybeUninit::uninit();
        // SAFETY: valid places.
        let rc = unsafe {
            libc::timer_create(libc::CLOCK_MONOTONIC, &raw mut event, timer.as_mut_ptr())
        };
        assert_eq!(rc, 0);
        // SAFETY: filled by the successful call.
        let timer = unsafe { timer.assume_init() };
        let every = libc::timespec {
            tv_sec: 0,
            tv_nsec: 1_000_000,
        };
        let spec = libc::itimerspec {
            it_interval: every,
            it_value: every,
        };
        // SAFETY: a live timer and a valid setting.
        let rc = unsafe { libc::timer_settime(timer, 0, &raw const spec, ptr::null_mut()) };
        assert_eq!(rc, 0);
        Self(timer)
    }
}

impl Drop for ThreadTimer {
    fn drop(&mut self) {
        // SAFETY: created by `start`, deleted once.
        unsafe { libc::timer_delete(self.0) };
    }
}

fn process_timer(microseconds: i64) {
    let every = libc::timeval {
        tv_sec: 0,
        tv_usec: microseconds,
    };
    let timer = libc::itimerval {
        it_interval: every,
        it_value: every,
    };
    // SAFETY: a valid setting.
    let rc = unsafe { libc::setitimer(libc::ITIMER_PROF, &raw const timer, ptr::null_mut()) };
    assert_eq!(rc, 0);
}

#[test]
fn storms_of_signals_touch_ghost_memory_while_everything_goes_on() {
    let name = "storms_of_signals_touch_ghost_memory_while_everything_goes_on";
    alone_on_each(name, |backend| {
        let _watchdog = Watchdog::new("signal storm", 50);
        let heap = heap(backend, 48);
        let counts = heap
            .slice_from_fn(STORM_PAGES * PAGE_SIZE / 8, |_| AtomicU64::new(0))
            .unwrap();
        STORM.store(counts.as_ptr().cast_mut(), Ordering::Relaxed);
        for signal in [libc::SIGALRM, libc::SIGPROF] {
            let handler = count_in_ghost_memory as *const () as usize;
            install(signal, handler, libc::SA_RESTART, &[]);
        }
        process_timer(1000);
        let stormy = || SIGNALS.load(Ordering::Relaxed) < 1000;
        thread::scope(|scope| {
            for me in 0..4_u64 {
                let heap = &heap;
                scope.spawn(move || {
                    let _timer = ThreadTimer::start();
                    let mut random = Random::new(me);
                    while stormy() {
                        // Allocates (small and large), faults, evicts, frees.
                        let small = allocator_api2::boxed::Box::new_in([me; 8], heap);
                        let len = 600 + random.below(40 * 512);
                        let data = heap.slice_from_fn(len, |i| word(i, me)).unwrap();
                        heap.evict(&raw const data[..len / 2]).unwrap();
                        heap.prefetch(&raw const data[..len / 4]).unwrap();
                        assert!(
                            data.iter().enumerate().all(|(i, &w)| w == word(i, me)),
                            "{backend}"
                        );
                        assert_eq!(*small, [me; 8], "{backend}");
                    }
                });
            }
            while stormy() {
                heap.evict(&raw const *counts).unwrap();
                thread::sleep(Duration::from_micros(300));
            }
        });
        process_timer(0);
        // The last signals may still be on their way to any thread, one that is
        // ending included; a lost store would be missing for good.
        let end = Instant::now() + Duration::from_secs(10);
        loop {
            let counted: u64 = counts.iter().map(|c| c.load(Ordering::Relaxed)).sum();
            let signals = SIGNALS.load(Ordering::Relaxed);
            if counted == 2 * signals {
                break;
            }
            assert!(
                Instant::now() < end,
                "{backend}: {signals} handlers stored {counted} times"
            );
            thread::sleep(Duration::from_millis(1));
        }
    });
}

/// Where the program's own handler is to put things right, and what it saw.
static BROKEN_PAGE: AtomicUsize = AtomicUsize::new(0);
static SEEN_SIGNAL: AtomicU64 = AtomicU64::new(0);
static SEEN_ADDRESS: AtomicUsize = AtomicUsize::new(0);
static SEEN_STACK: AtomicUsize = AtomicUsize::new(0);
static SEEN_BLOCKED: AtomicU64 = AtomicU64::new(0);
static CALLS: AtomicU64 = AtomicU64::new(0);

/// The calling thread's blocked signals, bit n - 1 for signal n.
fn blocked() -> u64 {
    // SAFETY: all zeros is a valid set.
    let mut set: libc::sigset_t = unsafe { zeroed() };
    // SAFETY: only reads the mask into `set`.
    unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, ptr::null(), &raw mut set) };
    (1..=64).fold(0, |bits, signal| {
        // SAFETY: a valid set; the C library answers -1 for its own signals.
        let is = unsafe { libc::sigismember(&raw const set, signal) } == 1;
        bits | u64::from(is) << (signal - 1)
    })
}

fn bit(signal: i32) -> u64 {
    1 << (signal - 1)
}

extern "C" fn repair(signal: i32, info: *mut libc::siginfo_t, _context: *mut libc::c_void) {
    let here = 0_u8;
    SEEN_STACK.store((&raw const here).addr(), Ordering::Relaxed);
    SEEN_BLOCKED.store(blocked(), Ordering::Relaxed);
    SEEN_SIGNAL.store(signal as u64, Ordering::Relaxed);
    // SAFETY: the kernel's own structure of a fault.
    SEEN_ADDRESS.store(unsafe { (*info).si_addr() } as usize, Ordering::Relaxed);
    repair_plain(signal);
}

extern "C" fn repair_plain(_signal: i32) {
    CALLS.fetch_add(1, Ordering::Relaxed);
    // SAFETY: replaces a page that belongs to this test.
    unsafe {
        libc::mmap(
            BROKEN_PAGE.load(Ordering::Relaxed) as *mut libc::c_void,
            PAGE_SIZE,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED,
            -1,
            0,
        )
    };
}

/// Touches a page that raises `signal` and is put right by the program's own
/// handler.
fn fault_of_the_program(signal: i32) -> usize {
    let (protection, flags, fd) = if signal == libc::SIGSEGV {
        (libc::PROT_NONE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1)
    } else {
        // SAFETY: a valid name. An empty file: SIGBUS behind its end.
        let fd = unsafe { libc::memfd_create(c"empty".as_ptr(), 0) };
        (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED, fd)
    };
    // SAFETY: a new mapping.
    let page = unsafe { libc::mmap(ptr::null_mut(), PAGE_SIZE, protection, flags, fd, 0) };
    assert_ne!(page, libc::MAP_FAILED);
    BROKEN_PAGE.store(page as usize, Ordering::Relaxed);
    // SAFETY: the handler makes the page good.
    unsafe { page.cast::<u8>().add(77).write_volatile(5) };
    page as usize + 77
}

fn ghost_memory_works(heap: &Heap) {
    let data = heap.slice_from_fn(64 * 512, |i| word(i, 6)).unwrap();
    assert!(data.iter().enumerate().all(|(i, &w)| w == word(i, 6)));
    assert!(heap.stats().refaults > 0);
}

#[test]
fn handlers_installed_before_get_what_is_not_ours_as_they_asked() {
    let name = "handlers_installed_before_get_what_is_not_ours_as_they_asked";
    alone(name, || {
        let _watchdog = Watchdog::new("handlers before", 40);
        let mut stack = vec![0_u8; 1 << 16];
        let alternate = libc::stack_t {
            ss_sp: stack.as_mut_ptr().cast(),
            ss_flags: 0,
            ss_size: stack.len(),
        };
        // SAFETY: the stack outlives its use.
        assert_eq!(
            // SAFETY: as said above.
            unsafe { libc::sigaltstack(&raw const alternate, ptr::null_mut()) },
            0
        );
        let handler = repair as *const () as usize;
        let flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
        install(libc::SIGSEGV, handler, flags, &[libc::SIGUSR1]);
        install(
            libc::SIGBUS,
            handler,
            flags | libc::SA_NODEFER,
            &[libc::SIGUSR1],
        );
        let before = blocked();
        for backend in BACKENDS {
            let heap = heap(backend, 8);
            for signal in [libc::SIGSEGV, libc::SIGBUS] {
                ghost_memory_works(&heap);
                let address = fault_of_the_program(signal);
                assert_eq!(SEEN_SIGNAL.load(Ordering::Relaxed), signal as u64);
                assert_eq!(SEEN_ADDRESS.load(Ordering::Relaxed), address);
                let at = SEEN_STACK.load(Ordering::Relaxed);
                assert!(stack.as_ptr_range().contains(&ptr::without_provenance(at)));
                let deferred = if signal == libc::SIGSEGV {
                    bit(signal)
                } else {
                    0
                };
                let asked = before | bit(libc::SIGUSR1) | deferred;
                assert_eq!(
                    SEEN_BLOCKED.load(Ordering::Relaxed),
                    asked,
                    "{backend}: the handler's mask"
                );
                assert_eq!(blocked(), before, "{backend}: the mask afterwards");
            }
        }
        assert_eq!(CALLS.load(Ordering::Relaxed), 8);
        // Back to none, before the stack goes.
        let none = libc::stack_t {
            ss_sp: ptr::null_mut(),
            ss_flags: libc::SS_DISABLE,
            ss_size: 0,
        };
        // SAFETY: disables the alternate stack.
        unsafe { libc::sigaltstack(&raw const none, ptr::null_mut()) };
    });
}

#[test]
fn handlers_installed_after_work_with_rearm() {
    alone("handlers_installed_after_work_with_rearm", || {
        let _watchdog = Watchdog::new("handlers after", 40);
        let heaps = BACKENDS.map(|backend| heap(backend, 8));
        heaps.iter().for_each(ghost_memory_works);
        for signal in [libc::SIGSEGV, libc::SIGBUS] {
            // The old kind of handler, without siginfo.
            install(signal, repair_plain as *const () as usize, 0, &[]);
        }
        Heap::rearm().unwrap();
        Heap::rearm().unwrap();
        for (calls, signal) in (1..).zip([libc::SIGSEGV, libc::SIGBUS, libc::SIGSEGV]) {
            heaps.iter().for_each(ghost_memory_works);
            fault_of_the_program(signal);
            assert_eq!(CALLS.load(Ordering::Relaxed), calls);
        }
        heaps.iter().for_each(ghost_memory_works);
    });
}

#[test]
fn a_genuine_segfault_still_kills() {
    alone("a_genuine_segfault_still_kills", || {
        let _watchdog = Watchdog::new("genuine segfault", 40);
        for backend in BACKENDS {
            let heap = heap(backend, 8);
            ghost_memory_works(&heap);
            let child = fork(|| {
                ghost_memory_works(&heap);
                let nowhere: *const u8 = ptr::without_provenance(16);
                // SAFETY: not at all: the kernel ends the process here.
                unsafe { nowhere.read_volatile() };
            });
            let status = wait_for(child);
            assert_eq!(status.signal(), Some(libc::SIGSEGV), "{backend}: {status}");
        }
    });
}

#[test]
fn a_touch_of_freed_memory_kills_rather_than_reads_zeros() {
    alone(
        "a_touch_of_freed_memory_kills_rather_than_reads_zeros",
        || {
            let _watchdog = Watchdog::new("use after free", 40);
            for backend in BACKENDS {
                if backend == Backend::Monitor {
                    // Its engine thread stops the process, with a line of text.
                    continue;
                }
                let heap = heap(backend, 8);
                let data = heap.slice_from_fn(64 * 512, |i| word(i, 6)).unwrap();
                let dangling = data.as_ptr();
                drop(data);
                let child = fork(|| {
                    // SAFETY: not at all: that is what is tested.
                    unsafe { dangling.read_volatile() };
                });
                let status = wait_for(child);
                assert!(
                    matches!(status.signal(), Some(libc::SIGSEGV | libc::SIGBUS)),
                    "{backend}: {status}"
                );
            }
        },
    );
}

#[test]
fn a_signal_sent_by_somebody_reaches_the_handler_that_was_there() {
    static SENT: AtomicBool = AtomicBool::new(false);
    extern "C" fn note(_signal: i32) {
        SENT.store(true, Ordering::Relaxed);
    }
    let name = "a_signal_sent_by_somebody_reaches_the_handler_that_was_there";
    alone(name, || {
        install(libc::SIGBUS, note as *const () as usize, 0, &[]);
        let heap = heap(Backend::Auto, 8);
        ghost_memory_works(&heap);
        // SAFETY: there is a handler.
        unsafe { libc::raise(libc::SIGBUS) };
        assert!(SENT.load(Ordering::Relaxed));
        ghost_memory_works(&heap);
    });
}

/// What [`pass_back`] found, and how often it was called.
static FOUND: AtomicUsize = AtomicUsize::new(0);
static PASSED_BACK: AtomicUsize = AtomicUsize::new(0);

/// Wants nothing and calls the handler that it found.
extern "C" fn pass_back(signal: i32, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    type WithInfo = extern "C" fn(i32, *mut libc::siginfo_t, *mut libc::c_void);
    if PASSED_BACK.fetch_add(1, Ordering::Relaxed) > 9 {
        // SAFETY: ends the process.
        unsafe { libc::_exit(9) };
    }
    // SAFETY: the handler found when this one was installed has this type.
    let found = unsafe { std::mem::transmute::<usize, WithInfo>(FOUND.load(Ordering::Relaxed)) };
    found(signal, info, context);
}

extern "C" fn leave_with_five(_signal: i32) {
    // SAFETY: ends the process.
    unsafe { libc::_exit(5) };
}

#[test]
fn a_handler_that_passes_faults_back_to_ours_ends_at_the_one_before() {
    let name = "a_handler_that_passes_faults_back_to_ours_ends_at_the_one_before";
    alone_on_each(name, |backend| {
        let _watchdog = Watchdog::new("handlers in a circle", 30);
        for before in [libc::SIG_DFL, leave_with_five as *const () as usize] {
            let status = wait_for(fork(|| {
                install(libc::SIGSEGV, before, 0, &[]);
                let data = heap(backend, 16).slice_from_fn(100_000, |i| word(i, 1));
                let data = data.unwrap();
                // SAFETY: all zeros is a valid sigaction.
                let mut found: libc::sigaction = unsafe { zeroed() };
                // SAFETY: only reads the current action.
                unsafe { libc::sigaction(libc::SIGSEGV, ptr::null(), &raw mut found) };
                FOUND.store(found.sa_sigaction, Ordering::Relaxed);
                let handler = pass_back as *const () as usize;
                install(libc::SIGSEGV, handler, libc::SA_SIGINFO, &[]);
                Heap::rearm().unwrap();
                assert!(data.iter().enumerate().all(|(i, &w)| w == word(i, 1)));
                assert_eq!(PASSED_BACK.load(Ordering::Relaxed), 0);
                // SAFETY: nothing is there; the signal ends the process.
                unsafe { ptr::without_provenance::<u8>(64).read_volatile() };
            }));
            if before == libc::SIG_DFL {
                assert_eq!(status.signal(), Some(libc::SIGSEGV), "{backend}: {status}");
            } else {
                assert_eq!(status.code(), Some(5), "{backend}: {status}");
            }
        }
    });
}
