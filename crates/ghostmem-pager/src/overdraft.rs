//! Frames beyond the limit: who may take them, and how many.
//!
//! Two cases, both counted as `overdrafts` and both bounded:
//!
//! * **One instruction needs more pages than there are.** Its thread is
//!   *privileged*: nobody evicts, and it may exceed the limit by
//!   [`INSTRUCTION_PAGES`]. The privilege ends when the thread is seen at
//!   another instruction, and [`WAIT`] after its last fault at the latest: a
//!   thread that stops faulting must not stop reclaim.
//! * **Nothing can be evicted**: the program locked its pages (mlock), or the
//!   store is full. Rather than hang, a thread takes a frame beyond the limit
//!   after [`BARREN_ROUNDS`] rounds of reclaim that freed nothing, until the
//!   heap is over its limit by an eighth of it (at least
//!   [`INSTRUCTION_PAGES`]). Then it waits for somebody to free memory, and
//!   when that does not happen either, the process is stopped with a message.
//!
//! Async-signal-safe throughout.

use core::sync::atomic::Ordering;
use core::time::Duration;

use ghostmem_fault::{Verdict, die, tell_news};
use ghostmem_os::clock;

use crate::engine::Engine;
use crate::metrics::Counter;
use crate::threads::PAGES_PER_INSTRUCTION;

/// How long one wait for another thread lasts before looking again, and how
/// long a privilege outlives its thread's last fault.
pub(crate) const WAIT: Duration = Duration::from_millis(2);

/// What one instruction may need beyond the limit, twice over: pages it has may
/// be taken from it before it is privileged.
const INSTRUCTION_PAGES: i64 = 2 * PAGES_PER_INSTRUCTION as i64;

/// Rounds of reclaim without a page freed, before a thread exceeds the limit.
const BARREN_ROUNDS: u32 = 200;

/// Waits of [`WAIT`] each for memory to be freed, before giving up.
const BARREN_WAITS: u32 = 1500;

impl Engine {
    /// Makes `thread` the privileged one, if nobody is, or confirms that it
    /// still is.
    pub(crate) fn grant_privilege(&self, thread: u64) {
        let now = clock::now_ns();
        let granted = self
            .stuck
            .compare_exchange(0, thread, Ordering::AcqRel, Ordering::Acquire);
        if granted.is_ok() || granted == Err(thread) {
            self.stuck_since.store(now, Ordering::Release);
        }
    }

    /// The privileged thread, or 0.
    pub(crate) fn privileged(&self) -> u64 {
        let holder = self.stuck.load(Ordering::Acquire);
        if holder == 0 {
            return 0;
        }
        let now = clock::now_ns();
        let begun = self
            .stuck_since
            .compare_exchange(0, now, Ordering::AcqRel, Ordering::Acquire);
        // Without a beginning (another one's end wiped it): it begins now.
        let since = begun.err().unwrap_or(now);
        if now.saturating_sub(since) > WAIT.as_nanos() as u64 {
            self.end_privilege(holder);
            return self.stuck.load(Ordering::Acquire);
        }
        holder
    }

    pub(crate) fn end_privilege(&self, thread: u64) {
        if self
            .stuck
            .compare_exchange(thread, 0, Ordering::AcqRel, Ordering::Relaxed)
            .is_ok()
        {
            self.stuck_since.store(0, Ordering::Release);
            tell_news();
        }
    }

    /// Takes a frame for the privileged thread, whatever the limit says;
    /// `false` when it has had more than any instruction needs.
    pub(crate) fn overdraw_privileged(&self) -> bool {
        self.overdraw(INSTRUCTION_PAGES)
    }

    /// What a fault does after `rounds` rounds of reclaim that freed nothing:
    /// goes on with a frame beyond the limit, or tries again later.
    pub(crate) fn after_barren(&self, rounds: u32) -> Result<(), Verdict> {
        let wait = |most| Err(Verdict::Wait { barren: true, most });
        if rounds <= BARREN_ROUNDS {
            return wait(Duration::ZERO);
        }
        if self.overdraw(INSTRUCTION_PAGES.max(self.budget.limit() / 8)) {
            return Ok(());
        }
        if rounds > BARREN_ROUNDS + BARREN_WAITS {
            die(
                "no page can be evicted: memory is locked (mlock), or the store is full",
                12,
            );
        }
        wait(WAIT)
    }

    fn overdraw(&self, most: i64) -> bool {
        let got = self.budget.overdraw(most);
        self.metrics.add(Counter::overdrafts, u64::from(got));
        got
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Config;
    use ghostmem_codec::lz4::Lz4;
    use ghostmem_fault::{Backend, BackendKind};
    use ghostmem_os::PAGE_SIZE;

    #[test]
    fn a_privilege_ends_with_its_threads_faults() {
        let config = Config {
            limit_pages: 64,
            memory_limit_bytes: None,
            backend: BackendKind::PREFERRED
                .iter()
                .find_map(|&kind| Backend::open(kind).ok())
                .unwrap(),
            codec: Lz4,
            compress: true,
            on_lost: None,
            readahead: false,
            background: false,
            background_in_children: false,
            keep_copies: true,
            store_capacity_bytes: 1 << 20,
        };
        let engine = Engine::new(config, None).unwrap();
        let address = Engine::allocate(&engine, 8, 1).unwrap();
        // Eight resident pages, none of them pinned any more.
        engine.pin(address, 8 * PAGE_SIZE).unwrap();
        engine.unpin(address, 8 * PAGE_SIZE).unwrap();
        engine.grant_privilege(42);
        assert_eq!(engine.privileged(), 42);
        assert!(!engine.evict_coldest().unwrap(), "nobody evicts meanwhile");
        std::thread::sleep(2 * WAIT);
        assert!(engine.evict_coldest().unwrap(), "its thread is long gone");
        assert_eq!(engine.privileged(), 0);
        // A privilege whose beginning was lost ends too.
        engine.grant_privilege(43);
        engine.stuck_since.store(0, Ordering::Release);
        assert_eq!(engine.privileged(), 43);
        std::thread::sleep(2 * WAIT);
        assert_eq!(engine.privileged(), 0);
        engine.shut_down();
    }
}
