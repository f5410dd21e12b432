//! A program that does little but fault is told so, once, if its heap was asked to.
#![cfg(target_os = "linux")] // processor time
#![allow(clippy::unwrap_used)] // a test ends at the first failure

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use common::{Random, Watchdog, role};
use ghostmem::Heap;

mod common;

const NAME: &str = "a_program_that_does_little_but_fault_hears_the_number_that_would_help";

/// Reads 48 MiB in no order under 6 MiB, for at most 20 s.
fn fault_all_the_time() {
    let heap = Heap::builder().resident_limit(6 << 20).readahead(false);
    let heap = heap.report_thrashing(true).build().unwrap();
    let words = (48 << 20) / 8;
    let data = heap.slice_from_fn(words, |i| i as u64 / 5).unwrap();
    let mut random = Random::new(1);
    let (end, mut sum) = (Instant::now() + Duration::from_secs(20), 0);
    while Instant::now() < end {
        for _ in 0..1000 {
            sum ^= data[random.below(words)];
        }
    }
    assert_ne!(sum, 1);
}

#[test]
fn a_program_that_does_little_but_fault_hears_the_number_that_would_help() {
    if role().is_some() {
        return fault_all_the_time();
    }
    let _watchdog = Watchdog::new("the line", 40);
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", NAME, "--nocapture", "--test-threads=1"])
        .env("GHOSTMEM_TEST_ROLE", "alone")
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    let line = lines.next().map_or_else(String::new, Result::unwrap);
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(
        line.starts_with("ghostmem: for some seconds most of the time"),
        "{line:?}"
    );
    assert!(
        line.contains("6 of 4") && line.contains("with a limit of 4"),
        "{line}"
    );
    let rest: Vec<_> = lines.collect();
    assert!(rest.is_empty(), "{rest:?}");
}
