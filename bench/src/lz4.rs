//! C LZ4 on single pages: the yardstick for data sets and codecs.
//!
//! Unsafe room: two foreign functions behind a safe type.

use std::ffi::{c_char, c_int, c_void};

use lz4_sys::LZ4_decompress_safe;

// Exported by the library that `lz4-sys` links, missing from its bindings.
unsafe extern "C" {
    fn LZ4_sizeofState() -> c_int;
    fn LZ4_compress_fast_extState(
        state: *mut c_void,
        src: *const c_char,
        dst: *mut c_char,
        src_len: c_int,
        dst_capacity: c_int,
        acceleration: c_int,
    ) -> c_int;
}

/// A compressor with its state, allocated once.
#[derive(Debug)]
pub(crate) struct Lz4 {
    state: Vec<u64>,
}

impl Lz4 {
    /// Allocates the state.
    pub(crate) fn new() -> Self {
        // SAFETY: takes nothing, returns a constant.
        let bytes = unsafe { LZ4_sizeofState() };
        Self {
            state: vec![0; usize::try_from(bytes).unwrap_or(0).div_ceil(8)],
        }
    }

    /// Compresses `src` into `dst` at LZ4's default speed; `None` when it does
    /// not fit.
    pub(crate) fn compress(&mut self, src: &[u8], dst: &mut [u8]) -> Option<usize> {
        let src_len = c_int::try_from(src.len()).ok()?;
        let capacity = c_int::try_from(dst.len()).ok()?;
        // SAFETY: the state has the size the library asked for and an
        // alignment of 8; both lengths are those of the slices.
        let written = unsafe {
            LZ4_compress_fast_extState(
                self.state.as_mut_ptr().cast(),
                src.as_ptr().cast(),
                dst.as_mut_ptr().cast(),
                src_len,
                capacity,
                1,
            )
        };
        usize::try_from(written).ok().filter(|&len| len > 0)
    }
}

/// Decompresses `src` into `dst`; `None` for damaged input.
pub(crate) fn decompress(src: &[u8], dst: &mut [u8]) -> Option<usize> {
    let src_len = c_int::try_from(src.len()).ok()?;
    let capacity = c_int::try_from(dst.len()).ok()?;
    // SAFETY: both lengths are those of the slices; the function checks the
    // input against them.
    let written = unsafe {
        LZ4_decompress_safe(
            src.as_ptr().cast(),
            dst.as_mut_ptr().cast(),
            src_len,
            capacity,
        )
    };
    usize::try_from(written).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Proves that a page survives the round trip, and that damage is noticed.
    #[test]
    fn round_trip() {
        let page: Vec<u8> = (0..4096_u32).map(|i| (i / 7) as u8).collect();
        let mut packed = [0; 8192];
        let len = Lz4::new().compress(&page, &mut packed).unwrap();
        assert!(len < 4096);
        let mut back = [0; 4096];
        assert_eq!(decompress(&packed[..len], &mut back), Some(4096));
        assert_eq!(&back[..], &page[..]);
        assert_eq!(decompress(&packed[..len], &mut back[..100]), None);
    }
}
