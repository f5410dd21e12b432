//! System calls given absent ghost memory: refused with EFAULT by inline and
//! guard, never wrong bytes; served by monitor; served by all when pinned.
#![cfg(target_os = "linux")] // what system calls see of absent pages
#![allow(clippy::unwrap_used, clippy::multiple_unsafe_ops_per_block)] // a test ends at the first failure

use std::io::Error;

use common::{BACKENDS, PAGE_SIZE, heap, word};
use ghostmem::{Backend, GhostSlice, Heap, doctor};

mod common;

const COUNT: usize = 4 * PAGE_SIZE;

fn byte(i: usize) -> u8 {
    word(i / 8, 5).to_le_bytes()[i % 8]
}

/// Calls that move `COUNT` bytes between a descriptor and memory. Each makes
/// its own descriptors, holding `COUNT` bytes where it reads.
type Call = fn(*mut u8) -> isize;

fn memfd(filled: bool) -> i32 {
    // SAFETY: a valid name.
    let fd = unsafe { libc::memfd_create(c"syscalls".as_ptr(), 0) };
    assert!(fd >= 0);
    if filled {
        let bytes: Vec<u8> = (0..COUNT).map(byte).collect();
        // SAFETY: the buffer has that many bytes.
        let rc = unsafe { libc::pwrite(fd, bytes.as_ptr().cast(), COUNT, 0) };
        assert_eq!(rc, COUNT as isize);
    }
    fd
}

fn close(fd: i32) {
    // SAFETY: a descriptor of ours that nobody uses any more.
    unsafe { libc::close(fd) };
}

fn keep_errno(rc: isize, fds: &[i32]) -> isize {
    let error = Error::last_os_error();
    for &fd in fds {
        close(fd);
    }
    if rc < 0 {
        -(error.raw_os_error().unwrap() as isize)
    } else {
        rc
    }
}

fn read(to: *mut u8) -> isize {
    let fd = memfd(true);
    // SAFETY: `to` is good for `COUNT` bytes (so say all callers here).
    keep_errno(unsafe { libc::read(fd, to.cast(), COUNT) }, &[fd])
}

fn pread(to: *mut u8) -> isize {
    let fd = memfd(true);
    // SAFETY: as in `read`.
    keep_errno(unsafe { libc::pread(fd, to.cast(), COUNT, 0) }, &[fd])
}

fn readv(to: *mut u8) -> isize {
    let fd = memfd(true);
    let parts = [0, 1].map(|half| libc::iovec {
        iov_base: to.wrapping_add(half * COUNT / 2).cast(),
        iov_len: COUNT / 2,
    });
    // SAFETY: as in `read`, in two halves.
    keep_errno(unsafe { libc::readv(fd, parts.as_ptr(), 2) }, &[fd])
}

fn recv(to: *mut u8) -> isize {
    let mut pair = [0; 2];
    // SAFETY: room for two descriptors.
    let rc = unsafe { libc::socketpair(libc::AF_UNIX, libc::SOCK_STREAM, 0, pair.as_mut_ptr()) };
    assert_eq!(rc, 0);
    let bytes: Vec<u8> = (0..COUNT).map(byte).collect();
    // SAFETY: the buffer has that many bytes.
    let sent = unsafe { libc::send(pair[0], bytes.as_ptr().cast(), COUNT, 0) };
    assert_eq!(sent, COUNT as isize);
    // SAFETY: as in `read`.
    let rc = unsafe { libc::recv(pair[1], to.cast(), COUNT, libc::MSG_WAITALL) };
    keep_errno(rc, &pair)
}

fn write(from: *mut u8) -> isize {
    let fd = memfd(false);
    // SAFETY: as in `read`.
    let rc = unsafe { libc::write(fd, from.cast(), COUNT) };
    let error = Error::last_os_error();
    if rc > 0 {
        let mut back = vec![0_u8; rc as usize];
        // SAFETY: the buffer has that many bytes.
        let got = unsafe { libc::pread(fd, back.as_mut_ptr().cast(), back.len(), 0) };
        assert_eq!(got, rc);
        assert!(
            back.iter().enumerate().all(|(i, &b)| b == byte(i)),
            "write(2) sent wrong bytes"
        );
        return keep_errno(rc, &[fd]);
    }
    close(fd);
    -(error.raw_os_error().unwrap() as isize)
}

const INTO: [(&str, Call); 4] = [
    ("read", read),
    ("pread", pread),
    ("readv", readv),
    ("recv", recv),
];

/// A buffer whose pages all were evicted.
fn absent(heap: &Heap, fill: impl Fn(usize) -> u8) -> GhostSlice<u8> {
    // Whole pages of its own, so that nothing else brings them in.
    let buffer = heap.slice_from_fn(16 * COUNT, |i| fill(i % COUNT)).unwrap();
    heap.evict(&raw const *buffer).unwrap();
    assert_eq!(heap.is_resident(&buffer[0]), Some(false));
    assert_eq!(heap.is_resident(&buffer[COUNT - 1]), Some(false));
    buffer
}

fn holds_what_was_read(buffer: &[u8]) -> bool {
    buffer[..COUNT]
        .iter()
        .enumerate()
        .all(|(i, &b)| b == byte(i))
}

#[test]
fn inline_and_guard_refuse_absent_buffers_and_serve_pinned_ones() {
    for backend in [Backend::Inline, Backend::Guard, Backend::GuardMprotect] {
        let heap = heap(backend, 64);
        for (name, call) in INTO {
            let mut buffer = absent(&heap, |_| 1);
            let start = buffer.as_mut_ptr();
            assert_eq!(
                call(start),
                -(libc::EFAULT as isize),
                "{backend}: {name} into absent memory"
            );
            assert!(
                buffer[..COUNT].iter().all(|&b| b == 1),
                "{backend}: a refused {name} changed the buffer"
            );
            heap.evict(&raw const *buffer).unwrap();
            let pinned = heap.pin(&raw const buffer[..COUNT]).unwrap();
            assert_eq!(call(start), COUNT as isize, "{backend}: {name}, pinned");
            assert!(holds_what_was_read(&buffer), "{backend}: {name}, pinned");
            // A pinned page stays whatever is asked.
            assert_eq!(heap.evict(&raw const buffer[..COUNT]).unwrap(), 0);
            drop(pinned);
            heap.evict(&raw const *buffer).unwrap();
            assert!(holds_what_was_read(&buffer), "{backend}: {name}, evicted");
        }
        let mut buffer = absent(&heap, byte);
        let start = buffer.as_mut_ptr();
        assert_eq!(write(start), -(libc::EFAULT as isize), "{backend}: write");
        let pinned = heap.pin(&raw const buffer[..COUNT]).unwrap();
        assert_eq!(write(start), COUNT as isize, "{backend}: write, pinned");
        drop(pinned);
    }
}

#[test]
fn a_kernel_store_to_a_clean_page_is_refused_or_seen_never_lost() {
    for backend in BACKENDS {
        let heap = heap(backend, 64);
        for (name, call) in INTO {
            let mut buffer = absent(&heap, |_| 1);
            // Restored by loads: the pages keep their compressed copies.
            assert!(buffer.iter().all(|&b| b == 1));
            heap.prefetch(&raw const buffer[..COUNT]).unwrap();
            let rc = call(buffer.as_mut_ptr());
            heap.evict(&raw const *buffer).unwrap();
            let stored = usize::try_from(rc).unwrap_or(0);
            assert!(
                rc == -(libc::EFAULT as isize) || stored > 0,
                "{backend}: {name} gave {rc}"
            );
            assert!(
                (0..stored).all(|i| buffer[i] == byte(i)),
                "{backend}: {stored} bytes of {name} were lost"
            );
        }
    }
}

#[test]
fn monitor_serves_absent_buffers_without_a_pin() {
    if !doctor::probe().monitor_works {
        eprintln!("SKIPPED: monitor needs a privileged userfaultfd here");
        return;
    }
    let heap = heap(Backend::Monitor, 64);
    for (name, call) in INTO {
        let mut buffer = absent(&heap, |_| 1);
        assert_eq!(call(buffer.as_mut_ptr()), COUNT as isize, "{name}");
        assert!(holds_what_was_read(&buffer), "{name}");
        heap.evict(&raw const *buffer).unwrap();
        assert!(holds_what_was_read(&buffer), "{name}, evicted");
    }
    let mut buffer = absent(&heap, byte);
    assert_eq!(write(buffer.as_mut_ptr()), COUNT as isize);
}
