//! System calls by libc's names, with libc's answers, made by the [doorway].
//!
//! What the engine calls once a heap is in use goes this way: a program's filter of
//! system calls may forbid the same to libc. None is a point of thread cancellation.
//!
//! [doorway]: crate::doorway

/// Makes a call by number, with as many arguments as are given, each a number or a
/// pointer. As `doorway::syscall`, and as unsafe.
macro_rules! syscall {
    ($number:expr $(, $argument:expr)* $(,)?) => {{
        let given = [$($argument as usize),*];
        let mut args = [0_usize; 6];
        args[..given.len()].copy_from_slice(&given);
        $crate::doorway::syscall($number, args) as libc::c_long
    }};
}
pub(crate) use syscall;

macro_rules! functions {
    ($($name:ident($($argument:ident: $type:ty),*) -> $answer:ty, $number:ident;)*) => {$(
        /// As the manual page of this name (section 2).
        ///
        /// # Safety
        /// As libc's.
        pub unsafe fn $name($($argument: $type),*) -> $answer {
            let args = [$($argument as usize),*];
            let mut six = [0_usize; 6];
            six[..args.len()].copy_from_slice(&args);
            // SAFETY: the caller's promise.
            let answer = unsafe { crate::doorway::syscall(libc::$number, six) };
            answer as $answer
        }
    )*};
}

functions! {
    madvise(at: *mut libc::c_void, len: usize, advice: i32) -> i32, SYS_madvise;
    mprotect(at: *mut libc::c_void, len: usize, access: i32) -> i32, SYS_mprotect;
    munmap(at: *mut libc::c_void, len: usize) -> i32, SYS_munmap;
    mincore(at: *mut libc::c_void, len: usize, out: *mut u8) -> i32, SYS_mincore;
    mlock(at: *const libc::c_void, len: usize) -> i32, SYS_mlock;
    mlock2(at: *const libc::c_void, len: usize, flags: libc::c_uint) -> i32, SYS_mlock2;
    munlock(at: *const libc::c_void, len: usize) -> i32, SYS_munlock;
    memfd_create(name: *const libc::c_char, flags: libc::c_uint) -> i32, SYS_memfd_create;
    ftruncate(file: i32, len: libc::off_t) -> i32, SYS_ftruncate;
    mmap(at: *mut libc::c_void, len: usize, access: i32, flags: i32, file: i32, from: libc::off_t)
        -> *mut libc::c_void, SYS_mmap;
}
