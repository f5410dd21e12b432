//! Bytes as they are: what does not shrink is stored so.

use crate::{Codec, Corrupt, Encoding};

/// The bytes themselves.
#[derive(Debug, Clone, Copy, Default)]
pub struct Raw;

pub(crate) const ENCODING: Encoding = Encoding::new(0);

impl Codec for Raw {
    fn encoding(&self) -> Encoding {
        ENCODING
    }

    fn state_bytes(&self) -> usize {
        0
    }

    fn compress(&self, _state: &mut [u64], input: &[u8], out: &mut [u8]) -> Option<usize> {
        out.get_mut(..input.len())?.copy_from_slice(input);
        Some(input.len())
    }

    fn decompress(&self, packed: &[u8], out: &mut [u8]) -> Result<(), Corrupt> {
        if packed.len() != out.len() {
            return Err(Corrupt);
        }
        out.copy_from_slice(packed);
        Ok(())
    }
}
