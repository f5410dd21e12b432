//! The program's system calls that concern ghost memory.
//!
//! The patched places of libc (see [`crate::patch`]) jump to [`entry`] with
//! the registers as the kernel would get them. [`hook`] makes the call in the
//! program's name, with ordinary memory in place of ghost buffers, or lets it
//! happen as it is. Calls of the engine's own threads and code pass untouched.
//!
//! This runs wherever the program makes system calls: in signal handlers, on
//! small stacks, between vfork and exec. It allocates nothing from any heap,
//! takes no lock, and keeps its locals small.

mod data;
mod memory;
mod messages;
mod misc;
mod spawn;
pub(crate) mod table;

use core::arch::global_asm;

use crate::bounce::Lease;
use crate::raw::{self, Answer, failed, load, store};
use crate::{descriptors, ghost, objects, signals, thread};
use table::{Length, Pointer};

/// A system call as it arrived. The order of the fields is known to [`entry`].
#[repr(C)]
#[derive(Debug)]
pub(crate) struct Call {
    pub(crate) number: usize,
    pub(crate) args: [usize; 6],
    resume: usize,
    /// The stack pointer at the call.
    stack: usize,
}

/// What becomes of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Done {
    /// Let it happen, in its place.
    Asis,
    /// It was made: this is the answer.
    With(Answer),
}

/// A negative errno.
pub(crate) const fn error(errno: i32) -> Done {
    Done::With(-(errno as isize))
}

global_asm!(
    // In: the registers of a system call; rcx: the address after it.
    // Out: all of them as after the call, or as before it at rcx - 2.
    ".globl gm_entry",
    ".hidden gm_entry",
    ".type gm_entry,@function",
    "gm_entry:",
    ".cfi_startproc",
    // Not a call: nothing was pushed, and the caller may use the red zone.
    ".cfi_def_cfa rsp, 0",
    "lea rsp, [rsp - 128]",
    ".cfi_def_cfa_offset 128",
    "push rcx",
    ".cfi_def_cfa_offset 136",
    ".cfi_offset rip, -136",
    "push rbp",
    ".cfi_def_cfa_offset 144",
    ".cfi_offset rbp, -144",
    "mov rbp, rsp",
    ".cfi_def_cfa rbp, 144",
    "sub rsp, 336",
    "and rsp, -64",
    "mov [rsp + 0], rax",
    "mov [rsp + 8], rdi",
    "mov [rsp + 16], rsi",
    "mov [rsp + 24], rdx",
    "mov [rsp + 32], r10",
    "mov [rsp + 40], r8",
    "mov [rsp + 48], r9",
    "mov [rsp + 56], rcx",
    "lea rcx, [rbp + 144]",
    "mov [rsp + 64], rcx",
    // The kernel keeps vector registers, so libc may have some in use.
    "movaps [rsp + 80], xmm0",
    "movaps [rsp + 96], xmm1",
    "movaps [rsp + 112], xmm2",
    "movaps [rsp + 128], xmm3",
    "movaps [rsp + 144], xmm4",
    "movaps [rsp + 160], xmm5",
    "movaps [rsp + 176], xmm6",
    "movaps [rsp + 192], xmm7",
    "movaps [rsp + 208], xmm8",
    "movaps [rsp + 224], xmm9",
    "movaps [rsp + 240], xmm10",
    "movaps [rsp + 256], xmm11",
    "movaps [rsp + 272], xmm12",
    "movaps [rsp + 288], xmm13",
    "movaps [rsp + 304], xmm14",
    "movaps [rsp + 320], xmm15",
    "cld",
    "mov rdi, rsp",
    "call {hook}",
    "movaps xmm0, [rsp + 80]",
    "movaps xmm1, [rsp + 96]",
    "movaps xmm2, [rsp + 112]",
    "movaps xmm3, [rsp + 128]",
    "movaps xmm4, [rsp + 144]",
    "movaps xmm5, [rsp + 160]",
    "movaps xmm6, [rsp + 176]",
    "movaps xmm7, [rsp + 192]",
    "movaps xmm8, [rsp + 208]",
    "movaps xmm9, [rsp + 224]",
    "movaps xmm10, [rsp + 240]",
    "movaps xmm11, [rsp + 256]",
    "movaps xmm12, [rsp + 272]",
    "movaps xmm13, [rsp + 288]",
    "movaps xmm14, [rsp + 304]",
    "movaps xmm15, [rsp + 320]",
    "mov rcx, [rsp + 56]",
    "test eax, eax",
    "mov rax, [rsp + 0]",
    "mov rdi, [rsp + 8]",
    "mov rsi, [rsp + 16]",
    "mov rdx, [rsp + 24]",
    "mov r10, [rsp + 32]",
    "mov r8, [rsp + 40]",
    "mov r9, [rsp + 48]",
    "jnz 2f",
    "sub rcx, 2",
    "2:",
    "mov rsp, rbp",
    ".cfi_def_cfa rsp, 144",
    "pop rbp",
    ".cfi_restore rbp",
    ".cfi_def_cfa_offset 136",
    "lea rsp, [rsp + 136]",
    ".cfi_def_cfa_offset 0",
    "jmp rcx",
    ".cfi_endproc",
    ".size gm_entry, . - gm_entry",
    hook = sym hook,
);

/// Where the stubs jump to.
pub(crate) fn entry_address() -> usize {
    unsafe extern "C" {
        fn gm_entry();
    }
    gm_entry as *const () as usize
}

/// Decides about one call; 1 when `number` holds the answer.
///
/// Unwinds where the program's thread is cancelled in a blocking call.
extern "C-unwind" fn hook(call: &mut Call) -> u32 {
    let thread = thread::current();
    if !ghost::is_on() {
        return 0;
    }
    let done = if thread.inside.get() == 0 {
        handle(call)
    } else if matches!(call.number, 56 | 57) && thread.forking.get() != 0 {
        spawn::fork(call.number, call.args)
    } else if call.number == 13 {
        signals::engine_action(call.args).map_or(Done::Asis, Done::With)
    } else if call.number == 14 {
        signals::engine_mask(call.args).map_or(Done::Asis, Done::With)
    } else {
        Done::Asis
    };
    match done {
        Done::Asis => 0,
        Done::With(answer) => {
            call.number = answer as usize;
            1
        }
    }
}

/// Memory calls that the engine makes, through libc functions that are nothing
/// but the system call: their return address is on top of the stack. The
/// engine's calls are marked by the thread's state almost always; what is left
/// is what the small-object allocator gives back when threads and the process
/// end.
fn is_from_us(call: &Call) -> bool {
    matches!(call.number, 10 | 11 | 28 | 440) && objects::is_ours(load(call.stack))
}

fn handle(call: &Call) -> Done {
    let (number, args) = (call.number, call.args);
    if is_from_us(call) {
        return Done::Asis;
    }
    match number {
        13 => signals::action(args),
        14 => signals::mask(args),
        131 => signals::stack(args),
        130 => misc::suspend(args),
        270 => misc::pselect(args),
        271 => misc::ppoll(args),
        281 | 441 => misc::masked_wait(number, args),
        table::CLONE | 57 | 435 => spawn::raw_fork(number, args),
        59 => spawn::execve(args, None),
        322 => spawn::execve(args, Some(())),
        231 => {
            crate::report::at_exit();
            Done::Asis
        }
        3 => descriptors::close(args),
        33 | 292 => descriptors::replace(args),
        436 => descriptors::close_range(args),
        // fstat (also as newfstatat and statx of nothing), dup, fcntl
        5 | 32 | 72 | 262 | 332 if descriptors::is_ours(args[0]) => error(libc::EBADF),
        78 | 217 => descriptors::list(number, args),
        9 => crate::mappings::map(args),
        151 => memory::lock_all(),
        _ if !kernel_is_blind() => memory::sighted(number, args),
        // What the kernel does on its own cannot be given stand-ins. Programs that
        // can do without are told what older kernels tell them.
        table::URING_SETUP => error(libc::ENOSYS),
        0 | 1 | 17 | 18 => data::plain(number, args),
        19 | 20 | 295 | 296 | 327 | 328 => data::vectored(number, args),
        44 | 45 => messages::addressed(number, args),
        46 | 47 => messages::message(number, args),
        299 | 307 => messages::many(number, args),
        10 | 11 | 25 | 26 | 28 | 149 | 150 | 325 | 329 => memory::advised(number, args),
        16 => misc::ioctl(args),
        72 => misc::fcntl(args),
        157 => misc::prctl(args),
        202 => misc::futex(args),
        _ => match table::plain(number) {
            Some(pointers) => with_copies(number, args, pointers),
            None => misc::unknown(number, args),
        },
    }
}

/// Whether system calls cannot wait for absent pages here.
fn kernel_is_blind() -> bool {
    crate::start::kernel_is_blind()
}

/// Makes a call with ordinary memory in place of its ghost pointers.
pub(crate) fn with_copies(number: usize, args: [usize; 6], pointers: &[Pointer]) -> Done {
    let ghosts = pointers
        .iter()
        .filter(|pointer| ghost::is_ghost(args[pointer.argument()]));
    let mut room = 0_usize;
    for pointer in ghosts.clone() {
        let Some(bytes) = length_of(*pointer, args) else {
            return error(libc::EFAULT);
        };
        room = room.saturating_add(bytes).saturating_add(64);
    }
    if room == 0 {
        return Done::Asis;
    }
    let Some(mut lease) = Lease::new(room) else {
        return error(libc::ENOMEM);
    };
    let mut passed = args;
    let mut lengths = [0; 6];
    for pointer in ghosts.clone() {
        let argument = pointer.argument();
        let bytes = length_of(*pointer, args).unwrap_or(0);
        let Some(stand_in) = lease.carve(bytes) else {
            return error(libc::ENOMEM);
        };
        raw::copy(stand_in, args[argument], bytes);
        passed[argument] = stand_in;
        lengths[argument] = bytes;
    }
    let answer = raw::syscall(number, passed);
    for pointer in ghosts {
        let argument = pointer.argument();
        let written = match *pointer {
            Pointer::Text(_) | Pointer::In(..) => 0,
            Pointer::Out(..) if failed(answer) => 0,
            Pointer::Out(..) | Pointer::Both(..) => lengths[argument],
            Pointer::Filled(_, _, unit) => usize::try_from(answer).unwrap_or(0) * unit,
        };
        raw::copy(
            args[argument],
            passed[argument],
            written.min(lengths[argument]),
        );
    }
    Done::With(answer)
}

/// How many bytes a pointer argument stands for; `None` when nothing sensible.
fn length_of(pointer: Pointer, args: [usize; 6]) -> Option<usize> {
    let length = match pointer {
        // The kernel refuses longer ones than PATH_MAX; mount's data and
        // memfd's names are shorter.
        Pointer::Text(argument) => return Some(raw::string_bytes(args[argument], 4097)),
        Pointer::In(_, length)
        | Pointer::Out(_, length)
        | Pointer::Both(_, length)
        | Pointer::Filled(_, length, _) => length,
    };
    let bytes = match length {
        Length::Bytes(bytes) => bytes,
        Length::Argument(argument) => args[argument],
        Length::Times(argument, bytes) => args[argument].checked_mul(bytes)?,
        Length::At(0) => return None,
        Length::At(argument) if args[argument] == 0 => 0,
        Length::At(argument) => load::<u32>(args[argument]) as usize,
        Length::Set(argument) => args[argument].div_ceil(64) * 8,
        Length::Pages(argument) => args[argument].div_ceil(4096),
    };
    // More than any block has is a mistake the kernel is to answer.
    (bytes <= isize::MAX as usize).then_some(bytes)
}

/// Copies a structure in, if there is one.
pub(crate) fn load_if<T: Copy>(address: usize) -> Option<T> {
    (address != 0).then(|| load(address))
}

/// Copies a structure out, if it is wanted.
pub(crate) fn store_if<T: Copy>(address: usize, value: T) {
    if address != 0 {
        store(address, value);
    }
}
