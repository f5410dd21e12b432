//! Copies to and from addresses that the program passed: one that cannot be
//! used is an answer, not a signal.
//!
//! The kernel answers `EFAULT` for an address it cannot read or write. Copies
//! made in its place must do the same, so the few instructions that touch the
//! program's memory are known by their addresses, each with a place to go on
//! at. A fault there that is no page of ours goes on at that place:
//!
//! ```text
//!   gm_copy ── rep movsb ──► absent ghost page: the engine brings it in, again
//!                      └───► anything else: signals::passed_on asks `landing`
//! ```
//! An access that works costs nothing beside itself.

use core::arch::global_asm;
use core::mem::MaybeUninit;

/// An address that cannot be read or written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct BadAddress;

/// What a touch of the program's memory comes to.
pub(crate) type Touch<T> = Result<T, BadAddress>;

global_asm!(
    // rdi: to, rsi: from, rdx: bytes; returns how many were not copied.
    ".globl gm_copy",
    ".hidden gm_copy",
    ".type gm_copy,@function",
    "gm_copy:",
    ".cfi_startproc",
    "mov rcx, rdx",
    ".globl gm_copy_touch",
    ".hidden gm_copy_touch",
    "gm_copy_touch:",
    "rep movsb",
    ".globl gm_copy_land",
    ".hidden gm_copy_land",
    "gm_copy_land:",
    "mov rax, rcx",
    "ret",
    ".cfi_endproc",
    ".size gm_copy, . - gm_copy",
    // rdi: from; returns the word in rax and 0 in rdx, or 1 in rdx.
    ".globl gm_word",
    ".hidden gm_word",
    ".type gm_word,@function",
    "gm_word:",
    ".cfi_startproc",
    "xor edx, edx",
    ".globl gm_word_touch",
    ".hidden gm_word_touch",
    "gm_word_touch:",
    "mov rax, [rdi]",
    "ret",
    ".globl gm_word_land",
    ".hidden gm_word_land",
    "gm_word_land:",
    "xor eax, eax",
    "mov edx, 1",
    "ret",
    ".cfi_endproc",
    ".size gm_word, . - gm_word",
    // rdi: a word that stays what it is, made writable; returns 0, or 1.
    ".globl gm_open",
    ".hidden gm_open",
    ".type gm_open,@function",
    "gm_open:",
    ".cfi_startproc",
    "xor eax, eax",
    ".globl gm_open_touch",
    ".hidden gm_open_touch",
    "gm_open_touch:",
    "lock or dword ptr [rdi], 0",
    "ret",
    ".globl gm_open_land",
    ".hidden gm_open_land",
    "gm_open_land:",
    "mov eax, 1",
    "ret",
    ".cfi_endproc",
    ".size gm_open, . - gm_open",
);

mod code {
    /// Two registers.
    #[repr(C)]
    pub(super) struct Word {
        pub(super) value: u64,
        pub(super) bad: u64,
    }

    // A thread may be cancelled here: a signal that waited for a page to come back is
    // delivered at the instruction that touches it.
    unsafe extern "C-unwind" {
        pub(super) fn gm_copy(to: usize, from: usize, bytes: usize) -> usize;
        pub(super) fn gm_word(from: usize) -> Word;
        pub(super) fn gm_open(at: usize) -> u32;
    }

    unsafe extern "C" {
        pub(super) fn gm_copy_touch();
        pub(super) fn gm_copy_land();
        pub(super) fn gm_word_touch();
        pub(super) fn gm_word_land();
        pub(super) fn gm_open_touch();
        pub(super) fn gm_open_land();
    }
}

/// Where the instruction at an address goes on when what it touches cannot be
/// had; `None` for every instruction but the ones above. Async-signal-safe.
pub(crate) fn landing(instruction: usize) -> Option<usize> {
    let at = |function: unsafe extern "C" fn()| function as *const () as usize;
    let places = [
        (at(code::gm_copy_touch), at(code::gm_copy_land)),
        (at(code::gm_word_touch), at(code::gm_word_land)),
        (at(code::gm_open_touch), at(code::gm_open_land)),
    ];
    let place = places.iter().find(|(touch, _)| *touch == instruction);
    place.map(|&(_, land)| land)
}

/// Copies `bytes` from one address to another; either may be the program's,
/// ghost memory included. What was copied before a bad address stays.
pub(crate) fn copy(to: usize, from: usize, bytes: usize) -> Touch<()> {
    if copy_some(to, from, bytes) == bytes {
        Ok(())
    } else {
        Err(BadAddress)
    }
}

/// As [`copy`], up to the first bad address; how many bytes.
pub(crate) fn copy_some(to: usize, from: usize, bytes: usize) -> usize {
    // SAFETY: one side is memory of ours of that size; the other is what the
    // program told the kernel to use, and a fault there is caught.
    let left = unsafe { code::gm_copy(to, from, bytes) };
    bytes - left
}

fn word(from: usize) -> Touch<u64> {
    // SAFETY: changes nothing; a fault is caught.
    let word = unsafe { code::gm_word(from) };
    if word.bad == 0 {
        Ok(word.value)
    } else {
        Err(BadAddress)
    }
}

/// Reads a plain value.
pub(crate) fn load<T: Copy>(from: usize) -> Touch<T> {
    let mut value = MaybeUninit::<T>::uninit();
    let place = value.as_mut_ptr();
    let bytes = size_of::<T>();
    if bytes.is_multiple_of(8) {
        for offset in (0..bytes).step_by(8) {
            let part = word(from.wrapping_add(offset))?;
            // SAFETY: within the value, as its length is a multiple of 8.
            let to = unsafe { place.cast::<u8>().add(offset) };
            // SAFETY: eight bytes of the value, of any alignment.
            unsafe { to.cast::<u64>().write_unaligned(part) };
        }
    } else {
        copy(place as usize, from, bytes)?;
    }
    // SAFETY: every byte was written; `T` is a plain structure of integers,
    // valid for any bytes.
    Ok(unsafe { value.assume_init() })
}

/// Writes a plain value.
pub(crate) fn store<T: Copy>(to: usize, value: T) -> Touch<()> {
    copy(to, (&raw const value) as usize, size_of::<T>())
}

/// Brings the page of an aligned 32-bit word in, open for the kernel's stores
/// too.
pub(crate) fn open(at: usize) -> Touch<()> {
    // SAFETY: the value stays what it is, whoever changes it meanwhile; a
    // fault is caught.
    let bad = unsafe { code::gm_open(at & !3) };
    if bad == 0 { Ok(()) } else { Err(BadAddress) }
}

/// Length of the string at an address, its NUL included, at most `most`.
pub(crate) fn string_bytes(from: usize, most: usize) -> Touch<usize> {
    let mut length = 0;
    while length < most {
        // Whole words where none of one can lie on a page that the string
        // does not reach.
        let at = from.wrapping_add(length);
        let shift = at % 8;
        let bytes = word(at - shift)?.to_ne_bytes();
        for &byte in &bytes[shift..] {
            length += 1;
            if byte == 0 || length == most {
                return Ok(length);
            }
        }
    }
    Ok(length)
}
