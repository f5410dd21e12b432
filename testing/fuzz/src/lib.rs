//! What reads bytes it did not write, under a fuzzer.
//!
//! A target takes any bytes and panics when the code under it breaks a promise:
//! it must answer, and what it answers must hold. `scripts/fuzz` runs the targets
//! under libFuzzer, guided by coverage; `cargo test -p ghostmem-fuzz` tries each
//! kept input (`corpus/TARGET/`) once, without a fuzzer.
//!
//! The command's and the preload library's parsers are private to a program and to
//! a library whose symbols would take over this process's `malloc`: their files are
//! compiled into this crate instead.

#![allow(
    dead_code,
    unused_imports,
    unreachable_pub,
    missing_docs,
    reason = "of the files that belong to others only a part is used"
)]

#[path = "../../../apps/ghostmem-cli/src/run/elf.rs"]
mod elf;
#[path = "../../../bindings/preload/src/objects.rs"]
mod objects;
#[path = "../../../bindings/preload/src/patch.rs"]
mod patch;
#[path = "../../../bindings/preload/src/plan.rs"]
mod plan;
#[path = "../../../bindings/preload/src/raw.rs"]
mod raw;
#[path = "../../../bindings/preload/src/scan.rs"]
mod scan;
#[path = "../../../bindings/preload/src/settings.rs"]
mod settings;
#[path = "../../../bindings/preload/src/stub.rs"]
mod stub;
#[path = "../../../bindings/preload/src/window.rs"]
mod window;

/// What `patch.rs` names of the library's calls.
#[path = "../../../bindings/preload/src/calls"]
mod calls {
    pub(crate) mod table;

    pub(crate) fn entry_address() -> usize {
        unreachable!("nothing is patched here")
    }
}

/// What `patch.rs` names of the library's start.
mod start {
    pub(crate) fn next(_: &core::ffi::CStr) -> usize {
        unreachable!("nothing is patched here")
    }
}

mod blocks;
mod codec;
mod file;
mod parsers;
mod scratch;

/// Takes any bytes; panics when a promise is broken.
pub type Target = fn(&[u8]);

/// Every target by name.
pub const TARGETS: [(&str, Target); 8] = [
    ("blocks", blocks::run),
    ("codec", codec::run),
    ("elf", parsers::elf),
    ("file", file::run),
    ("patch", parsers::patch),
    ("plan", parsers::plan),
    ("reports", parsers::reports),
    ("settings", parsers::settings),
];
