//! What a slot is known by: number and start of its process, or that it ended.

use super::seen::{Seen, stat_of};
use crate::{apart, doorway};

/// Process numbers are below 2^22 (`PID_MAX_LIMIT`); starts are in hundredths of seconds.
pub(super) const START_BITS: u32 = 42;
pub(super) const START_MASK: u64 = (1 << START_BITS) - 1;

/// The identity of a slot whose process was found at `end_ns` to have ended, and whose kin
/// do not know yet what they have of it: no process has the number 0. One that ended later
/// in the same slot has another, so who frees one frees no other.
pub(super) const fn grave_of(end_ns: u64) -> u64 {
    match end_ns & START_MASK {
        0 => 1,
        low => low,
    }
}

/// Whether an identity is that of a slot whose process ended.
pub(super) const fn is_grave(identity: u64) -> bool {
    identity != 0 && !is_process(identity)
}

/// Whether an identity is a process's.
pub(super) const fn is_process(identity: u64) -> bool {
    identity >> START_BITS != 0
}

pub(super) fn own_number() -> Option<u64> {
    u64::try_from(apart::process()).ok()
}

pub(super) const fn identity_of(process: u64, start: u64) -> u64 {
    process << START_BITS | start & START_MASK
}

/// Whether two identities may be one process's: the same number, and the same start where
/// both are known.
pub(super) const fn may_be_one(one: u64, other: u64) -> bool {
    let (start, other_start) = (one & START_MASK, other & START_MASK);
    one >> START_BITS == other >> START_BITS
        && (start == other_start || start == 0 || other_start == 0)
}

/// Number and start of this process; without the start where a filter of the program's may
/// let nobody ask for it.
pub(super) fn ask_identity() -> Option<u64> {
    let process = own_number()?;
    if doorway::is_confined() {
        return Some(identity_of(process, 0));
    }
    match stat_of(process) {
        Seen::There(stat) => Some(identity_of(process, stat.start)),
        // There is no number for a file just now.
        Seen::Hidden => Some(identity_of(process, 0)),
        Seen::Gone => None,
    }
}
