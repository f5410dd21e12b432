//! Threads of the engine, and who is running.

use core::sync::atomic::{AtomicBool, Ordering};

use crate::error::{OsError, errno};
use crate::map::{MapArc, PAGE_SIZE, Reservation};
use crate::shards;
use crate::stack;
use crate::{doorway, kernel};

/// Gives up the processor (sched_yield(2)). Async-signal-safe.
pub fn yield_now() {
    // SAFETY: no preconditions.
    unsafe { kernel::syscall!(libc::SYS_sched_yield) };
}

/// A number that differs between live threads of the process: the thread
/// pointer. Reading it is one instruction, needs no thread-local storage of
/// ours and is async-signal-safe.
#[must_use]
pub fn key() -> usize {
    #[cfg(feature = "sim")]
    match crate::sim::actor() {
        0 => {}
        actor => return actor,
    }
    #[cfg(target_arch = "x86_64")]
    {
        let tp: usize;
        // SAFETY: the x86-64 System V ABI keeps the thread control block's
        // own address at %fs:0.
        unsafe {
            core::arch::asm!("mov {}, fs:0", out(reg) tp, options(nostack, preserves_flags, readonly));
        }
        tp
    }
    #[cfg(not(target_arch = "x86_64"))]
    {
        tid() as usize
    }
}

/// A place among `count` counters that are kept apart so that processors do not
/// share a cache line: that of the processor the thread runs on now
/// (sched_getcpu(3), which asks no kernel). A later call may give another.
/// Async-signal-safe.
///
/// # Panics
/// When `count` is 0.
#[must_use]
pub fn shard(count: usize) -> usize {
    #[cfg(feature = "sim")]
    if crate::sim::is_on() {
        return crate::sim::actor() % 4 % count;
    }
    // SAFETY: no preconditions.
    let processor = unsafe { libc::sched_getcpu() };
    shards::of_processor(usize::try_from(processor).unwrap_or(0), count)
}

/// The kernel's id of the calling thread (gettid(2)). Async-signal-safe.
#[must_use]
pub fn tid() -> u32 {
    // SAFETY: no preconditions.
    let id = unsafe { kernel::syscall!(libc::SYS_gettid) };
    id as u32
}

/// Every signal blocked on the calling thread while this value lives; the
/// mask it replaced comes back on drop.
///
/// A thread that owns a page transition outside a fault handler must hold
/// one: a signal handler that touched the page in between would wait for the
/// very thread it interrupted.
#[derive(Debug)]
pub struct SignalsBlocked {
    before: libc::sigset_t,
}

impl SignalsBlocked {
    /// Blocks every signal on the calling thread, whose stack must not be ghost
    /// memory from here on.
    #[must_use]
    pub fn new() -> Self {
        let before = block(&full_set());
        Self { before }
    }

    /// Blocks every signal but those that a touch of ghost memory raises, which
    /// are let through, on a stack of any kind.
    #[must_use]
    pub fn all_but_faults() -> Self {
        let mut set = full_set();
        for signal in [libc::SIGBUS, libc::SIGSEGV] {
            // SAFETY: an initialised set and a valid signal number.
            unsafe { libc::sigdelset(&raw mut set, signal) };
        }
        let before = mask();
        set_mask(&set);
        Self { before }
    }
}

impl SignalsBlocked {
    /// The mask that comes back is `mask`, as the kernel has it: whoever made this value had
    /// blocked signals before.
    pub const fn give_back(&mut self, mask: u64) {
        self.before = set_of(mask);
    }
}

impl Default for SignalsBlocked {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for SignalsBlocked {
    fn drop(&mut self) {
        set_mask(&self.before);
    }
}

/// Whether the signals that a touch of ghost memory raises stay open whatever the
/// engine blocks.
static FAULTS_STAY_OPEN: AtomicBool = AtomicBool::new(false);

/// From now on [`SignalsBlocked`] leaves the signals open that a touch of ghost memory
/// raises: where stacks of the program's threads may be such memory, what is written
/// there has to come in.
pub fn keep_faults_open() {
    FAULTS_STAY_OPEN.store(true, Ordering::Relaxed);
}

/// Bytes of the kernel's set of signals, which is the beginning of libc's.
const KERNEL_SET_BYTES: usize = 8;

/// rt_sigprocmask(2): 0 where it was done.
///
/// # Safety
/// `before` is null or a place for a set.
unsafe fn mask_call(
    how: i32,
    set: Option<&libc::sigset_t>,
    before: *mut libc::sigset_t,
) -> libc::c_long {
    // No signal comes to a simulation's actors.
    #[cfg(feature = "sim")]
    if crate::sim::is_on() {
        return 0;
    }
    let set = set.map_or(core::ptr::null(), core::ptr::from_ref);
    // SAFETY: the set is read, and the caller's promise.
    unsafe { kernel::syscall!(libc::SYS_rt_sigprocmask, how, set, before, KERNEL_SET_BYTES) }
}

/// A set as it is to be blocked.
fn to_block(set: &libc::sigset_t) -> libc::sigset_t {
    let mut set = *set;
    if FAULTS_STAY_OPEN.load(Ordering::Relaxed) {
        for signal in [libc::SIGBUS, libc::SIGSEGV] {
            // SAFETY: an initialised set and a valid signal number.
            unsafe { libc::sigdelset(&raw mut set, signal) };
        }
    }
    set
}

/// A set in libc's form, which begins with the kernel's.
const fn set_of(mask: u64) -> libc::sigset_t {
    const WORDS: usize = size_of::<libc::sigset_t>() / size_of::<u64>();
    let mut words = [0_u64; WORDS];
    words[0] = mask;
    // SAFETY: as long, and any bits are a set.
    unsafe { core::mem::transmute::<[u64; WORDS], libc::sigset_t>(words) }
}

pub(crate) fn full_set() -> libc::sigset_t {
    let mut set = core::mem::MaybeUninit::uninit();
    // SAFETY: sigfillset initialises the whole set it is given.
    unsafe { libc::sigfillset(set.as_mut_ptr()) };
    // SAFETY: initialised by the call above.
    unsafe { set.assume_init() }
}

/// Blocks these as well, in one call; what the mask was before. What is blocked already, in a
/// fault handler or on a thread of the engine's, stays so.
fn block(set: &libc::sigset_t) -> libc::sigset_t {
    let mut before = full_set();
    // SAFETY: `before` is a set; SIG_BLOCK cannot fail.
    unsafe { mask_call(libc::SIG_BLOCK, Some(&to_block(set)), &raw mut before) };
    before
}

/// The mask as it is. As [`set_mask`], for any stack.
fn mask() -> libc::sigset_t {
    loop {
        let mut now = full_set();
        // SAFETY: a place for the current set.
        let rc = unsafe { mask_call(libc::SIG_SETMASK, None, &raw mut now) };
        if rc == 0 {
            return now;
        }
    }
}

/// The signals that come to whoever writes to a file that nobody reads, or that is at the
/// limit on its size, as the kernel's set.
const WRITE_SIGNALS: u64 = 1 << (libc::SIGPIPE - 1) | 1 << (libc::SIGXFSZ - 1);

/// Writes without the signals that this thread may get for it: the program did not write,
/// and is not told. `write` answers below 0 where it failed.
pub(crate) fn without_write_signals(write: impl FnOnce() -> isize) -> isize {
    let blocked = SignalsBlocked::all_but_faults();
    let sent = WRITE_SIGNALS & !pending();
    let answer = write();
    if answer < 0 && sent != 0 {
        take_pending(sent);
    }
    drop(blocked);
    answer
}

/// The signals that wait for the thread; none where a filter of the program's may forbid to
/// ask. As [`set_mask`], for any stack.
fn pending() -> u64 {
    let mut waiting = 0_u64;
    while !doorway::is_confined() {
        // SAFETY: a place for the kernel's set.
        let rc = unsafe {
            kernel::syscall!(libc::SYS_rt_sigpending, &raw mut waiting, KERNEL_SET_BYTES)
        };
        if rc == 0 || errno() != libc::EFAULT {
            break;
        }
        waiting = core::hint::black_box(0);
    }
    waiting
}

/// Takes one of these signals back, which are blocked, if one waits. For any stack.
pub(crate) fn take_pending(signals: u64) {
    loop {
        let (set, at_once) = core::hint::black_box((signals, [0_u64; 2]));
        // SAFETY: reads the set and the time; nothing is written.
        let rc = unsafe {
            kernel::syscall!(
                libc::SYS_rt_sigtimedwait,
                &raw const set,
                0,
                &raw const at_once,
                KERNEL_SET_BYTES
            )
        };
        if rc >= 0 || errno() != libc::EFAULT {
            return;
        }
    }
}

/// Changes the mask. The kernel answers `EFAULT`, and does nothing, where the set is
/// on a page of the stack that is absent: each round touches it again.
fn set_mask(set: &libc::sigset_t) {
    loop {
        let set = core::hint::black_box(*set);
        // SAFETY: nothing is written.
        let rc = unsafe { mask_call(libc::SIG_SETMASK, Some(&set), core::ptr::null_mut()) };
        if rc == 0 {
            return;
        }
    }
}

/// Runs `body` on a thread of the engine's with every signal blocked, those of faults, too:
/// one of these that was sent to the process would have the program's handler run here, beside
/// the program's own threads. `body` touches no ghost memory.
pub fn closed_to_signals<R>(body: impl FnOnce() -> R) -> R {
    let mut before = full_set();
    // SAFETY: `before` is a set; SIG_BLOCK cannot fail.
    unsafe { mask_call(libc::SIG_BLOCK, Some(&full_set()), &raw mut before) };
    let result = body();
    set_mask(&before);
    result
}

/// Gives the calling thread a name of at most 15 bytes (`PR_SET_NAME`).
///
/// One system call. To name another thread, libc opens and writes a file below
/// /proc/self/task, which the kernel then has to forget when the process ends.
pub fn name_this(name: &'static core::ffi::CStr) {
    debug_assert!(name.count_bytes() <= 15, "the kernel takes no longer name");
    // SAFETY: a NUL-terminated string.
    unsafe { libc::prctl(libc::PR_SET_NAME, name.as_ptr()) };
}

/// A running engine thread, to be joined.
#[derive(Debug)]
pub struct EngineThread {
    handle: libc::pthread_t,
    // Held until after the join: the thread runs on it.
    stack: Option<Reservation>,
    shared: Option<Held>,
}

/// What `spawn_with` shares with its thread.
struct Start<T: Send + Sync + 'static> {
    name: &'static core::ffi::CStr,
    shared: MapArc<T>,
    body: fn(&T),
    /// The thread is about to let go of its handle, or has.
    done: AtomicBool,
}

impl<T: Send + Sync + 'static> Start<T> {
    extern "C" fn run(start: *mut libc::c_void) -> *mut libc::c_void {
        // SAFETY: `spawn_with` gave up exactly this handle to us.
        let start: MapArc<Self> = unsafe { MapArc::from_raw(start.cast()) };
        closed_to_signals(|| {
            name_this(start.name);
            (start.body)(&start.shared);
        });
        start.done.store(true, Ordering::Release);
        core::ptr::null_mut()
    }
}

/// The starter's handle of a [`Start`], whatever its type.
#[derive(Debug)]
struct Held {
    raw: *const libc::c_void,
    let_go: unsafe fn(*const libc::c_void, bool),
}

// SAFETY: a handle of a `MapArc` of something that is Send and Sync, used once.
unsafe impl Send for Held {}
// SAFETY: as above; nothing is done through a reference.
unsafe impl Sync for Held {}

impl Held {
    fn new<T: Send + Sync + 'static>(start: MapArc<Start<T>>) -> Self {
        /// # Safety
        /// `raw` must be a handle given up by `new`, and not be used again.
        unsafe fn let_go<T: Send + Sync + 'static>(raw: *const libc::c_void, thread_is_lost: bool) {
            // SAFETY: the caller's promise.
            let ours: MapArc<Start<T>> = unsafe { MapArc::from_raw(raw.cast()) };
            if thread_is_lost && !ours.done.load(Ordering::Acquire) {
                // SAFETY: the thread's own handle, which it had not let go of
                // when it ceased to be.
                drop(unsafe { MapArc::<Start<T>>::from_raw(raw.cast()) });
            }
        }
        Self {
            raw: MapArc::into_raw(start).cast(),
            let_go: let_go::<T>,
        }
    }

    fn let_go(self, thread_is_lost: bool) {
        // SAFETY: `new` made it, and self is gone afterwards.
        unsafe { (self.let_go)(self.raw, thread_is_lost) };
    }
}

impl EngineThread {
    /// Starts a thread on a stack of our own that has every signal blocked but those
    /// of faults, and calls `body(argument)`; see [`closed_to_signals`].
    ///
    /// Not `std::thread`: that allocates from the program's allocator, which
    /// may be a ghost heap, and an engine thread must own no ghost memory.
    /// It [names itself](name_this).
    ///
    /// # Errors
    /// `ENOMEM` or `EAGAIN` when the stack or the thread cannot be had.
    pub fn spawn(
        body: extern "C" fn(*mut libc::c_void) -> *mut libc::c_void,
        argument: usize,
    ) -> Result<Self, OsError> {
        const STACK_BYTES: usize = 252 * 1024;
        let stack = stack::memory(STACK_BYTES)?;
        let mut attr = core::mem::MaybeUninit::<libc::pthread_attr_t>::uninit();
        // SAFETY: initialises the attribute object it is given.
        check("pthread_attr_init", unsafe {
            libc::pthread_attr_init(attr.as_mut_ptr())
        })?;
        let usable = stack.base() + PAGE_SIZE;
        // SAFETY: the range is ours, page aligned, and outlives the thread.
        let rc = unsafe {
            libc::pthread_attr_setstack(attr.as_mut_ptr(), usable as *mut libc::c_void, STACK_BYTES)
        };
        check("pthread_attr_setstack", rc)?;
        let mut handle: libc::pthread_t = 0;
        // The new thread inherits the mask. Faults stay open in it: libc reads
        // the program's locale when a thread starts, which is ghost memory where
        // malloc is.
        let blocked = SignalsBlocked::all_but_faults();
        // SAFETY: `attr` is initialised, `body` has the required signature
        // and the meaning of `argument` is agreed between it and our caller.
        let rc = unsafe {
            libc::pthread_create(
                &raw mut handle,
                attr.as_ptr(),
                body,
                argument as *mut libc::c_void,
            )
        };
        drop(blocked);
        // SAFETY: initialised above, used for the last time.
        unsafe { libc::pthread_attr_destroy(attr.as_mut_ptr()) };
        check("pthread_create", rc)?;
        Ok(Self {
            handle,
            stack: Some(stack),
            shared: None,
        })
    }

    /// Starts a thread that calls `body(&shared)`, holding one handle of
    /// `shared` until it ends. `name`: see [`name_this`].
    ///
    /// # Errors
    /// As [`EngineThread::spawn`].
    pub fn spawn_with<T: Send + Sync + 'static>(
        name: &'static core::ffi::CStr,
        shared: MapArc<T>,
        body: fn(&T),
    ) -> Result<Self, OsError> {
        let start = MapArc::new(Start {
            name,
            shared,
            body,
            done: AtomicBool::new(false),
        })?;
        let ours = start.clone();
        let raw = MapArc::into_raw(start);
        let mut thread = Self::spawn(Start::<T>::run, raw as usize).inspect_err(|_| {
            // SAFETY: no thread was made that could have taken it.
            drop(unsafe { MapArc::<Start<T>>::from_raw(raw) });
        })?;
        thread.shared = Some(Held::new(ours));
        Ok(thread)
    }

    /// Waits for the thread to end. In a child that ran no fork hook, which has
    /// no such thread, there is nothing to wait for.
    pub fn join(mut self) {
        if crate::lineage::is_stranger() {
            return;
        }
        // SAFETY: the handle was never joined before: joining consumes self.
        unsafe { libc::pthread_join(self.handle, core::ptr::null_mut()) };
        self.stack = None;
        if let Some(shared) = self.shared.take() {
            shared.let_go(false);
        }
    }

    /// Gives up the handle of a thread that does not exist in this process (a
    /// forked child has only the thread that forked). Its stack is unmapped,
    /// unless [`keep_stacks_in_child`] was called, and what it held a handle of is
    /// let go.
    pub fn forget_after_fork(mut self) {
        if STACKS_STAY.load(Ordering::Relaxed) {
            core::mem::forget(self.stack.take());
        }
        if let Some(shared) = self.shared.take() {
            shared.let_go(true);
        }
    }
}

static STACKS_STAY: AtomicBool = AtomicBool::new(false);

/// In a child that fork(3) did not make, before its parent's threads are forgotten:
/// libc goes on listing these, by places on their stacks, until it makes a fork of
/// its own.
pub fn keep_stacks_in_child() {
    STACKS_STAY.store(true, Ordering::Relaxed);
}

const fn check(call: &'static str, rc: i32) -> Result<(), OsError> {
    if rc == 0 {
        Ok(())
    } else {
        Err(OsError::new(call, rc))
    }
}

/// Registers handlers that run around every fork(3) of the process
/// (pthread_atfork(3)): `prepare` before it, the others after it in parent and
/// child.
///
/// # Errors
/// `ENOMEM`.
pub fn at_fork(
    prepare: extern "C" fn(),
    parent: extern "C" fn(),
    child: extern "C" fn(),
) -> Result<(), OsError> {
    unsafe extern "C" {
        fn pthread_atfork(
            prepare: Option<extern "C" fn()>,
            parent: Option<extern "C" fn()>,
            child: Option<extern "C" fn()>,
        ) -> i32;
    }
    // SAFETY: the three functions are ordinary functions that stay loaded.
    let rc = unsafe { pthread_atfork(Some(prepare), Some(parent), Some(child)) };
    check("pthread_atfork", rc)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stack::forked;

    /// Whether a signal is blocked on this thread.
    fn blocks(signal: i32) -> bool {
        let now = mask();
        // SAFETY: an initialised set and a valid signal number.
        unsafe { libc::sigismember(&raw const now, signal) == 1 }
    }

    /// Proves that on a thread of the engine's fault signals stay blocked, whatever it blocks
    /// and opens meanwhile, and that elsewhere they stay open where they were.
    #[test]
    fn a_closed_thread_stays_closed_to_fault_signals() {
        let code = forked(|| {
            keep_faults_open();
            let faults = || SIGNALS.map(blocks);
            let blocked = SignalsBlocked::new();
            let open = faults() == [false; 2] && blocks(libc::SIGTERM);
            drop(blocked);
            let closed = closed_to_signals(|| {
                let before = faults();
                let blocked = SignalsBlocked::new();
                let within = faults();
                drop(blocked);
                [before, within, faults()] == [[true; 2]; 3] && blocks(libc::SIGTERM)
            });
            let after = faults() == [false; 2] && !blocks(libc::SIGTERM);
            i32::from(open && closed && after)
        });
        assert_eq!(code, 1);
    }

    const SIGNALS: [i32; 2] = [libc::SIGBUS, libc::SIGSEGV];
}
