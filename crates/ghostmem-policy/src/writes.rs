//! Which pages keep the copy they came from, and how.
//!
//! ```text
//!   protected   the page cannot be stored to unseen; evicting it costs nothing, its
//!               first store a fault
//!   writable    stores cost nothing; when the page is evicted it is compared with its
//!               copy, and compressed if it differs
//! ```
//! A page that comes back for reading may stay write-protected beside its copy: it is
//! *clean*. A page that was stored to while it was clean is *write hot*: its next copy is
//! kept writable, where enough of those that were compared had not changed, or not at all.

/// How a page that comes back keeps its copy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CopyKept {
    /// Not at all: its bytes are expected to change.
    GivenUp,
    /// The page is protected.
    Protected,
    /// The page is writable, and compared before it leaves.
    Writable,
}

/// A write-hot page that comes back for reading is protected once in so many epochs: where
/// it is only read by now, that saves the comparison. Where it is not, its next store
/// faults, and it is compressed once more.
const COOLING_EPOCHS: u16 = 32;

/// What is known when a page comes back.
#[derive(Debug, Clone, Copy)]
pub struct Return {
    /// It comes back for a store, or for an access that may be one.
    pub write: bool,
    /// It is write hot.
    pub write_hot: bool,
    /// Stores to protected pages are seen.
    pub tracks_writes: bool,
    /// Comparing is worth its while.
    pub compares: bool,
    /// The epoch.
    pub now: u16,
}

impl Return {
    /// How its copy is kept, if that may be.
    #[must_use]
    #[inline]
    pub const fn copy(self) -> CopyKept {
        let cools = !self.write && self.now.is_multiple_of(COOLING_EPOCHS);
        let is_stored_to = self.write || (self.write_hot && !cools);
        match (self.tracks_writes && !is_stored_to, self.compares) {
            (true, _) if !self.write_hot || self.compares => CopyKept::Protected,
            (_, true) => CopyKept::Writable,
            _ => CopyKept::GivenUp,
        }
    }
}

/// Whether a page is write hot still, once it came back in epoch `now` without a copy.
///
/// Being hot for writing wears off with reads: half of them find the page's copy kept
/// again, and cost one more fault should a store follow after all.
#[must_use]
#[inline]
pub const fn stays_write_hot(write: bool, write_hot: bool, now: u16) -> bool {
    write_hot && (write || now & 1 == 1)
}

/// Whether a page is write hot still, once it loses its copy; `kept`: that was kept writable.
///
/// Keeping a copy writable makes its page hot, also where it came back for the one store
/// that changed it. Where comparing is not worth its while, hot pages give their next copy
/// up: one that is only read from then on would be compressed once more for nothing. It is
/// as if it had not been kept. Should it be stored to, that costs a fault.
#[must_use]
#[inline]
pub const fn stays_write_hot_without_copy(write_hot: bool, kept: bool, compares: bool) -> bool {
    write_hot && (compares || !kept)
}

#[cfg(test)]
mod tests {
    use super::*;

    const READ: Return = Return {
        write: false,
        write_hot: false,
        tracks_writes: true,
        compares: false,
        now: 1,
    };

    #[test]
    fn where_nothing_is_compared_only_protected_pages_keep_copies() {
        for now in 0..16 {
            for (write, write_hot) in [(false, false), (false, true), (true, false), (true, true)] {
                let back = Return {
                    write,
                    write_hot,
                    now,
                    ..READ
                };
                let expected = match write || write_hot {
                    true => CopyKept::GivenUp,
                    false => CopyKept::Protected,
                };
                assert_eq!(back.copy(), expected, "{back:?}");
                let blind = Return {
                    tracks_writes: false,
                    ..back
                };
                assert_eq!(blind.copy(), CopyKept::GivenUp);
            }
        }
    }

    #[test]
    fn what_is_stored_to_is_kept_writable_and_what_is_read_protected() {
        let read = Return {
            compares: true,
            ..READ
        };
        assert_eq!(read.copy(), CopyKept::Protected);
        let hot = Return {
            write_hot: true,
            ..read
        };
        assert_eq!(hot.copy(), CopyKept::Writable);
        for now in 0..64 {
            let write = Return {
                write: true,
                now,
                ..hot
            };
            assert_eq!(write.copy(), CopyKept::Writable);
            // One read in 32 finds out whether the page is stored to at all.
            let read = Return { now, ..hot };
            let cools = read.copy() == CopyKept::Protected;
            assert_eq!(cools, now % 32 == 0);
        }
    }

    #[test]
    fn where_stores_are_not_seen_every_copy_is_compared() {
        for now in 0..16 {
            for (write, write_hot) in [(false, false), (false, true), (true, false)] {
                let back = Return {
                    write,
                    write_hot,
                    tracks_writes: false,
                    compares: true,
                    now,
                };
                assert_eq!(back.copy(), CopyKept::Writable);
            }
        }
    }

    #[test]
    fn reads_cool_a_page_in_every_other_epoch_and_stores_never() {
        let after_read: Vec<bool> = (0..4)
            .map(|now| stays_write_hot(false, true, now))
            .collect();
        assert_eq!(after_read, [false, true, false, true]);
        assert!((0..4).all(|now| stays_write_hot(true, true, now)));
        // Coming back makes no page hot: a store to a clean page does.
        assert!((0..4).all(|now| !stays_write_hot(true, false, now)));
    }
}
