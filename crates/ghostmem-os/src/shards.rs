//! Counters that many threads change, kept on cache lines that processors do not share.
//!
//! What every fault counts has a *shard* for each processor. The number follows the
//! machine, and memory follows use: shards lie in demand-zero memory, of which only those
//! exist that a processor wrote to. The shard is that of the processor the thread runs on
//! ([`thread::shard`]), not of the thread: threads that outnumber processors would meet by
//! chance in a hash, and two threads of one processor never write at the same time. A
//! thread that moves on in between writes where another processor does, which is slow for
//! that once and right all the same.
//!
//! [`thread::shard`]: crate::thread::shard

use core::sync::atomic::{AtomicUsize, Ordering};

use crate::machine;

/// Most shards. With more processors some share one: by then a line moves rarely for
/// other reasons too.
pub const SHARDS_MAX: usize = 256;

/// Bytes that processors move at once: a line of 64, and the neighbour that the
/// prefetcher brings along.
pub const LINE_BYTES: usize = 128;

/// In a structure of layout `repr(C)`: what follows starts on a line of its own.
#[derive(Debug, Clone, Copy, Default)]
#[repr(align(128))]
pub struct LineStart;

const _: () = assert!(size_of::<LineStart>() == 0 && align_of::<LineStart>() == LINE_BYTES);

/// Shards of the process's counters: one for each number of a processor that it could
/// run on when it was first asked. The same for as long as the process lives, whatever
/// becomes of its affinity. Async-signal-safe.
#[must_use]
pub fn shards() -> usize {
    static SHARDS: AtomicUsize = AtomicUsize::new(0);
    let known = SHARDS.load(Ordering::Relaxed);
    if known != 0 {
        return known;
    }
    let count = machine::processor_numbers().clamp(1, SHARDS_MAX);
    // The first answer stays, as counts are spread by it.
    let first = SHARDS.compare_exchange(0, count, Ordering::Relaxed, Ordering::Relaxed);
    first.err().unwrap_or(count)
}

/// The shard of the processor number `processor` among `count`.
#[inline]
pub(crate) fn of_processor(processor: usize, count: usize) -> usize {
    // As a rule there is one for each: no division.
    if processor < count {
        processor
    } else {
        processor % count
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_processor_of_a_machine_with_up_to_256_has_a_shard_of_its_own() {
        for processors in [1, 2, 8, 64, 255, 256] {
            let mut seen: Vec<usize> = (0..processors)
                .map(|processor| of_processor(processor, processors))
                .collect();
            seen.dedup();
            assert_eq!(seen.len(), processors);
        }
        // Beyond, they share evenly.
        assert_eq!(of_processor(SHARDS_MAX + 3, SHARDS_MAX), 3);
    }

    #[cfg(not(windows))]
    #[test]
    fn a_thread_counts_in_the_shard_of_the_processor_it_is_on() {
        let allowed = machine::affinity().unwrap();
        for processor in 0..libc::CPU_SETSIZE as usize {
            // SAFETY: a valid set and a number below its size.
            if !unsafe { libc::CPU_ISSET(processor, &allowed) } {
                continue;
            }
            assert!(processor < shards() || shards() == SHARDS_MAX);
            let shard = std::thread::spawn(move || {
                // SAFETY: all zero is the empty set.
                let mut one: libc::cpu_set_t = unsafe { core::mem::zeroed() };
                // SAFETY: a valid set and a number below its size.
                unsafe { libc::CPU_SET(processor, &mut one) };
                // SAFETY: the set is read, and has the size given.
                let rc = unsafe { libc::sched_setaffinity(0, size_of_val(&one), &raw const one) };
                assert_eq!(rc, 0);
                crate::thread::shard(shards())
            });
            let shard = shard.join().unwrap();
            assert_eq!(shard, of_processor(processor, shards()));
        }
    }
}
