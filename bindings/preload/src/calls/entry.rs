//! From a redirected instruction to [`hook`](super::hook), and back with every register as
//! after a system call.

use core::arch::global_asm;

use super::hook;

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
    "sub rsp, 400",
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
    "mov qword ptr [rsp + 72], 0",
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
    // No mark yet.
    "mov qword ptr [rsp + 336], 0",
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
    // The kernel changes r11 in any case.
    "mov r11, [rsp + 72]",
    "test r11, r11",
    "jnz 3f",
    "mov rsp, rbp",
    ".cfi_def_cfa rsp, 144",
    "pop rbp",
    ".cfi_restore rbp",
    ".cfi_def_cfa_offset 136",
    "lea rsp, [rsp + 136]",
    ".cfi_def_cfa_offset 0",
    "jmp rcx",
    // A child with a stack of its own.
    "3:",
    ".cfi_def_cfa rbp, 144",
    ".cfi_offset rbp, -144",
    "mov rbp, [rbp]",
    "mov rsp, r11",
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
