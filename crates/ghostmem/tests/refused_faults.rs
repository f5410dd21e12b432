//! Signals at addresses of ghost memory that no page put in place could answer:
//! a jump into data, memory the hardware or a protection key refuses, signals
//! that somebody sent. The program's own handler gets each of them at once, or
//! the default action follows. Each case in a process of its own.
#![cfg(target_os = "linux")] // signals
#![allow(clippy::unwrap_used, clippy::multiple_unsafe_ops_per_block)] // a test ends at the first failure

use std::mem::zeroed;
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::ptr;
use std::sync::atomic::{AtomicUsize, Ordering};

use common::{PAGE_SIZE, Watchdog, alone_on_each, fork, heap, wait_for, word};
use ghostmem::{Backend, GhostSlice};

mod common;

const PAGES: usize = 64;

/// `si_code`, siginfo.h.
const SEGV_ACCERR: i32 = 2;
const SEGV_PKUERR: i32 = 4;
const BUS_ADRALN: i32 = 1;

/// What the handler must see, and how the child says that it did.
static WANT_ADDRESS: AtomicUsize = AtomicUsize::new(0);
static WANT_CODE: AtomicUsize = AtomicUsize::new(0);
const SEEN: i32 = 41;
const WRONG: i32 = 42;
const SKIPPED: i32 = 43;

extern "C" fn leave(_signal: i32, info: *mut libc::siginfo_t, _context: *mut libc::c_void) {
    // SAFETY: the kernel's own structure of a fault.
    let (address, code) = unsafe { ((*info).si_addr() as usize, (*info).si_code) };
    let right = address == WANT_ADDRESS.load(Ordering::Relaxed)
        && code as usize == WANT_CODE.load(Ordering::Relaxed);
    // SAFETY: ends the process.
    unsafe { libc::_exit(if right { SEEN } else { WRONG }) };
}

fn install(signal: i32, handler: usize) {
    // SAFETY: all zeros is a valid sigaction.
    let mut action: libc::sigaction = unsafe { zeroed() };
    action.sa_sigaction = handler;
    action.sa_flags = libc::SA_SIGINFO;
    // SAFETY: fully initialised; the handlers have three arguments or are none.
    let rc = unsafe { libc::sigaction(signal, &raw const action, ptr::null_mut()) };
    assert_eq!(rc, 0);
}

/// How a child ends that does `body` with a heap of its own on `backend`, over
/// handlers for SIGSEGV and SIGBUS that want `code`; one that spins is ended by
/// SIGALRM.
fn child(
    backend: Backend,
    handled: bool,
    code: i32,
    body: impl FnOnce(&GhostSlice<u64>),
) -> ExitStatus {
    wait_for(fork(|| {
        // SAFETY: ends a child that spins.
        unsafe { libc::alarm(10) };
        for signal in [libc::SIGSEGV, libc::SIGBUS] {
            let handler = leave as *const () as usize;
            install(signal, if handled { handler } else { libc::SIG_DFL });
        }
        WANT_CODE.store(code as usize, Ordering::Relaxed);
        let data = heap(backend, PAGES / 4).slice_from_fn(PAGES * 512, |i| word(i, 8));
        let data = data.unwrap();
        body(&data);
    }))
}

/// The address of a page's 64th word; it is resident when this returns, unless
/// it is to be absent.
fn place(data: &GhostSlice<u64>, page: usize, absent: bool) -> *const u64 {
    let words = &data[page * 512..][..512];
    assert_eq!(words[64], word(page * 512 + 64, 8));
    if absent {
        data.heap().evict(words).unwrap();
    }
    let place = &raw const words[64];
    // A monitor may be at the end of its work still.
    while data.heap().is_resident(place) == Some(absent) {
        std::thread::yield_now();
    }
    assert_eq!(data.heap().is_resident(place), Some(!absent));
    WANT_ADDRESS.store(place.addr(), Ordering::Relaxed);
    place
}

fn call(place: *const u64) {
    // SAFETY: not at all: data is no code. It is what is tested.
    let code = unsafe { std::mem::transmute::<*const u64, extern "C" fn()>(place) };
    code();
}

#[test]
fn a_jump_into_data_reaches_the_program() {
    alone_on_each("a_jump_into_data_reaches_the_program", |backend| {
        let _watchdog = Watchdog::new("jump into data", 60);
        for absent in [false, true] {
            for handled in [false, true] {
                let status = child(backend, handled, SEGV_ACCERR, |data| {
                    call(place(data, 7, absent));
                });
                let right = if handled {
                    status.code() == Some(SEEN)
                } else {
                    status.signal() == Some(libc::SIGSEGV)
                };
                assert!(right, "{backend}, absent {absent}, {handled}: {status}");
            }
        }
    });
}

#[test]
fn code_in_memory_made_executable_runs_from_a_page_that_was_absent() {
    let name = "code_in_memory_made_executable_runs_from_a_page_that_was_absent";
    alone_on_each(name, |backend| {
        let _watchdog = Watchdog::new("code on the heap", 60);
        let status = wait_for(fork(|| {
            // SAFETY: ends a child that spins.
            unsafe { libc::alarm(10) };
            let mut data = heap(backend, PAGES / 4)
                .slice_from_fn(PAGES * 512, |i| word(i, 8))
                .unwrap();
            // `ret`.
            data[7 * 512] = 0xC3;
            let page = (&raw const data[7 * 512]).cast_mut();
            let access = libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC;
            // SAFETY: a whole page of our own.
            assert_eq!(unsafe { libc::mprotect(page.cast(), PAGE_SIZE, access) }, 0);
            if backend != Backend::GuardMprotect {
                data.heap().evict(&data[7 * 512..][..512]).unwrap();
                assert_eq!(data.heap().is_resident(page), Some(false));
            }
            call(page);
            assert_eq!(data[7 * 512], 0xC3);
            if backend == Backend::GuardMprotect {
                // The page's rights are this backend's own: they are not kept
                // over an eviction, and the jump is refused.
                data.heap().evict(&data[7 * 512..][..512]).unwrap();
                call(page);
            }
        }));
        let right = match backend {
            Backend::GuardMprotect => status.signal() == Some(libc::SIGSEGV),
            _ => status.success(),
        };
        assert!(right, "{backend}: {status}");
    });
}

#[test]
fn a_store_that_the_program_itself_forbade_reaches_it() {
    let name = "a_store_that_the_program_itself_forbade_reaches_it";
    alone_on_each(name, |backend| {
        if matches!(backend, Backend::Guard | Backend::GuardMprotect) {
            // The rights of mappings are their own means.
            return;
        }
        let _watchdog = Watchdog::new("store to read-only memory", 60);
        let status = child(backend, true, SEGV_ACCERR, |data| {
            let word = place(data, 7, false).cast_mut();
            let page = word.map_addr(|address| address & !(PAGE_SIZE - 1));
            // SAFETY: a whole page of our own.
            let rc = unsafe { libc::mprotect(page.cast(), PAGE_SIZE, libc::PROT_READ) };
            assert_eq!(rc, 0);
            // SAFETY: the handler ends the process.
            unsafe { word.write_volatile(1) };
        });
        assert_eq!(status.code(), Some(SEEN), "{backend}: {status}");
    });
}

/// `struct uffdio_poison`, and its request number (userfaultfd.h, Linux 6.6).
#[repr(C)]
struct Poison {
    start: u64,
    len: u64,
    mode: u64,
    updated: i64,
}
const UFFDIO_POISON: libc::c_ulong = 0xC020_AA08;

/// Makes the kernel take an absent page for broken memory, through whichever of
/// the engine's descriptors will do it; `false` when none does.
fn poison(page: usize) -> bool {
    let is_uffd = |fd: &i32| {
        let target = std::fs::read_link(format!("/proc/self/fd/{fd}"));
        target.is_ok_and(|target| target.as_os_str() == "anon_inode:[userfaultfd]")
    };
    (0..1024).rev().filter(is_uffd).any(|fd| {
        let mut arg = Poison {
            start: page as u64,
            len: PAGE_SIZE as u64,
            mode: 0,
            updated: 0,
        };
        // SAFETY: the structure that belongs to the request.
        unsafe { libc::ioctl(fd, UFFDIO_POISON, &raw mut arg) == 0 }
    })
}

#[test]
fn a_touch_of_broken_memory_reaches_the_program() {
    alone_on_each("a_touch_of_broken_memory_reaches_the_program", |backend| {
        if !matches!(backend, Backend::Inline | Backend::Monitor) {
            // Without a userfaultfd only the machine's own memory can be broken.
            return;
        }
        let _watchdog = Watchdog::new("poison", 60);
        let memory = std::fs::read_to_string("/proc/meminfo").unwrap();
        if !memory.contains("HardwareCorrupted") {
            // It reports poison as it reports a missing page, and has no broken
            // memory to tell from that.
            eprintln!("SKIPPED: this kernel was built without CONFIG_MEMORY_FAILURE");
            return;
        }
        for absent in [false, true] {
            for handled in [false, true] {
                let status = child(backend, handled, libc::BUS_MCEERR_AR, |data| {
                    let word = place(data, 7, absent);
                    let page = word.addr() & !(PAGE_SIZE - 1);
                    if !absent {
                        // SAFETY: the page's bytes are not needed any more.
                        unsafe { libc::madvise(page as *mut _, PAGE_SIZE, libc::MADV_DONTNEED) };
                    }
                    if !poison(page) {
                        eprintln!("SKIPPED: no UFFDIO_POISON in this kernel (Linux 6.6)");
                        // SAFETY: ends the process.
                        unsafe { libc::_exit(SKIPPED) };
                    }
                    // SAFETY: a handler, or the signal, ends the process.
                    unsafe { word.read_volatile() };
                });
                let right = if handled {
                    status.code() == Some(SEEN)
                } else {
                    status.signal() == Some(libc::SIGBUS)
                };
                let skipped = status.code() == Some(SKIPPED);
                assert!(
                    right || skipped,
                    "{backend}, absent {absent}, {handled}: {status}"
                );
            }
        }
    });
}

#[test]
fn a_touch_that_a_protection_key_forbids_reaches_the_program() {
    let name = "a_touch_that_a_protection_key_forbids_reaches_the_program";
    alone_on_each(name, |backend| {
        let _watchdog = Watchdog::new("protection key", 60);
        let status = child(backend, true, SEGV_PKUERR, |data| {
            let word = place(data, 7, false);
            // SAFETY: no preconditions. Access disabled.
            let key = unsafe { libc::syscall(libc::SYS_pkey_alloc, 0, 1) };
            if key < 0 {
                eprintln!("SKIPPED: this machine has no protection keys");
                // SAFETY: ends the process.
                unsafe { libc::_exit(SKIPPED) };
            }
            let page = word.addr() & !(PAGE_SIZE - 1);
            let access = libc::PROT_READ | libc::PROT_WRITE;
            // SAFETY: a whole page of our own.
            let rc =
                unsafe { libc::syscall(libc::SYS_pkey_mprotect, page, PAGE_SIZE, access, key) };
            assert_eq!(rc, 0);
            // SAFETY: the handler ends the process.
            unsafe { word.read_volatile() };
        });
        let right = matches!(status.code(), Some(SEEN | SKIPPED));
        assert!(right, "{backend}: {status}");
    });
}

/// Sends the calling thread a signal as the kernel itself would make it.
fn forge(signal: i32, code: i32, address: *const u64) {
    // SAFETY: all zeros is a valid siginfo.
    let mut info: libc::siginfo_t = unsafe { zeroed() };
    info.si_signo = signal;
    info.si_code = code;
    // SAFETY: si_addr lies 16 bytes from the start (signal(7), 64 bits).
    unsafe { (&raw mut info).cast::<usize>().add(2).write(address.addr()) };
    // SAFETY: the structure is whole; the kernel lets a thread forge its own.
    let rc = unsafe {
        libc::syscall(
            libc::SYS_rt_tgsigqueueinfo,
            libc::getpid(),
            libc::gettid(),
            signal,
            &raw const info,
        )
    };
    assert_eq!(rc, 0);
}

#[test]
fn reports_of_no_touch_reach_the_program_whatever_their_address() {
    let name = "reports_of_no_touch_reach_the_program_whatever_their_address";
    alone_on_each(name, |backend| {
        let _watchdog = Watchdog::new("forged signals", 60);
        let reports = [
            (libc::SIGBUS, BUS_ADRALN),
            (libc::SIGBUS, libc::BUS_MCEERR_AR),
            (libc::SIGBUS, libc::BUS_MCEERR_AO),
            (libc::SIGSEGV, libc::SI_TKILL),
            (libc::SIGSEGV, libc::SI_QUEUE),
        ];
        for (signal, code) in reports {
            for absent in [false, true] {
                let status = child(backend, true, code, |data| {
                    forge(signal, code, place(data, 7, absent));
                });
                assert_eq!(status.code(), Some(SEEN), "{backend}, {signal} {code}");
            }
        }
        // No instruction raises it again, so the default action is to follow.
        let status = child(backend, false, libc::BUS_MCEERR_AO, |data| {
            forge(libc::SIGBUS, libc::BUS_MCEERR_AO, place(data, 7, true));
        });
        assert_eq!(status.signal(), Some(libc::SIGBUS), "{backend}: {status}");
        let status = child(backend, false, 0, |data| {
            assert_eq!(data[9], word(9, 8));
            // SAFETY: ends the process.
            unsafe { libc::raise(libc::SIGSEGV) };
        });
        assert_eq!(status.signal(), Some(libc::SIGSEGV), "{backend}: {status}");
        // What the program ignores stays ignored when somebody sends it.
        let status = wait_for(fork(|| {
            install(libc::SIGSEGV, libc::SIG_IGN);
            let data = heap(backend, PAGES / 4)
                .slice_from_fn(PAGES * 512, |i| word(i, 8))
                .unwrap();
            // SAFETY: ignored.
            unsafe { libc::raise(libc::SIGSEGV) };
            assert!(data.iter().enumerate().all(|(i, &w)| w == word(i, 8)));
        }));
        assert!(status.success(), "{backend}: {status}");
    });
}
