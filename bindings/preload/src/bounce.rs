//! Ordinary memory that stands in for ghost buffers while the kernel works.
//!
//! A ghost page may be evicted between any two instructions, so bringing it in
//! just before a system call is not enough, and many calls cannot be made
//! again after an EFAULT (the datagram, the event, the child's status is gone
//! by then). What the kernel reads is therefore copied out first, and what it
//! wrote is copied back; loads and stores bring pages in as always. That costs
//! a copy, pins nothing and interrupts no other processor.
//!
//! Buffers come from two pools of fixed pieces, leased with one atomic each, or
//! from a mapping made for the call when those are all out or too short. A
//! thread may sit in a call for hours with its piece. A signal handler may jump out of it:
//! its thread's next call takes the piece back ([`left`]).
//!
//! One call is given up to a quarter of what the process may use, 8 MiB at the
//! least ([`most_bytes`]): what is longer moves in part, if it is a stream's.

use core::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use ghostmem_os::PAGE_SIZE;
use ghostmem_os::map::{count_released, count_reserved};

use crate::raw::{failed, own};
use crate::thread;

pub(crate) mod left;

const SMALL_BYTES: usize = 16 << 10;
const SMALL_COUNT: usize = 1024;
/// The most that [`Lease::new`] serves without a mapping of its own: a mebibyte,
/// and a page for alignment.
const LARGE_BYTES: usize = (1 << 20) + 4096;
const LARGE_COUNT: usize = 64;

/// Every call may have so much.
const LEAST_MOST: usize = 8 << 20;

static MOST: AtomicUsize = AtomicUsize::new(LEAST_MOST);

/// The most bytes that one call gets a stand-in for.
pub(crate) fn most_bytes() -> usize {
    MOST.load(Ordering::Relaxed)
}

/// Says how much memory the process may use.
pub(crate) fn process_may_use(bytes: usize) {
    MOST.store((bytes / 4).max(LEAST_MOST) & !4095, Ordering::Relaxed);
}

static BASE: AtomicUsize = AtomicUsize::new(0);
static SMALL: [AtomicU64; SMALL_COUNT / 64] = [const { AtomicU64::new(0) }; SMALL_COUNT / 64];
static LARGE: [AtomicU64; LARGE_COUNT / 64] = [const { AtomicU64::new(0) }; LARGE_COUNT / 64];

/// Maps `bytes` of ordinary memory; `None` when there is none.
pub(crate) fn map(bytes: usize) -> Option<usize> {
    let access = libc::PROT_READ | libc::PROT_WRITE;
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
    let address = own!(libc::SYS_mmap, 0, bytes, access, flags, -1_isize, 0);
    if failed(address) {
        return None;
    }
    count_reserved(bytes);
    Some(address as usize)
}

/// Unmaps what [`map`] mapped.
pub(crate) fn unmap(start: usize, bytes: usize) {
    let gone = own!(libc::SYS_munmap, start, bytes);
    if !failed(gone) {
        count_released(bytes);
    }
}

/// Address space that the pools may take a part of, bytes: with less left, there is
/// a small one only.
const PLENTY_BYTES: u64 = 1 << 30;

/// Words of the two sets that are in use.
static SMALL_WORDS: AtomicUsize = AtomicUsize::new(SMALL_COUNT / 64);
static LARGE_WORDS: AtomicUsize = AtomicUsize::new(LARGE_COUNT / 64);

/// Reserves the pools. Without them every lease is a mapping.
pub(crate) fn prepare() {
    let left = ghostmem_os::machine::address_space_left();
    let bytes = if left.is_some_and(|left| left < PLENTY_BYTES) {
        SMALL_WORDS.store(1, Ordering::Relaxed);
        LARGE_WORDS.store(0, Ordering::Relaxed);
        SMALL_BYTES * 64
    } else {
        SMALL_BYTES * SMALL_COUNT + LARGE_BYTES * LARGE_COUNT
    };
    if let Some(base) = map(bytes) {
        // Copies that a call needed: nothing that a core dump must have.
        let _only_longer = own!(libc::SYS_madvise, base, bytes, libc::MADV_DONTDUMP);
        BASE.store(base, Ordering::Release);
    }
}

/// In a forked child: what other threads held is free. What this one has stays: a handler
/// that forks may have come in the midst of a call, which goes on in the child, too.
pub(crate) fn forget_others() {
    for word in SMALL.iter().chain(&LARGE) {
        word.store(0, Ordering::Release);
    }
    left::each(thread::current(), |start, _| {
        if let Some((word, bit)) = bit_of(start) {
            word.fetch_or(bit, Ordering::Relaxed);
        }
    });
}

/// The bit of a piece of the pools that begins at an address.
fn bit_of(start: usize) -> Option<(&'static AtomicU64, u64)> {
    const SMALL_END: usize = SMALL_BYTES * SMALL_COUNT;
    const LARGE_END: usize = SMALL_END + LARGE_BYTES * LARGE_COUNT;
    let base = BASE.load(Ordering::Acquire);
    let at = start.wrapping_sub(base);
    let (words, index): (&[AtomicU64], usize) = match at {
        _ if base == 0 => return None,
        ..SMALL_END => (&SMALL, at / SMALL_BYTES),
        // Where the pools are small, something else may lie behind them.
        SMALL_END..LARGE_END if LARGE_WORDS.load(Ordering::Relaxed) > 0 => {
            (&LARGE, (at - SMALL_END) / LARGE_BYTES)
        }
        _ => return None,
    };
    Some((&words[index / 64], 1 << (index % 64)))
}

/// Gives a piece or a mapping back.
fn give_back(start: usize, bytes: usize) {
    match bit_of(start) {
        Some((word, bit)) => {
            word.fetch_and(!bit, Ordering::Release);
        }
        None => {
            unmap(start, bytes);
        }
    }
}

fn take(words: &[AtomicU64]) -> Option<usize> {
    for (index, word) in words.iter().enumerate() {
        let mut seen = word.load(Ordering::Relaxed);
        while seen != u64::MAX {
            let bit = (!seen).trailing_zeros();
            let new = seen | (1 << bit);
            match word.compare_exchange_weak(seen, new, Ordering::Acquire, Ordering::Relaxed) {
                Ok(_) => return Some(index * 64 + bit as usize),
                Err(now) => seen = now,
            }
        }
    }
    None
}

/// A piece of ordinary memory, page aligned but for [`Lease::before_nothing`]; given back when
/// dropped, or when the thread's next call finds that the one it was for was left.
#[derive(Debug)]
pub(crate) struct Lease {
    address: usize,
    bytes: usize,
    used: usize,
    /// What is given back.
    start: usize,
    whole: usize,
    note: Option<left::Note>,
}

impl Lease {
    /// At least `bytes` of ordinary memory, with unspecified contents.
    pub(crate) fn new(bytes: usize) -> Option<Self> {
        let note = left::Note::new(thread::current());
        match piece(bytes) {
            Some((start, bytes)) => Some(Self::of(start, bytes, note)),
            None => Self::mapped(bytes, 0, note),
        }
    }

    /// The same, where the thread is in no call that is noted.
    pub(crate) fn in_no_call(bytes: usize) -> Option<Self> {
        match piece(bytes) {
            Some((start, bytes)) => Some(Self::of(start, bytes, None)),
            None => Self::mapped(bytes, 0, None),
        }
    }

    /// Memory that nobody uses again: pages that the kernel keeps beyond the
    /// call keep what is in them.
    pub(crate) fn fresh(bytes: usize) -> Option<Self> {
        Self::mapped(bytes, 0, left::Note::new(thread::current()))
    }

    /// `bytes` that end where a page does, and nothing behind them.
    pub(crate) fn before_nothing(bytes: usize) -> Option<Self> {
        let note = left::Note::new(thread::current());
        let mut lease = Self::mapped(bytes, PAGE_SIZE, note)?;
        let end = lease.start + lease.whole - PAGE_SIZE;
        if failed(own!(libc::SYS_mprotect, end, PAGE_SIZE, libc::PROT_NONE)) {
            return None;
        }
        (lease.address, lease.bytes) = (end - bytes, bytes);
        Some(lease)
    }

    fn of(start: usize, bytes: usize, note: Option<left::Note>) -> Self {
        if let Some(note) = &note {
            note.has(start, bytes);
        }
        Self {
            address: start,
            bytes,
            used: 0,
            start,
            whole: bytes,
            note,
        }
    }

    /// A mapping of its own, with `more` behind it.
    fn mapped(bytes: usize, more: usize, note: Option<left::Note>) -> Option<Self> {
        let bytes = bytes.max(1).checked_next_multiple_of(PAGE_SIZE)?;
        let bytes = bytes.checked_add(more)?;
        Some(Self::of(map(bytes)?, bytes, note))
    }

    /// The first address.
    pub(crate) fn address(&self) -> usize {
        self.address
    }

    /// The next `bytes` of the lease, aligned to 64; `None` when it is full.
    pub(crate) fn carve(&mut self, bytes: usize) -> Option<usize> {
        let start = self.used.checked_next_multiple_of(64)?;
        let end = start.checked_add(bytes)?;
        if end > self.bytes {
            return None;
        }
        self.used = end;
        Some(self.address + start)
    }
}

/// A piece of the pools that is long enough: where it is, and its length.
fn piece(bytes: usize) -> Option<(usize, usize)> {
    let base = BASE.load(Ordering::Acquire);
    if base == 0 {
        return None;
    }
    if bytes <= SMALL_BYTES
        && let Some(index) = take(&SMALL[..SMALL_WORDS.load(Ordering::Relaxed)])
    {
        return Some((base + index * SMALL_BYTES, SMALL_BYTES));
    }
    if bytes <= LARGE_BYTES
        && let Some(index) = take(&LARGE[..LARGE_WORDS.load(Ordering::Relaxed)])
    {
        let place = SMALL_BYTES * SMALL_COUNT + index * LARGE_BYTES;
        return Some((base + place, LARGE_BYTES));
    }
    None
}

impl Drop for Lease {
    fn drop(&mut self) {
        // From here on nobody else gives it back.
        drop(self.note.take());
        give_back(self.start, self.whole);
    }
}
