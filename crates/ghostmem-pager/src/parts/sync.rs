//! What [`budget`](crate::parts::budget) is built on: loom's, where the same file runs
//! under the model checker (`ghostmem-table/tests/loom_budget.rs`).

use ghostmem_os::map::ZeroArray;
use ghostmem_os::shards::LINE_BYTES;

pub(crate) use core::sync::atomic::{AtomicI64, AtomicUsize, Ordering, fence};
pub(crate) use ghostmem_os::OsError as Refused;
pub(crate) use ghostmem_os::shards::LineStart as Line;
pub(crate) use ghostmem_os::thread::shard;

/// A word for each shard, the first of a line.
pub(crate) type Caches = ZeroArray<[AtomicI64; LINE_BYTES / size_of::<AtomicI64>()]>;
