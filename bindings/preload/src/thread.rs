//! What is remembered of each thread: one small block of static thread-local
//! storage.
//!
//! The block uses the initial-exec model, written by hand: it exists as soon
//! as a thread does, is found without a call, and never allocates. A variable
//! of `std::thread_local!` in a shared library is found through the loader,
//! which may allocate, which would come back to us.

use core::arch::asm;
use core::cell::Cell;

use crate::bounce::left;
use crate::keys;
use crate::raw::own;
use crate::signals::Blocked;

/// A thread's state. All zero for a new thread.
#[repr(C)]
pub(crate) struct Thread {
    /// Above zero while the thread runs engine code: its allocations and
    /// system calls are then the engine's, and left alone.
    pub(crate) inside: Cell<u32>,
    /// Which of [`crate::signals::OURS`] the program believes to have blocked,
    /// one bit each.
    pub(crate) blocked: Cell<u32>,
    /// The alternate signal stack we gave the thread; 0 for none.
    pub(crate) stack: Cell<usize>,
    /// The program has set an alternate stack of its own.
    pub(crate) own_stack: Cell<u32>,
    /// The thread's part with us is over: see [`crate::threads`].
    pub(crate) ended: Cell<bool>,
    /// It is one of the program's, and counted as such.
    pub(crate) is_counted: Cell<bool>,
    /// It is one of the engine's.
    pub(crate) is_engines: Cell<bool>,
    /// A key of libc's is set, by which its end is heard.
    pub(crate) is_keyed: Cell<bool>,
    /// This thread is the one that is forking.
    pub(crate) forking: Cell<u32>,
    /// The task whose block this is, where clone(2) made another one that has it, too; 0:
    /// nobody else has.
    pub(crate) host: Cell<u32>,
    /// The child of vfork(2) on this thread that is to be traced; 0: none.
    pub(crate) to_trace: Cell<i32>,
    /// What a child of vfork(2) on this thread set for itself: see
    /// [`crate::signals::inherited`].
    pub(crate) heir: Cell<[u32; 3]>,
    /// Memory for the strings of an execve, kept: that call does not return.
    pub(crate) exec: Cell<usize>,
    /// Its length, bytes.
    pub(crate) exec_bytes: Cell<usize>,
    /// Where this thread's next allocation of our own Rust code goes, for the rest
    /// of the process; 0: to libc. See [`crate::ordinary::leave_libc_alone`].
    pub(crate) scratch: Cell<usize>,
    /// Bytes of small objects this thread allocated, less those it freed, that
    /// the heap was not told of yet.
    pub(crate) uncounted: Cell<isize>,
    /// Bytes of a block that another one is to take the place of, while that is made.
    pub(crate) replaced: Cell<usize>,
    /// Which touch was refused last, and when: see [`crate::taken::is_to_be_tried_again`].
    pub(crate) tried_again: Cell<[usize; 3]>,
    /// A fork of this thread's is counted where the limit on open files is raised: see
    /// [`crate::raised`].
    pub(crate) raises: Cell<u32>,
    /// Its area of rseq(2) in ghost memory: address, bytes and signature; 0: none.
    pub(crate) rseq: Cell<[usize; 3]>,
    /// Which of [`crate::signals::OURS`] were sent while they were blocked, one
    /// bit each, and what came with them.
    pub(crate) pending: Cell<u32>,
    pub(crate) pending_info: [[Cell<u64>; INFO_WORDS]; 2],
    /// Not zero once one was kept, while the thread is about to wait for some.
    pub(crate) kept: Cell<u32>,
    /// The mark of the system call that the thread is in, on its stack; and how many calls
    /// have had one: see [`left`].
    pub(crate) call: Cell<usize>,
    pub(crate) calls: Cell<u16>,
    /// Where on its stack the thread went into libc's malloc; 0: it is not there.
    pub(crate) in_libc: Cell<usize>,
    /// This library has its part in the fork that libc makes on this thread.
    pub(crate) takes_part: Cell<bool>,
    /// Signals that were blocked before libc's part of a fork (`Blocked::keep`); 0: none is on.
    pub(crate) before_fork: Cell<u64>,
    /// What it has set for the [`keys`] of this library's own; 0: nothing.
    pub(crate) keyed: [Cell<usize>; keys::MOST],
    pub(crate) stand_ins: [left::Noted; left::NOTES],
}

/// Words of a `siginfo_t`.
pub(crate) const INFO_WORDS: usize = 128 / 8;

core::arch::global_asm!(
    ".section .tbss.gm_thread,\"awT\",@nobits",
    ".globl gm_thread",
    ".hidden gm_thread",
    ".type gm_thread,@object",
    ".size gm_thread,704",
    ".align 64",
    "gm_thread:",
    ".zero 704",
    ".previous",
);

const _: () = assert!(size_of::<Thread>() <= 704);

/// The calling thread's state.
pub(crate) fn current() -> &'static Thread {
    let address: *const Thread;
    // SAFETY: initial-exec access as the x86-64 ABI has it: the offset from
    // the thread pointer out of the GOT, the thread pointer from %fs:0.
    unsafe {
        asm!(
            "mov {0}, qword ptr [rip + gm_thread@GOTTPOFF]",
            "add {0}, qword ptr fs:[0]",
            out(reg) address,
            options(nostack, pure, readonly),
        );
    }
    // SAFETY: the thread's own block of 704 zero-initialised bytes, used by no
    // other thread; the reference does not leave it (`Cell` is not Sync).
    unsafe { &*address }
}

/// Where libc's own block of the calling thread begins: the thread pointer.
pub(crate) fn control_block() -> usize {
    let address: usize;
    // SAFETY: the first word of that block holds its address (x86-64 ABI).
    unsafe {
        asm!(
            "mov {0}, qword ptr fs:[0]",
            out(reg) address,
            options(nostack, pure, readonly),
        );
    }
    address
}

/// Whether the caller runs on another task's block, at the same time: what it marked there
/// would be the other's.
pub(crate) fn is_guest(thread: &Thread) -> bool {
    let host = thread.host.get();
    host != 0 && host != own!(libc::SYS_gettid) as u32
}

/// Marks engine code; undone when dropped: the mark is what it was before. (It may have been
/// taken off meanwhile, for a handler of the program's that threw an exception past us.)
pub(crate) struct EngineScope(&'static Thread, u32);

impl EngineScope {
    pub(crate) fn new(thread: &'static Thread) -> Self {
        let before = thread.inside.get();
        thread.inside.set(before + 1);
        Self(thread, before)
    }
}

impl Drop for EngineScope {
    fn drop(&mut self) {
        self.0.inside.set(self.1);
    }
}

/// Engine code that takes locks of the heap's. No handler of the program's comes in the midst
/// of it: one that forks would wait for what the thread has that it interrupted. It comes
/// behind it, when the thread is the program's again.
pub(crate) struct Undisturbed {
    // Dropped in this order.
    _inside: EngineScope,
    _blocked: Option<Blocked>,
}

impl Undisturbed {
    pub(crate) fn new(thread: &'static Thread) -> Self {
        let blocked = Blocked::if_handled();
        Self {
            _inside: EngineScope::new(thread),
            _blocked: blocked,
        }
    }
}

/// Marks engine code on a thread that runs none yet; undone when dropped. Two
/// plain stores, where [`EngineScope`] adds and subtracts: malloc and free are often
/// so close that each sum would wait for the one before.
pub(crate) struct Entered(&'static Thread);

impl Entered {
    /// `None` where the thread runs engine code already.
    #[inline]
    pub(crate) fn new(thread: &'static Thread) -> Option<Self> {
        (thread.inside.get() == 0).then(|| {
            thread.inside.set(1);
            Self(thread)
        })
    }
}

impl Drop for Entered {
    #[inline]
    fn drop(&mut self) {
        self.0.inside.set(0);
    }
}
