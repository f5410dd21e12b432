//! The one place where the engine goes to the kernel.
//!
//! A program may confine itself by a filter of its system calls (seccomp(2)) that
//! ends it at any it does not name. What the engine needs later is not among those.
//! A filter can tell who calls by the address of the instruction, so the engine's
//! calls are made by instructions of their own, in a page of code that has nothing
//! else:
//!
//! ```text
//!   doorway   mov ...           the number and six arguments
//!             syscall           ◄── the engine's calls
//!   behind    ret
//!   restorer  mov rax, 15       where a fault handler returns to
//!             syscall           ◄── rt_sigreturn(2)
//!   returned  (not reached)
//! ```
//! Whoever installs a filter may put in front of it what lets calls from these two
//! addresses by ([`Doorway`]). That the code lies in whole pages of its own makes it
//! possible to map it a second time, at an address that processes share
//! ([`move_to`]).
//!
//! On other processors than x86-64 the calls are made by libc.

use core::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use crate::error::set_errno;

/// Bytes of the page of code.
pub const DOORWAY_BYTES: usize = 4096;

/// Whether filters of the program's are, or may be, in force.
static CONFINED: AtomicBool = AtomicBool::new(false);

/// Says that system calls other than the doorway's may not be possible any more.
pub fn confine() {
    CONFINED.store(true, Ordering::SeqCst);
}

/// Whether [`confine`] was called.
#[must_use]
pub fn is_confined() -> bool {
    CONFINED.load(Ordering::Relaxed)
}

/// The addresses of the doorway in use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Doorway {
    /// The address behind the instruction that makes the engine's calls: what
    /// `instruction_pointer` of a filter's `struct seccomp_data` says.
    pub behind: usize,
    /// Where a signal handler may return to (`sa_restorer`).
    pub restorer: usize,
    /// The address behind the restorer's instruction.
    pub returned: usize,
}

#[cfg(target_arch = "x86_64")]
mod code {
    use core::arch::global_asm;

    global_asm!(
        ".pushsection .text.ghostmem_doorway,\"ax\",@progbits",
        ".p2align 12, 0xcc",
        ".globl gm_doorway",
        ".hidden gm_doorway",
        ".type gm_doorway,@function",
        "gm_doorway:",
        ".cfi_startproc",
        "mov rax, rdi",
        "mov rdi, rsi",
        "mov rsi, rdx",
        "mov rdx, rcx",
        "mov r10, r8",
        "mov r8, r9",
        "mov r9, [rsp + 8]",
        "syscall",
        ".globl gm_doorway_behind",
        ".hidden gm_doorway_behind",
        "gm_doorway_behind:",
        "ret",
        ".cfi_endproc",
        ".size gm_doorway, . - gm_doorway",
        ".p2align 6, 0xcc",
        // Unwinders and debuggers know a signal's frame by these very bytes.
        ".globl gm_doorway_restorer",
        ".hidden gm_doorway_restorer",
        "gm_doorway_restorer:",
        ".byte 0x48, 0xc7, 0xc0, 0x0f, 0, 0, 0",
        "syscall",
        ".globl gm_doorway_returned",
        ".hidden gm_doorway_returned",
        "gm_doorway_returned:",
        "ud2",
        ".p2align 12, 0xcc",
        ".popsection",
    );

    unsafe extern "C" {
        fn gm_doorway();
        fn gm_doorway_behind();
        fn gm_doorway_restorer();
        fn gm_doorway_returned();
    }

    /// Where it was linked.
    pub(super) fn home() -> usize {
        gm_doorway as *const () as usize
    }

    /// How far behind the start of the page the addresses of a [`super::Doorway`] are.
    pub(super) fn offsets() -> [usize; 3] {
        [
            gm_doorway_behind as *const () as usize,
            gm_doorway_restorer as *const () as usize,
            gm_doorway_returned as *const () as usize,
        ]
        .map(|address| address - home())
    }
}

/// Where the doorway is in use; 0: where it was linked.
static PLACE: AtomicUsize = AtomicUsize::new(0);

/// The address of the page of code as it was linked, to map it again; `None` where
/// there is none.
#[must_use]
pub fn page() -> Option<usize> {
    #[cfg(target_arch = "x86_64")]
    return Some(code::home());
    #[cfg(not(target_arch = "x86_64"))]
    None
}

/// Makes the calls from another mapping of the [`page`] from now on.
///
/// # Safety
/// The mapping has the same bytes, is executable, and stays.
pub unsafe fn move_to(place: usize) {
    PLACE.store(place, Ordering::Release);
}

/// The doorway in use; `None` where libc makes the calls.
#[must_use]
pub fn doorway() -> Option<Doorway> {
    #[cfg(target_arch = "x86_64")]
    {
        let place = match PLACE.load(Ordering::Acquire) {
            0 => code::home(),
            place => place,
        };
        let [behind, restorer, returned] = code::offsets().map(|offset| place + offset);
        Some(Doorway {
            behind,
            restorer,
            returned,
        })
    }
    #[cfg(not(target_arch = "x86_64"))]
    None
}

/// Makes one system call; the answer, or a negative errno. It is no point of thread
/// cancellation, and async-signal-safe.
///
/// # Safety
/// As syscall(2): what the call reads, writes and changes is the caller's to answer for.
pub unsafe fn call(number: usize, args: [usize; 6]) -> isize {
    #[cfg(target_arch = "x86_64")]
    {
        type Way = unsafe extern "C" fn(usize, usize, usize, usize, usize, usize, usize) -> isize;
        let place = match PLACE.load(Ordering::Relaxed) {
            0 => code::home(),
            place => place,
        };
        // SAFETY: the code above, which takes seven numbers, or a copy of it.
        let way = unsafe { core::mem::transmute::<usize, Way>(place) };
        let [a, b, c, d, e, f] = args;
        // SAFETY: the caller's promise.
        unsafe { way(number, a, b, c, d, e, f) }
    }
    #[cfg(not(target_arch = "x86_64"))]
    {
        let [a, b, c, d, e, f] = args;
        // SAFETY: the caller's promise.
        let answer = unsafe { libc::syscall(number as libc::c_long, a, b, c, d, e, f) };
        if answer == -1 {
            -(crate::error::errno() as isize)
        } else {
            answer as isize
        }
    }
}

/// As [`call`], answering as syscall(2) does: -1, and the reason in `errno`.
///
/// # Safety
/// As [`call`].
pub(crate) unsafe fn syscall(number: libc::c_long, args: [usize; 6]) -> isize {
    // SAFETY: the caller's promise.
    let answer = unsafe { call(number as usize, args) };
    if (-4095..0).contains(&answer) {
        set_errno(-answer as i32);
        return -1;
    }
    answer
}

#[cfg(all(test, target_arch = "x86_64"))]
mod tests {
    use super::*;

    #[test]
    fn calls_answer_as_libc_does() {
        // SAFETY: takes nothing.
        let id = unsafe { syscall(libc::SYS_getpid, [0; 6]) };
        assert_eq!(id, std::process::id() as isize);
        // SAFETY: refused.
        let refused = unsafe { syscall(libc::SYS_close, [usize::MAX, 0, 0, 0, 0, 0]) };
        assert_eq!((refused, crate::error::errno()), (-1, libc::EBADF));
    }

    #[test]
    fn six_arguments_arrive() {
        let bytes = DOORWAY_BYTES;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        let args = [
            0,
            bytes,
            libc::PROT_READ as usize,
            flags as usize,
            usize::MAX,
            0,
        ];
        // SAFETY: a fresh mapping at an address of the kernel's choice.
        let at = unsafe { syscall(libc::SYS_mmap, args) };
        assert!(at > 0);
        // An offset that is no multiple of a page is refused: the sixth argument.
        // SAFETY: as above.
        let odd = unsafe { syscall(libc::SYS_mmap, [0, bytes, 1, flags as usize, usize::MAX, 1]) };
        assert_eq!((odd, crate::error::errno()), (-1, libc::EINVAL));
        // SAFETY: mapped above, used by nobody.
        let gone = unsafe { syscall(libc::SYS_munmap, [at as usize, bytes, 0, 0, 0, 0]) };
        assert_eq!(gone, 0);
    }

    #[test]
    fn the_page_has_nothing_else() {
        let page = page().unwrap();
        assert!(page.is_multiple_of(DOORWAY_BYTES));
        let here = doorway().unwrap();
        for address in [here.behind, here.restorer, here.returned] {
            assert!((page..page + 128).contains(&address));
        }
        let code = |at: usize| {
            // SAFETY: bytes of this program's code.
            unsafe { core::slice::from_raw_parts(at as *const u8, 2) }
        };
        assert_eq!(code(here.behind - 2), [0x0f, 0x05]);
        assert_eq!(code(here.returned - 2), [0x0f, 0x05]);
        assert_eq!(code(page + DOORWAY_BYTES - 2), [0xcc, 0xcc]);
    }
}
