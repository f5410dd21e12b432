//! The file tier as the engine keeps it: the tier, its thread, and the store's share.
//!
//! The store's share of memory, and where moving to the file begins and ends, is
//! [`ghostmem_policy::balance`]'s to say.

use core::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};

use ghostmem_file::FileTier;
use ghostmem_os::futex;
use ghostmem_os::lock::Lock;
use ghostmem_os::thread::EngineThread;
use ghostmem_policy::balance::StoreShare;

use crate::parts::place::BATCH_BYTES;

/// A file tier and how it is used.
#[derive(Debug)]
pub struct SpillSettings {
    /// Where pages go.
    pub tier: FileTier,
    /// Bytes the store in memory may hold before its coldest pages go there;
    /// 0: as soon as they are evicted. `None`: what the memory limit leaves
    /// beside resident pages and tables, or as much as may be resident where
    /// there is none.
    pub store_limit_bytes: Option<usize>,
}

/// What the engine keeps of its file tier.
pub(crate) struct Spill {
    pub(crate) tier: FileTier,
    pub(crate) store_limit_bytes: Option<u64>,
    /// What the store may hold; follows the limits and the size of the tables.
    pub(crate) share_bytes: AtomicU64,
    pub(crate) thread: Lock<Option<EngineThread>>,
    /// Held from a write until its pages point to the file: a child must not
    /// inherit places that only the thread it lost knew of.
    pub(crate) moving: Lock<()>,
    /// 1 while the thread sleeps and wants to be woken.
    pub(crate) asleep: AtomicU64,
    /// Batches that went through: faults that wait sleep on it.
    pub(crate) progress: AtomicU64,
    /// The file takes nothing at the moment.
    pub(crate) failing: AtomicBool,
    /// Pages at least this dispensable go; 0 before there was a ranking.
    pub(crate) rank: AtomicU8,
}

impl Spill {
    pub(crate) fn new(settings: SpillSettings) -> Self {
        Self {
            tier: settings.tier,
            store_limit_bytes: settings.store_limit_bytes.map(|bytes| bytes as u64),
            share_bytes: AtomicU64::new(0),
            thread: Lock::new(None),
            moving: Lock::new(()),
            asleep: AtomicU64::new(0),
            progress: AtomicU64::new(0),
            failing: AtomicBool::new(false),
            rank: AtomicU8::new(0),
        }
    }

    /// How dispensable what goes is, at least, by the last ranking.
    pub(crate) fn rank(&self) -> u8 {
        self.rank.load(Ordering::Relaxed)
    }

    pub(crate) fn set_rank(&self, rank: u8) {
        self.rank.store(rank, Ordering::Relaxed);
    }

    /// The store's share of memory, as it is now.
    pub(crate) fn share(&self) -> StoreShare {
        StoreShare::from_bytes(self.share_bytes.load(Ordering::Relaxed))
    }

    /// Whether the store is so far over its share that what makes it grow must
    /// wait.
    pub(crate) fn is_behind(&self, held_bytes: u64) -> bool {
        held_bytes > self.share().behind_bytes(BATCH_BYTES as u64) && !self.is_failing()
    }

    /// Whether the store is within its share, or will soon be.
    pub(crate) fn has_room(&self, held_bytes: u64) -> bool {
        held_bytes <= self.share().bytes() && !self.is_failing()
    }

    /// Whether the file takes nothing at the moment.
    pub(crate) fn is_failing(&self) -> bool {
        self.failing.load(Ordering::Relaxed)
    }

    pub(crate) fn wake(&self) {
        if self.asleep.load(Ordering::Relaxed) == 1 && self.asleep.swap(0, Ordering::AcqRel) == 1 {
            futex::wake_all(&self.asleep);
        }
    }

    pub(crate) fn try_take_for_fork(&self) -> bool {
        if !self.thread.try_take_for_fork() {
            return false;
        }
        if !self.moving.try_take_for_fork() {
            self.thread.release_after_fork();
            return false;
        }
        if !self.tier.try_before_fork() {
            self.moving.release_after_fork();
            self.thread.release_after_fork();
            return false;
        }
        true
    }

    pub(crate) fn cancel_fork(&self) {
        self.tier.cancel_fork();
        self.moving.release_after_fork();
        self.thread.release_after_fork();
    }

    pub(crate) fn after_fork_in_parent(&self) {
        self.tier.after_fork_in_parent();
        self.moving.release_after_fork();
        self.thread.release_after_fork();
    }

    pub(crate) fn after_fork_in_child(&self) {
        self.tier.after_fork_in_child();
        self.moving.release_after_fork();
        self.failing.store(false, Ordering::Relaxed);
        self.thread.release_after_fork();
    }
}
