//! What a program says about its memory: advice, protection, locking.
//!
//! The kernel must not act on ghost pages behind the engine's back, so these
//! are carried out by the engine, or refused in a way the manual allows.

use core::ptr::slice_from_raw_parts_mut;

use ghostmem::Heap;

use crate::raw::{Answer, failed};
use crate::thread::{self, Inside};
use crate::{ghost, holds};

use super::{Done, error};

const PAGE: usize = 4096;

/// mprotect, munmap, mremap, msync, madvise, mlock, munlock, mlock2,
/// pkey_mprotect, when the kernel is blind.
pub(super) fn advised(number: usize, args: [usize; 6]) -> Done {
    let [address, bytes, third, ..] = args;
    let Some(heap) = ghost::owner(address) else {
        return Done::Asis;
    };
    let Some(bytes) = bytes.checked_next_multiple_of(PAGE) else {
        return error(libc::EINVAL);
    };
    match number {
        28 => advise(heap, address, bytes, third as i32),
        10 | 329 => protect(heap, number, args, bytes),
        11 => crate::mappings::unmap(heap, address, bytes),
        25 => crate::mappings::remap(heap, args),
        // There is no file behind it.
        26 => Done::With(0),
        149 | 325 => lock(heap, address, bytes),
        _ => {
            holds::release(heap, address, bytes);
            Done::With(0)
        }
    }
}

/// The same where the kernel sees absent pages: data calls need no help.
pub(super) fn sighted(number: usize, args: [usize; 6]) -> Done {
    match number {
        10 | 11 | 25 | 26 | 28 | 149 | 150 | 325 | 329 => advised(number, args),
        _ => Done::Asis,
    }
}

/// mlockall: what is locked could never be evicted. The answer of a kernel
/// that does not let the process lock as much.
pub(super) fn lock_all() -> Done {
    error(libc::ENOMEM)
}

fn range(address: usize, bytes: usize) -> *mut [u8] {
    slice_from_raw_parts_mut(address as *mut u8, bytes)
}

fn advise(heap: &Heap, address: usize, bytes: usize, advice: i32) -> Done {
    if !address.is_multiple_of(PAGE) {
        return error(libc::EINVAL);
    }
    let _inside = Inside::new(thread::current());
    let range = range(address, bytes);
    match advice {
        libc::MADV_DONTNEED | libc::MADV_FREE | libc::MADV_REMOVE => {
            // SAFETY: the program gave the contents up, and says so to what
            // it takes for the kernel.
            match unsafe { heap.discard(range) } {
                Ok(()) => Done::With(0),
                Err(_) => error(libc::ENOMEM),
            }
        }
        libc::MADV_WILLNEED => {
            let _as_far_as_it_goes = heap.prefetch(range.cast_const());
            Done::With(0)
        }
        libc::MADV_COLD => {
            let _advice = heap.cold(range.cast_const());
            Done::With(0)
        }
        libc::MADV_PAGEOUT => {
            let _advice = heap.evict(range.cast_const());
            Done::With(0)
        }
        // Everything else is about how pages are laid out, or what a child or
        // a core dump gets: pages come in one by one, and children get copies.
        libc::MADV_NORMAL
        | libc::MADV_RANDOM
        | libc::MADV_SEQUENTIAL
        | libc::MADV_HUGEPAGE
        | libc::MADV_NOHUGEPAGE
        | libc::MADV_MERGEABLE
        | libc::MADV_UNMERGEABLE
        | libc::MADV_DODUMP
        | libc::MADV_DONTDUMP
        | libc::MADV_DOFORK => Done::With(0),
        _ => error(libc::EINVAL),
    }
}

/// mprotect: pages that cannot be read and written cannot be evicted either,
/// so they are held resident until they are opened again.
fn protect(heap: &Heap, number: usize, args: [usize; 6], bytes: usize) -> Done {
    let [address, _, access, ..] = args;
    if !address.is_multiple_of(PAGE) {
        return error(libc::EINVAL);
    }
    let open = (libc::PROT_READ | libc::PROT_WRITE) as usize;
    if access & open == open && access & libc::PROT_EXEC as usize == 0 {
        if !holds::any(address, bytes) {
            return Done::With(0);
        }
        let answer = crate::raw::syscall(number, args);
        if !failed(answer) {
            holds::release(heap, address, bytes);
        }
        return Done::With(answer);
    }
    if !holds::hold(heap, address, bytes, true) {
        return error(libc::ENOMEM);
    }
    let answer: Answer = crate::raw::syscall(number, args);
    if failed(answer) {
        holds::release(heap, address, bytes);
    }
    Done::With(answer)
}

/// mlock: held resident while the limit has room.
fn lock(heap: &Heap, address: usize, bytes: usize) -> Done {
    let start = address & !(PAGE - 1);
    let bytes = bytes + (address - start);
    if holds::hold(heap, start, bytes, false) {
        Done::With(0)
    } else {
        error(libc::EPERM)
    }
}
