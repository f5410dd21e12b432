//! `--limit auto`: a limit that follows the machine's free memory and the
//! control group's.
//!
//! Once a second a thread of ours looks at what is free and sets the limit to
//! three quarters of what this process could have: what it has resident now
//! and what is free beside it. It owns no ghost memory.

use core::sync::atomic::AtomicU64;
use std::thread;
use std::time::Duration;

use ghostmem::Heap;
use ghostmem_os::lock::Lock;
use ghostmem_os::report::Reports;
use ghostmem_os::{doorway, futex};

use crate::thread::{self as own, EngineScope};
use crate::{bounce, ghost, start};

const LOOK: Duration = Duration::from_secs(1);
/// The least limit this sets, bytes.
const LEAST: u64 = 16 << 20;
/// Changes smaller than one part in so many are not worth a change.
const STEP: u64 = 32;

/// Sets the limit and starts following.
pub(crate) fn start(heap: &'static Heap) {
    adjust(heap);
    let builder = thread::Builder::new()
        .name("ghost-limit".to_owned())
        .stack_size(128 << 10);
    // Without the thread the limit stays what it was at the start.
    let _without = builder.spawn(move || {
        let nobody = AtomicU64::new(0);
        loop {
            futex::wait(&nobody, 0, LOOK);
            let standing_still = STANDS_STILL.lock();
            if *standing_still {
                return;
            }
            adjust(heap);
        }
    });
}

/// Set where the thread may not look any more.
static STANDS_STILL: Lock<bool> = Lock::new(false);

/// A filter is about to be in force on all threads: the limit stays as it is.
pub(crate) fn stand_still() {
    *STANDS_STILL.lock() = true;
}

/// In a forked child: the thread was not copied.
pub(crate) fn restart_after_fork() {
    // A filter that the child has may not allow what the thread does.
    if start::settings().is_some_and(|settings| settings.follow)
        && !doorway::is_confined()
        && let Some(heap) = ghost::heap()
    {
        let _inside = EngineScope::new(own::current());
        start(heap);
    }
}

fn adjust(heap: &Heap) {
    let stats = heap.stats();
    let Some(free) = free_bytes() else { return };
    let target = (stats.resident_bytes as u64 + free) / 4 * 3;
    let target = target.max(LEAST);
    let now = stats.resident_limit_bytes as u64;
    if target.abs_diff(now) > now / STEP
        && let Ok(bytes) = usize::try_from(target)
    {
        let _at_least_a_few_pages = heap.set_resident_limit(bytes);
        bounce::process_may_use(bytes);
    }
}

/// The smaller of what the machine and the control group have left, bytes.
fn free_bytes() -> Option<u64> {
    let reports = Reports::of_this_machine();
    let machine = reports.meminfo_bytes("MemAvailable")?;
    let group = reports.memory_group().and_then(|group| group.free_bytes());
    Some(group.map_or(machine, |group| group.min(machine)))
}
