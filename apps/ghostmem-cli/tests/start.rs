//! A process has a heap, and the engine's thread, only where one is needed.
#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use common::{cache, compile, run_with, scratch, text};

mod common;

fn small() -> &'static Path {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(|| {
        let built = scratch("programs").join("small");
        compile(&[], "small.c", &built, &[]);
        built
    })
}

/// What the small program prints when this is done in it.
fn after(options: &[&str], what: &str) -> String {
    let output = run_with(cache(), options, &[small().to_str().unwrap(), what]);
    assert!(output.status.success(), "{what}: {output:?}");
    assert_eq!(text(&output.stderr), "", "{what}");
    text(&output.stdout)
}

const NO_HEAP: &str = "no heap, 1 task";

#[test]
fn a_process_that_asks_for_little_has_no_heap_and_no_thread() {
    let printed = after(&["--limit", "64M"], "");
    assert_eq!(printed, format!("start: {NO_HEAP}\nend: {NO_HEAP}\n"));
    // The same for what it starts.
    let shell = format!("{0}; {0}", small().display());
    let output = run_with(cache(), &["--limit", "64M"], &["sh", "-c", &shell]);
    assert_eq!(
        text(&output.stdout).matches(NO_HEAP).count(),
        4,
        "{output:?}"
    );
}

#[test]
fn the_heap_is_made_before_it_would_be_too_late() {
    for what in ["much", "large", "thread", "limit", "filter"] {
        let printed = after(&["--limit", "64M"], what);
        let (start, end) = printed.split_once('\n').unwrap();
        assert_eq!(start, format!("start: {NO_HEAP}"), "{what}");
        assert!(end.starts_with("end: heap"), "{what}: {end}");
    }
    // Where something is asked of the heap itself.
    let printed = after(&["--limit", "64M", "--stats-json", "/dev/null"], "");
    assert!(printed.starts_with("start: heap"), "{printed}");
}

#[test]
fn children_made_before_have_heaps_of_their_own() {
    for what in ["fork", "rawfork"] {
        let printed = after(&["--limit", "64M"], what);
        let lines: Vec<&str> = printed.lines().collect();
        assert_eq!(
            lines[..2],
            [format!("start: {NO_HEAP}"), format!("child: {NO_HEAP}")]
        );
        assert!(lines[2].starts_with("child: heap"), "{what}: {printed}");
        assert_eq!(lines[3], format!("end: {NO_HEAP}"), "{what}");
    }
    // Between vfork and exec the memory is the parent's: what is allocated there is
    // ordinary memory, and the parent's to use and to free.
    let printed = after(&["--limit", "64M"], "vfork");
    assert!(
        printed.contains("after vfork: ") && printed.contains("end: heap"),
        "{printed}"
    );
}

#[test]
fn what_the_program_set_before_is_as_it_was() {
    let printed = after(&["--limit", "64M"], "handler");
    assert!(printed.contains("later: heap"), "{printed}");
    let printed = after(&["--limit", "64M"], "blocked");
    assert!(printed.contains("end: heap"), "{printed}");
    let printed = after(&["--limit", "64M"], "addresses");
    assert!(printed.contains(NO_HEAP), "{printed}");
}
