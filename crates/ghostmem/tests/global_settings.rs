//! What the global heap may take: set up in code, by the environment, or by default.
#![cfg(target_os = "linux")] // a bound on the process
#![allow(clippy::unwrap_used)] // a test ends at the first failure

use std::process::{Command, Output};

use common::role;
use ghostmem::{Error, Heap, MemorySize};

mod common;

/// Runs the test `name` in a process of its own, with these variables.
fn alone(name: &str, variables: &[(&str, &str)]) -> Output {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .args(["--exact", name, "--nocapture", "--test-threads=1"])
        .env("GHOSTMEM_TEST_ROLE", "alone")
        .envs(variables.iter().copied());
    command.output().unwrap()
}

/// The same; what it wrote to standard error when it ended well.
fn said(name: &str, variables: &[(&str, &str)]) -> String {
    let output = alone(name, variables);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{variables:?}: {said}");
    said
}

#[test]
fn the_environment_takes_what_the_command_takes() {
    const NAME: &str = "the_environment_takes_what_the_command_takes";
    if role().is_some() {
        let stats = Heap::global().unwrap().stats();
        eprintln!(
            "{} {} {}",
            stats.process_bound_bytes, stats.resident_limit_bytes, stats.slowdown_asked_ppm
        );
        return;
    }
    let figures = |variables: &[(&str, &str)]| {
        let said = said(NAME, variables);
        let mut numbers = said.split_whitespace().map(|n| n.parse::<u64>().unwrap());
        let mut next = || numbers.next().unwrap();
        (next(), next(), next())
    };
    let (bound, limit, share) = figures(&[("GHOSTMEM_LIMIT", "64M")]);
    assert_eq!((limit, share), (64 << 20, 0));
    assert!(bound >= 64 << 20, "auto stays in force: {bound}");
    let (bound, limit, share) = figures(&[
        ("GHOSTMEM_MEMORY", "160M"),
        ("GHOSTMEM_LIMIT", "auto"),
        ("GHOSTMEM_SLOWDOWN", "2.5%"),
    ]);
    assert_eq!((bound, share), (160 << 20, 25_000));
    assert!(limit < 160 << 20, "{limit}");
    let (all, ..) = figures(&[]);
    let (half, ..) = figures(&[("GHOSTMEM_MEMORY", "50%")]);
    assert!(half < all / 10 * 9, "{half} of {all}");
}

#[test]
fn a_value_that_cannot_be_read_is_one_line_and_an_error() {
    const NAME: &str = "a_value_that_cannot_be_read_is_one_line_and_an_error";
    if role().is_some() {
        for _ in 0..3 {
            let error = Heap::global().unwrap_err();
            let said = matches!(
                error,
                Error::Environment { .. } | Error::EnvironmentSlowdown { .. }
            );
            assert!(said, "{error:?}");
        }
        return;
    }
    for (name, value) in [
        ("GHOSTMEM_LIMIT", "1e9"),
        ("GHOSTMEM_LIMIT", ""),
        ("GHOSTMEM_MEMORY", "-5"),
        ("GHOSTMEM_MEMORY", "AUTO"),
        ("GHOSTMEM_MEMORY", "0%"),
        ("GHOSTMEM_MEMORY", "150%"),
        ("GHOSTMEM_SLOWDOWN", "5"),
        ("GHOSTMEM_SLOWDOWN", "60%"),
    ] {
        let said = said(NAME, &[(name, value)]);
        let begins = format!("ghostmem: {name}={value}: ");
        assert!(said.starts_with(&begins), "{said}");
        assert_eq!(said.lines().count(), 1, "{said}");
    }
}

#[test]
fn the_global_heap_is_set_up_before_its_first_use_or_not_at_all() {
    const NAME: &str = "the_global_heap_is_set_up_before_its_first_use_or_not_at_all";
    match std::env::var("FIRST").as_deref() {
        Ok("install") => {
            let builder = Heap::builder().memory(200 << 20).resident_limit(1 << 20);
            let heap = builder.clone().install_global().unwrap();
            assert!(std::ptr::eq(heap, Heap::global().unwrap()));
            assert_eq!(heap.stats().process_bound_bytes, 200 << 20);
            assert_eq!(builder.install_global().unwrap_err(), Error::AlreadyGlobal);
        }
        Ok("refused") => {
            let small = Heap::builder().resident_limit(4096).install_global();
            assert!(matches!(small, Err(Error::LimitTooSmall { .. })));
            // What was refused is not there.
            Heap::builder()
                .resident_limit(1 << 20)
                .install_global()
                .unwrap();
        }
        Ok(_) => {
            let heap = Heap::global().unwrap();
            let late = Heap::builder().resident_limit(1 << 20).install_global();
            let error = late.unwrap_err();
            assert_eq!(error, Error::AlreadyGlobal);
            assert!(error.to_string().contains("before the first allocation"));
            assert!(heap.stats().resident_limit_bytes > 1 << 20);
        }
        Err(_) => {
            // The environment does not change what the program says.
            let variables = |first| [("FIRST", first), ("GHOSTMEM_MEMORY", "300M")];
            for first in ["install", "refused", "used"] {
                said(NAME, &variables(first));
            }
        }
    }
}

#[test]
fn a_builder_without_a_size_follows_auto_and_one_with_a_limit_does_not() {
    let bound = |heap: Heap| heap.stats().process_bound_bytes;
    let auto = bound(Heap::new().unwrap());
    assert!(auto > 0);
    let limited = Heap::builder().resident_limit(1 << 20);
    assert_eq!(bound(limited.clone().build().unwrap()), 0);
    assert!(bound(limited.memory(MemorySize::Auto).build().unwrap()) > 0);
    for percent in [0.0, -1.0, 100.5, f64::NAN] {
        let refused = Heap::builder().memory(MemorySize::Percent(percent)).build();
        assert_eq!(refused.err(), Some(Error::MemoryPercent), "{percent}");
    }
}
