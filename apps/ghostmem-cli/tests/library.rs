//! Which library `ghostmem run` loads: copies of the command in folders of their own.
//!
//! What an optimised command does and what an unoptimised one does differ, so each test
//! is of one of them: `cargo test` runs the one, `cargo test --release` the other.
#![allow(clippy::unwrap_used)]

use std::fs::{self, File};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::thread;
use std::time::{Duration, SystemTime};

const LIBRARY: &str = "libghostmem_preload.so";

/// A folder of this test's own with nothing but the command in `bin`.
fn alone(name: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    let _fresh = fs::remove_dir_all(&folder);
    fs::create_dir_all(folder.join("bin")).unwrap();
    fs::copy(env!("CARGO_BIN_EXE_ghostmem"), folder.join("bin/ghostmem")).unwrap();
    folder.canonicalize().unwrap()
}

/// The library that cargo built with this command.
fn built() -> PathBuf {
    let command = Path::new(env!("CARGO_BIN_EXE_ghostmem"));
    command.parent().unwrap().join("deps").join(LIBRARY)
}

/// Runs a program that says what it was given to load.
fn run(folder: &Path) -> Output {
    let mut command = Command::new(folder.join("bin/ghostmem"));
    command
        .args(["run", "--limit", "16M", "--", "sh", "-c"])
        .arg("grep -o '/[^ ]*libghostmem_preload[^ ]*' /proc/self/maps | sort -u")
        .env_remove("GHOSTMEM_PRELOAD")
        .env_remove("XDG_CACHE_HOME")
        .env("HOME", folder)
        .stdin(Stdio::null());
    loop {
        match command.output() {
            // A test beside this one started a process while the copy was being written:
            // that has it open until its own exec.
            Err(error) if error.kind() == ErrorKind::ExecutableFileBusy => thread::yield_now(),
            output => return output.unwrap(),
        }
    }
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap().trim_end()
}

/// The library that the program had, and what was said on standard error.
fn loaded(folder: &Path) -> (PathBuf, String) {
    let output = run(folder);
    let said = text(&output.stderr).to_owned();
    assert!(output.status.success(), "{said}");
    (PathBuf::from(text(&output.stdout)), said)
}

fn written(path: &Path, seconds: u64) {
    let time = SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
    File::options()
        .write(true)
        .open(path)
        .unwrap()
        .set_modified(time)
        .unwrap();
}

/// Whether a library is anywhere in a cache.
fn is_kept(cache: &Path) -> bool {
    let folder = fs::read_dir(cache).into_iter().flatten();
    folder
        .map(|entry| entry.unwrap().path())
        .any(|path| path.file_name().is_some_and(|name| name == LIBRARY) || is_kept(&path))
}

#[test]
fn a_library_in_an_installed_prefix_is_used_where_it_lies() {
    for place in ["lib", "lib64", "lib/ghostmem", "bin", "bin/deps"] {
        let folder = alone("prefix");
        fs::create_dir_all(folder.join(place)).unwrap();
        let library = folder.join(place).join(LIBRARY);
        fs::copy(built(), &library).unwrap();
        let (used, said) = loaded(&folder);
        assert_eq!((used, said.as_str()), (library, ""), "{place}");
        assert!(!is_kept(&folder.join(".cache")), "{place}");
    }
}

/// An old build's library lies beside the command, this one's in `deps`: as after
/// `cargo build -p ghostmem-preload` and then `cargo build`.
#[test]
fn an_older_library_beside_the_command_is_passed_over() {
    let folder = alone("older");
    fs::create_dir(folder.join("bin/deps")).unwrap();
    let (old, new) = (
        folder.join("bin").join(LIBRARY),
        folder.join("bin/deps").join(LIBRARY),
    );
    fs::write(&old, b"an older library").unwrap();
    fs::copy(built(), &new).unwrap();
    written(&old, 1_000_000_000);
    let (used, said) = loaded(&folder);
    assert_eq!((used, said.as_str()), (new, ""));
}

#[test]
#[cfg(debug_assertions)]
fn an_unoptimised_command_alone_says_what_helps() {
    let output = run(&alone("nothing"));
    let line = text(&output.stderr);
    assert_eq!(output.status.code(), Some(125), "{line}");
    assert_eq!(line.lines().count(), 1, "{line}");
    // scripts/test-c installs with this command and runs what it installed.
    assert!(line.contains("'scripts/install --prefix DIR'"), "{line}");
}

#[test]
#[cfg(not(debug_assertions))]
fn an_optimised_command_alone_carries_its_library() {
    let folder = alone("carried");
    let (used, said) = loaded(&folder);
    assert_eq!(said, "");
    assert!(used.starts_with(folder.join(".cache/ghostmem")), "{used:?}");
    assert!(fs::read(&used).unwrap() == fs::read(built()).unwrap());
    // The second start finds it, a damaged one is replaced.
    written(&used, 1_000_000_000);
    assert_eq!(loaded(&folder), (used.clone(), String::new()));
    let age = fs::metadata(&used).unwrap().modified().unwrap();
    assert_eq!(
        age,
        SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000)
    );
    File::options()
        .write(true)
        .open(&used)
        .unwrap()
        .set_len(100_000)
        .unwrap();
    assert_eq!(loaded(&folder), (used.clone(), String::new()));
    assert!(fs::read(&used).unwrap() == fs::read(built()).unwrap());
    let kept = fs::read_dir(used.parent().unwrap()).unwrap();
    assert_eq!(kept.count(), 1, "nothing half written stays");
}

#[test]
#[cfg(not(debug_assertions))]
fn another_builds_library_is_never_loaded() {
    let folder = alone("another");
    fs::create_dir(folder.join("lib")).unwrap();
    let other = folder.join("lib").join(LIBRARY);
    let mut bytes = fs::read(built()).unwrap();
    bytes.push(0);
    fs::write(&other, &bytes).unwrap();
    let (used, said) = loaded(&folder);
    assert!(used.starts_with(folder.join(".cache")), "{used:?}");
    assert_eq!(
        said,
        format!(
            "ghostmem: {} is of another build than this command, which uses its own",
            other.display()
        )
        .replace("/lib/", "/bin/../lib/")
    );
}

/// Whether the command carries a library of its own or not.
#[test]
fn a_damaged_library_beside_the_command_ends_with_a_line() {
    for bytes in [&b"damaged\n"[..], &fs::read(built()).unwrap()[..100_000]] {
        let folder = alone("damaged");
        let library = folder.join("bin").join(LIBRARY);
        fs::write(&library, bytes).unwrap();
        let output = run(&folder);
        let line = text(&output.stderr);
        assert_eq!(output.status.code(), Some(126), "{line}");
        assert_eq!(line.lines().count(), 1, "{line}");
        assert!(
            line.starts_with("ghostmem: ") && line.contains("is damaged"),
            "{line}"
        );
        assert!(output.stdout.is_empty(), "nothing runs");
    }
}

#[test]
#[cfg(not(debug_assertions))]
fn a_cache_that_cannot_be_written_is_one_line_that_says_what_helps() {
    let folder = alone("no-cache");
    fs::write(folder.join(".cache"), b"no folder").unwrap();
    let output = run(&folder);
    let line = text(&output.stderr);
    assert_eq!(output.status.code(), Some(125), "{line}");
    assert_eq!(line.lines().count(), 1, "{line}");
    assert!(line.contains("'scripts/install --prefix DIR'"), "{line}");
}

/// Names that the library takes from wherever the loader finds them first, on purpose: data,
/// the loader's own, and what everybody who defines it means by it.
const FOUND_ANYWHERE: &str = "abort bcmp environ exit getenv memcmp memcpy memmove memset setenv \
    stderr stdout strlen unsetenv dl_iterate_phdr dlclose dlinfo dlopen dlsym gnu_get_libc_version";

/// Proves that a name of libc's which the library comes to use is looked up in libc, and not
/// in the program first.
#[test]
fn the_library_looks_up_in_libc_what_a_program_may_define() {
    let output = Command::new("nm")
        .args(["-D", "--undefined-only"])
        .arg(built())
        .output()
        .unwrap();
    assert!(output.status.success(), "nm of binutils");
    let list = include_str!("../../../bindings/preload/src/names.in");
    let known: Vec<&str> = list
        .split_whitespace()
        .chain(FOUND_ANYWHERE.split_whitespace())
        .collect();
    let undefined: Vec<&str> = text(&output.stdout)
        .lines()
        .filter_map(|line| line.trim().strip_prefix("U "))
        .map(|name| name.split('@').next().unwrap_or(name))
        .collect();
    assert!(undefined.contains(&"read"), "{undefined:?}");
    let forgotten: Vec<&str> = undefined
        .into_iter()
        .filter(|name| !name.starts_with('_') && !known.contains(name))
        .collect();
    assert!(
        forgotten.is_empty(),
        "bindings/preload/src/names.in lacks {forgotten:?}"
    );
}
