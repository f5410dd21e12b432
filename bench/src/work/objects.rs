//! Pointer chasing over small objects: a linked list through the whole buffer.
//!
//! ```text
//!  object, 64 bytes:  next: u64   key: u64   48 bytes of the data set
//!  chunk = 16 objects of one page, linked in a scattered order
//!  chunks follow one another at random, each once: one cycle
//! ```
//!
//! A list that an allocator filled in batches looks like this: neighbours for a
//! while, then far away. Each step loads the address of the next, so nothing
//! can be fetched ahead of it by the processor. Every object's key is checked.
//! The list replaces the data set's bytes in the buffer; it needs no memory of
//! its own, as the cycle is a linear congruential sequence of full period.

use ghostmem_lab::rng::mix;

use super::Timing;
use crate::buffer::{Buffer, PAGE_SIZE};
use crate::error::{Error, Result};

/// Bytes of an object.
const OBJECT: usize = 64;
/// Objects of a chunk.
const CHUNK: u64 = 16;
/// Chunks of a page.
const CHUNKS_PER_PAGE: u64 = (PAGE_SIZE / OBJECT) as u64 / CHUNK;

/// The chunk after `chunk` in the one cycle over `chunks` (a power of two):
/// multiplier 1 modulo 4 and odd increment give the full period (Hull and
/// Dobell 1962).
const fn next_chunk(chunk: u64, chunks: u64) -> u64 {
    chunk
        .wrapping_mul(0x5851_f42d_4c95_7f2d)
        .wrapping_add(0x1405_7b7e_f767_814f)
        & (chunks - 1)
}

/// Chunks of the list in a buffer of so many pages.
fn chunks(pages: u32) -> u64 {
    let all = u64::from(pages) * CHUNKS_PER_PAGE;
    1 << all.ilog2()
}

/// Number of the object that is `step`th in `chunk`; 5 is coprime to 16.
const fn object(chunk: u64, step: u64) -> u64 {
    chunk * CHUNK + step * 5 % CHUNK
}

/// Page and offset of an object.
fn place(object: u64) -> (u32, usize) {
    let at = object as usize * OBJECT;
    ((at / PAGE_SIZE) as u32, at % PAGE_SIZE)
}

/// Writes the list into the buffer; every page up to its end is changed.
pub(crate) fn build(buffer: Buffer<'_>) {
    let chunks = chunks(buffer.pages());
    for chunk in 0..chunks {
        for step in 0..CHUNK {
            let next = if step + 1 < CHUNK {
                object(chunk, step + 1)
            } else {
                object(next_chunk(chunk, chunks), 0)
            };
            let this = object(chunk, step);
            let (page, offset) = place(this);
            buffer.store(page, offset, next);
            buffer.store(page, offset + 8, mix(this));
        }
    }
}

/// Follows the list from several places at once, twice a page's chunks per
/// page and `scale` of that; each thread from a chunk of its own.
pub(crate) fn chase(
    buffer: Buffer<'_>,
    threads: u32,
    scale: f64,
    faults: impl Fn() -> u64,
) -> Result<Timing> {
    let chunks = chunks(buffer.pages());
    let hops = (chunks as f64 / 2.0 * scale / f64::from(threads)).max(4.0) as u64 * CHUNK;
    let follow = |mut at: u64, hops: u64| -> Result<u64> {
        for _ in 0..hops {
            let (page, offset) = place(at);
            if buffer.load(page, offset + 8) != mix(at) {
                return Err(Error::Failed(format!("wrong key in object {at}")));
            }
            at = buffer.load(page, offset);
        }
        Ok(at)
    };
    Timing::of(
        threads,
        faults,
        // An eighth untimed.
        |thread| {
            let chunk = chunks / u64::from(threads) * u64::from(thread);
            follow(object(chunk, 0), hops / 8)
        },
        |_, at| follow(at, hops).map(|_| hops),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::Mapping;

    /// Proves that the list is one cycle through all of its objects, and that
    /// a damaged key is found.
    #[test]
    fn one_cycle() {
        let mapping = Mapping::anonymous(20 * PAGE_SIZE).unwrap();
        let buffer = mapping.buffer();
        build(buffer);
        let objects = 16 * (PAGE_SIZE / OBJECT) as u64;
        let mut seen = vec![false; objects as usize];
        let mut at = 0;
        for _ in 0..objects {
            assert!(!std::mem::replace(&mut seen[at as usize], true));
            let (page, offset) = place(at);
            at = buffer.load(page, offset);
        }
        assert_eq!(at, 0);
        assert!(chase(buffer, 2, 2.0, || 0).is_ok());
        buffer.store(3, 8, 0);
        assert!(chase(buffer, 2, 8.0, || 0).is_err());
    }
}
