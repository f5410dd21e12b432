//! Bytes to fewer bytes.
//!
//! A page is first *classified*: one 32-bit value all over takes no slot at
//! all. Everything else goes through a [`Codec`], which must be lossless for
//! every input, allocate nothing and keep all its state in memory the caller
//! lends: it runs inside fault handlers.
//!
//! A codec is a value. Its file holds the code and its [`Encoding`], its row in
//! the table `codecs!` makes it a variant of [`AnyCodec`].
//! Nobody else writes an encoding: callers choose a codec once, and ask the value
//! for its state and its encoding. The suite in `tests/conformance.rs` runs for every row.
//!
//! The only `unsafe` here is the call into the C library, in [`lz4`].

pub mod lz4;
pub mod raw;

/// Bytes of a page.
pub const PAGE_SIZE: usize = 4096;

/// Largest compressed page worth storing as such. Above it, the page is
/// stored raw: a slot so large saves less than one part in sixteen, and a raw
/// page needs no decompression.
pub const WORTHWHILE_BYTES: usize = PAGE_SIZE - PAGE_SIZE / 16;

/// Encodings there can be: a slot in memory has four bits for one.
const ENCODINGS: u8 = 16;

/// How the bytes of a slot are encoded. The number is stored with the slot and
/// never changes its meaning. Only a codec makes one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Encoding(u8);

impl Encoding {
    /// The encoding with this number, for the codec that owns the number.
    const fn new(id: u8) -> Self {
        assert!(id < ENCODINGS, "a slot has no room for this number");
        Self(id)
    }

    /// The number, as it is stored.
    #[must_use]
    pub const fn id(self) -> u8 {
        self.0
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

/// A lossless compressor that never allocates and never panics.
pub trait Codec {
    /// How its output is marked.
    fn encoding(&self) -> Encoding;

    /// Bytes of state that [`compress`](Codec::compress) works with.
    fn state_bytes(&self) -> usize;

    /// The same in words of eight bytes, rounded up.
    fn state_words(&self) -> usize {
        self.state_bytes().div_ceil(size_of::<u64>())
    }

    /// Compresses `input` into the front of `out`; the number of bytes used, or
    /// `None` when they do not fit. Room for twice the input and 64 bytes more fits any.
    ///
    /// `state` has at least [`state_words`](Codec::state_words) words; with fewer
    /// nothing is compressed. All-zero words are a valid state, and so is what
    /// any codec left there.
    fn compress(&self, state: &mut [u64], input: &[u8], out: &mut [u8]) -> Option<usize>;

    /// Restores what was compressed: exactly `out.len()` bytes.
    ///
    /// # Errors
    /// [`Corrupt`] when `packed` is anything else; `out` then holds garbage.
    fn decompress(&self, packed: &[u8], out: &mut [u8]) -> Result<(), Corrupt>;
}

macro_rules! codecs {
    ($($(#[$text:meta])* $name:ident = $module:ident),+ $(,)?) => {
        /// One of the codecs of this crate.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum AnyCodec {
            $($(#[$text])* $name),+
        }

        impl AnyCodec {
            /// Every codec there is.
            pub const ALL: &[Self] = &[$(Self::$name),+];
        }

        impl Codec for AnyCodec {
            #[inline]
            fn encoding(&self) -> Encoding {
                match self {
                    $(Self::$name => $module::ENCODING),+
                }
            }

            fn state_bytes(&self) -> usize {
                match self {
                    $(Self::$name => $module::$name.state_bytes()),+
                }
            }

            #[inline]
            fn compress(&self, state: &mut [u64], input: &[u8], out: &mut [u8]) -> Option<usize> {
                match self {
                    $(Self::$name => $module::$name.compress(state, input, out)),+
                }
            }

            #[inline]
            fn decompress(&self, packed: &[u8], out: &mut [u8]) -> Result<(), Corrupt> {
                match self {
                    $(Self::$name => $module::$name.decompress(packed, out)),+
                }
            }
        }

        /// Restores the bytes of a slot whose encoding has the number `id`: exactly
        /// `out.len()` of them.
        ///
        /// # Errors
        /// [`Corrupt`] when no codec has that number, or `data` is not what it wrote
        /// for so many bytes.
        #[inline]
        pub fn decode(id: u8, data: &[u8], out: &mut [u8]) -> Result<(), Corrupt> {
            // A number that two codecs have is an unreachable pattern.
            #[deny(unreachable_patterns)]
            match Encoding(id) {
                $($module::ENCODING => $module::$name.decompress(data, out),)+
                _ => Err(Corrupt),
            }
        }
    };
}

codecs! {
    /// The bytes themselves.
    Raw = raw,
    /// One LZ4 block, fastest setting.
    Lz4 = lz4,
}

impl AnyCodec {
    /// Words of state with which each of the codecs works.
    #[must_use]
    pub fn state_words_most() -> usize {
        Self::ALL
            .iter()
            .map(Codec::state_words)
            .max()
            .unwrap_or_default()
    }
}

/// The 32-bit value that fills the whole page, if one does.
///
/// Cheap on ordinary pages: the first difference ends it.
#[must_use]
pub fn fill_pattern(page: &[u8; PAGE_SIZE]) -> Option<u32> {
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
pub fn fill(pattern: u32, page: &mut [u8; PAGE_SIZE]) {
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

    #[test]
    fn patterns_are_found_exactly() {
        let mut page = [0_u8; PAGE_SIZE];
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
}
