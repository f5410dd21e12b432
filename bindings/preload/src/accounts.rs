//! What the malloc family says of itself, and gives back: malloc_trim(3),
//! mallinfo(3), malloc_stats(3), malloc_info(3), and C23's free functions.
//!
//! Figures are those of ghost memory and of libc's own blocks together, so that
//! a program that steers its caches by them sees what it has. `mallopt` stays
//! libc's: its parameters are about libc's blocks.

use core::ffi::{CStr, c_char, c_int, c_void};
use core::mem;
use core::ptr::NonNull;

use ghostmem::Heap;

use crate::raw::say;
use crate::signals::Blocked;
use crate::thread::{self, EngineScope};
use crate::{cache, family, ghost, start};

/// `struct mallinfo2` (glibc 2.33).
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Info2 {
    /// Bytes got from the system, but for large blocks.
    arena: usize,
    ordblks: usize,
    smblks: usize,
    hblks: usize,
    /// Bytes of large blocks with mappings of their own.
    hblkhd: usize,
    usmblks: usize,
    fsmblks: usize,
    /// Bytes in use, and free, of `arena`.
    uordblks: usize,
    fordblks: usize,
    keepcost: usize,
}

/// `struct mallinfo`: the same in numbers that are too short.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Info([c_int; 10]);

/// libc's function of this name; `None` where it has none.
fn libcs<F: Copy>(name: &CStr) -> Option<F> {
    let found = start::next(name);
    if found == 0 || size_of::<F>() != size_of::<usize>() {
        return None;
    }
    // SAFETY: the address of libc's function, of the type that the caller names
    // from the manual; a function pointer is one word.
    Some(unsafe { mem::transmute_copy::<usize, F>(&found) })
}

/// What libc says of its own blocks.
fn ordinary_info() -> Info2 {
    if let Some(mallinfo2) = libcs::<extern "C" fn() -> Info2>(c"mallinfo2") {
        return mallinfo2();
    }
    let Some(mallinfo) = libcs::<extern "C" fn() -> Info>(c"mallinfo") else {
        return Info2::default();
    };
    let wide = mallinfo().0.map(|value| value as u32 as usize);
    Info2 {
        arena: wide[0],
        ordblks: wide[1],
        smblks: wide[2],
        hblks: wide[3],
        hblkhd: wide[4],
        usmblks: wide[5],
        fsmblks: wide[6],
        uordblks: wide[7],
        fordblks: wide[8],
        keepcost: wide[9],
    }
}

/// Bytes of ghost memory: in use, and allocated but free.
fn ghost_bytes() -> (usize, usize) {
    let Some(heap) = ghost::heap().filter(|_| ghost::is_on()) else {
        return (0, 0);
    };
    let current = thread::current();
    let _inside = EngineScope::new(current);
    ghost::tell(current);
    let kept = cache::kept_bytes();
    (heap.stats().allocated_bytes.saturating_sub(kept), kept)
}

/// mallinfo2(3).
#[unsafe(no_mangle)]
pub(crate) extern "C" fn mallinfo2() -> Info2 {
    let mut info = ordinary_info();
    let (used, free) = ghost_bytes();
    info.arena += used + free;
    info.uordblks += used;
    info.fordblks += free;
    info
}

/// mallinfo(3).
#[unsafe(no_mangle)]
pub(crate) extern "C" fn mallinfo() -> Info {
    let info = mallinfo2();
    let wide = [
        info.arena,
        info.ordblks,
        info.smblks,
        info.hblks,
        info.hblkhd,
        info.usmblks,
        info.fsmblks,
        info.uordblks,
        info.fordblks,
        info.keepcost,
    ];
    // As glibc has it: what does not fit is cut off.
    Info(wide.map(|value| value as c_int))
}

/// Pages with a few blocks left among many that were freed cannot be given back.
/// They are compressed instead, the coldest first, as many as there are resident
/// pages beyond what is in use. Fewer than a quarter of that are left alone.
fn compress_what_is_scattered(heap: &Heap) {
    let stats = heap.stats();
    let used = stats.allocated_bytes;
    if stats.resident_bytes / 4 <= used / 4 + used / 16 {
        return;
    }
    for _ in 0..(stats.resident_bytes - used) / 4096 {
        if !matches!(heap.evict_coldest(), Ok(true)) {
            break;
        }
    }
}

/// malloc_trim(3): whether memory was given back.
#[unsafe(no_mangle)]
pub(crate) extern "C" fn malloc_trim(pad: usize) -> c_int {
    let mut released = false;
    let current = thread::current();
    if let Some(heap) = ghost::heap()
        && ghost::is_on()
        && current.inside.get() == 0
        && current.forking.get() == 0
    {
        let _inside = EngineScope::new(current);
        let before = heap.stats().resident_bytes;
        // As where a block is freed.
        let blocked = Blocked::new();
        while let Some(block) = cache::take_any().and_then(|at| NonNull::new(at as *mut u8)) {
            // SAFETY: a freed block that was kept, and is not any more.
            let _was_live = unsafe { heap.deallocate_block(block) };
        }
        drop(blocked);
        heap.trim();
        compress_what_is_scattered(heap);
        released = heap.stats().resident_bytes < before;
    }
    let ordinary = libcs::<extern "C" fn(usize) -> c_int>(c"malloc_trim");
    let ordinary = ordinary.is_some_and(|trim| trim(pad) != 0);
    c_int::from(released || ordinary)
}

/// malloc_stats(3): on standard error.
#[unsafe(no_mangle)]
pub(crate) extern "C" fn malloc_stats() {
    let (used, free) = ghost_bytes();
    let text = {
        let _inside = EngineScope::new(thread::current());
        format!(
            "GhostMem:\nsystem bytes     = {:>10}\nin use bytes     = {used:>10}\n",
            used + free
        )
    };
    say(text.as_bytes());
    let _inside = EngineScope::new(thread::current());
    drop(text);
    if let Some(stats) = libcs::<extern "C" fn()>(c"malloc_stats") {
        stats();
    }
}

/// malloc_info(3): the figures of [`mallinfo2`], as glibc's XML has them.
///
/// # Safety
/// `stream` is an open stream.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn malloc_info(options: c_int, stream: *mut libc::FILE) -> c_int {
    if options != 0 {
        return libc::EINVAL;
    }
    let info = mallinfo2();
    let system = info.arena + info.hblkhd;
    let totals = format!(
        "<total type=\"fast\" count=\"0\" size=\"0\"/>\n\
         <total type=\"rest\" count=\"{}\" size=\"{}\"/>\n\
         <total type=\"mmap\" count=\"{}\" size=\"{}\"/>\n\
         <system type=\"current\" size=\"{system}\"/>\n\
         <system type=\"max\" size=\"{system}\"/>\n\
         <aspace type=\"total\" size=\"{system}\"/>\n\
         <aspace type=\"mprotect\" size=\"{system}\"/>\n",
        info.ordblks, info.fordblks, info.hblks, info.hblkhd,
    );
    let text = format!(
        "<malloc version=\"1\">\n<heap nr=\"0\">\n<sizes>\n</sizes>\n{totals}</heap>\n\
         {totals}</malloc>\n\0"
    );
    // SAFETY: a C string, and the caller's open stream.
    let written = unsafe { libc::fputs(text.as_ptr().cast::<c_char>(), stream) };
    if written < 0 { -1 } else { 0 }
}

/// free_sized(3), C23.
///
/// # Safety
/// As free(3).
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn free_sized(block: *mut c_void, _size: usize) {
    // SAFETY: the caller's promise.
    unsafe { family::free(block) };
}

/// free_aligned_sized(3), C23.
///
/// # Safety
/// As free(3).
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn free_aligned_sized(
    block: *mut c_void,
    _align: usize,
    _size: usize,
) {
    // SAFETY: the caller's promise.
    unsafe { family::free(block) };
}
