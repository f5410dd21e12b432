//! C LZ4 on single pages, the engine's own: the yardstick for data sets and
//! codecs.

use ghostmem_codec::{Codec, lz4 as codec};

/// A compressor with its state, allocated once.
#[derive(Debug)]
pub(crate) struct Lz4 {
    state: Box<[u64]>,
}

impl Lz4 {
    /// Allocates the state.
    pub(crate) fn new() -> Self {
        Self {
            state: vec![0; codec::Lz4.state_words()].into(),
        }
    }

    /// Compresses a page into `dst` at LZ4's default speed; `None` when it does
    /// not fit.
    pub(crate) fn compress(&mut self, page: &[u8], dst: &mut [u8]) -> Option<usize> {
        codec::Lz4.compress(&mut self.state, page, dst)
    }
}

/// Decompresses `src` into a page; `None` for damaged input.
pub(crate) fn decompress(src: &[u8], page: &mut [u8]) -> Option<usize> {
    codec::Lz4.decompress(src, page).ok().map(|()| page.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Proves that a page survives the round trip, that one that grows still
    /// fits, and that damage is noticed.
    #[test]
    fn round_trip() {
        let even: Vec<u8> = (0..4096_u32).map(|i| (i / 7) as u8).collect();
        let mut rng = ghostmem_lab::rng::Rng::new(3);
        let random: Vec<u8> = (0..4096).map(|_| rng.next_u64() as u8).collect();
        let mut packed = [0; 8192];
        for (page, shrinks) in [(even, true), (random, false)] {
            let len = Lz4::new().compress(&page, &mut packed).unwrap();
            assert_eq!(len < 4096, shrinks, "{len}");
            let mut back = [0; 4096];
            assert_eq!(decompress(&packed[..len], &mut back), Some(4096));
            assert_eq!(&back[..], &page[..]);
            assert_eq!(decompress(&packed[..len - 1], &mut back), None);
        }
    }
}
