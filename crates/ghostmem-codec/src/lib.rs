//! Bytes to fewer bytes.
//!
//! A page is first *classified*: one 32-bit value all over takes no slot at
//! all. Everything else goes through a [`Codec`], which must be lossless for
//! every input, allocate nothing and keep all its state in memory the caller
//! lends: it runs inside fault handlers.
//!
//! The only `unsafe` here is the call into the C library, in [`lz4`].

pub mod lz4;

/// Bytes of a page.
pub const PAGE_BYTES: usize = 4096;

/// Words of state a codec may use; all-zero words are a valid initial state.
pub const STATE_WORDS: usize = 2560;

/// Largest compressed page worth storing as such. Above it, the page is
/// stored raw: a slot so large saves less than one part in sixteen, and a raw
/// page needs no decompression.
pub const WORTHWHILE_BYTES: usize = PAGE_BYTES - PAGE_BYTES / 16;

/// How the bytes of a slot are encoded. The number is stored with the slot
/// and must never change its meaning.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Encoding {
    /// The page itself.
    Raw = 0,
    /// One LZ4 block.
    Lz4 = 1,
}

impl Encoding {
    /// The encoding with this number.
    #[must_use]
    pub const fn from_id(id: u8) -> Option<Self> {
        match id {
            0 => Some(Self::Raw),
            1 => Some(Self::Lz4),
            _ => None,
        }
    }
}

/// A slot's bytes are not what a codec wrote.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Corrupt;

impl core::fmt::Display for Corrupt {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("compressed page is corrupt")
    }
}

impl core::error::Error for Corrupt {}

/// A lossless page compressor that never allocates.
pub trait Codec {
    /// How its output is marked.
    fn encoding(&self) -> Encoding;

    /// Compresses `page` into `out`; the number of bytes used, or `None` when
    /// the result would not fit in [`WORTHWHILE_BYTES`].
    fn compress(
        &self,
        state: &mut [u64; STATE_WORDS],
        page: &[u8; PAGE_BYTES],
        out: &mut [u8; PAGE_BYTES],
    ) -> Option<usize>;
}

/// Restores a page from the bytes of its slot.
///
/// # Errors
/// [`Corrupt`] when the bytes are not exactly one page's worth.
pub fn decode(id: u8, data: &[u8], page: &mut [u8; PAGE_BYTES]) -> Result<(), Corrupt> {
    match Encoding::from_id(id) {
        Some(Encoding::Raw) => {
            let whole: &[u8; PAGE_BYTES] = data.try_into().map_err(|_| Corrupt)?;
            page.copy_from_slice(whole);
            Ok(())
        }
        Some(Encoding::Lz4) => lz4::decompress(data, page),
        None => Err(Corrupt),
    }
}

/// The 32-bit value that fills the whole page, if one does.
///
/// Cheap on ordinary pages: the first difference ends it.
#[must_use]
pub fn fill_pattern(page: &[u8; PAGE_BYTES]) -> Option<u32> {
    let (words, _) = page.as_chunks::<8>();
    let first = u64::from_ne_bytes(words[0]);
    if first as u32 != (first >> 32) as u32 {
        return None;
    }
    // The last word is the likeliest to differ (a page tail of zeros behind a
    // header and the reverse are the common near misses).
    if u64::from_ne_bytes(words[words.len() - 1]) != first {
        return None;
    }
    words
        .iter()
        .all(|w| u64::from_ne_bytes(*w) == first)
        .then_some(first as u32)
}

/// Fills a page with a 32-bit value.
pub fn fill(pattern: u32, page: &mut [u8; PAGE_BYTES]) {
    if pattern == 0 {
        page.fill(0);
        return;
    }
    for word in page.as_chunks_mut::<4>().0 {
        *word = pattern.to_ne_bytes();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn patterns_are_found_exactly() {
        let mut page = [0_u8; PAGE_BYTES];
        assert_eq!(fill_pattern(&page), Some(0));
        for pattern in [1_u32, 0x0101_0101, u32::MAX, 0xDEAD_BEEF] {
            fill(pattern, &mut page);
            assert_eq!(fill_pattern(&page), Some(pattern));
            for at in [0, 5, 2048, 4095] {
                page[at] ^= 1;
                assert_eq!(
                    fill_pattern(&page),
                    None,
                    "a difference at byte {at} was missed"
                );
                page[at] ^= 1;
            }
        }
    }

    #[test]
    fn unknown_encodings_and_wrong_lengths_are_corrupt() {
        let mut page = [0; PAGE_BYTES];
        assert_eq!(decode(9, &[0; 8], &mut page), Err(Corrupt));
        assert_eq!(
            decode(Encoding::Raw as u8, &[0; 8], &mut page),
            Err(Corrupt)
        );
        assert_eq!(
            decode(Encoding::Lz4 as u8, &[0xFF; 40], &mut page),
            Err(Corrupt)
        );
        assert_eq!(decode(Encoding::Lz4 as u8, &[], &mut page), Err(Corrupt));
    }

    fn round_trip(page: &[u8; PAGE_BYTES]) {
        let mut state = [0; STATE_WORDS];
        let mut out = [0; PAGE_BYTES];
        // Twice with the same state: no page may leak into the next.
        for _ in 0..2 {
            if let Some(len) = lz4::Lz4.compress(&mut state, page, &mut out) {
                assert!(len <= WORTHWHILE_BYTES);
                let mut back = [0xAA; PAGE_BYTES];
                decode(Encoding::Lz4 as u8, &out[..len], &mut back).unwrap();
                assert!(back == *page);
            }
        }
    }

    proptest! {
        #[test]
        fn lz4_is_lossless(seed in any::<u64>(), alphabet in 1_u64..256, run in 1_usize..64) {
            let mut page = [0_u8; PAGE_BYTES];
            let mut state = seed | 1;
            let mut at = 0;
            while at < PAGE_BYTES {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                let byte = ((state >> 33) % alphabet) as u8;
                let len = (1 + (state >> 50) as usize % run).min(PAGE_BYTES - at);
                page[at..at + len].fill(byte);
                at += len;
            }
            round_trip(&page);
        }

        #[test]
        fn damaged_blocks_never_panic_and_never_overrun(
            bytes in proptest::collection::vec(any::<u8>(), 0..4096)
        ) {
            let mut page = [0; PAGE_BYTES];
            let _either_way = decode(Encoding::Lz4 as u8, &bytes, &mut page);
        }
    }
}
