//! The reader of `/proc` and control groups, on saved trees: what each kind of
//! machine and container shows of itself.
#![cfg(not(windows))]
#![allow(clippy::unwrap_used)]

use std::mem::MaybeUninit;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use ghostmem_os::report::{Level, Reports, Stall, Version};

const MIB: u64 = 1 << 20;

fn tree(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fixtures")
        .join(name)
}

/// Limit and free bytes of the process's group, MiB, and how many levels show a limit.
fn group(name: &str) -> Option<(Option<u64>, Option<u64>, usize)> {
    let root = tree(name);
    let group = Reports::below(&root).memory_group()?;
    let limited = group.levels().filter(|level| level.limit_bytes().is_some());
    Some((
        group.limit_bytes().map(|bytes| bytes / MIB),
        group.free_bytes().map(|bytes| bytes / MIB),
        limited.count(),
    ))
}

#[test]
fn the_tightest_level_that_can_be_seen_counts() {
    // The limits are of one level, what is left may be of another.
    assert_eq!(group("v2-nested"), Some((Some(400), Some(10), 2)));
    assert_eq!(group("v2-container"), Some((Some(256), Some(192), 1)));
    assert_eq!(group("v2-outside"), Some((Some(128), Some(96), 2)));
    assert_eq!(group("v2-no-controller"), Some((None, None, 0)));
    assert_eq!(group("v1-nested"), Some((Some(300), Some(100), 2)));
    assert_eq!(group("v1-container"), Some((Some(200), Some(80), 1)));
    assert_eq!(group("v1-unmounted"), Some((Some(96), Some(6), 1)));
    assert_eq!(group("v1-foreign-part"), Some((Some(64), Some(63), 1)));
    assert_eq!(group("hybrid"), Some((Some(48), Some(32), 1)));
    assert_eq!(group("two-mounts"), Some((Some(512), Some(40), 2)));
    assert_eq!(group("nowhere"), None);
}

#[test]
fn the_smaller_limit_of_a_level_counts_and_says_its_file() {
    assert_eq!(group("v2-high"), Some((Some(300), Some(40), 3)));
    assert_eq!(group("v2-high-container"), Some((Some(200), Some(136), 1)));
    // Nothing happens above a soft limit of version 1.
    assert_eq!(group("v1-soft"), Some((Some(300), Some(100), 1)));
    let files = |name: &str| {
        let root = tree(name);
        let group = Reports::below(&root).memory_group().unwrap();
        let limits = group.levels().filter_map(|level| level.limit());
        let limits = limits.map(|(bytes, file)| (bytes / MIB, file));
        limits.collect::<Vec<_>>()
    };
    assert_eq!(
        files("v2-high"),
        [
            (350, "memory.max"),
            (300, "memory.high"),
            (800, "memory.max")
        ]
    );
    assert_eq!(files("v2-high-container"), [(200, "memory.high")]);
    assert_eq!(files("v1-soft"), [(300, "memory.limit_in_bytes")]);
    // A kernel or a container without the file.
    assert_eq!(files("v2-container"), [(256, "memory.max")]);
}

#[test]
fn hierarchies_are_found_where_groups_can_be_made() {
    let mount = |name: &str| {
        let root = tree(name);
        let mount = Reports::below(&root).memory_mount()?;
        let place = mount.folder().strip_prefix(&root).unwrap().to_owned();
        Some((place.display().to_string(), mount.version()))
    };
    let at = |place: &str, version| Some((place.to_owned(), version));
    assert_eq!(mount("v1-nested"), at("sys/fs/cgroup/memory", Version::V1));
    assert_eq!(mount("hybrid"), at("sys/fs/cgroup/memory", Version::V1));
    assert_eq!(mount("v2-nested"), at("sys/fs/cgroup", Version::V2));
    assert_eq!(mount("v2-no-controller"), None);
    assert_eq!(mount("nowhere"), None);
}

#[test]
fn a_level_says_what_it_holds() {
    let root = tree("v2-nested").join("sys/fs/cgroup/user.slice/app.scope/inner");
    let level = Level::at(&root, Version::V2);
    assert_eq!(level.limit_bytes(), None);
    assert_eq!(level.usage_bytes(), Some(100 * MIB));
    assert_eq!(level.free_bytes(), None);
    assert_eq!(level.peak_bytes(), None, "a kernel before 5.19");
    assert_eq!(level.clean_cache_bytes(), Some((30 + 10 - 2 - 1) * MIB));
    let pressure = level.pressure().unwrap();
    assert_eq!(
        (pressure.some, pressure.full),
        (
            Stall {
                avg10_hundredths: 1234,
                total_us: 7_654_321
            },
            Stall {
                avg10_hundredths: 405,
                total_us: 1_234_567
            }
        )
    );
    let root = tree("v1-nested").join("sys/fs/cgroup/memory/outer/inner");
    let level = Level::at(&root, Version::V1);
    assert_eq!(level.limit_bytes(), Some(500 * MIB));
    assert_eq!(level.usage_bytes(), Some(150 * MIB));
    assert_eq!(level.free_bytes(), Some(350 * MIB));
    assert_eq!(level.peak_bytes(), Some(170 * MIB));
    assert_eq!(level.clean_cache_bytes(), Some((20 + 20 - 1) * MIB));
    assert_eq!(level.pressure(), None);
}

#[test]
fn a_saved_machine_is_read_like_a_live_one() {
    let root = tree("v2-nested");
    let saved = Reports::below(&root);
    assert_eq!(saved.meminfo_bytes("MemAvailable"), Some(8 << 30));
    assert_eq!(saved.meminfo_bytes("MemAvail"), None);
    assert_eq!(saved.status_bytes("VmHWM"), Some(64 * MIB));
    assert_eq!(saved.status_bytes("Seccomp"), Some(2));
    assert_eq!(saved.status_bytes("VmSwap"), None);
    assert_eq!(saved.pressure().unwrap().some.total_us, 42);
    assert_eq!(saved.number_in("/proc/sys/vm/max_map_count"), Some(65530));
    assert_eq!(saved.number_in("/proc/sys/vm/swappiness"), None);
    assert_eq!(saved.number_in("/proc/meminfo"), None);
}

#[test]
fn this_machine_reports_itself() {
    let here = Reports::of_this_machine();
    let available = here.meminfo_bytes("MemAvailable").unwrap();
    assert!(available < here.meminfo_bytes("MemTotal").unwrap());
    let (now, most) = (here.status_bytes("VmRSS"), here.status_bytes("VmHWM"));
    assert!(now.unwrap() > 0 && now <= most);
    assert!(here.number_in("/proc/sys/vm/max_map_count").unwrap() > 0);
    if let Some(limit) = here.memory_group().and_then(|group| group.limit_bytes()) {
        assert!(limit >= MIB);
    }
}

/// A thread with a cancellation pending goes on behind a reading: none of the calls is a
/// point where libc would end it, with whatever its caller holds.
#[test]
fn no_reading_ends_a_cancelled_thread() {
    static READ: AtomicBool = AtomicBool::new(false);

    extern "C" fn reader(_: *mut libc::c_void) -> *mut libc::c_void {
        // SAFETY: no preconditions.
        let this = unsafe { libc::pthread_self() };
        // SAFETY: a live thread; by default it ends at the next cancellation point only.
        unsafe { libc::pthread_cancel(this) };
        let here = Reports::of_this_machine();
        let available = here.meminfo_bytes("MemAvailable");
        let _any = here.memory_group().and_then(|group| group.limit_bytes());
        READ.store(available.is_some(), Ordering::Release);
        core::ptr::null_mut()
    }

    let mut thread = MaybeUninit::uninit();
    let (none, nothing) = (core::ptr::null(), core::ptr::null_mut());
    // SAFETY: a place for the thread, default attributes, and no argument.
    let made = unsafe { libc::pthread_create(thread.as_mut_ptr(), none, reader, nothing) };
    assert_eq!(made, 0);
    // SAFETY: filled by pthread_create.
    let thread = unsafe { thread.assume_init() };
    // SAFETY: a thread that is joined once, and no wish for its result.
    unsafe { libc::pthread_join(thread, core::ptr::null_mut()) };
    assert!(READ.load(Ordering::Acquire), "the thread ended on its way");
}
