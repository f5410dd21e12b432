//! What this process needs of the bound that others have with it, and says to them.

use core::sync::atomic::Ordering;

use ghostmem_os::clock;
use ghostmem_os::tree::KEPT_NS;
use ghostmem_policy::bound::{Look, wanted_bytes};

use super::ProcessBound;

impl ProcessBound {
    /// Notes that a thread looks for more than is free. Others are asked to leave some where
    /// the bound has none: one that does nothing needs nothing, however little it has.
    pub(crate) fn want(&self) {
        if self.tree.is_some() {
            self.wanted_ns.store(clock::now_ns(), Ordering::Relaxed);
        }
    }

    /// Whether others may have lowered what this process was granted, as it has not looked for
    /// long: what it gave back since is theirs, and the limit of then is none.
    pub(crate) fn may_be_lowered(&self) -> bool {
        self.tree.is_some() && {
            let measured_ns = self.measured_ns.load(Ordering::Relaxed);
            clock::now_ns().saturating_sub(measured_ns) >= KEPT_NS
        }
    }

    /// What others are to leave, bytes, and since when a thread looks for it, nanoseconds:
    /// nothing where there is enough, or this process has its `equal` part. Most of what
    /// they leave it finds at its next look; as much again is there for the one after it.
    pub(super) fn wanted_of_others(&self, look: &Look, equal: u64) -> (u64, u64) {
        let resident = look.used_pages.max(0).unsigned_abs() * look.page_bytes;
        let wanted = wanted_bytes(resident);
        let room = look.room_bytes();
        if look.held_bytes >= equal || room >= i64::try_from(wanted).unwrap_or(i64::MAX) {
            return (0, 0);
        }
        (2 * wanted, self.wanted_ns.load(Ordering::Relaxed))
    }

    /// What forks may come to without a fault that the engine sees, bytes, where so much of
    /// this process is resident: of that, what was there at its last fork.
    pub(super) fn unseen_bytes(&self, resident_bytes: u64) -> u64 {
        let forked = resident_bytes.min(self.kin.forked_bytes());
        self.forks.unseen_bytes(self.shared_bytes(), forked)
    }
}

#[cfg(test)]
mod tests {
    use ghostmem_policy::bound::Allowance;

    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn others_are_asked_for_what_a_thread_looks_for_and_for_nothing_else() {
        let bound = ProcessBound::new(Some(64 << 20), false, None, 1000).unwrap();
        let look = |held: u64| Look {
            allowance: Allowance {
                bytes: 70 * MIB,
                headroom_bytes: 10 * MIB,
                short_bytes: 0,
                shared: true,
            },
            held_bytes: held * MIB,
            page_bytes: 4096,
            used_pages: 1024,
            least_pages: 256,
            most_pages: i64::MAX,
            announced: true,
        };
        let wanted = |held: u64, equal: u64| bound.wanted_of_others(&look(held), equal * MIB);
        assert_eq!(wanted(60, 80), (MIB, 0), "nobody looked for it");
        bound.wanted_ns.store(7, Ordering::Relaxed);
        assert_eq!(wanted(60, 80), (MIB, 7));
        assert_eq!(wanted(60, 60), (0, 0), "it has its part");
        assert_eq!(wanted(59, 80), (0, 0), "there is enough");
    }
}
