//! The fuzzer: runs the target that `GHOSTMEM_FUZZ` names. See scripts/fuzz.
#![no_main]

use std::sync::LazyLock;

use ghostmem_fuzz::{TARGETS, Target};
use libfuzzer_sys::fuzz_target;

static TARGET: LazyLock<Target> = LazyLock::new(|| {
    let name = std::env::var("GHOSTMEM_FUZZ").unwrap_or_default();
    let found = TARGETS.iter().find(|(target, _)| *target == name);
    found.map_or_else(
        || panic!("GHOSTMEM_FUZZ names no target: '{name}'"),
        |&(_, target)| target,
    )
});

fuzz_target!(|data: &[u8]| TARGET(data));
