//! Touching ghost pages from the engine: copies in and out.

use crate::map::PAGE_SIZE;

/// What an installing call did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Installed {
    /// This many bytes, from the start of the range, are now mapped by us.
    Bytes(usize),
    /// The first page of the range was mapped already.
    Exists,
}

/// Copies the page at `address` into `out`.
///
/// # Safety
/// `address` must be page aligned, and the page must stay mapped and readable
/// for the whole call. Stores by other threads must be impossible (the page
/// is write-protected) or harmless: the bytes are then a mixture, never
/// undefined behaviour of this function, as the copy is made by one opaque
/// instruction sequence.
pub unsafe fn read_page(address: usize, out: &mut [u8; PAGE_SIZE]) {
    #[cfg(target_arch = "x86_64")]
    {
        // SAFETY: `rep movsb` copies exactly PAGE_SIZE bytes from readable
        // memory (the caller's promise) into `out`; the direction flag is
        // clear by the ABI.
        unsafe {
            core::arch::asm!(
                "rep movsb",
                inout("rcx") PAGE_SIZE => _,
                inout("rsi") address => _,
                inout("rdi") out.as_mut_ptr() => _,
                options(nostack, preserves_flags),
            );
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    {
        let from = address as *const u64;
        for (index, chunk) in out.as_chunks_mut::<8>().0.iter_mut().enumerate() {
            // SAFETY: inside the page, aligned.
            let word = unsafe { from.add(index).read_volatile() };
            *chunk = word.to_ne_bytes();
        }
    }
}
