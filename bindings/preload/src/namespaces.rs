//! Objects in a namespace of their own (dlmopen(3)): a second C library, whose system
//! calls are redirected as those of the first are.
//!
//! The loader lists only the caller's own namespace (dl_iterate_phdr(3)), and has loaded
//! nothing else when this library starts. So dlmopen is passed on, and what its handle
//! leads to is looked at before the program gets it. The malloc of such a library stays
//! its own: what it hands out is ordinary memory.

use core::ffi::{CStr, c_char, c_int, c_void};
use std::sync::Mutex;

use crate::objects::{self, Text};
use crate::plan::Plans;
use crate::raw;
use crate::thread::{self, EngineScope};
use crate::{ghost, patch, start, stub};

/// `struct link_map` as far as it is documented (dlinfo(3)).
#[repr(C)]
#[derive(Clone, Copy)]
struct Loaded {
    base: usize,
    name: *const c_char,
    _dynamic: usize,
    next: *const Self,
    previous: *const Self,
}

/// dlinfo(3).
const RTLD_DI_LINKMAP: c_int = 2;

/// What was redirected so: where it starts, and a sum of its bytes since. Others may be
/// loaded there once it is gone.
static DONE: Mutex<Vec<(usize, u64)>> = Mutex::new(Vec::new());

type Dlmopen = unsafe extern "C" fn(libc::Lmid_t, *const c_char, c_int) -> *mut c_void;

/// dlmopen(3).
///
/// # Safety
/// As there.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn dlmopen(
    namespace: libc::Lmid_t,
    file: *const c_char,
    mode: c_int,
) -> *mut c_void {
    let next = start::next(c"dlmopen");
    if next == 0 {
        return core::ptr::null_mut();
    }
    // SAFETY: the loader's function of that name.
    let next = unsafe { core::mem::transmute::<usize, Dlmopen>(next) };
    // SAFETY: the caller's promise.
    let handle = unsafe { next(namespace, file, mode) };
    if !handle.is_null() && namespace != libc::LM_ID_BASE {
        redirect(handle);
    }
    handle
}

/// Redirects the system calls of what is loaded beside `handle`.
fn redirect(handle: *mut c_void) {
    let Some(settings) = start::settings() else {
        return;
    };
    let _inside = EngineScope::new(thread::current());
    let Ok(mut done) = DONE.lock() else {
        return;
    };
    let mut texts = Vec::new();
    let mut at = first_beside(handle);
    while !at.is_null() {
        // SAFETY: a member of the loader's list, which stays while the program has the
        // handle.
        let loaded = unsafe { at.read() };
        if !loaded.name.is_null() {
            // SAFETY: the loader's own C string.
            objects::add_loaded(
                loaded.base,
                unsafe { CStr::from_ptr(loaded.name) },
                &mut texts,
            );
        }
        at = loaded.next;
    }
    texts.retain(|text| {
        let sum = (text.start, sum_of(text));
        !start::has_text(text.start) && !done.contains(&sum)
    });
    if texts.is_empty() {
        return;
    }
    done.retain(|&(start, _)| {
        let is_new = |text: &Text| start.wrapping_sub(text.start) < text.bytes;
        let is_there = raw::is_mapped(start) && !texts.iter().any(is_new);
        if !is_there {
            stub::give_up_areas(start);
        }
        is_there
    });
    let report = patch::install(&texts, true, &Plans::none());
    if report.left > 0 && settings.verbose {
        let line = format!(
            "ghostmem: system calls of a second C library that are not redirected: {}\n",
            report.left
        );
        raw::say(line.as_bytes());
    }
    done.extend(texts.iter().map(|text| (text.start, sum_of(text))));
    ghost::publish_bounds();
}

/// The first of the namespace that a handle's object is in.
fn first_beside(handle: *mut c_void) -> *const Loaded {
    let mut at: *const Loaded = core::ptr::null();
    // SAFETY: a handle that the loader has just given, and a place for one pointer.
    let failed = unsafe { libc::dlinfo(handle, RTLD_DI_LINKMAP, (&raw mut at).cast()) };
    while failed == 0 && !at.is_null() {
        // SAFETY: a member of the loader's list.
        let previous = unsafe { (*at).previous };
        if previous.is_null() {
            return at;
        }
        at = previous;
    }
    core::ptr::null()
}

fn sum_of(text: &Text) -> u64 {
    let (words, _) = patch::code_of(text).as_chunks::<8>();
    words.iter().fold(0, |sum: u64, word| {
        sum.rotate_left(1).wrapping_add(u64::from_le_bytes(*word))
    })
}
