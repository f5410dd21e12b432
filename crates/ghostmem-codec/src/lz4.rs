//! LZ4 blocks by the reference C library.
//!
//! Chosen by measurement on 4 KiB pages of mixed real data: it compresses as
//! fast as the Rust port and decompresses 1.3 times faster, and decompression
//! is what a fault waits for (`ghostmem-bench codecs` shows both). Format:
//! `lz4_Block_format.md` of the LZ4 project.

use core::ffi::{c_char, c_int, c_void};

use crate::{Codec, Corrupt, Encoding, PAGE_BYTES, STATE_WORDS, WORTHWHILE_BYTES};

unsafe extern "C" {
    fn LZ4_sizeofState() -> c_int;
    fn LZ4_compress_fast_extState(
        state: *mut c_void,
        src: *const c_char,
        dst: *mut c_char,
        src_size: c_int,
        dst_capacity: c_int,
        acceleration: c_int,
    ) -> c_int;
    fn LZ4_decompress_safe(
        src: *const c_char,
        dst: *mut c_char,
        src_size: c_int,
        dst_capacity: c_int,
    ) -> c_int;
}

// The symbols come from the `lz4-sys` crate; naming it keeps it linked.
use lz4_sys as _;

/// LZ4, fastest setting.
#[derive(Debug, Clone, Copy, Default)]
pub struct Lz4;

impl Lz4 {
    /// Whether the library's state fits in [`STATE_WORDS`]: asked once, when
    /// a heap is built.
    #[must_use]
    pub fn state_fits() -> bool {
        // SAFETY: no preconditions.
        let bytes = unsafe { LZ4_sizeofState() };
        usize::try_from(bytes).is_ok_and(|bytes| bytes <= STATE_WORDS * 8)
    }
}

impl Codec for Lz4 {
    fn encoding(&self) -> Encoding {
        Encoding::Lz4
    }

    fn compress(
        &self,
        state: &mut [u64; STATE_WORDS],
        page: &[u8; PAGE_BYTES],
        out: &mut [u8; PAGE_BYTES],
    ) -> Option<usize> {
        compress_within(state, page, &mut out[..WORTHWHILE_BYTES])
    }
}

/// Compresses a page into at most `out`'s bytes; how many it took. `None` when
/// it does not fit.
pub fn compress_within(
    state: &mut [u64; STATE_WORDS],
    page: &[u8; PAGE_BYTES],
    out: &mut [u8],
) -> Option<usize> {
    let capacity = c_int::try_from(out.len()).ok()?;
    // SAFETY: the state is 8-byte aligned and large enough (`state_fits`), the
    // source is a whole page and the destination has the capacity given; the
    // function initialises the state itself and touches nothing else.
    let len = unsafe {
        LZ4_compress_fast_extState(
            state.as_mut_ptr().cast(),
            page.as_ptr().cast(),
            out.as_mut_ptr().cast(),
            PAGE_BYTES as c_int,
            capacity,
            1,
        )
    };
    usize::try_from(len).ok().filter(|&len| len > 0)
}

/// Decompresses one block that must yield exactly a page.
///
/// # Errors
/// [`Corrupt`] otherwise; `page` then holds garbage.
pub fn decompress(data: &[u8], page: &mut [u8; PAGE_BYTES]) -> Result<(), Corrupt> {
    let src_size = c_int::try_from(data.len()).map_err(|_| Corrupt)?;
    // SAFETY: both buffers are as long as said; the "safe" variant never
    // reads or writes outside them, whatever the input.
    let len = unsafe {
        LZ4_decompress_safe(
            data.as_ptr().cast(),
            page.as_mut_ptr().cast(),
            src_size,
            PAGE_BYTES as c_int,
        )
    };
    if len == PAGE_BYTES as c_int {
        Ok(())
    } else {
        Err(Corrupt)
    }
}
