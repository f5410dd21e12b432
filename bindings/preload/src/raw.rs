//! System calls without libc, plain copies, and errors in the kernel's form.
//!
//! libc's own entry points are patched (see [`crate::patch`]); what is made
//! here never comes back to us, takes no lock and is async-signal-safe.

use core::arch::global_asm;
use core::cell::Cell;

use ghostmem_os::PAGE_SIZE;

/// What a system call returned: a value, or a negative errno.
pub(crate) type Answer = isize;

/// Whether an answer is an error.
pub(crate) const fn failed(answer: Answer) -> bool {
    answer < 0 && answer >= -4095
}

/// Makes one system call.
///
/// Memory that the kernel writes for it must belong to the caller: the same
/// contract as libc's `syscall`, but not `unsafe`, since every caller in this
/// room passes either the program's own arguments on or buffers of its own;
/// what a call does to the process is up to the program.
///
/// Unwinds where the program's thread is cancelled in the call: an instruction in the midst
/// of a function of Rust's is none that may, so it stands in a function of its own.
pub(crate) fn syscall(nr: usize, args: [usize; 6]) -> Answer {
    let [a, b, c, d, e, f] = args;
    // SAFETY: the code below, which takes seven numbers and keeps the registers that a
    // function has to. Which memory the kernel writes is the caller's business, see above.
    unsafe { gm_syscall(nr, a, b, c, d, e, f) }
}

unsafe extern "C-unwind" {
    fn gm_syscall(nr: usize, a: usize, b: usize, c: usize, d: usize, e: usize, f: usize) -> Answer;
}

global_asm!(
    // From the registers of a function's arguments to those of a system call's.
    ".globl gm_syscall",
    ".hidden gm_syscall",
    ".type gm_syscall,@function",
    "gm_syscall:",
    ".cfi_startproc",
    "mov rax, rdi",
    "mov rdi, rsi",
    "mov rsi, rdx",
    "mov rdx, rcx",
    "mov r10, r8",
    "mov r8, r9",
    "mov r9, [rsp + 8]",
    "syscall",
    "ret",
    ".cfi_endproc",
    ".size gm_syscall, . - gm_syscall",
);

/// rt_sigtimedwait, unless a word is not zero, or is set by a handler that comes before the
/// kernel has the call and lets the thread go on at [`landing_of_wait`]: then the answer is 0.
/// A handler of the program's that is itself interrupted by ours within these instructions has
/// the only place that could be changed: then the call waits.
pub(crate) fn wait_unless(word: &Cell<u32>, set: usize, info: usize, time: usize) -> Answer {
    // SAFETY: the code below, as for `syscall`; the word is read while the reference is there.
    unsafe { gm_wait(set, info, time, word.as_ptr()) }
}

unsafe extern "C-unwind" {
    fn gm_wait(set: usize, info: usize, time: usize, word: *const u32) -> Answer;
}

unsafe extern "C" {
    fn gm_wait_end();
    fn gm_wait_land();
}

/// Where a thread goes on that was interrupted on its way into [`wait_unless`]; `None` for
/// every other instruction. Async-signal-safe.
pub(crate) fn landing_of_wait(instruction: usize) -> Option<usize> {
    let (begin, end) = (
        gm_wait as *const () as usize,
        gm_wait_end as *const () as usize,
    );
    (begin..end)
        .contains(&instruction)
        .then_some(gm_wait_land as *const () as usize)
}

global_asm!(
    // rdi: set, rsi: info, rdx: time, rcx: the word.
    ".globl gm_wait",
    ".hidden gm_wait",
    ".type gm_wait,@function",
    "gm_wait:",
    ".cfi_startproc",
    "cmp dword ptr [rcx], 0",
    "jne gm_wait_land",
    "mov r10d, 8",
    "mov eax, 128",
    "syscall",
    ".globl gm_wait_end",
    ".hidden gm_wait_end",
    "gm_wait_end:",
    "ret",
    ".globl gm_wait_land",
    ".hidden gm_wait_land",
    "gm_wait_land:",
    "xor eax, eax",
    "ret",
    ".cfi_endproc",
    ".size gm_wait, . - gm_wait",
);

/// As [`syscall`], with a libc call number and as many arguments as are given.
macro_rules! call {
    ($nr:expr $(, $arg:expr)* $(,)?) => {{
        let given = [$($arg as usize),*];
        let mut args = [0_usize; 6];
        args[..given.len()].copy_from_slice(&given);
        $crate::raw::syscall($nr as usize, args)
    }};
}
pub(crate) use call;

/// A call of the engine's own, which a filter of the program's does not see.
///
/// As [`syscall`], not `unsafe`: callers pass memory of their own, or addresses that
/// they are to answer for.
pub(crate) fn engine_call(nr: usize, args: [usize; 6]) -> Answer {
    // SAFETY: the caller's business, see above.
    unsafe { ghostmem_os::doorway::call(nr, args) }
}

/// As [`call`], for [`engine_call`].
macro_rules! own {
    ($nr:expr $(, $arg:expr)* $(,)?) => {{
        let given = [$($arg as usize),*];
        let mut args = [0_usize; 6];
        args[..given.len()].copy_from_slice(&given);
        $crate::raw::engine_call($nr as usize, args)
    }};
}
pub(crate) use own;

/// Copies `bytes` between memory that is known to be there: blocks of the
/// program's, and our own. Either may be ghost memory: an absent page comes
/// back first, as for any load or store.
pub(crate) fn copy(to: usize, from: usize, bytes: usize) {
    // SAFETY: both are live memory of that size, by the caller's word; they do
    // not overlap, as one was made for this.
    unsafe {
        core::ptr::copy_nonoverlapping(from as *const u8, to as *mut u8, bytes);
    }
}

/// Whether two places of code have the same bytes.
pub(crate) fn is_same(one: usize, other: usize, bytes: usize) -> bool {
    // SAFETY: mapped and readable, by the caller's word, and never written.
    let [one, other] =
        [one, other].map(|at| unsafe { core::slice::from_raw_parts(at as *const u8, bytes) });
    one == other
}

/// Makes a block's bytes zero.
pub(crate) fn clear(at: usize, bytes: usize) {
    // SAFETY: a block of at least that size that is about to be handed out.
    unsafe { core::ptr::write_bytes(at as *mut u8, 0, bytes) };
}

/// Reads a plain value that the loader put there.
pub(crate) fn load<T: Copy>(from: usize) -> T {
    // SAFETY: part of a loaded object's tables; `T` is a plain structure of
    // integers, valid for any bytes.
    unsafe { (from as *const T).read_unaligned() }
}

/// Whether anything is mapped at an address: in doubt it is, as where a filter of system calls
/// does not let us ask. Other threads may map and unmap.
pub(crate) fn is_mapped(address: usize) -> bool {
    let mut there = 0_u8;
    let page = address & !(PAGE_SIZE - 1);
    let answer = own!(libc::SYS_mincore, page, PAGE_SIZE, &raw mut there);
    answer != -(libc::ENOMEM as Answer)
}

/// Writes one line of bytes to standard error; where that cannot be, it is lost.
pub(crate) fn say(line: &[u8]) {
    ghostmem_os::stop::complain(line);
}

/// Says why, and ends the process.
pub(crate) fn abort(line: &[u8]) -> ! {
    say(line);
    // SAFETY: no preconditions.
    unsafe { libc::abort() }
}
