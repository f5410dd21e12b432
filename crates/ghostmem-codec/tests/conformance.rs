//! What every codec keeps to, tried on each of them.
#![allow(clippy::unwrap_used, reason = "a test may")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::collections::HashSet;

use ghostmem_codec::{
    AnyCodec, Codec, Corrupt, PAGE_SIZE, WORTHWHILE_BYTES, decode, fill, fill_pattern,
};
use proptest::prelude::*;

/// Ends the process when it is asked in a forbidden moment.
struct Strict;

thread_local! {
    static FORBIDDEN: Cell<bool> = const { Cell::new(false) };
}

fn check() {
    if FORBIDDEN.get() {
        FORBIDDEN.set(false);
        eprintln!("the allocator was called in a place where it must not be");
        std::process::abort();
    }
}

// SAFETY: passes everything on to the system's allocator.
unsafe impl GlobalAlloc for Strict {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        check();
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        check();
        // SAFETY: as above.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Strict = Strict;

fn quietly<T>(what: impl FnOnce() -> T) -> T {
    FORBIDDEN.set(true);
    let result = what();
    FORBIDDEN.set(false);
    result
}

/// Written around what a codec may write.
const BEYOND: u8 = 0xA5;
/// Bytes of [`BEYOND`] on either side.
const MARGIN: usize = 64;

/// Bytes in which a codec finds room for whatever `len` bytes.
fn room_for_anything(len: usize) -> usize {
    2 * len + 64
}

/// A codec, its state, and whether either is left as it should be.
struct Trial {
    codec: AnyCodec,
    state: Vec<u64>,
}

impl Trial {
    fn new(codec: AnyCodec) -> Self {
        let state = vec![0; codec.state_words()];
        Self { codec, state }
    }

    /// Compresses with room for `room` bytes. Nothing is written beyond them, nothing is
    /// allocated, and no more is said to be written than there was room for.
    fn compress(&mut self, input: &[u8], room: usize) -> Option<Vec<u8>> {
        let mut out = vec![BEYOND; MARGIN + room + MARGIN];
        let Self { codec, state } = self;
        let len = quietly(|| codec.compress(state, input, &mut out[MARGIN..MARGIN + room]));
        let untouched = |bytes: &[u8]| bytes.iter().all(|&byte| byte == BEYOND);
        assert!(untouched(&out[..MARGIN]) && untouched(&out[MARGIN + room..]));
        let len = len?;
        assert!(len <= room, "{codec:?} used {len} bytes of {room}");
        Some(out[MARGIN..MARGIN + len].to_vec())
    }

    /// Decodes to `len` bytes by the codec's number, as a slot does.
    fn decode(&self, packed: &[u8], len: usize) -> Result<Vec<u8>, Corrupt> {
        let id = self.codec.encoding().id();
        let mut out = vec![BEYOND; MARGIN + len + MARGIN];
        let decoded = quietly(|| decode(id, packed, &mut out[MARGIN..MARGIN + len]));
        let untouched = |bytes: &[u8]| bytes.iter().all(|&byte| byte == BEYOND);
        assert!(untouched(&out[..MARGIN]) && untouched(&out[MARGIN + len..]));
        // The value and the number are one.
        let mut again = vec![0; len];
        assert_eq!(
            quietly(|| self.codec.decompress(packed, &mut again)),
            decoded
        );
        decoded.map(|()| out[MARGIN..MARGIN + len].to_vec())
    }

    /// There and back, with room enough and with ever less of it.
    fn round_trip(&mut self, input: &[u8]) {
        let len = input.len();
        let most = room_for_anything(len);
        let packed = self.compress(input, most);
        let packed = packed.unwrap_or_else(|| panic!("{:?}: {len} bytes", self.codec));
        assert!(self.decode(&packed, len).unwrap() == input);
        for room in [0, 1, packed.len() / 2, packed.len() - 1, packed.len()] {
            if let Some(packed) = self.compress(input, room) {
                assert!(self.decode(&packed, len).unwrap() == input);
            }
        }
        // One byte more or less than was compressed is not what was compressed.
        assert_eq!(self.decode(&packed, len + 1), Err(Corrupt));
        assert_eq!(self.decode(&packed, len - 1), Err(Corrupt));
        assert_eq!(self.decode(&packed[..packed.len() - 1], len), Err(Corrupt));
    }
}

/// Numbers that look random, from a seed.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut x = self.0;
        x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        x ^ (x >> 31)
    }
}

/// Bytes that nothing makes shorter.
fn noise(len: usize, seed: u64) -> Vec<u8> {
    let mut random = Random(seed);
    (0..len).map(|_| random.next() as u8).collect()
}

/// Every kind of page a program has, `len` bytes of it.
fn kinds(len: usize) -> Vec<(&'static str, Vec<u8>)> {
    let text = include_bytes!("conformance.rs");
    let mut pattern = [0; PAGE_SIZE];
    fill(0xDEAD_BEEF, &mut pattern);
    let mut sparse = vec![0; len];
    sparse.iter_mut().step_by(509).for_each(|byte| *byte = 1);
    let half = noise(len / 2, 5).into_iter().chain(std::iter::repeat(0));
    let few = noise(37, 6);
    vec![
        ("zeros", vec![0; len]),
        ("ones", vec![0xFF; len]),
        ("a pattern", pattern.into_iter().cycle().take(len).collect()),
        ("text", text.iter().copied().cycle().take(len).collect()),
        ("noise", noise(len, 7)),
        ("sparse", sparse),
        ("half noise", half.take(len).collect()),
        ("short period", few.into_iter().cycle().take(len).collect()),
        (
            "pointers",
            (0..=len as u64 / 8)
                .flat_map(|n| (0x7F00_1234_0000_u64 + n * 48).to_le_bytes())
                .take(len)
                .collect(),
        ),
        (
            "floats",
            (0..=len / 8)
                .flat_map(|n| (n as f64 * 0.1).sin().to_le_bytes())
                .take(len)
                .collect(),
        ),
    ]
}

/// Lengths that a codec is given: a page, several of them, and what is none.
const LENGTHS: [usize; 9] = [
    1,
    2,
    13,
    64,
    1000,
    PAGE_SIZE,
    PAGE_SIZE + 1,
    4 * PAGE_SIZE,
    16 * PAGE_SIZE,
];

#[test]
fn every_kind_of_bytes_comes_back() {
    for &codec in AnyCodec::ALL {
        let mut trial = Trial::new(codec);
        for len in LENGTHS {
            for (kind, bytes) in kinds(len) {
                println!("{codec:?}: {len} bytes of {kind}");
                trial.round_trip(&bytes);
            }
        }
    }
}

#[test]
fn what_does_not_shrink_is_said_not_to_fit() {
    for &codec in AnyCodec::ALL {
        let mut trial = Trial::new(codec);
        for seed in 0..50 {
            let page = noise(PAGE_SIZE, seed);
            assert_eq!(trial.compress(&page, WORTHWHILE_BYTES), None, "{codec:?}");
        }
    }
}

/// Compressing depends on the input alone: not on what the state was used for before.
#[test]
fn one_page_does_not_leak_into_the_next() {
    for &codec in AnyCodec::ALL {
        let room = room_for_anything(PAGE_SIZE);
        let fresh: Vec<_> = kinds(PAGE_SIZE)
            .iter()
            .map(|(_, page)| Trial::new(codec).compress(page, room))
            .collect();
        let mut used = Trial::new(codec);
        // And whatever else another codec left there.
        used.state.fill(u64::MAX);
        for _ in 0..2 {
            for ((kind, page), fresh) in kinds(PAGE_SIZE).iter().zip(&fresh) {
                assert_eq!(&used.compress(page, room), fresh, "{codec:?}: {kind}");
            }
        }
    }
}

#[test]
fn a_state_that_is_too_small_is_no_state() {
    let page = [7; PAGE_SIZE];
    let mut out = [0; PAGE_SIZE];
    for &codec in AnyCodec::ALL {
        assert!(codec.state_words() * 8 >= codec.state_bytes());
        assert!(codec.state_words() <= AnyCodec::state_words_most());
        for words in [0, 1, codec.state_words().saturating_sub(1)] {
            if words < codec.state_words() {
                assert_eq!(codec.compress(&mut vec![0; words], &page, &mut out), None);
            }
        }
        let more = &mut vec![0; codec.state_words() + 1];
        assert!(codec.compress(more, &page, &mut out).is_some());
    }
}

/// Numbers are written to slots: what one meant it means for ever.
#[test]
fn numbers_keep_their_meaning() {
    let mut seen = HashSet::new();
    for &codec in AnyCodec::ALL {
        let id = codec.encoding().id();
        assert!(seen.insert(id), "{codec:?} has the number of another");
        // A slot in memory has four bits for it.
        assert!(id < 16, "{codec:?}");
    }
    assert_eq!(AnyCodec::Raw.encoding().id(), 0);
    assert_eq!(AnyCodec::Lz4.encoding().id(), 1);
    // Bytes as the first version wrote them.
    let mut text = [0; 20];
    assert_eq!(decode(0, b"abcabcabcabcabcabcab", &mut text), Ok(()));
    assert_eq!(&text, b"abcabcabcabcabcabcab");
    let lz4 = b"\x38abc\x03\x00\x50bcabc";
    let mut text = [0; 20];
    assert_eq!(decode(1, lz4, &mut text), Ok(()));
    assert_eq!(&text, b"abcabcabcabcabcbcabc");
    let mut page = [0; PAGE_SIZE];
    for id in (0..=u8::MAX).filter(|id| !seen.contains(id)) {
        assert_eq!(decode(id, &[0; 8], &mut page), Err(Corrupt), "number {id}");
    }
}

#[test]
fn nothing_is_no_page() {
    for &codec in AnyCodec::ALL {
        let trial = Trial::new(codec);
        assert_eq!(trial.decode(&[], PAGE_SIZE), Err(Corrupt), "{codec:?}");
        for byte in [0, 0x0F, 0xF0, 0xFF] {
            let bytes = [byte; 40];
            assert_eq!(trial.decode(&bytes, PAGE_SIZE), Err(Corrupt), "{codec:?}");
        }
    }
}

proptest! {
    #[test]
    fn any_bytes_come_back(seed in any::<u64>(), alphabet in 1_u64..256, run in 1_usize..64) {
        let mut page = [0_u8; PAGE_SIZE];
        let mut random = Random(seed);
        let mut at = 0;
        while at < PAGE_SIZE {
            let byte = (random.next() % alphabet) as u8;
            let len = (1 + random.next() as usize % run).min(PAGE_SIZE - at);
            page[at..at + len].fill(byte);
            at += len;
        }
        for &codec in AnyCodec::ALL {
            Trial::new(codec).round_trip(&page);
        }
        if let Some(pattern) = fill_pattern(&page) {
            let mut back = [0; PAGE_SIZE];
            fill(pattern, &mut back);
            prop_assert!(back == page);
        }
    }

    /// Hostile bytes are an error or some page. They never make a codec panic, allocate
    /// or write beyond the page.
    #[test]
    fn hostile_bytes_never_overrun(
        bytes in proptest::collection::vec(any::<u8>(), 0..4096),
        len in prop_oneof![Just(PAGE_SIZE), 0_usize..70_000],
    ) {
        for &codec in AnyCodec::ALL {
            let _either_way = Trial::new(codec).decode(&bytes, len);
        }
    }

    /// The same for bytes that were good once: changed, cut, with something behind.
    #[test]
    fn damaged_bytes_never_overrun(
        seed in any::<u64>(),
        flips in proptest::collection::vec((any::<usize>(), any::<u8>()), 0..8),
        cut in any::<usize>(),
        more in proptest::collection::vec(any::<u8>(), 0..32),
    ) {
        for &codec in AnyCodec::ALL {
            let mut trial = Trial::new(codec);
            let kinds = kinds(PAGE_SIZE);
            let (_, page) = &kinds[seed as usize % kinds.len()];
            let mut packed = trial.compress(page, room_for_anything(PAGE_SIZE)).unwrap();
            for &(at, with) in &flips {
                let at = at % packed.len();
                packed[at] ^= with;
            }
            packed.truncate(cut % (packed.len() + 1));
            packed.extend(&more);
            let _either_way = trial.decode(&packed, PAGE_SIZE);
        }
    }
}
