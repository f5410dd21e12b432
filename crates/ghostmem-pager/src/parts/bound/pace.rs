//! How soon the next look is due: the closer the bound, the sooner.

use core::sync::atomic::Ordering;
use core::time::Duration;

use ghostmem_os::PAGE_SIZE;

use super::ProcessBound;

/// Bytes that a program without pause takes in a millisecond.
const BYTES_PER_MS: i64 = 2 << 20;

impl ProcessBound {
    /// How long the memory that is not the heap's may be left unwatched: as long as a
    /// program that fills fresh memory without pause takes for half of what is left. What
    /// groups leave changes without this process, too.
    pub(crate) fn unwatched(&self, used_pages: i64) -> Duration {
        let most = if self.is_asked() { 50 } else { 250 };
        let reach = (self.reach_pages() - used_pages).max(0);
        let left = if self.follows {
            self.room_bytes.load(Ordering::Relaxed).max(0)
        } else {
            reach.saturating_mul(PAGE_SIZE as i64)
        };
        let left = left.saturating_add(self.headroom_bytes() as i64);
        Duration::from_millis((left / 2 / BYTES_PER_MS).clamp(2, most).unsigned_abs())
    }

    /// Time between two measurements that nobody insists on: `least_ns` close to the
    /// bound, longer far from it. Sixteen such programs take half of what is left in it.
    pub(crate) fn interval_ns(&self, least_ns: u64) -> u64 {
        let left = self.room_bytes.load(Ordering::Relaxed).max(0);
        let ms = (left / 32 / BYTES_PER_MS).clamp(0, 50);
        (ms.unsigned_abs() * 1_000_000).max(least_ns)
    }
}
