//! Systems that do not give: a file system that is full, a limit on the size of
//! files, a filter that refuses system calls, and the end without warning.
//!
//! Each runs in a child of its own, for what it sets cannot be taken back.
#![cfg(target_os = "linux")] // the file tier
#![allow(clippy::unwrap_used, reason = "a test may")]

mod common;

use std::ffi::CString;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use common::{Pair, Random, place};
use ghostmem_file::{FileTier, Options};
use ghostmem_store::tier::{TierCause, WriteError};

/// One test at a time: a fork duplicates what other threads are in the middle of.
static ALONE: Mutex<()> = Mutex::new(());

/// Exit status of a child that could not set up what it was to try.
const IMPOSSIBLE: i32 = 77;

fn directory(name: &str) -> PathBuf {
    let path = std::env::temp_dir().join(format!("ghostmem-{name}-{}", std::process::id()));
    std::fs::create_dir_all(&path).unwrap();
    path
}

/// Runs `what` in a child and waits: false when it could not be tried.
fn in_child(what: impl FnOnce() -> i32) -> bool {
    // SAFETY: the child ends below; no other test runs, which might hold a lock.
    let pid = unsafe { libc::fork() };
    if pid == 0 {
        let status = std::panic::catch_unwind(std::panic::AssertUnwindSafe(what)).unwrap_or(1);
        // SAFETY: ends the child.
        unsafe { libc::_exit(status) };
    }
    let mut status = 0;
    // SAFETY: our own child and a valid place.
    unsafe { libc::waitpid(pid, &raw mut status, 0) };
    assert!(libc::WIFEXITED(status), "the child ended with {status}");
    let code = libc::WEXITSTATUS(status);
    assert!(
        code == 0 || code == IMPOSSIBLE,
        "the child ended with {code}"
    );
    code == 0
}

/// A file system of its own for this process, of 12 MiB.
fn mount_small(dir: &Path) -> bool {
    let target = CString::new(dir.to_str().unwrap()).unwrap();
    // SAFETY: affects only this process, which has one thread.
    let mut alone = unsafe { libc::unshare(libc::CLONE_NEWNS) } == 0;
    if !alone {
        // SAFETY: no preconditions.
        let (user, group) = (unsafe { libc::getuid() }, unsafe { libc::getgid() });
        // SAFETY: as above.
        alone = unsafe { libc::unshare(libc::CLONE_NEWUSER | libc::CLONE_NEWNS) } == 0
            && std::fs::write("/proc/self/setgroups", "deny").is_ok()
            && std::fs::write("/proc/self/uid_map", format!("0 {user} 1")).is_ok()
            && std::fs::write("/proc/self/gid_map", format!("0 {group} 1")).is_ok();
    }
    if !alone {
        return false;
    }
    let null = core::ptr::null();
    let private = libc::MS_REC | libc::MS_PRIVATE;
    // SAFETY: valid strings, or null where the call allows it.
    let rc = unsafe { libc::mount(null, c"/".as_ptr(), null, private, null.cast()) };
    let (tmpfs, size) = (c"tmpfs".as_ptr(), c"size=12m".as_ptr().cast());
    // SAFETY: as above.
    rc == 0 && unsafe { libc::mount(tmpfs, target.as_ptr(), tmpfs, 0, size) } == 0
}

/// Writes until nothing more is taken and on from there: what was written stays
/// right, and room that is made is used.
fn fill_and_go_on(pair: &mut Pair, expected: impl Fn(WriteError) -> bool) -> usize {
    let mut random = Random(8);
    let (mut refused, mut taken) = (0, 0);
    for round in 0..300_u64 {
        let batch: Vec<(u64, usize, u8)> = (0..200)
            .map(|at| (round % 90 * 200 + at, 500 + random.below(2500), 1))
            .collect();
        match pair.write(&batch) {
            Ok(()) => taken += usize::from(refused > 0),
            Err(error) => {
                assert!(expected(error), "{error:?}");
                refused += 1;
                let owners: Vec<u64> = pair.pages.keys().copied().collect();
                let some = owners.into_iter().filter(|_| random.one_in(10));
                some.for_each(|owner| pair.remove(owner));
            }
        }
        pair.tend(4 << 20);
    }
    pair.check_all();
    let stats = pair.tier.stats();
    println!("{refused} batches refused, {taken} taken since, {stats:?}");
    assert!(
        2 * taken > refused,
        "room that is made is used: {taken} batches taken since the first refusal, {stats:?}"
    );
    refused
}

/// With all of the disk taken, by another file to its last block, what is dead in
/// this one is made room of all the same.
fn clean_without_a_free_block(pair: &mut Pair, dir: &Path) {
    let mut next = 0;
    loop {
        let batch: Vec<(u64, usize, u8)> = (next..next + 250).map(|at| (at, 3900, 1)).collect();
        match pair.write(&batch) {
            Ok(()) => next += 250,
            Err(error) => {
                assert!(is_disk_full(error), "{error:?}");
                break;
            }
        }
    }
    let rest = dir.join("rest");
    let mut other = std::fs::File::create(&rest).unwrap();
    for len in [1 << 20, 1 << 12] {
        while std::io::Write::write_all(&mut other, &vec![1; len]).is_ok() {}
        other.sync_all().unwrap();
    }
    let gone: Vec<u64> = pair.pages.keys().copied().filter(|at| at % 3 > 0).collect();
    gone.into_iter().for_each(|owner| pair.remove(owner));
    let before = pair.tier.stats();
    let moved = |pair: &Pair| pair.tier.stats().pages_moved - before.pages_moved;
    while pair.tend(1 << 20).is_behind {}
    pair.check_all();
    let live = before.slots;
    assert!(2 * moved(pair) > live, "{} of {live} moved", moved(pair));
    std::fs::remove_file(rest).unwrap();
    pair.write(&[(0, 4000, 1)]).unwrap();
    pair.check_all();
}

/// The error of a write that a full disk refused.
fn is_disk_full(error: WriteError) -> bool {
    matches!(
        error,
        WriteError::NoSpace {
            errno: libc::ENOSPC
        }
    )
}

#[test]
fn a_full_file_system() {
    let _alone = ALONE.lock();
    let dir = directory("full");
    let tried = in_child(|| {
        if !mount_small(&dir) {
            return IMPOSSIBLE;
        }
        for options in [Options::unnamed(&dir), Options::named(dir.join("pages"))] {
            let mut pair = Pair::new(FileTier::open(&options).unwrap());
            let refused = fill_and_go_on(&mut pair, is_disk_full);
            assert!(refused > 10, "{refused} refusals");
            // Somebody else frees nothing: all at once gone, and all there again.
            let owners: Vec<u64> = pair.pages.keys().copied().collect();
            owners.into_iter().for_each(|owner| pair.remove(owner));
            pair.tend(0);
            pair.write(&[(1, 4096, 1); 1]).unwrap();
            pair.check_all();
        }
        let mut pair = Pair::new(FileTier::open(&Options::unnamed(&dir)).unwrap());
        clean_without_a_free_block(&mut pair, &dir);
        drop(pair);
        // Not even the header fits: what has no name does without, and takes pages as
        // soon as there is room.
        std::fs::write(dir.join("rest"), vec![1; 13 << 20]).unwrap_err();
        let mut pair = Pair::new(FileTier::open(&Options::unnamed(&dir)).unwrap());
        let batch: Vec<(u64, usize, u8)> = (0..250).map(|at| (at, 3900, 1)).collect();
        assert!(is_disk_full(pair.write(&batch).unwrap_err()));
        std::fs::remove_file(dir.join("rest")).unwrap();
        pair.write(&batch).unwrap();
        pair.check_all();
        drop(pair);
        std::fs::write(dir.join("rest"), vec![1; 13 << 20]).unwrap_err();
        let error = FileTier::open(&Options::named(dir.join("pages")))
            .unwrap_err()
            .to_string();
        assert!(error.starts_with("cannot spill to "), "{error}");
        assert!(
            error.contains("no space left on the device, ENOSPC (errno 28)"),
            "{error}"
        );
        0
    });
    let _gone = std::fs::remove_dir(&dir);
    assert!(
        tried,
        "no file system could be mounted: this test needs root or user namespaces"
    );
}

/// The same on a file system with blocks of its own to find and a journal: `cargo test
/// -p ghostmem-file --test hostile -- --ignored`, as root, with mkfs.ext4.
#[test]
#[ignore = "needs root and a loop device"]
fn a_full_disk() {
    let _alone = ALONE.lock();
    let dir = directory("disk");
    let image = dir.with_extension("image");
    let run = |command: &str| {
        let shell = std::process::Command::new("sh")
            .args(["-c", command])
            .status();
        assert!(shell.is_ok_and(|status| status.success()), "{command}");
    };
    let (dir_name, image_name) = (dir.display(), image.display());
    run(&format!(
        "truncate -s 32M {image_name} && mkfs.ext4 -q {image_name}"
    ));
    run(&format!("mount -o loop {image_name} {dir_name}"));
    let tried = std::panic::catch_unwind(|| {
        for options in [
            Options::unnamed(&dir),
            Options::named(dir.join("pages"))
                .encrypt(false)
                .direct(false),
        ] {
            let mut pair = Pair::new(FileTier::open(&options).unwrap());
            let refused = fill_and_go_on(&mut pair, is_disk_full);
            assert!(refused > 10, "{refused} refusals");
            drop(pair);
            let mut pair = Pair::new(FileTier::open(&options).unwrap());
            clean_without_a_free_block(&mut pair, &dir);
        }
    });
    run(&format!(
        "umount {dir_name} && rm {image_name} && rmdir {dir_name}"
    ));
    assert!(tried.is_ok());
}

#[test]
fn a_limit_on_the_size_of_files() {
    let _alone = ALONE.lock();
    in_child(|| {
        let mut pair = Pair::new(FileTier::open(&Options::unnamed(std::env::temp_dir())).unwrap());
        let limit = libc::rlimit {
            rlim_cur: 9 << 20,
            rlim_max: 9 << 20,
        };
        // The engine's threads block every signal.
        // SAFETY: this process only.
        unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) };
        // SAFETY: a valid limit.
        let rc = unsafe { libc::setrlimit(libc::RLIMIT_FSIZE, &raw const limit) };
        assert_eq!(rc, 0);
        let big = |error| matches!(error, WriteError::NoSpace { errno: libc::EFBIG });
        let refused = fill_and_go_on(&mut pair, big);
        assert!(refused > 10, "{refused} refusals");
        0
    });
}

/// Refuses pread(2) and pwrite(2) for this thread where `offset >> 20 & mask == value`,
/// with an errno each.
fn filter(read: (u32, u32, i32), write: (u32, u32, i32)) -> bool {
    const OFFSET_LOW: u32 = 16 + 3 * 8;
    let step = |code: u32, jt: u8, jf: u8, k: u32| libc::sock_filter {
        code: code as u16,
        jt,
        jf,
        k,
    };
    let load = |at| step(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, at);
    let equal = |k, jt, jf| step(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, jt, jf, k);
    let and = |k| step(libc::BPF_ALU | libc::BPF_AND | libc::BPF_K, 0, 0, k);
    let give = |k| step(libc::BPF_RET | libc::BPF_K, 0, 0, k);
    let refuse = |errno: i32| give(libc::SECCOMP_RET_ERRNO | errno as u32);
    let allow = give(libc::SECCOMP_RET_ALLOW);
    let program = [
        load(0),
        equal(libc::SYS_pread64 as u32, 0, 5),
        load(OFFSET_LOW),
        and(read.0 << 20),
        equal(read.1 << 20, 0, 1),
        refuse(read.2),
        allow,
        equal(libc::SYS_pwrite64 as u32, 0, 4),
        load(OFFSET_LOW),
        and(write.0 << 20),
        equal(write.1 << 20, 0, 1),
        refuse(write.2),
        allow,
    ];
    let filter = libc::sock_fprog {
        len: program.len() as u16,
        filter: program.as_ptr().cast_mut(),
    };
    // SAFETY: affects this thread only.
    let rc = unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) };
    let mode = libc::SECCOMP_MODE_FILTER;
    // SAFETY: the program is valid and lives through the call.
    rc == 0 && unsafe { libc::prctl(libc::PR_SET_SECCOMP, mode, &raw const filter) } == 0
}

#[test]
fn system_calls_that_are_refused() {
    let _alone = ALONE.lock();
    let disks = [
        (libc::EIO, libc::EIO),
        (libc::EIO, libc::ENOSPC),
        (libc::ESTALE, libc::EDQUOT),
    ];
    for (read_errno, write_errno) in disks {
        let tried = in_child(|| {
            let mut pair =
                Pair::new(FileTier::open(&Options::unnamed(std::env::temp_dir())).unwrap());
            // Segments 2, 6, 10, ... cannot be read, 3, 7, 11, ... not be written.
            if !filter((3, 2, read_errno), (3, 3, write_errno)) {
                return IMPOSSIBLE;
            }
            let mut random = Random(21);
            let (mut refused, mut unreadable) = (0, 0);
            for round in 0..120_u64 {
                let batch: Vec<(u64, usize, u8)> = (0..300)
                    .map(|at| (round % 30 * 300 + at, 1 + random.below(4096), 1))
                    .collect();
                match pair.write(&batch) {
                    Ok(()) => {}
                    // A disk that refuses with an error is tried elsewhere at once.
                    Err(WriteError::NoSpace { errno }) => {
                        assert!(errno == write_errno && errno != libc::EIO);
                        refused += 1;
                    }
                    Err(other) => panic!("{other}"),
                }
                for _ in 0..20 {
                    let owners: Vec<u64> = pair.pages.keys().copied().take(500).collect();
                    if owners.is_empty() {
                        continue;
                    }
                    let owner = owners[random.below(owners.len())];
                    let place = place(&pair, owner);
                    match pair.read(owner) {
                        Ok(()) => assert_ne!(place.start >> 20 & 3, 2),
                        Err(error) => {
                            assert_eq!(place.start >> 20 & 3, 2);
                            assert_eq!(error.cause, TierCause::Io { errno: read_errno });
                            unreadable += 1;
                        }
                    }
                }
                pair.tend(4 << 20);
                for owner in pair.pages.keys() {
                    assert_ne!(
                        place(&pair, *owner).start >> 20 & 3,
                        3,
                        "written nevertheless"
                    );
                }
            }
            println!("{refused} writes refused, {unreadable} reads, errno {write_errno}");
            assert!(unreadable > 50 && (refused > 5 || write_errno == libc::EIO));
            0
        });
        assert!(tried, "no system call filter could be installed");
    }
}

#[test]
fn nothing_is_left_after_sigkill() {
    let _alone = ALONE.lock();
    let dir = directory("killed");
    let mut random = Random(31);
    for round in 0..40 {
        // SAFETY: the child only ever ends by the signal.
        let pid = unsafe { libc::fork() };
        if pid == 0 {
            let _never = std::panic::catch_unwind(|| {
                let tier = FileTier::open(&Options::unnamed(&dir)).unwrap();
                let mut pair = Pair::new(tier);
                loop {
                    let batch: Vec<(u64, usize, u8)> =
                        (0..500).map(|owner| (owner, 2000, 1)).collect();
                    pair.write(&batch).unwrap();
                    pair.tend(1 << 20);
                }
            });
            // SAFETY: ends the child.
            unsafe { libc::_exit(1) };
        }
        let wait = std::time::Duration::from_micros(random.next() % 20_000);
        std::thread::sleep(wait);
        // SAFETY: our own child.
        unsafe { libc::kill(pid, libc::SIGKILL) };
        let mut status = 0;
        // SAFETY: our own child and a valid place.
        unsafe { libc::waitpid(pid, &raw mut status, 0) };
        assert!(
            libc::WIFSIGNALED(status),
            "round {round}: the child ended by itself"
        );
        let left: Vec<_> = std::fs::read_dir(&dir).unwrap().collect();
        assert!(left.is_empty(), "round {round}: {left:?}");
    }
    std::fs::remove_dir(&dir).unwrap();
}

#[test]
fn a_named_file_has_one_user_and_a_stale_one_is_taken_over() {
    let _alone = ALONE.lock();
    let dir = directory("named");
    let path = dir.join("pages");
    let options = Options::named(&path);
    let in_use = format!(
        "cannot spill to {}: another heap has it open; choose another name, or none",
        path.display()
    );
    let mut pair = Pair::new(FileTier::open(&options).unwrap());
    pair.write(&[(1, 4000, 1)]).unwrap();
    assert_eq!(FileTier::open(&options).unwrap_err().to_string(), in_use);
    // Killed with the file in place.
    drop(pair);
    let (read, write) = std::io::pipe().unwrap();
    // SAFETY: the child ends by the signal.
    let pid = unsafe { libc::fork() };
    if pid == 0 {
        let tier = FileTier::open(&options);
        std::io::Write::write_all(&mut &write, &[u8::from(tier.is_ok())]).unwrap();
        loop {
            // SAFETY: only waits.
            unsafe { libc::pause() };
        }
    }
    let mut opened = [0];
    std::io::Read::read_exact(&mut &read, &mut opened).unwrap();
    assert_eq!(opened, [1]);
    assert_eq!(FileTier::open(&options).unwrap_err().to_string(), in_use);
    // SAFETY: our own child.
    unsafe { libc::kill(pid, libc::SIGKILL) };
    let mut status = 0;
    // SAFETY: our own child and a valid place.
    unsafe { libc::waitpid(pid, &raw mut status, 0) };
    assert!(path.exists());
    let mut pair = Pair::new(FileTier::open(&options).unwrap());
    pair.write(&[(1, 4000, 1)]).unwrap();
    pair.check_all();
    drop(pair);
    assert!(!path.exists());
    // Anything else of that name is left alone.
    std::fs::write(&path, "precious").unwrap();
    let error = FileTier::open(&options).unwrap_err().to_string();
    assert!(error.contains("is not a spill file"), "{error}");
    std::fs::remove_file(&path).unwrap();
    std::os::unix::fs::symlink("/dev/null", &path).unwrap();
    let error = FileTier::open(&options).unwrap_err().to_string();
    assert!(error.contains("is a symbolic link, ELOOP"), "{error}");
    std::fs::remove_file(&path).unwrap();
    let error = FileTier::open(&Options::unnamed(dir.join("none")))
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("no such file or directory, ENOENT"),
        "{error}"
    );
    std::fs::remove_dir(&dir).unwrap();
}
