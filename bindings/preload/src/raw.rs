//! System calls without libc, plain copies, and errors in the kernel's form.
//!
//! libc's own entry points are patched (see [`crate::patch`]); what is made
//! here never comes back to us, takes no lock and is async-signal-safe.

use core::arch::asm;

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
pub(crate) fn syscall(nr: usize, args: [usize; 6]) -> Answer {
    let mut answer = nr as Answer;
    // SAFETY: the x86-64 system call convention; the kernel clobbers rcx and
    // r11 only. Which memory it writes is the caller's business, see above.
    unsafe {
        asm!(
            "syscall",
            inlateout("rax") answer,
            in("rdi") args[0],
            in("rsi") args[1],
            in("rdx") args[2],
            in("r10") args[3],
            in("r8") args[4],
            in("r9") args[5],
            lateout("rcx") _,
            lateout("r11") _,
            options(nostack),
        );
    }
    answer
}

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

/// Copies `bytes` from one address to another. Either may be ghost memory:
/// an absent page comes back first, as for any load or store.
///
/// A wrong address given by the program ends in its SIGSEGV here, where the
/// kernel would have said EFAULT.
pub(crate) fn copy(to: usize, from: usize, bytes: usize) {
    // SAFETY: one side is a buffer of ours of that size, the other is what
    // the program told the kernel to read or write; they do not overlap, as
    // ours is a mapping of its own.
    unsafe {
        core::ptr::copy_nonoverlapping(from as *const u8, to as *mut u8, bytes);
    }
}

/// Makes a block's bytes zero.
pub(crate) fn clear(at: usize, bytes: usize) {
    // SAFETY: a block of at least that size that is about to be handed out.
    unsafe { core::ptr::write_bytes(at as *mut u8, 0, bytes) };
}

/// Reads a plain value at an address the program passed.
pub(crate) fn load<T: Copy>(from: usize) -> T {
    // SAFETY: the program told the kernel to read a `T` there; `T` is a plain
    // structure of integers, valid for any bytes.
    unsafe { (from as *const T).read_unaligned() }
}

/// Writes a plain value at an address the program passed.
pub(crate) fn store<T: Copy>(to: usize, value: T) {
    // SAFETY: the program told the kernel to write a `T` there.
    unsafe { (to as *mut T).write_unaligned(value) };
}

/// Length of the string at an address, its NUL included, at most `most`.
pub(crate) fn string_bytes(from: usize, most: usize) -> usize {
    let mut length = 0;
    while length < most {
        length += 1;
        if load::<u8>(from + length - 1) == 0 {
            break;
        }
    }
    length
}

/// Writes one line of bytes to standard error.
pub(crate) fn say(line: &[u8]) {
    let _unheard = call!(libc::SYS_write, 2, line.as_ptr(), line.len());
}

/// Says why, and ends the process.
pub(crate) fn abort(line: &[u8]) -> ! {
    say(line);
    // SAFETY: no preconditions.
    unsafe { libc::abort() }
}
