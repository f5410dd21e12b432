//! The page that the processes of one `ghostmem run` share: there is none on Windows.

pub use ended::{Kinship, passed_of};

#[path = "../tree/ended.rs"]
mod ended;

/// What a process was granted is its own for so long, nanoseconds.
pub const KEPT_NS: u64 = 50_000_000;

/// No page: a value of this type cannot be had.
#[derive(Debug)]
pub enum Tree {}

/// What the other processes take.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Others {
    /// Bytes of all of them.
    pub charged_bytes: u64,
    /// Bytes that they keep when they give back all they can.
    pub needed_bytes: u64,
    /// Bytes among those of processes that do not keep within the bound.
    pub unbound_bytes: u64,
    /// Processes that do.
    pub looking: u64,
    /// Those among them that share pages of a fork.
    pub sharing: u64,
    /// What those among them are to find free that looked for more in vain, bytes.
    pub wanted_bytes: u64,
}

/// What this process says of itself.
#[derive(Debug, Clone, Copy)]
pub struct Said {
    /// Bytes that it takes.
    pub taken_bytes: u64,
    /// Bytes that it may come to before it looks again.
    pub granted_bytes: u64,
    /// Its minor faults so far.
    pub faults: u64,
    /// Bytes that it shares.
    pub shared_bytes: u64,
    /// Bytes that it keeps when it gives back all it can.
    pub needed_bytes: u64,
    /// What it shares, for the time when it has ended.
    pub kinship: Kinship,
    /// What others are to leave it, as it looked for more in vain, bytes.
    pub wanted_bytes: u64,
    /// When it did, nanoseconds; 0: it has enough.
    pub wanted_ns: u64,
    /// The moment, nanoseconds.
    pub now_ns: u64,
}

impl Tree {
    /// Bytes that all may take together.
    #[must_use]
    pub const fn bound_bytes(&self) -> u64 {
        match *self {}
    }

    /// Takes a slot for this process.
    pub const fn join(&self) -> bool {
        match *self {}
    }

    /// Notes when this process read its part of what it shares.
    pub const fn note_reading(&self, _read_ns: u64) {
        match *self {}
    }

    /// When its part was read last.
    #[must_use]
    pub const fn read_by_any_ns(&self) -> u64 {
        match *self {}
    }

    /// Says what this process takes and was granted.
    pub const fn say(&self, _said: Said) {
        match *self {}
    }

    /// Says what this process shares from a fork on.
    pub const fn say_kinship(&self, _kinship: Kinship) {
        match *self {}
    }

    /// What all other processes take.
    #[must_use]
    pub const fn others(&self, _now_ns: u64) -> Others {
        match *self {}
    }

    /// Measures one process that has not said for a while what it takes.
    pub const fn look_after_one(&self, _now_ns: u64) {
        match *self {}
    }
}
