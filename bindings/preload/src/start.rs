//! Start-up: from the environment to a heap in use, in two steps.
//!
//! ```text
//!   loader ─► our constructor: settings ─► fork handlers ─► patch libc
//!   much is allocated, a thread is made, rules change ─► begin: lead libc's free
//!             here ─► stand behind the program's signal handlers ─► heap, regions,
//!             small objects ─► stand in front ─► switch on
//! ```
//! Between the two the process is as it would be without us but for libc's rewritten
//! code, whose calls happen as they are: no heap, no thread, no handler, no
//! descriptor. Most programs that a script or a compiler starts end there. See
//! [`crate::begin`] for what begins the second step; it follows at once where
//! something was asked for that has to be seen to before the program runs.
//!
//! Without settings nothing happens at all. A step that is refused ends the process
//! with one line: a program that was to run within a limit is not run without one.

use core::alloc::Layout;
use core::ffi::{CStr, c_char, c_int};
use core::sync::atomic::{AtomicBool, AtomicI32, Ordering};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::OnceLock;

use ghostmem::record::Recorder;
use ghostmem::{Backend, Heap, Spill};
use ghostmem_os::error::{KeptErrno, set_errno};
use ghostmem_os::machine;

use crate::objects::Text;
use crate::plan::Plans;
use crate::raised::{self, Raised};
use crate::raw::{failed, own};
use crate::refusal::{self, Refusal, why_not};
use crate::settings::{Settings, VARIABLE, value_in};
use crate::thread::{self, EngineScope};
use crate::{
    attached, begin, bounce, cache, confine, endings, entries, ghost, heirs, holds, lifted,
    mappings, objects, ordinary, own_limits, patch, put_off, refused_fork, report, signals,
    threads, tree,
};

/// Most bytes of freed blocks kept for reuse, whatever the limit.
const CACHE_MOST: usize = 32 << 20;

static SETTINGS: OnceLock<Settings> = OnceLock::new();
/// The process this memory belongs to.
static PROCESS: AtomicI32 = AtomicI32::new(0);
/// The thread that claimed it had a list of robust mutexes.
static HAS_LIST: AtomicBool = AtomicBool::new(false);
static BLIND: AtomicBool = AtomicBool::new(true);
/// The program needs the monitor.
static MONITOR: AtomicBool = AtomicBool::new(false);

/// The settings, once the constructor has run with any.
pub(crate) fn settings() -> Option<&'static Settings> {
    SETTINGS.get()
}

/// The process this memory belongs to: not the caller's between vfork and exec.
pub(crate) fn process() -> i32 {
    PROCESS.load(Ordering::Relaxed)
}

fn claim_process() {
    PROCESS.store(own!(libc::SYS_getpid) as i32, Ordering::Relaxed);
    HAS_LIST.store(has_list(), Ordering::Relaxed);
}

/// The process's number is that of the first process of a namespace.
const FIRST: i32 = 1;

/// Whether the caller is a child of vfork(2) with its parent's number: each is the first
/// process of a namespace. The kernel gives a new task no list of robust mutexes, and libc
/// sets that of each of its threads.
pub(crate) fn is_first_elsewhere() -> bool {
    process() == FIRST
        && HAS_LIST.load(Ordering::Relaxed)
        && own!(libc::SYS_gettid) as i32 == FIRST
        && !has_list()
}

/// Whether the calling task has a list of robust mutexes.
fn has_list() -> bool {
    let (mut list, mut bytes) = (0_usize, 0_usize);
    let asked = own!(libc::SYS_get_robust_list, 0, &raw mut list, &raw mut bytes);
    failed(asked) || list != 0
}

/// Whether a system call fails on an absent page, rather than wait for it.
pub(crate) fn kernel_is_blind() -> bool {
    BLIND.load(Ordering::Relaxed)
}

/// The next definition of a function after ours; 0 when there is none.
pub(crate) fn next(name: &CStr) -> usize {
    // SAFETY: a C string; dlsym has no other precondition.
    unsafe { libc::dlsym(libc::RTLD_NEXT, name.as_ptr()) as usize }
}

/// errno as this library found it.
static FOUND_ERRNO: AtomicI32 = AtomicI32::new(0);

/// Before all others of this library (the small-object allocator's asks for what not all kernels
/// have): the program begins with errno as it was.
#[used]
#[unsafe(link_section = ".init_array.00040")]
static KEEP_ERRNO: extern "C" fn() = {
    extern "C" fn keep() {
        FOUND_ERRNO.store(ghostmem_os::error::errno(), Ordering::Relaxed);
    }
    keep
};

#[used]
#[unsafe(link_section = ".init_array")]
static CONSTRUCTOR: extern "C" fn(c_int, *const *const c_char, *const *const c_char) = constructor;

extern "C" fn constructor(
    _count: c_int,
    _arguments: *const *const c_char,
    environment: *const *const c_char,
) {
    construct(environment);
    set_errno(FOUND_ERRNO.load(Ordering::Relaxed));
}

fn construct(environment: *const *const c_char) {
    // SAFETY: glibc passes the process's environment to constructors, and
    // nobody else runs yet that could change it.
    let Some(text) = (unsafe { value_in(environment, VARIABLE) }) else {
        return;
    };
    let mut parsed = Settings::parse(text.to_bytes());
    if parsed.trace.is_some() {
        // The command stayed behind to keep the record of its child, whatever
        // that executes. What the child starts itself is not recorded.
        // SAFETY: takes nothing and cannot fail.
        if unsafe { libc::getppid() } != parsed.recorder {
            return;
        }
        parsed.reporter = i32::try_from(std::process::id()).unwrap_or(0);
    }
    let settings = SETTINGS.get_or_init(|| parsed);
    // SAFETY: as above.
    let cache = unsafe { value_in(environment, c"XDG_CACHE_HOME") };
    // SAFETY: as above.
    let home = unsafe { value_in(environment, c"HOME") };
    if let Err(refusal) = start(settings, cache, home) {
        refusal.say();
        std::process::exit(refusal.code);
    }
}

fn start(
    settings: &'static Settings,
    cache: Option<&CStr>,
    home: Option<&CStr>,
) -> Result<(), Refusal> {
    refuse_valgrind()?;
    let inside = EngineScope::new(thread::current());
    if !settings.children {
        forget_in_environment();
    }
    claim_process();
    objects::find_ours();
    confine::prepare(settings);
    tree::find(settings);
    let plans = if confine::came_with_exec(settings) {
        Plans::none()
    } else {
        Plans::of(cache, home)
    };
    if take_part_in_forks() != 0 {
        return Err("no room for fork handlers".to_owned().into());
    }
    TAKES_PART.store(true, Ordering::Release);
    mappings::take_from(settings.mmap_from);
    // Not later: a program that asks for memory may be in the loader.
    ordinary::find_usable_size();
    refused_fork::prepare();
    let texts = TEXTS.get_or_init(objects::texts);
    objects::know_libc(texts);
    let patched = patch::install(texts, true, &plans);
    if patched.patched == 0 {
        let why = if crate::stub::was_refused() {
            "no code may be changed here (PR_SET_MDWE, MemoryDenyWriteExecute), and none be put \
             in its place"
        } else {
            "no system call of its C library could be redirected; is it glibc?"
        };
        return Err(why.to_owned().into());
    }
    let patched = PATCHED.get_or_init(|| patched);
    drop(inside);
    if patched.own_left > 0 {
        see_raw_calls(settings, patched.own_left);
    }
    if begins_at_once(settings) {
        return take_over(settings, patched);
    }
    begin::wait(settings);
    Ok(())
}

/// The code of glibc's objects.
static TEXTS: OnceLock<Vec<Text>> = OnceLock::new();
/// What was done to it, once it was.
static PATCHED: OnceLock<patch::Report> = OnceLock::new();

/// Whether code that begins at an address was looked at when the process started.
pub(crate) fn has_text(address: usize) -> bool {
    let texts = TEXTS.get().map_or(&[][..], Vec::as_slice);
    texts.iter().any(|text| text.start == address)
}

/// Whether the heap is made before the program runs: where what was asked for may be
/// refused, or is about the heap itself, or is lost when the program changes its
/// user, its root or its mappings first.
fn begins_at_once(settings: &Settings) -> bool {
    settings.verbose
        || has_another_malloc()
        || settings.trace.is_some()
        || settings.spill.is_some()
        || backend(settings) == Backend::Monitor
        || report::is_owed(settings)
        || (settings
            .memory_limit
            .max(settings.memory_each)
            .max(settings.memory)
            > 0
            && report::is_reporter(settings))
}

/// Whether the program's blocks come from an allocator of its own, or of a library in front
/// of ours. It may ask for a mapping while it has a lock: the heap's thread, which libc
/// allocates for, would wait for that.
fn has_another_malloc() -> bool {
    // SAFETY: a C string; dlsym has no other precondition.
    let found = unsafe { libc::dlsym(libc::RTLD_DEFAULT, c"malloc".as_ptr()) };
    !objects::is_ours(found as usize)
}

/// The program makes system calls that cannot be redirected: by the monitor the
/// kernel waits for absent pages; without it, one line.
fn see_raw_calls(settings: &Settings, left: usize) {
    confine::look();
    if settings.backend == Backend::Auto && monitor_sees_the_kernel() {
        MONITOR.store(true, Ordering::Relaxed);
    } else if settings.backend != Backend::Monitor && report::is_reporter(settings) {
        let line = format!(
            "ghostmem: system calls outside the C library that cannot be redirected: {left}; they \
             fail on memory that is not there; see 'ghostmem doctor' for the monitor backend\n"
        );
        crate::raw::say(line.as_bytes());
    }
}

/// The second step, when the program is about to need it. Ends the process where it
/// is refused.
pub(crate) fn take_over_now() {
    let (Some(settings), Some(patched)) = (SETTINGS.get(), PATCHED.get()) else {
        return;
    };
    if let Err(refusal) = take_over(settings, patched) {
        refusal.say();
        // Nothing of the program's runs any more: it may be anywhere.
        let _ends = own!(libc::SYS_exit_group, refusal.code);
    }
}

/// From here on the program's memory is ghost memory.
fn take_over(settings: &Settings, patched: &patch::Report) -> Result<(), Refusal> {
    let inside = EngineScope::new(thread::current());
    confine::look();
    if let Some(texts) = TEXTS.get() {
        entries::redirect(texts);
    }
    // This process's mimalloc is the heap's alone.
    ghostmem_small::reserve_nothing();
    spare_address_space();
    bounce::prepare();
    threads::prepare(patched);
    signals::stand_behind();
    ghostmem_os::thread::keep_faults_open();
    // Until the last descriptor is open.
    let _raised = [Raised::files(), Raised::threads()];
    refusal::of_what_cannot_begin(settings)?;
    let heap = build(settings)?;
    refusal::without_bound(settings, &heap)?;
    BLIND.store(
        heap.backend() != Backend::Monitor || !monitor_sees_the_kernel(),
        Ordering::Relaxed,
    );
    if let Some(path) = &settings.trace {
        record(&heap, path)?;
    }
    let heap = ghost::set(heap, settings.ghost_from);
    let (most, room) = shares(settings, heap);
    bounce::process_may_use(most);
    cache::set_room(room.min(CACHE_MOST));
    if patched.forks {
        ghostmem::fork::freeze_at_the_call();
    }
    signals::stand_in_front();
    signals::give_stack();
    report::started(settings, heap, *patched);
    if report::is_owed(settings) {
        endings::watch();
    }
    drop(inside);
    ghost::switch_on();
    Ok(())
}

/// What stand-ins are a part of, and how much freed blocks may keep, bytes.
fn shares(settings: &Settings, heap: &Heap) -> (usize, usize) {
    let stats = heap.stats();
    let resident = stats.resident_limit_bytes;
    if settings.memory_each.max(settings.memory) > 0 {
        // A bound holds stand-ins too, and they come at once: no more than the least.
        return (0, resident / 16);
    }
    let most = match settings.limit {
        // What is kept free of the bound has room for one.
        0 if settings.memory_auto => stats.process_bound_bytes / 16,
        _ => settings.memory_limit.max(resident),
    };
    let resident = match settings.limit {
        0 if settings.memory_auto => stats.process_bound_bytes / 2,
        _ => resident,
    };
    (most, resident / 16)
}

/// valgrind runs a program with a malloc of its own, which takes libc's names, and
/// does not see code that was rewritten.
fn refuse_valgrind() -> Result<(), String> {
    let preloaded = std::env::var("LD_PRELOAD").unwrap_or_default();
    if preloaded.contains("/vgpreload_") {
        return Err(
            "valgrind serves its memory; start it without 'ghostmem run', or with \
             --no-children"
                .to_owned(),
        );
    }
    Ok(())
}

/// What was asked for, or what the program needs.
pub(crate) fn backend(settings: &Settings) -> Backend {
    if MONITOR.load(Ordering::Relaxed) {
        Backend::Monitor
    } else {
        settings.backend
    }
}

/// Where little address space is left, ordinary blocks of all threads come from one
/// arena of libc's: it takes 64 MiB for each other one, of the engine's threads too.
fn spare_address_space() {
    const PLENTY_BYTES: u64 = 1 << 30;
    if machine::address_space_left().is_some_and(|left| left < PLENTY_BYTES) {
        // SAFETY: a number that mallopt(3) knows; no thread of ours runs yet.
        unsafe { libc::mallopt(libc::M_ARENA_MAX, 1) };
        own_limits::threads_have_no_arenas();
    }
}

/// The heap, with its regions and everything else that is made at first use.
fn build(settings: &Settings) -> Result<Heap, Refusal> {
    let mut builder = Heap::builder()
        .backend(backend(settings))
        // Recorded is what was touched, not what was expected to be.
        .readahead(settings.trace.is_none())
        .background_in_children(false)
        .report_thrashing(report::is_reporter(settings));
    if settings.limit > 0 {
        builder = builder.resident_limit(settings.limit);
    }
    if settings.memory_each > 0 {
        builder = builder.memory(settings.memory_each);
    }
    if settings.memory_auto {
        builder = builder.memory_auto();
    }
    match tree::page() {
        Some(tree) => builder = builder.memory_of_tree(tree),
        // Without the page nobody knows of the others.
        None if settings.memory > 0 => builder = builder.memory(settings.memory),
        None => {}
    }
    if settings.slowdown > 0 {
        // Millionths; the builder takes hundredths.
        builder = builder.slowdown(settings.slowdown as f64 / 1e4);
    }
    if settings.memory_limit > 0 {
        builder = builder.heap_limit(settings.memory_limit);
    }
    if let Some(folder) = &settings.spill {
        let mut spill = Spill::dir(folder);
        if let Some(bytes) = settings.spill_limit {
            spill = spill.limit(bytes);
        }
        if let Some(bytes) = settings.spill_store {
            spill = spill.store_limit(bytes);
        }
        builder = builder.spill(spill);
    }
    let heap = builder.build().map_err(|error| why_not(&error))?;
    for bytes in [1, 64 << 10] {
        let layout = Layout::from_size_align(bytes, 16).map_err(|error| error.to_string())?;
        let block = heap
            .allocate_block(layout, false)
            .map_err(|error| why_not(&error))?;
        // SAFETY: allocated just now and used by nobody.
        unsafe { heap.deallocate_block(block.cast()) }.map_err(|error| error.to_string())?;
    }
    Ok(heap)
}

/// Begins the record of what the program touches.
fn record(heap: &Heap, path: &Path) -> Result<(), String> {
    let name =
        std::ffi::CString::new(path.as_os_str().as_bytes()).map_err(|error| error.to_string())?;
    let recorder = Recorder::open(&name).map_err(|error| format!("--trace: {error}"))?;
    heap.record(recorder);
    Ok(())
}

/// The monitor on a userfaultfd that only hears of the program's own touches
/// does not see the kernel's.
fn monitor_sees_the_kernel() -> bool {
    ghostmem::doctor::monitor_works()
}

/// Takes our two variables out of the environment: programs started from here
/// run without us.
fn forget_in_environment() {
    // SAFETY: constructors run before the program and its threads.
    unsafe { libc::unsetenv(VARIABLE.as_ptr()) };
    let preload = std::env::var("LD_PRELOAD").unwrap_or_default();
    let others: Vec<&str> = preload
        .split([':', ' '])
        .filter(|path| !path.is_empty() && !path.ends_with("libghostmem_preload.so"))
        .collect();
    if others.is_empty() {
        // SAFETY: as above.
        unsafe { libc::unsetenv(c"LD_PRELOAD".as_ptr()) };
    } else if let Ok(others) = std::ffi::CString::new(others.join(":")) {
        // SAFETY: as above; the string is copied.
        unsafe { libc::setenv(c"LD_PRELOAD".as_ptr(), others.as_ptr(), 1) };
    }
}

/// This library has a part in the forks that libc makes.
static TAKES_PART: AtomicBool = AtomicBool::new(false);

/// Registers what this library does in a fork, before whatever the program registers: so between
/// its parts and libc's the thread's blocks are ordinary memory. Behind the engine's, whose
/// `prepare` runs later. The errno of what failed; 0: nothing.
pub(crate) fn take_part_in_forks() -> c_int {
    static ARE_REGISTERED: AtomicBool = AtomicBool::new(false);
    if ARE_REGISTERED.swap(true, Ordering::AcqRel) {
        return 0;
    }
    ghostmem::fork::hook();
    // SAFETY: three functions that stay loaded.
    let failed = unsafe {
        libc::pthread_atfork(
            Some(before_libcs_fork),
            Some(in_parent_of_libc),
            Some(in_child_of_libc),
        )
    };
    if failed != 0 {
        ARE_REGISTERED.store(false, Ordering::Release);
    }
    failed
}

/// The last of all handlers but the engine's to run before libc's part of a fork.
extern "C" fn before_libcs_fork() {
    let _errno = KeptErrno::now();
    if TAKES_PART.load(Ordering::Acquire) {
        thread::current().takes_part.set(true);
        refused_fork::hold_signals();
        before_fork();
    }
}

/// The end of [`before_libcs_fork`], in the parent.
extern "C" fn in_parent_of_libc() {
    let _errno = KeptErrno::now();
    if thread::current().takes_part.replace(false) {
        in_parent();
        refused_fork::let_signals();
    }
}

/// The end of [`before_libcs_fork`], in the child.
extern "C" fn in_child_of_libc() {
    let _errno = KeptErrno::now();
    if thread::current().takes_part.replace(false) {
        in_child();
        refused_fork::let_signals();
    }
}

/// A fork begins on this thread.
pub(crate) fn before_fork() {
    let _errno = KeptErrno::now();
    raised::for_a_fork(thread::current());
    ghost::fork_begins();
    if let Some(heap) = ghost::heap() {
        ghostmem::fork::make_room(heap);
    }
}

/// Its end, in the parent.
pub(crate) fn in_parent() {
    let _errno = KeptErrno::now();
    raised::after_a_fork(thread::current());
    ghost::fork_ends();
}

/// Its end, in the child.
pub(crate) fn in_child() {
    let _errno = KeptErrno::now();
    raised::forget_others();
    ghost::forget_others();
    claim_process();
    // Whoever had this block, too, is not here.
    thread::current().host.set(0);
    report::forget_in_child();
    signals::forget_others();
    endings::look_in_child();
    bounce::forget_others();
    holds::forget_others();
    mappings::forget_others();
    attached::forget_others();
    cache::forget_others();
    threads::forget_others();
    put_off::forget_others();
    heirs::settle_in_child(ghost::heap());
    lifted::forget_others();
    own_limits::forget_others();
    raised::in_a_child(thread::current());
    ghost::fork_ends();
}
