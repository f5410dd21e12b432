//! One look at every byte of an object's code, for two things that are found
//! without decoding: where the bytes of a system call instruction stand, and
//! which addresses the long branches may lead to.
//!
//! Bytes that only look like one count as well: a place too many is given up,
//! or decoded and found to be nothing. Short branches do not leave a function
//! and are found by decoding that.

use core::arch::x86_64::{
    __m128i, _mm_and_si128, _mm_cmpeq_epi8, _mm_movemask_epi8, _mm_or_si128, _mm_set_epi64x,
    _mm_set1_epi8,
};

/// The first byte of a system call instruction and of a long conditional jump.
const TWO_BYTES: u8 = 0x0f;
/// The second of a system call instruction, and the upper half of that of a long
/// conditional jump.
const CALL: u8 = 0x05;
const CONDITIONAL: u8 = 0x80;
/// The only byte of a long jump's code.
const JUMP: u8 = 0xe9;
/// Bytes looked at in one go.
const BLOCK: usize = 16;

/// What was found.
#[derive(Debug)]
pub(crate) struct Scan {
    /// Where the code is.
    pub(crate) base: usize,
    /// Where the bytes of a system call instruction stand, ascending addresses.
    pub(crate) calls: Vec<usize>,
    /// One bit for each byte of the code: a long branch may lead there.
    entered: Vec<u64>,
}

impl Scan {
    /// Looks at code that is at `base`.
    pub(crate) fn of(code: &[u8], base: usize) -> Self {
        Self {
            base,
            calls: Vec::new(),
            entered: vec![0; code.len().div_ceil(64)],
        }
        .over(code)
    }

    /// As [`Scan::of`], for calls alone: no branch counts.
    pub(crate) fn for_calls(code: &[u8], base: usize) -> Self {
        Self {
            base,
            calls: Vec::new(),
            entered: Vec::new(),
        }
        .over(code)
    }

    fn over(self, code: &[u8]) -> Self {
        let mut scan = self;
        let mut at = 0;
        // Each block with the byte behind it.
        while let Some(block) = code.get(at..).and_then(<[u8]>::first_chunk) {
            // SAFETY: every x86-64 processor has SSE2.
            let mut starts = unsafe { starts(block) };
            while starts != 0 {
                scan.look(code, at + starts.trailing_zeros() as usize);
                starts &= starts - 1;
            }
            at += BLOCK;
        }
        for at in at..code.len() {
            scan.look(code, at);
        }
        scan
    }

    /// Whether a long branch may lead to an address.
    pub(crate) fn is_entered(&self, address: usize) -> bool {
        let at = address.wrapping_sub(self.base);
        let word = self.entered.get(at / 64);
        word.is_some_and(|word| word & 1 << (at % 64) != 0)
    }

    fn look(&mut self, code: &[u8], at: usize) {
        let operand = match (code[at], code.get(at + 1)) {
            (JUMP, _) => at + 1,
            (TWO_BYTES, Some(&CALL)) => return self.calls.push(self.base + at),
            (TWO_BYTES, Some(second)) if second & 0xf0 == CONDITIONAL => at + 2,
            _ => return,
        };
        let Some(distance) = code.get(operand..).and_then(<[u8]>::first_chunk) else {
            return;
        };
        let distance = i32::from_le_bytes(*distance) as isize;
        let target = (operand + 4).wrapping_add_signed(distance);
        if let Some(word) = self.entered.get_mut(target / 64) {
            *word |= 1 << (target % 64);
        }
    }
}

/// One bit for each byte that what is looked for begins with.
#[target_feature(enable = "sse2")]
fn starts(block: &[u8; BLOCK + 1]) -> u32 {
    let all = |byte: u8| _mm_set1_epi8(byte.cast_signed());
    let (first, second) = (vector(&block[..BLOCK]), vector(&block[1..]));
    let two = _mm_cmpeq_epi8(first, all(TWO_BYTES));
    let call = _mm_cmpeq_epi8(second, all(CALL));
    let conditional = _mm_cmpeq_epi8(_mm_and_si128(second, all(0xf0)), all(CONDITIONAL));
    let jump = _mm_cmpeq_epi8(first, all(JUMP));
    let found = _mm_or_si128(jump, _mm_and_si128(two, _mm_or_si128(call, conditional)));
    _mm_movemask_epi8(found).cast_unsigned()
}

#[target_feature(enable = "sse2")]
fn vector(bytes: &[u8]) -> __m128i {
    let (low, high) = bytes.split_at(BLOCK / 2);
    let half = |bytes: &[u8]| i64::from_le_bytes(bytes.first_chunk().copied().unwrap_or_default());
    _mm_set_epi64x(half(high), half(low))
}
