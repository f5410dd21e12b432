//! The token against livelock: one thread whose instruction needs more pages than the
//! limit holds, or that others take pages from faster than it uses them.
//!
//! While a thread has the token nobody evicts, and it may exceed the limit by what one
//! instruction needs. It loses the token when it is seen at another instruction, and
//! [`WAIT`] after its last fault at the latest: a thread that stops faulting must not
//! stop reclaim.

use core::sync::atomic::Ordering;
use core::time::Duration;

use ghostmem_fault::tell_news;
use ghostmem_os::clock;

use crate::parts::engine::Engine;

/// How long one wait for another thread lasts before looking again, and how
/// long the token outlives its thread's last fault.
pub(crate) const WAIT: Duration = Duration::from_millis(2);

impl Engine {
    /// Gives `thread` the token, if nobody has it, or confirms that it
    /// still has it.
    pub(crate) fn grant_token(&self, thread: u64) {
        let now = clock::now_ns();
        let granted = self
            .token
            .compare_exchange(0, thread, Ordering::AcqRel, Ordering::Acquire);
        if granted.is_ok() || granted == Err(thread) {
            self.token_since.store(now, Ordering::Release);
        }
    }

    /// The thread that has the token, or 0.
    pub(crate) fn token_holder(&self) -> u64 {
        let holder = self.token.load(Ordering::Acquire);
        if holder == 0 {
            return 0;
        }
        let now = clock::now_ns();
        let begun = self
            .token_since
            .compare_exchange(0, now, Ordering::AcqRel, Ordering::Acquire);
        // Without a beginning (another one's end wiped it): it begins now.
        let since = begun.err().unwrap_or(now);
        if now.saturating_sub(since) > WAIT.as_nanos() as u64 {
            self.end_token(holder);
            return self.token.load(Ordering::Acquire);
        }
        holder
    }

    pub(crate) fn end_token(&self, thread: u64) {
        if self
            .token
            .compare_exchange(thread, 0, Ordering::AcqRel, Ordering::Relaxed)
            .is_ok()
        {
            self.token_since.store(0, Ordering::Release);
            tell_news();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Config;
    use ghostmem_os::PAGE_SIZE;

    #[test]
    fn the_token_ends_with_its_threads_faults() {
        let engine = Engine::new(Config::for_tests(64), None).unwrap();
        let address = Engine::allocate(&engine, 8, 1).unwrap();
        // Eight resident pages, none of them pinned any more.
        engine.pin(address, 8 * PAGE_SIZE).unwrap();
        engine.unpin(address, 8 * PAGE_SIZE).unwrap();
        engine.grant_token(42);
        assert_eq!(engine.token_holder(), 42);
        assert!(!engine.evict_coldest().unwrap(), "nobody evicts meanwhile");
        std::thread::sleep(2 * WAIT);
        assert!(engine.evict_coldest().unwrap(), "its thread is long gone");
        assert_eq!(engine.token_holder(), 0);
        // A token whose beginning was lost ends too.
        engine.grant_token(43);
        engine.token_since.store(0, Ordering::Release);
        assert_eq!(engine.token_holder(), 43);
        std::thread::sleep(2 * WAIT);
        assert_eq!(engine.token_holder(), 0);
        engine.shut_down();
    }
}
