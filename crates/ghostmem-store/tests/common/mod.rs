//! What several test files share: a seeded generator, payloads that carry
//! their own proof, and page sizes like those of compressed real memory.
#![allow(dead_code, reason = "not every test file uses everything")]

/// SplitMix64: small, seeded, good enough to drive a test.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// A number below `bound`.
    pub(crate) fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }
}

/// The sizes LZ4 makes of real pages: a wide spread of mean 1370 bytes, one
/// page in ten incompressible. `drift`, 0..=100, moves the weight from small
/// pages (text, sparse) to large ones (machine code).
pub(crate) fn page_bytes(random: &mut Random, drift: usize) -> usize {
    match random.below(100) {
        0..10 => 4096,
        10..25 => 40 + random.below(200),
        roll => {
            let span = if roll < 25 + drift * 75 / 100 {
                (1400, 2200)
            } else {
                (300, 1300)
            };
            span.0 + random.below(span.1)
        }
    }
}

/// A payload that only this owner, length and version can have.
pub(crate) fn payload(owner: u64, version: u64, len: usize) -> Vec<u8> {
    let mut random = Random(owner << 20 ^ version << 3 ^ len as u64);
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        bytes.extend_from_slice(&random.next().to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}
