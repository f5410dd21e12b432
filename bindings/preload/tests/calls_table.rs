//! No system call is forgotten: every number that the kernel's header has gets
//! a treatment, and the documentation counts them.
//!
//! The table is compiled into this test by itself, as the library's own malloc
//! would take over the test.
#![allow(dead_code, unreachable_pub, clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

#[path = "../src/calls/table.rs"]
mod table;

use table::Treatment;

/// Where distributions put the header of x86-64's numbers.
const HEADERS: [&str; 2] = [
    "/usr/include/x86_64-linux-gnu/asm/unistd_64.h",
    "/usr/include/asm/unistd_64.h",
];

/// The names and numbers of a header.
fn numbers(header: &str) -> BTreeMap<usize, String> {
    let mut found = BTreeMap::new();
    for line in header.lines() {
        let mut words = line.split_whitespace();
        if words.next() != Some("#define") {
            continue;
        }
        let (Some(name), Some(number)) = (words.next(), words.next()) else {
            continue;
        };
        if let Some(name) = name.strip_prefix("__NR_")
            && let Ok(number) = number.parse()
        {
            found.insert(number, name.to_owned());
        }
    }
    found
}

fn installed() -> BTreeMap<usize, String> {
    let header = HEADERS
        .iter()
        .find_map(|path| fs::read_to_string(path).ok());
    let found = numbers(&header.expect("the kernel's header, from linux-libc-dev"));
    assert!(found.len() > 300, "{} system calls only", found.len());
    found
}

/// What newer kernels have, up to Linux 6.18 (syscall_64.tbl).
const NEWER: &str = "\
#define __NR_cachestat 451
#define __NR_fchmodat2 452
#define __NR_map_shadow_stack 453
#define __NR_futex_wake 454
#define __NR_futex_wait 455
#define __NR_futex_requeue 456
#define __NR_statmount 457
#define __NR_listmount 458
#define __NR_lsm_get_self_attr 459
#define __NR_lsm_set_self_attr 460
#define __NR_lsm_list_modules 461
#define __NR_mseal 462
#define __NR_setxattrat 463
#define __NR_getxattrat 464
#define __NR_listxattrat 465
#define __NR_removexattrat 466
#define __NR_open_tree_attr 467
#define __NR_file_getattr 468
#define __NR_file_setattr 469
#define __NR_listns 470
";

#[test]
fn every_system_call_of_the_kernels_header_has_a_treatment() {
    let mut all = installed();
    all.extend(numbers(NEWER));
    let forgotten: Vec<_> = all
        .iter()
        .filter(|(number, _)| table::treatment(**number).is_none())
        .collect();
    assert!(forgotten.is_empty(), "no treatment: {forgotten:?}");
}

/// Calls that are left alone take no pointer in the kernel's own declarations.
/// What they do with addresses is to name, not to read or write, memory.
#[test]
fn calls_left_alone_are_known_by_name() {
    // SYSCALL_DEFINE of each has integers only, but for the address given to
    // remap_file_pages, map_shadow_stack and io_destroy
    // (where a mapping is, none is read), and rt_sigreturn's stack.
    let without = "\
rt_sigreturn sched_yield shmget pause alarm getpid socket shutdown listen vfork kill \
semget msgget flock fsync fdatasync ftruncate fchdir fchmod fchown umask getuid getgid setuid \
setgid geteuid getegid setpgid getppid getpgrp setsid setreuid setregid setresuid setresgid getpgid \
setfsuid setfsgid getsid personality getpriority setpriority sched_getscheduler \
sched_get_priority_max sched_get_priority_min vhangup sync iopl ioperm gettid readahead \
tkill io_destroy epoll_create remap_file_pages restart_syscall fadvise64 timer_getoverrun \
timer_delete tgkill ioprio_set ioprio_get inotify_init inotify_rm_watch tee sync_file_range \
timerfd_create eventfd fallocate eventfd2 epoll_create1 inotify_init1 fanotify_init syncfs \
userfaultfd membarrier pkey_alloc pkey_free fsmount pidfd_open pidfd_getfd landlock_restrict_self \
memfd_secret process_mrelease map_shadow_stack";
    let mut known: Vec<&str> = without.split_whitespace().collect();
    known.sort_unstable();
    let mut all = installed();
    all.extend(numbers(NEWER));
    let mut left: Vec<&str> = all
        .iter()
        .filter(|(number, _)| matches!(table::treatment(**number), Some(Treatment::None)))
        .map(|(_, name)| name.as_str())
        .collect();
    left.sort_unstable();
    assert_eq!(left, known);
}

/// How many calls there are of each treatment, up to 470.
fn counts() -> [usize; 4] {
    let mut counts = [0; 4];
    for number in 0..=470 {
        match table::treatment(number) {
            Some(Treatment::None) => counts[0] += 1,
            Some(Treatment::Copied(_)) => counts[1] += 1,
            Some(Treatment::Held(_) | Treatment::HeldDeep(_)) => counts[2] += 1,
            Some(Treatment::Own(_) | Treatment::Always) => counts[3] += 1,
            None => {}
        }
    }
    counts
}

#[test]
fn the_documentation_counts_the_calls() {
    let docs = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/run.md");
    let docs = fs::read_to_string(docs).unwrap();
    let [none, copied, held, own] = counts();
    for row in [
        format!("| left alone: they take no pointer | {none} |"),
        format!("| copied | {copied} |"),
        format!("| held in place | {held} |"),
        format!("| rules of their own | {own} |"),
    ] {
        assert!(docs.contains(&row), "docs/run.md lacks: {row}");
    }
}

#[test]
fn every_call_but_those_left_alone_is_redirected() {
    for number in 0..=1000 {
        let alone = matches!(table::treatment(number), Some(Treatment::None));
        let mapping = matches!(number, table::MMAP | table::BRK);
        assert_eq!(
            table::matters(number, false),
            !alone && !mapping,
            "{number}"
        );
        assert_eq!(table::matters(number, true), !alone, "{number}");
        // A redirected call is looked at for its arguments or in any case.
        if table::matters(number, true) && !table::always(number) {
            assert!(table::pointers(number).count() > 0, "{number}");
        }
        for argument in table::pointers(number) {
            assert!(argument < 6, "{number}");
        }
    }
}
