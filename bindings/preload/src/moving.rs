//! Moves of what mappings hold (mremap(2)), while other threads use it.
//!
//! ```text
//!   closed to stores ─► locked, copied, protected elsewhere ─► unmapped, or zero pages
//!       │                           │ refused
//!       │                           └─► open again: nothing has changed
//!       └─ another thread's store waits for the end, and is tried again
//! ```
//! So a store comes before the copy, or meets what the program finds there afterwards. No lock is
//! held over the copy: other threads map, unmap and allocate. Only forks wait, as a child would
//! have a part of it.
//!
//! The kernel closes the range (mprotect(2)), beside the engine, whose pages come and go as ever.
//! Where the engine opens pages so itself, or has parts that were never open (the guard backends),
//! all pages are held resident meanwhile, unless there is no other thread. What is longer than
//! half of the limit is not: it is copied while threads may store to it. So is what could not be
//! opened again, in a process with a limit on data (`RLIMIT_DATA`).

use core::sync::atomic::{AtomicUsize, Ordering};

use ghostmem::{Backend, Heap, Pinned};
use ghostmem_os::{futex, machine};

use crate::alone::{Alone, Taken};
use crate::mappings::{OPEN, range};
use crate::raw::{failed, own};
use crate::signals::Blocked;
use crate::{holds, threads};

const ONLY_READ: usize = libc::PROT_READ as usize;

/// Moves at a time. One more waits.
const MOST: usize = 16;

/// A move that goes on.
struct Ongoing {
    /// The thread that moves; 0: there is no such move.
    thread: AtomicUsize,
    start: AtomicUsize,
    /// 0: none. Written last, and taken back first.
    end: AtomicUsize,
    /// Not 0: pages are opened as soon as nothing of the program's lies there.
    opens: AtomicUsize,
}

static MOVES: [Ongoing; MOST] = [const {
    Ongoing {
        thread: AtomicUsize::new(0),
        start: AtomicUsize::new(0),
        end: AtomicUsize::new(0),
        opens: AtomicUsize::new(0),
    }
}; MOST];
static COUNT: AtomicUsize = AtomicUsize::new(0);
/// Of who begins one.
static BEGINNING: Alone = Alone::new();

fn own_thread() -> usize {
    own!(libc::SYS_gettid) as usize
}

/// Those that go on. One load where none does; async-signal-safe.
fn ongoing() -> impl Iterator<Item = &'static Ongoing> {
    let all = match COUNT.load(Ordering::Acquire) {
        0 => &MOVES[..0],
        _ => &MOVES[..],
    };
    all.iter()
        .filter(|one| one.thread.load(Ordering::Acquire) != 0)
}

impl Ongoing {
    /// From where to where, as it is at this moment.
    fn bounds(&self) -> (usize, usize) {
        loop {
            let end = self.end.load(Ordering::Acquire);
            let start = self.start.load(Ordering::Acquire);
            if self.end.load(Ordering::Acquire) == end {
                return (start.min(end), end);
            }
        }
    }

    fn meets(&self, from: usize, to: usize) -> bool {
        let (start, end) = self.bounds();
        start < to && from < end
    }

    fn is_of(&self, thread: usize) -> bool {
        self.thread.load(Ordering::Acquire) == thread
    }
}

/// Waits for a move by another thread that an address lies in; whether there was one. A touch
/// that was refused is to be tried again then. One load where nothing moves; async-signal-safe.
pub(crate) fn wait_at(address: usize) -> bool {
    wait_in(address, address.saturating_add(1))
}

fn wait_in(from: usize, to: usize) -> bool {
    let mut waited = false;
    for one in ongoing().filter(|one| one.meets(from, to)) {
        let thread = own_thread();
        let mut tries = 0;
        while !one.is_of(thread) && one.meets(from, to) {
            waited = true;
            futex::pause(tries);
            tries = tries.saturating_add(1);
        }
    }
    waited
}

/// Runs `body` while no other thread moves anything of a range, and as the only one that changes
/// what is held.
pub(crate) fn with_holds_at_rest(from: usize, to: usize, mut body: impl FnMut()) {
    loop {
        wait_in(from, to);
        let is_done = holds::with(|| {
            let moves = ongoing().any(|one| one.meets(from, to));
            if !moves {
                body();
            }
            !moves
        });
        if is_done {
            return;
        }
    }
}

/// Whether this thread moves something: where its copy meets no memory, nothing is lost.
/// Async-signal-safe.
pub(crate) fn is_own() -> bool {
    ongoing().any(|one| one.is_of(own_thread()))
}

/// Nothing of the program's lies at these pages any more: what this thread has closed of them is
/// open to the engine's pages again.
pub(crate) fn are_gone(pages: *mut [u8]) {
    let from = pages.cast::<u8>() as usize;
    let to = from + pages.len();
    for one in ongoing().filter(|one| one.meets(from, to)) {
        if one.is_of(own_thread()) && one.opens.load(Ordering::Relaxed) != 0 {
            let (start, end) = one.bounds();
            let (start, end) = (start.max(from), end.min(to));
            let _merges = own!(libc::SYS_mprotect, start, end - start, OPEN);
        }
    }
}

/// Waits until nothing moves, and nothing does while the answer is there. With signals blocked,
/// and without a lock that a move could wait for.
pub(crate) fn hold_still() -> Taken {
    let taken = BEGINNING.take();
    let mut tries = 0;
    while ongoing().next().is_some() {
        futex::pause(tries);
        tries = tries.saturating_add(1);
    }
    taken
}

/// In a forked child: whoever was about to move something in the parent is not here.
pub(crate) fn forget_others() {
    BEGINNING.forget_others();
    // One that had just ended may not have been counted off.
    COUNT.store(0, Ordering::Release);
}

/// What moves, as this thread has it.
pub(crate) struct Move {
    is: &'static Ongoing,
    address: usize,
    bytes: usize,
    /// What the program left of it.
    access: usize,
    /// The range was open, and is closed to stores.
    is_closed: bool,
    pinned: Option<Pinned>,
    backend: Backend,
    // Dropped last: a handler of the program's would wait for its own thread.
    _blocked: Blocked,
}

impl Move {
    /// What a range of the program's holds is about to move: it is read from here on, and nobody
    /// stores to it. `None`: the process has no mappings left for that, and nothing has changed.
    pub(crate) fn begin(heap: &Heap, address: usize, bytes: usize, access: usize) -> Option<Self> {
        let blocked = Blocked::new();
        let backend = heap.backend();
        // First: who sets a limit on data waits for it.
        let is = register();
        // What is opened later counts as data that is new.
        let closes = access == OPEN && machine::data_limit().is_none();
        let (pinned, closes) = match backend {
            // Nobody else stores to it.
            Backend::Guard | Backend::GuardMprotect if threads::is_the_only_one() => (None, false),
            Backend::Guard | Backend::GuardMprotect if closes => {
                let pinned = hold_all(heap, address, bytes);
                let are_held = pinned.is_some();
                (pinned, are_held)
            }
            _ => (None, closes),
        };
        let opens = closes && matches!(backend, Backend::Inline | Backend::Guard);
        is.opens.store(usize::from(opens), Ordering::Relaxed);
        let begun = Self {
            is,
            address,
            bytes,
            access,
            is_closed: closes,
            pinned,
            backend,
            _blocked: blocked,
        };
        let is_done = holds::with(|| {
            // Who is refused finds it.
            is.start.store(address, Ordering::Release);
            is.end.store(address + bytes, Ordering::Release);
            begun.close()
        });
        if !is_done {
            begun.give_up();
            return None;
        }
        Some(begun)
    }

    /// The caller has the lists of what is held.
    fn close(&self) -> bool {
        match self.access {
            OPEN if self.is_closed => self.set_access(ONLY_READ),
            OPEN | ONLY_READ => true,
            _ => {
                holds::set_readable(self.address, self.address + self.bytes, true);
                true
            }
        }
    }

    fn set_access(&self, access: usize) -> bool {
        !failed(own!(libc::SYS_mprotect, self.address, self.bytes, access))
    }

    /// It stays where it was, as it was.
    pub(crate) fn give_up(self) {
        match self.access {
            OPEN if self.is_closed => {
                let _merges = self.set_access(OPEN);
            }
            OPEN | ONLY_READ => {}
            _ => holds::with(|| {
                holds::set_readable(self.address, self.address + self.bytes, false);
            }),
        }
    }

    /// All of it is elsewhere: the pages go next, and are held no longer. They stay closed.
    pub(crate) fn let_go(&mut self) {
        self.pinned = None;
    }

    /// Zero pages are there by now, of the program's.
    pub(crate) fn open_zeros(&self) {
        // There each page is opened as it comes.
        if self.is_closed && self.backend != Backend::GuardMprotect {
            let _merges = self.set_access(OPEN);
        }
    }
}

impl Drop for Move {
    fn drop(&mut self) {
        self.is.end.store(0, Ordering::Release);
        self.is.thread.store(0, Ordering::Release);
        COUNT.fetch_sub(1, Ordering::Release);
    }
}

/// A place among the moves.
fn register() -> &'static Ongoing {
    let mut tries = 0;
    loop {
        let beginning = BEGINNING.take();
        let free = |one: &&Ongoing| one.thread.load(Ordering::Acquire) == 0;
        if let Some(one) = MOVES.iter().find(free) {
            COUNT.fetch_add(1, Ordering::AcqRel);
            one.thread.store(own_thread(), Ordering::Release);
            return one;
        }
        drop(beginning);
        futex::pause(tries);
        tries = tries.saturating_add(1);
    }
}

/// Holds all pages of a range, if they are no more than half of the limit.
fn hold_all(heap: &Heap, address: usize, bytes: usize) -> Option<Pinned> {
    if bytes > heap.stats().resident_limit_bytes / 2 {
        return None;
    }
    heap.pin(range(address, bytes).cast_const()).ok()
}
