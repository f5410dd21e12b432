//! LZ4 blocks by the reference C library.
//!
//! Chosen by measurement on 4 KiB pages of mixed real data: it compresses as
//! fast as the Rust port and decompresses 1.3 times faster, and decompression
//! is what a fault waits for (`ghostmem-bench codecs` shows both). Format:
//! `lz4_Block_format.md` of the LZ4 project.

use core::ffi::{c_char, c_int, c_void};

use crate::{Codec, Corrupt, Encoding};

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

pub(crate) const ENCODING: Encoding = Encoding::new(1);

impl Codec for Lz4 {
    fn encoding(&self) -> Encoding {
        ENCODING
    }

    fn state_bytes(&self) -> usize {
        // SAFETY: no preconditions.
        let bytes = unsafe { LZ4_sizeofState() };
        // A size that is none at all is one that no state has.
        usize::try_from(bytes).unwrap_or(usize::MAX)
    }

    fn compress(&self, state: &mut [u64], input: &[u8], out: &mut [u8]) -> Option<usize> {
        if size_of_val(state) < self.state_bytes() {
            return None;
        }
        let size = c_int::try_from(input.len()).ok()?;
        // More room than the largest size is of no use.
        let capacity = c_int::try_from(out.len()).unwrap_or(c_int::MAX);
        // SAFETY: the state is 8-byte aligned and large enough, which was just
        // asked; the source has the size and the destination the capacity given;
        // the function initialises the state itself and touches nothing else.
        let len = unsafe {
            LZ4_compress_fast_extState(
                state.as_mut_ptr().cast(),
                input.as_ptr().cast(),
                out.as_mut_ptr().cast(),
                size,
                capacity,
                1,
            )
        };
        usize::try_from(len).ok().filter(|&len| len > 0)
    }

    /// Yields one block, which must be exactly as large as `out`.
    fn decompress(&self, packed: &[u8], out: &mut [u8]) -> Result<(), Corrupt> {
        let size = c_int::try_from(packed.len()).map_err(|_| Corrupt)?;
        let capacity = c_int::try_from(out.len()).map_err(|_| Corrupt)?;
        // SAFETY: both buffers are as long as said; the "safe" variant never
        // reads or writes outside them, whatever the input.
        let len = unsafe {
            LZ4_decompress_safe(
                packed.as_ptr().cast(),
                out.as_mut_ptr().cast(),
                size,
                capacity,
            )
        };
        if len == capacity {
            Ok(())
        } else {
            Err(Corrupt)
        }
    }
}
