//! When a process gets its heap: not before it needs one.
//!
//! A start that makes a heap maps tables, opens descriptors and starts a thread: more
//! than all else that `true`, `cp` or a compiler's driver does. So the first blocks
//! are ordinary memory, up to a bound, and the heap is made when
//!
//! * the program has asked for more than that, freed or not, mappings that would be taken
//!   over among them,
//! * it makes a thread: from then on its other threads would have to be told,
//! * it is about to change what a heap is made with: its limits, a filter of system
//!   calls, rules for writable code, whether later mappings are locked,
//! * it asks for a ring that the kernel works on by itself.
//!
//! Until then every system call happens as it is, and handlers, masks and stacks are
//! the kernel's own. All calls with pointers come by here meanwhile, as any address
//! counts as one that may be ghost memory.
//!
//! The heap is made in the midst of the program, on whatever thread asks. So it is
//! made on a stack of our own, with errno kept; not between vfork(2) and exec, where
//! the memory is the parent's; not in a fork; and not, if that can be put off, where
//! a signal handler of the program's may have interrupted anything.

use core::arch::asm;
use core::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use ghostmem_os::error::KeptErrno;

use crate::calls::table;
use crate::raw::own;
use crate::settings::Settings;
use crate::thread::{self, Thread};
use crate::{bounce, ghost, mappings, signals, start, stub};

/// Most bytes that blocks may take before the heap is made; less where the limit is
/// small.
const ROOM_BYTES: usize = 512 << 10;
/// Part of the limit that they may take.
const ROOM_PART: usize = 16;
/// So many times as much is given out where the heap should be made elsewhere.
const PUT_OFF: usize = 64;
/// Bytes of the stack that the heap is made on.
const STACK_BYTES: usize = 1 << 20;

/// The process is to have a heap and has none yet.
static WAITING: AtomicBool = AtomicBool::new(false);
static ROOM: AtomicUsize = AtomicUsize::new(ROOM_BYTES);
/// Blocks smaller than this are ordinary memory in any case.
static GHOST_FROM: AtomicUsize = AtomicUsize::new(0);
/// Bytes given out so far.
static GIVEN: AtomicUsize = AtomicUsize::new(0);

/// Waits for the heap to be needed.
pub(crate) fn wait(settings: &Settings) {
    if settings.limit > 0 {
        ROOM.store(
            ROOM_BYTES.min(settings.limit / ROOM_PART),
            Ordering::Relaxed,
        );
    }
    GHOST_FROM.store(settings.ghost_from, Ordering::Relaxed);
    WAITING.store(true, Ordering::Relaxed);
    stub::publish_bounds(0, usize::MAX);
}

/// Whether the process waits for its heap.
pub(crate) fn is_waiting() -> bool {
    WAITING.load(Ordering::Relaxed)
}

/// Counts a block that is asked for; whether the heap is there by now.
#[cold]
pub(crate) fn has_begun(thread: &Thread, size: usize) -> bool {
    if !is_waiting() || thread.inside.get() != 0 || size < GHOST_FROM.load(Ordering::Relaxed) {
        return false;
    }
    // Further than that nobody counts.
    let size = size.clamp(32, 1 << 40);
    let given = GIVEN.fetch_add(size, Ordering::Relaxed) + size;
    let room = ROOM.load(Ordering::Relaxed);
    given > room && begin(thread, given < room.saturating_mul(PUT_OFF))
}

/// The program is about to make a thread.
pub(crate) fn before_a_thread() {
    let thread = thread::current();
    if is_waiting() && thread.inside.get() == 0 {
        begin(thread, false);
    }
}

/// A system call arrived: whether the heap is there now because of it.
pub(crate) fn at_call(number: usize, args: [usize; 6]) -> bool {
    const SECCOMP: usize = 317;
    let thread = thread::current();
    if !is_waiting() || thread.inside.get() != 0 {
        return false;
    }
    let needed = match number {
        table::CLONE => makes_thread(args[0]),
        table::CLONE3 => {
            args[1] >= size_of::<usize>()
                && is_readable(args[0])
                && makes_thread(crate::raw::load(args[0]))
        }
        table::MMAP if mappings::is_large_and_private(args) => {
            return has_begun(thread, args[1]);
        }
        // prctl
        157 => [libc::PR_SET_SECCOMP as usize, PR_SET_MDWE].contains(&args[0]),
        SECCOMP | table::URING_SETUP | table::IO_SETUP => true,
        // mlockall that is about later mappings, the heap's among them.
        151 => args[0] & libc::MCL_FUTURE as usize != 0,
        // setrlimit; prlimit64 that sets anything
        160 => true,
        302 => args[2] != 0,
        _ => false,
    };
    needed && begin(thread, false)
}

/// prctl(2), since 6.3.
const PR_SET_MDWE: usize = 65;

/// Whether flags of clone(2) make something that goes on beside the caller on the
/// same memory.
fn makes_thread(flags: usize) -> bool {
    flags & libc::CLONE_VM as usize != 0 && flags & libc::CLONE_VFORK as usize == 0
}

/// Whether the kernel can read eight bytes at an address. It reads a mask before it
/// finds that what is to be done with it is nothing it knows.
pub(crate) fn is_readable(address: usize) -> bool {
    const NOTHING: usize = usize::MAX;
    let answer = own!(libc::SYS_rt_sigprocmask, NOTHING, address, 0, 8);
    address != 0 && answer != -(libc::EFAULT as isize)
}

/// Makes the heap; whether it is there. `can_wait`: not where that may harm.
fn begin(thread: &Thread, can_wait: bool) -> bool {
    if thread.forking.get() != 0 || signals::in_vfork_child() {
        return false;
    }
    if can_wait && (signals::is_on_signal_stack() || signals::may_be_handling()) {
        return false;
    }
    if !WAITING.swap(false, Ordering::Relaxed) {
        return ghost::is_on();
    }
    let _errno = KeptErrno::now();
    // A handler of the program's that jumps out would leave half a heap.
    let blocked = signals::Blocked::new();
    on_own_stack();
    drop(blocked);
    ghost::is_on()
}

extern "C" fn make() {
    start::take_over_now();
}

/// Runs [`make`] on a stack that is long enough, if there is memory for one: the
/// program's may be a coroutine's.
fn on_own_stack() {
    let Some(base) = bounce::map(STACK_BYTES) else {
        return make();
    };
    // SAFETY: the stack is fresh memory, aligned to pages; `make` keeps r12, as every
    // function does, and returns. It does not unwind.
    unsafe {
        asm!(
            "xchg rsp, r12",
            "call {make}",
            "mov rsp, r12",
            make = sym make,
            inout("r12") base + STACK_BYTES => _,
            clobber_abi("C"),
        );
    }
    bounce::unmap(base, STACK_BYTES);
}
