//! What tests of `ghostmem run` share: folders, C programs, and the backends there are.
#![allow(clippy::unwrap_used)] // a test ends at the first failure
#![allow(dead_code, reason = "each test file uses its own part")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;

use ghostmem::doctor;

fn folder(name: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR"));
    folder.join(env!("CARGO_CRATE_NAME")).join(name)
}

/// A folder of this test's own, empty.
pub(crate) fn scratch(name: &str) -> PathBuf {
    let folder = folder(name);
    let _fresh = fs::remove_dir_all(&folder);
    fs::create_dir_all(&folder).unwrap();
    folder.canonicalize().unwrap()
}

/// Builds a C program or library, of `tests/programs` if its path does not begin at the
/// root, with `more` to link. Needs a C compiler named cc, with what the flags ask for
/// (libc's static library, AddressSanitizer).
pub(crate) fn compile(flags: &[&str], source: impl AsRef<Path>, built: &Path, more: &[&Path]) {
    let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/programs");
    let source = sources.join(source);
    let status = Command::new("cc")
        .args(["-O1", "-g", "-w", "-pthread"])
        .args(flags)
        .arg("-o")
        .arg(built)
        .arg(&source)
        .args(more)
        .status()
        .expect("a C compiler named cc");
    assert!(status.success(), "cc {}: {status}", source.display());
}

/// The program `name`, in a folder of `test`, which may have others.
pub(crate) fn built(name: &str, test: &str) -> PathBuf {
    let folder = folder(test);
    fs::create_dir_all(&folder).unwrap();
    let built = folder.join(name);
    compile(&[], format!("{name}.c"), &built, &[]);
    built
}

/// The backends that work here.
pub(crate) fn backends() -> Vec<&'static str> {
    let report = doctor::probe();
    let works = [
        ("inline", report.inline_works),
        ("monitor", report.monitor_works),
        ("guard", report.guard_works && report.guard_pages),
        ("guard-mprotect", report.guard_works),
    ];
    for (name, _) in works.iter().filter(|(_, works)| !works) {
        println!("the {name} backend does not work here and is not tested");
    }
    let working: Vec<_> = works.iter().filter(|(_, works)| *works).collect();
    assert!(!working.is_empty(), "no backend works here");
    working.into_iter().map(|(name, _)| *name).collect()
}

pub(crate) fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// The program ended well and found everything right.
pub(crate) fn assert_ok(output: &Output, what: &str) {
    assert!(
        output.status.success() && output.stdout == b"ok\n",
        "{what}: {:?}\n{}\n{}",
        output.status,
        text(&output.stdout),
        text(&output.stderr)
    );
}

/// A program by `run`, with the plans of a cache of the test's own.
pub(crate) fn run_with(cache: &Path, options: &[&str], program: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_ghostmem"))
        .arg("run")
        .args(options)
        .arg("--")
        .args(program)
        .env("XDG_CACHE_HOME", cache)
        .output()
        .unwrap()
}

/// That cache, where a test needs no fresh one.
pub(crate) fn cache() -> &'static Path {
    static CACHE: OnceLock<PathBuf> = OnceLock::new();
    CACHE.get_or_init(|| scratch("cache"))
}
