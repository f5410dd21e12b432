//! Kept plans of system calls: a hint and nothing more; and system calls that are not
//! the C library's.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use ghostmem::doctor;

use common::{cache, compile, run_with, scratch, text};

mod common;

/// The line of `--verbose`, without the process's number.
fn verbose(cache: &Path) -> String {
    let output = run_with(cache, &["--limit", "64M", "--verbose"], &["true"]);
    assert!(output.status.success(), "{output:?}");
    let line = text(&output.stderr);
    let line = line
        .lines()
        .find(|line| line.contains("redirected"))
        .unwrap();
    line.split_once("backend").unwrap().1.to_owned()
}

/// The files of plans in a cache.
fn plans(cache: &Path) -> Vec<PathBuf> {
    let folder = fs::read_dir(cache.join("ghostmem/plans"));
    let mut files: Vec<PathBuf> = folder
        .into_iter()
        .flatten()
        .map(|entry| entry.unwrap().path())
        .collect();
    files.sort();
    files
}

#[test]
fn a_plan_is_kept_for_its_user_alone() {
    let cache = scratch("kept");
    let before = verbose(&cache);
    let kept = plans(&cache);
    assert!(!kept.is_empty(), "libc has a plan");
    let mode = |path: &Path| fs::metadata(path).unwrap().mode() & 0o7777;
    assert_eq!(mode(&cache.join("ghostmem/plans")), 0o700);
    let inodes = |files: &[PathBuf]| -> Vec<u64> {
        files
            .iter()
            .map(|file| fs::metadata(file).unwrap().ino())
            .collect()
    };
    for file in &kept {
        assert_eq!(mode(file), 0o600, "{}", file.display());
    }
    // It is used: nothing is written again, and as many calls are redirected.
    let first = inodes(&kept);
    assert_eq!(verbose(&cache), before);
    assert_eq!(plans(&cache), kept);
    assert_eq!(inodes(&kept), first);
}

#[test]
fn plans_that_do_not_fit_are_thrown_away() {
    let cache = scratch("damaged");
    let before = verbose(&cache);
    let kept = plans(&cache);
    let longest = kept
        .iter()
        .max_by_key(|file| fs::metadata(file).unwrap().len());
    let libc = longest.unwrap().clone();
    let whole = fs::read(&libc).unwrap();
    let other = kept
        .iter()
        .find(|&file| *file != libc)
        .map(|file| fs::read(file).unwrap());
    let mut damaged: Vec<(String, Vec<u8>)> = (0..whole.len())
        .step_by(whole.len() / 40)
        .map(|at| {
            let mut bytes = whole.clone();
            bytes[at] ^= 0x10;
            (format!("byte {at}"), bytes)
        })
        .collect();
    damaged.push(("cut".to_owned(), whole[..whole.len() / 2].to_vec()));
    damaged.push(("empty".to_owned(), Vec::new()));
    damaged.push(("longer".to_owned(), [&whole[..], b"x"].concat()));
    // Of another object, and whole.
    damaged.extend(other.map(|other| ("another's".to_owned(), other)));
    // Whole, but for a libc with other bytes at a place.
    let mut moved = whole.clone();
    let (body, _) = moved.split_last_chunk_mut::<8>().unwrap();
    body[40 + 16] ^= 1;
    let hash = xxhash_rust::xxh3::xxh3_64(body);
    let end = moved.len() - 8;
    moved[end..].copy_from_slice(&hash.to_le_bytes());
    damaged.push(("another build's".to_owned(), moved));
    for (how, bytes) in damaged {
        fs::write(&libc, bytes).unwrap();
        fs::set_permissions(&libc, fs::Permissions::from_mode(0o600)).unwrap();
        assert_eq!(verbose(&cache), before, "{how}");
        assert_eq!(fs::read(&libc).unwrap(), whole, "{how}: made anew");
    }
}

/// A plan that lies about libc, but whole and with a right hash: had it been read,
/// fewer calls would be redirected.
fn shorter(plan: &[u8]) -> Vec<u8> {
    let mut plan = plan.to_vec();
    let records = plan.len() - 40 - 8 - 40;
    plan.truncate(40 + records);
    let count = u64::from_le_bytes(plan[24..32].try_into().unwrap()) - 1;
    plan[24..32].copy_from_slice(&count.to_le_bytes());
    let hash = xxhash_rust::xxh3::xxh3_64(&plan);
    plan.extend_from_slice(&hash.to_le_bytes());
    plan
}

#[test]
fn plans_of_others_are_not_read() {
    let cache = scratch("foreign");
    let before = verbose(&cache);
    let kept = plans(&cache);
    let longest = kept
        .iter()
        .max_by_key(|file| fs::metadata(file).unwrap().len());
    let libc = longest.unwrap().clone();
    let folder = libc.parent().unwrap().to_owned();
    let whole = fs::read(&libc).unwrap();
    let lie = shorter(&whole);
    let put = |bytes: &[u8]| {
        let _fresh = fs::remove_file(&libc);
        fs::write(&libc, bytes).unwrap();
        fs::set_permissions(&libc, fs::Permissions::from_mode(0o600)).unwrap();
    };
    put(&lie);
    assert_ne!(verbose(&cache), before, "the lie is one");

    put(&lie);
    fs::set_permissions(&libc, fs::Permissions::from_mode(0o620)).unwrap();
    assert_eq!(verbose(&cache), before, "others may write it");

    put(&lie);
    fs::set_permissions(&folder, fs::Permissions::from_mode(0o770)).unwrap();
    assert_eq!(verbose(&cache), before, "others may write the folder");
    assert_eq!(
        fs::read(&libc).unwrap(),
        lie,
        "nor is anything written there"
    );
    fs::set_permissions(&folder, fs::Permissions::from_mode(0o700)).unwrap();

    let elsewhere = cache.join("elsewhere");
    fs::write(&elsewhere, &lie).unwrap();
    fs::set_permissions(&elsewhere, fs::Permissions::from_mode(0o600)).unwrap();
    fs::remove_file(&libc).unwrap();
    symlink(&elsewhere, &libc).unwrap();
    assert_eq!(verbose(&cache), before, "it is a link");
    assert_eq!(
        fs::read(&elsewhere).unwrap(),
        lie,
        "and what it leads to stays"
    );

    let real = cache.join("real");
    fs::rename(&folder, &real).unwrap();
    symlink(&real, &folder).unwrap();
    put(&lie);
    assert_eq!(verbose(&cache), before, "the folder is a link");
    fs::remove_file(&folder).unwrap();
    fs::rename(&real, &folder).unwrap();

    if fs::metadata(&libc).unwrap().uid() == 0 {
        put(&lie);
        std::os::unix::fs::chown(&libc, Some(65534), None).unwrap();
        assert_eq!(verbose(&cache), before, "it is another user's");
        put(&lie);
        std::os::unix::fs::chown(&folder, Some(65534), None).unwrap();
        assert_eq!(verbose(&cache), before, "the folder is another user's");
        assert_eq!(
            fs::read(&libc).unwrap(),
            lie,
            "nor is anything written there"
        );
    } else {
        println!("files cannot be given to others here: that is tested as root only");
    }
}

/// The loader leaves LD_PRELOAD out where the kernel tells it of such rights, so the
/// library is loaded by hand.
#[test]
fn with_the_rights_of_another_no_plan_is_read_or_written() {
    let folder = scratch("raised");
    if fs::metadata(&folder).unwrap().uid() != 0 {
        println!("rights can only be had by root: not tested");
        return;
    }
    let program = folder.join("raised");
    compile(&[], "raised.c", &program, &[]);
    let command = Path::new(env!("CARGO_BIN_EXE_ghostmem"));
    let library = command.with_file_name("deps/libghostmem_preload.so");
    let load = |cache: &Path, more: &[&str]| {
        let output = Command::new(&program)
            .arg(&library)
            .args(more)
            .env("GHOSTMEM_RUN", "limit=67108864;")
            .env("XDG_CACHE_HOME", cache)
            .output()
            .unwrap();
        assert_eq!(text(&output.stdout), "ok\n", "{output:?}");
    };
    let (own, others) = (folder.join("own"), folder.join("others"));
    load(&own, &[]);
    assert!(!plans(&own).is_empty(), "this way there is one");
    load(&others, &["raised"]);
    assert!(!others.exists(), "nothing is written");
    // Nor read: a lie about libc would be thrown away and written anew.
    let kept = plans(&own);
    for file in &kept {
        fs::write(file, "a lie").unwrap();
    }
    load(&own, &["raised"]);
    for file in &kept {
        assert_eq!(fs::read(file).unwrap(), b"a lie");
    }
    load(&own, &[]);
    assert!(kept.iter().all(|file| fs::read(file).unwrap() != b"a lie"));
}

#[test]
fn without_a_folder_for_plans_programs_run() {
    let file = scratch("none").join("file");
    fs::write(&file, "").unwrap();
    assert_eq!(verbose(&file), verbose(cache()));
}

#[test]
fn raw_system_calls_find_their_buffers() {
    let folder = scratch("rawcalls");
    let (library, program) = (folder.join("libraw.so"), folder.join("rawcalls"));
    compile(
        &["-shared", "-fPIC", "-DLIBRARY"],
        "rawcalls.c",
        &library,
        &[],
    );
    compile(&[], "rawcalls.c", &program, &[&library]);
    let report = doctor::probe();
    let works = [
        ("inline", report.inline_works),
        ("monitor", report.monitor_works),
        ("guard", report.guard_works),
    ];
    for (backend, works) in works {
        if !works {
            println!("the {backend} backend does not work here and is not tested");
            continue;
        }
        // Once found out, once by the kept plans.
        for _ in 0..2 {
            let options = ["--limit", "1M", "--backend", backend];
            let output = run_with(cache(), &options, &[program.to_str().unwrap()]);
            assert_eq!(text(&output.stdout), "ok\n", "{backend}: {output:?}");
        }
    }
}

#[test]
fn raw_system_calls_that_stay_get_the_monitor_or_a_line() {
    let stuck = scratch("stuck").join("stuck");
    compile(&[], "stuck.c", &stuck, &[]);
    let stuck = [stuck.to_str().unwrap()];
    let report = doctor::probe();
    let line = |output: &Output| text(&output.stderr).contains("cannot be redirected");
    let output = run_with(cache(), &["--limit", "1M"], &stuck);
    if report.monitor_works {
        assert_eq!(text(&output.stdout), "read\n", "{output:?}");
        assert_eq!(text(&output.stderr), "", "{output:?}");
    } else {
        println!("no monitor works here: only the line is tested");
        assert!(line(&output), "{output:?}");
    }
    if report.inline_works {
        let output = run_with(cache(), &["--limit", "1M", "--backend", "inline"], &stuck);
        assert_eq!(text(&output.stdout), "refused\n", "{output:?}");
        assert!(line(&output), "{output:?}");
        assert_eq!(text(&output.stderr).lines().count(), 1, "{output:?}");
    }
}
