//! Keys for thread-specific data (pthread_key_create(3)) that are no keys of libc's.
//!
//! The small-object allocator hears of a thread's end by the destructors of two keys. libc has
//! 1,024 of them for a process, all the program's by right: some take every one. So those of
//! this library are kept here, [`names`](crate::names) sends its calls to them, and
//! [`threads`](crate::threads) calls the destructors when a thread has left the program's code
//! for good.

use core::ffi::{c_int, c_void};
use core::sync::atomic::{AtomicUsize, Ordering};

use crate::thread::{self, Thread};
use crate::threads;

/// As many as there may be.
pub(crate) const MOST: usize = 4;

type Destructor = unsafe extern "C" fn(*mut c_void);

/// Keys given out: the first ones, in the order they were asked for. None is given twice.
static GIVEN: AtomicUsize = AtomicUsize::new(0);
/// Their destructors; 0: none, or the key is gone.
static DESTRUCTORS: [AtomicUsize; MOST] = [const { AtomicUsize::new(0) }; MOST];

/// pthread_key_create(3), of this library's own code.
///
/// # Safety
/// A place for the key, and a destructor that may be called with what a thread sets.
pub(crate) unsafe extern "C" fn create(
    key: *mut libc::pthread_key_t,
    destructor: Option<Destructor>,
) -> c_int {
    let number = GIVEN.fetch_add(1, Ordering::Relaxed);
    let Some(place) = DESTRUCTORS.get(number) else {
        return libc::EAGAIN;
    };
    place.store(
        destructor.map_or(0, |ends| ends as usize),
        Ordering::Release,
    );
    // SAFETY: the caller's promise.
    unsafe { key.write(number as libc::pthread_key_t) };
    0
}

/// pthread_key_delete(3): its destructor is not called any more.
pub(crate) extern "C" fn delete(key: libc::pthread_key_t) -> c_int {
    match DESTRUCTORS.get(key as usize) {
        Some(place) => {
            place.store(0, Ordering::Release);
            0
        }
        None => libc::EINVAL,
    }
}

/// pthread_setspecific(3).
pub(crate) extern "C" fn set(key: libc::pthread_key_t, value: *const c_void) -> c_int {
    match thread::current().keyed.get(key as usize) {
        Some(place) => {
            place.set(value.expose_provenance());
            threads::hear();
            0
        }
        None => libc::EINVAL,
    }
}

/// Calls the destructors of what a thread has set, in the order of the keys, and again for what
/// these set: as often as libc does. On that thread, behind the last code of the program's there.
///
/// On the process's first thread, of the first key alone: that is ours (`csrc/threads.h` of
/// ghostmem-small), by which the thread leaves the heap. mimalloc takes the other one's for the end
/// of all its work on that thread, which may be the one to run what the program has at exit.
pub(crate) fn end(thread: &Thread, is_first: bool) {
    const ROUNDS: usize = 4;
    let count = if is_first { 1 } else { MOST };
    for _ in 0..ROUNDS {
        let mut called = false;
        for (place, destructor) in thread.keyed.iter().zip(&DESTRUCTORS).take(count) {
            let value = place.take();
            let destructor = destructor.load(Ordering::Acquire);
            if value != 0 && destructor != 0 {
                // SAFETY: `create` stored it, of this type.
                let ends = unsafe { core::mem::transmute::<usize, Destructor>(destructor) };
                // SAFETY: the value is of this thread, which set it for this destructor.
                unsafe { ends(core::ptr::with_exposed_provenance_mut(value)) };
                called = true;
            }
        }
        if !called {
            return;
        }
    }
}
