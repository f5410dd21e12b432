//! A program whose global allocator says what its process may take.
#![cfg(target_os = "linux")] // a bound on the process
#![allow(clippy::unwrap_used)] // a test ends at the first failure

use std::process::Command;

use common::role;
use ghostmem::{GhostAlloc, Heap};

mod common;

const MEMORY: usize = 192 << 20;

#[global_allocator]
static ALLOCATOR: GhostAlloc = GhostAlloc::with_memory(MEMORY).ghost_from(64);

/// Where a word lies, what the process may take, and what it wrote.
fn of_a_process(variable: Option<(&str, &str)>) -> String {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .args([
            "--exact",
            "the_size_is_the_program_s_unless_the_environment_has_one",
        ])
        .args(["--nocapture", "--test-threads=1"])
        .env("GHOSTMEM_TEST_ROLE", "alone")
        .envs(variable);
    let output = command.output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{said}");
    said
}

#[test]
fn the_size_is_the_program_s_unless_the_environment_has_one() {
    if role().is_some() {
        let (word, large) = (Box::new(7), vec![1_u8; 4096]);
        let bound = Heap::global().map(|heap| {
            assert!(!heap.is_ghost(&raw const *word), "less than 64 bytes");
            assert!(heap.is_ghost(large.as_ptr()));
            heap.stats().process_bound_bytes
        });
        eprintln!("bound {}", bound.unwrap_or(0));
        return;
    }
    assert_eq!(of_a_process(None), format!("bound {MEMORY}\n"));
    let other = of_a_process(Some(("GHOSTMEM_MEMORY", "160M")));
    assert_eq!(other, format!("bound {}\n", 160 << 20));
    // A resident limit leaves it as it is.
    let limited = of_a_process(Some(("GHOSTMEM_LIMIT", "1M")));
    assert_eq!(limited, format!("bound {MEMORY}\n"));
    // Without a heap the program runs on ordinary memory, and one line says why.
    let broken = of_a_process(Some(("GHOSTMEM_MEMORY", "12Q")));
    assert!(
        broken.starts_with("ghostmem: GHOSTMEM_MEMORY=12Q: unknown unit 'Q'"),
        "{broken}"
    );
    assert_eq!(broken.lines().count(), 2, "{broken}");
    let small = of_a_process(Some(("GHOSTMEM_MEMORY", "1")));
    assert!(
        small.contains("the program goes on without ghost memory\n"),
        "{small}"
    );
    assert_eq!(small.lines().count(), 2, "{small}");
}
