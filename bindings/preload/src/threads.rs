//! Threads the program starts: an alternate signal stack for each, and the
//! engine's own threads left alone.
//!
//! A process ends when its last thread does (pthread_exit(3)). The engine's
//! threads do not end with the program's, so these are counted, and the last one to
//! leave ends the process as libc would have.

use core::ffi::{c_int, c_void};
use core::sync::atomic::{AtomicBool, AtomicI64, AtomicU32, AtomicUsize, Ordering};

use ghostmem_os::doorway;
use ghostmem_os::error::KeptErrno;

use crate::bounce::left;
use crate::calls::table;
use crate::raw::{failed, own};
use crate::thread::{EngineScope, Thread};
use crate::{
    begin, foreign, ghost, guarded, holds, keys, names, objects, ordinary, patch, signals, start,
    thread,
};

type Body = extern "C-unwind" fn(*mut c_void) -> *mut c_void;
type Create = unsafe extern "C" fn(
    *mut libc::pthread_t,
    *const libc::pthread_attr_t,
    Body,
    *mut c_void,
) -> c_int;

static CREATE: AtomicUsize = AtomicUsize::new(0);
/// Whether libc's own calls say that a thread ends: see [`leaves`].
static IS_HEARD: AtomicBool = AtomicBool::new(false);
/// Where libc counts its threads, then.
static LIBCS: AtomicUsize = AtomicUsize::new(0);
/// A thread is on its way to end the process.
static IS_OVER: AtomicBool = AtomicBool::new(false);
/// Where they do not: the key of libc's whose destructor says so; -1: none.
static KEY: AtomicI64 = AtomicI64::new(-1);
/// Threads of the program that have not ended.
static PROGRAM: AtomicUsize = AtomicUsize::new(1);
/// Threads of the engine, and the process they belong to. One is counted before libc counts it.
static ENGINE: AtomicUsize = AtomicUsize::new(0);
/// Those of them that run: libc counts each of them, and maybe others.
static BEGUN: AtomicUsize = AtomicUsize::new(0);
static ENGINE_PROCESS: AtomicUsize = AtomicUsize::new(0);
static ENGINE_MOST: AtomicUsize = AtomicUsize::new(0);
/// Their numbers, as far as there is room; 0: none. A program that counts its threads, or stops
/// them one by one, is not to see these (proc_pid_task(5)): nobody but them frees memory.
static ENGINE_TASKS: [AtomicUsize; 16] = [const { AtomicUsize::new(0) }; 16];

/// What a new thread needs to know.
struct Start {
    body: Body,
    argument: *mut c_void,
    engine: bool,
    /// Its stack in ghost memory, held until it ends; 0: none.
    stack: usize,
}

/// The first thread is one of the program's; and how threads are heard of that end. Called once,
/// at start, on that thread.
pub(crate) fn prepare(patched: &patch::Report) {
    thread::current().is_counted.set(true);
    // One way out is the first thread's, one that of all others.
    let is_heard = patched.left == 0 && patched.ways_out == 2;
    if is_heard
        && names::libc_is_at_least(BLOCKS_FIRST)
        && let Some(count) = names::data_in_libc(c"__nptl_nthreads")
    {
        LIBCS.store(count, Ordering::Relaxed);
        IS_HEARD.store(true, Ordering::Release);
        return;
    }
    let mut key: libc::pthread_key_t = 0;
    let Some(create) = names::in_libc(c"pthread_key_create") else {
        return;
    };
    type Create =
        unsafe extern "C" fn(*mut libc::pthread_key_t, Option<extern "C" fn(*mut c_void)>) -> c_int;
    // SAFETY: libc's function of this type.
    let create = unsafe { core::mem::transmute::<usize, Create>(create) };
    // SAFETY: a valid place for the key, and a destructor of its type.
    let failed = unsafe { create(&raw mut key, Some(ends)) };
    if failed == 0 {
        KEY.store(i64::from(key), Ordering::Release);
        hear();
    }
}

/// The first glibc whose threads block all signals before they end.
const BLOCKS_FIRST: [u32; 2] = [2, 35];

/// Has this thread heard of when it ends, where a key of libc's is needed for that.
pub(crate) fn hear() {
    // Once: what it asks for between its destructors does not begin anew.
    if KEY.load(Ordering::Relaxed) >= 0 && !thread::current().is_keyed.replace(true) {
        set_key(1);
    }
}

/// Sets this thread's value of the key: how often `ends` was called, plus one.
fn set_key(round: usize) {
    type Set = unsafe extern "C" fn(libc::pthread_key_t, *const c_void) -> c_int;
    if let Ok(key) = libc::pthread_key_t::try_from(KEY.load(Ordering::Acquire))
        && let Some(set) = names::in_libc(c"pthread_setspecific")
    {
        // SAFETY: libc's function of this type.
        let set = unsafe { core::mem::transmute::<usize, Set>(set) };
        // SAFETY: a key of ours; a value that is not null calls `ends`.
        unsafe { set(key, core::ptr::without_provenance(round)) };
    }
}

/// A thread ends. Destructors run in up to four rounds (`PTHREAD_DESTRUCTOR_ITERATIONS`): ours
/// waits for the program's.
extern "C" fn ends(round: *mut c_void) {
    let round = round.addr();
    if round < 3 {
        set_key(round + 1);
        return;
    }
    if end(thread::current()) {
        end_process();
    }
}

/// Whether the process is to end, at a call by which libc says that a thread has left the
/// program's code for good:
///
/// ```text
///   start_thread      destructors ─► (the last: exit(3)) ─► rt_sigprocmask ─► exit(2)
///   main, left by     destructors ─► (the last: exit(3)) ───────────────────► exit(2)
///   pthread_exit(3)
/// ```
/// A thread blocks all signals then, but for libc's own one, with a set that it keeps in its
/// control block; what it had from the loader is gone when it comes to exit(2), which the first
/// thread alone goes into with all of it. The last one is to end the process where libc would,
/// with no signal blocked.
pub(crate) fn leaves(thread: &'static Thread, number: usize, args: [usize; 6]) -> bool {
    let is_ours = thread.is_engines.get() || thread::is_guest(thread);
    if !IS_HEARD.load(Ordering::Acquire) || is_ours {
        return false;
    }
    let is_now = match number {
        table::LEAVES => is_the_first(),
        _ => is_last_mask(args),
    };
    if is_now && thread.ended.get() && IS_OVER.load(Ordering::Acquire) {
        // What it had to do at exit has left that by pthread_exit(3).
        own!(libc::SYS_exit_group, 0);
    }
    is_now && !thread.ended.get() && end(thread)
}

/// Whether the arguments of rt_sigprocmask(2) are those of a thread that is about to end.
fn is_last_mask(args: [usize; 6]) -> bool {
    /// `SIGSETXID`: by it setuid(3) asks each thread.
    const LIBCS: u32 = 33;
    /// glibc's `struct pthread` is 0x900 bytes long.
    const CONTROL_BYTES: usize = 4096;
    let [how, set, old, ..] = args;
    how == libc::SIG_BLOCK as usize
        && old == 0
        && set.wrapping_sub(thread::control_block()) < CONTROL_BYTES
        && guarded::load::<u64>(set) == Ok(!(1 << (LIBCS - 1)))
}

/// Whether this is the process's first thread.
fn is_the_first() -> bool {
    let process = own!(libc::SYS_getpid);
    own!(libc::SYS_gettid) == process && process as i32 == start::process()
}

/// A thread has left the program's code for good. Whether it is to end the process.
fn end(thread: &'static Thread) -> bool {
    keys::end(thread, is_the_first());
    // Libc makes threads of its own, too.
    let is_counted = thread.is_counted.replace(false);
    if is_counted {
        signals::take_stack();
        left::ends(thread);
        hold_robust_list();
        ghost::tell(thread);
    }
    thread.ended.set(true);
    let is_last = is_counted && PROGRAM.fetch_sub(1, Ordering::AcqRel) == 1;
    let is_last = is_the_last_of_libcs() || (is_last && is_the_last(thread));
    is_last && !IS_OVER.swap(true, Ordering::AcqRel)
}

/// Whether libc has no thread but the engine's: the caller's is not counted any more. libc
/// itself would end the process then.
fn is_the_last_of_libcs() -> bool {
    let count = LIBCS.load(Ordering::Relaxed) as *const AtomicU32;
    // SAFETY: null, or a variable of libc's, which it changes atomically.
    let Some(count) = (unsafe { count.as_ref() }) else {
        return false;
    };
    count.load(Ordering::Acquire) as usize == of_engine(&BEGUN)
}

/// Whether nobody else of the program's runs. Threads made without our knowing may go on; those
/// that are about to be gone take a moment.
fn is_the_last(thread: &'static Thread) -> bool {
    let _inside = EngineScope::new(thread);
    for _ in 0..100 {
        if running() <= 1 + ENGINE.load(Ordering::Acquire) {
            return true;
        }
        std::thread::sleep(core::time::Duration::from_millis(1));
    }
    false
}

/// What libc does when the last thread ends.
pub(crate) extern "C" fn end_process() -> ! {
    // SAFETY: no preconditions, on a thread of the program's outside of the engine.
    unsafe { libc::exit(0) }
}

/// The list that the kernel walks when the thread has ended: of the robust mutexes that
/// it still has, which whoever waits for one is to be told of (get_robust_list(2)). What
/// the kernel does not find in memory ends its walk, so that is held until it is freed.
fn hold_robust_list() {
    /// As many as the kernel looks at (`ROBUST_LIST_LIMIT`).
    const MOST: usize = 2048;
    let Some(heap) = ghost::heap() else {
        return;
    };
    let (mut head, mut bytes) = (0_usize, 0_usize);
    let asked = own!(libc::SYS_get_robust_list, 0, &raw mut head, &raw mut bytes);
    // Of no size or place that is known: the kernel does not take it for one either.
    if failed(asked) || head == 0 {
        return;
    }
    let Ok([first, futex_at, pending]) = guarded::load::<[usize; 3]>(head) else {
        return;
    };
    let hold = |at: usize| {
        if ghost::is_ghost(at) {
            let _room = holds::hold(heap, holds::Reason::Kernel, at & !4095, 4096, 0);
        }
    };
    // The lowest bit says of what kind a mutex is.
    let places = |entry: usize| [entry & !1, (entry & !1).wrapping_add(futex_at)];
    if pending & !1 != 0 {
        places(pending).into_iter().for_each(hold);
    }
    let mut entry = first;
    for _ in 0..MOST {
        let [at, _] = places(entry);
        if at == head || at == 0 {
            return;
        }
        places(entry).into_iter().for_each(hold);
        match guarded::load(at) {
            Ok(next) => entry = next,
            Err(_) => return,
        }
    }
}

/// exit(2), by the process's first thread: what clone(2)'s children end by, and
/// nothing ends but that thread. Whether the process has no other one of the
/// program's: the engine's would go on alone.
pub(crate) fn ends_the_process() -> bool {
    let thread = thread::current();
    if thread.ended.get() || !is_the_first() {
        return false;
    }
    thread.ended.set(true);
    thread.is_counted.set(false);
    PROGRAM.fetch_sub(1, Ordering::AcqRel) == 1
}

/// Threads of this process that have not ended. The first one stays in the
/// kernel's list when it ended before the others.
fn running() -> usize {
    let Ok(tasks) = std::fs::read_dir("/proc/self/task") else {
        return 0;
    };
    let ended = |task: &std::fs::DirEntry| {
        let stat = std::fs::read_to_string(task.path().join("stat")).unwrap_or_default();
        let state = stat
            .rsplit(") ")
            .next()
            .and_then(|rest| rest.bytes().next());
        matches!(state, None | Some(b'Z' | b'X'))
    };
    tasks.flatten().filter(|task| !ended(task)).count()
}

/// Whether the process has one thread, but for the engine's.
pub(crate) fn is_alone() -> bool {
    PROGRAM.load(Ordering::Acquire) == 1
}

/// The threads of this process, where /proc can say: a folder has a link more for each of
/// those in it (proc_pid_task(5)).
pub(crate) fn in_process() -> Option<u64> {
    // SAFETY: all zero is a valid value of the structure.
    let mut seen: libc::stat = unsafe { core::mem::zeroed() };
    let path = c"/proc/self/task";
    let asked = own!(
        libc::SYS_newfstatat,
        libc::AT_FDCWD,
        path.as_ptr(),
        &raw mut seen,
        0
    );
    (!failed(asked)).then(|| seen.st_nlink.saturating_sub(2))
}

/// Whether no other thread of the program's runs, not even one that was made without our
/// knowing. `false` where that cannot be seen: a filter of the program's may end it for a look.
pub(crate) fn is_the_only_one() -> bool {
    is_alone()
        && !doorway::is_confined()
        && in_process().is_some_and(|threads| threads <= 1 + engine_count() as u64)
}

/// How many threads of the engine there were at once, in this process or in those that it is
/// forked from: libc keeps what it reserved for each.
pub(crate) fn most_of_engine() -> usize {
    ENGINE_MOST.load(Ordering::Relaxed)
}

/// Whether a thread of this number is the engine's.
pub(crate) fn is_engines(task: usize) -> bool {
    if task == 0 || engine_count() == 0 {
        return false;
    }
    let one_of = || {
        let places = ENGINE_TASKS.iter();
        places.map(|place| place.load(Ordering::Relaxed))
    };
    // One that begins says so in a moment.
    for _ in 0..100 {
        if one_of().any(|one| one == task) {
            return true;
        }
        let noted = one_of().filter(|&one| one != 0).count();
        if noted >= engine_count().min(ENGINE_TASKS.len()) {
            break;
        }
        let moment = [0, 100_000_i64];
        let _rest = own!(libc::SYS_nanosleep, &raw const moment, 0);
    }
    false
}

/// Notes that the calling thread is the engine's, or is one no more.
fn note_engine(is_one: bool) {
    thread::current().is_engines.set(true);
    match is_one {
        true => BEGUN.fetch_add(1, Ordering::AcqRel),
        false => BEGUN.fetch_sub(1, Ordering::AcqRel),
    };
    let task = own!(libc::SYS_gettid) as usize;
    let (from, to) = if is_one { (0, task) } else { (task, 0) };
    let _no_room = ENGINE_TASKS.iter().any(|place| {
        let changed = place.compare_exchange(from, to, Ordering::Relaxed, Ordering::Relaxed);
        changed.is_ok()
    });
}

/// How many threads of the engine this process has.
fn engine_count() -> usize {
    of_engine(&ENGINE)
}

/// A number of them, if they are this process's.
fn of_engine(count: &AtomicUsize) -> usize {
    match ENGINE_PROCESS.load(Ordering::Acquire) {
        process if process == own!(libc::SYS_getpid) as usize => count.load(Ordering::Acquire),
        _ => 0,
    }
}

/// In a forked child: only the thread that forked is here.
pub(crate) fn forget_others() {
    PROGRAM.store(1, Ordering::Release);
    IS_OVER.store(false, Ordering::Relaxed);
    // It may be forked by what a thread has at exit.
    thread::current().ended.set(false);
    thread::current().is_counted.set(true);
    hear();
    // What was sent to the parent is not the child's.
    thread::current().pending.set(0);
    signals::sent::forget();
}

/// Counts one more thread, before it is made.
fn count(engine: bool) {
    if !engine {
        PROGRAM.fetch_add(1, Ordering::AcqRel);
        return;
    }
    // A forked child starts its own.
    let process = own!(libc::SYS_getpid) as usize;
    if ENGINE_PROCESS.swap(process, Ordering::AcqRel) != process {
        let forget = |place: &AtomicUsize| place.store(0, Ordering::Release);
        ENGINE_TASKS
            .iter()
            .chain([&ENGINE, &BEGUN])
            .for_each(forget);
    }
    let before = ENGINE.fetch_add(1, Ordering::AcqRel);
    ENGINE_MOST.fetch_max(before + 1, Ordering::Relaxed);
}

fn uncount(engine: bool) {
    let counter = if engine { &ENGINE } else { &PROGRAM };
    counter.fetch_sub(1, Ordering::AcqRel);
}

fn create() -> Option<Create> {
    let mut found = CREATE.load(Ordering::Acquire);
    if found == 0 {
        found = start::next(c"pthread_create");
        CREATE.store(found, Ordering::Release);
    }
    if found == 0 {
        return None;
    }
    // SAFETY: the address of libc's function of this type.
    Some(unsafe { core::mem::transmute::<usize, Create>(found) })
}

/// pthread_create(3).
///
/// # Safety
/// As the standard has it.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn pthread_create(
    handle: *mut libc::pthread_t,
    attributes: *const libc::pthread_attr_t,
    body: Body,
    argument: *mut c_void,
) -> c_int {
    let Some(create) = create() else {
        return libc::EAGAIN;
    };
    begin::before_a_thread();
    if !ghost::is_on() && thread::current().inside.get() == 0 {
        // SAFETY: the caller's promise.
        return unsafe { create(handle, attributes, body, argument) };
    }
    let stack = if attributes.is_null() {
        0
    } else {
        match hold_stack(attributes) {
            Some(stack) => stack,
            None => return libc::EAGAIN,
        }
    };
    // The engine starts its threads in a forked child outside of any call into
    // the heap. What libc allocates for them (the table of thread-local
    // storage) must not be ghost memory: they never take a fault.
    let current = thread::current();
    let standard = body as usize == begin_standard as *const () as usize;
    let engine = current.inside.get() != 0 || (objects::is_ours(body as usize) && !standard);
    let _inside = engine.then(|| EngineScope::new(current));
    if !engine {
        let _errno = KeptErrno::now();
        ghostmem::fork::before_a_thread();
    }
    let place = ordinary::allocate(size_of::<Start>(), align_of::<Start>(), false);
    let place = place.cast::<Start>();
    if place.is_null() {
        return libc::EAGAIN;
    }
    let start = Start {
        body,
        argument,
        engine,
        stack,
    };
    count(engine);
    // SAFETY: fresh memory of that size.
    unsafe { place.write(start) };
    // SAFETY: the caller's promise; `begin` frees what it gets.
    let failed = unsafe { create(handle, attributes, begin, place.cast()) };
    if failed != 0 {
        uncount(engine);
        // SAFETY: no thread was made that could have it.
        unsafe { ordinary::free(place.cast()) };
    }
    failed
}

/// What thrd_create(3) starts, and with what.
struct Standard {
    body: extern "C-unwind" fn(*mut c_void) -> c_int,
    argument: *mut c_void,
}

/// thrd_create(3): a thread like any other, whose result is a number. libc's own
/// makes one that would not be counted.
///
/// # Safety
/// As the standard has it.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn thrd_create(
    handle: *mut libc::pthread_t,
    body: extern "C-unwind" fn(*mut c_void) -> c_int,
    argument: *mut c_void,
) -> c_int {
    // threads.h: thrd_success, thrd_error, thrd_nomem.
    const SUCCESS: c_int = 0;
    const ERROR: c_int = 2;
    const NO_MEMORY: c_int = 3;
    let place = ordinary::allocate(size_of::<Standard>(), align_of::<Standard>(), false);
    let place = place.cast::<Standard>();
    if place.is_null() {
        return NO_MEMORY;
    }
    // SAFETY: fresh memory of that size.
    unsafe { place.write(Standard { body, argument }) };
    // SAFETY: the caller's promise; `begin_standard` frees what it gets.
    let failed = unsafe { pthread_create(handle, core::ptr::null(), begin_standard, place.cast()) };
    if failed != 0 {
        // SAFETY: no thread was made that could have it.
        unsafe { ordinary::free(place.cast()) };
    }
    match failed {
        0 => SUCCESS,
        libc::ENOMEM | libc::EAGAIN => NO_MEMORY,
        _ => ERROR,
    }
}

extern "C-unwind" fn begin_standard(place: *mut c_void) -> *mut c_void {
    let place = place.cast::<Standard>();
    // SAFETY: `thrd_create` wrote it and gave it to this thread.
    let start = unsafe { place.read() };
    // SAFETY: read above, used by nobody else.
    unsafe { ordinary::free(place.cast()) };
    // thrd_join(3) takes the number back out of the pointer.
    core::ptr::without_provenance_mut((start.body)(start.argument) as usize)
}

/// A stack in ghost memory holds the thread's control block too, which the
/// kernel writes when the thread ends. Where such a stack begins, 0 for one in
/// other memory; `None`: no room to hold it.
fn hold_stack(attributes: *const libc::pthread_attr_t) -> Option<usize> {
    let (mut base, mut bytes) = (core::ptr::null_mut(), 0);
    // SAFETY: the program's initialised attributes, and places of ours.
    let failed = unsafe { libc::pthread_attr_getstack(attributes, &raw mut base, &raw mut bytes) };
    let base = base as usize;
    if failed != 0 || base == 0 {
        return Some(0);
    }
    let Some(heap) = ghost::owner(base) else {
        return Some(0);
    };
    holds::sweep_if_many();
    let start = base & !4095;
    let end = (base + bytes).next_multiple_of(4096);
    if holds::hold(heap, holds::Reason::Stack, start, end - start, 0) {
        return Some(start);
    }
    // What the limit has no room to hold becomes ordinary memory, if it has pages of its own.
    let access = (libc::PROT_READ | libc::PROT_WRITE) as usize;
    let let_go = foreign::let_go(heap, start, end - start, access);
    (let_go.answer == 0).then_some(0)
}

extern "C-unwind" fn begin(place: *mut c_void) -> *mut c_void {
    let place = place.cast::<Start>();
    // SAFETY: `pthread_create` wrote it and gave it to this thread.
    let start = unsafe { place.read() };
    if start.engine {
        // What libc maps for its malloc on this thread is the engine's, too.
        thread::current().inside.set(1);
        note_engine(true);
    }
    // SAFETY: read above, used by nobody else.
    unsafe { ordinary::free(place.cast()) };
    if !start.engine {
        signals::give_stack();
        thread::current().is_counted.set(true);
        hear();
        if start.stack != 0 {
            holds::belongs_to(start.stack, own!(libc::SYS_gettid) as usize);
        }
    }
    let result = (start.body)(start.argument);
    // The engine's end where they stand aside for a call.
    if start.engine {
        note_engine(false);
        uncount(true);
    }
    result
}
