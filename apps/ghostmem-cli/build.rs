//! Says where cargo puts the library that `ghostmem run` loads, so that an
//! optimised command carries it.
//!
//! The library is a dependency of the command, so cargo has built it when it
//! compiles the command itself, but not yet when this runs. A mere check
//! (`cargo check --release`) never builds it: an empty file stands in then, which
//! the linker replaces. Where cargo's folders lie otherwise than expected, the
//! command carries nothing and looks for its library near itself.

use std::fs::OpenOptions;
use std::path::Path;

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rustc-check-cfg=cfg(carries_library)");
    let variable = |name: &str| std::env::var(name).unwrap_or_default();
    // An unoptimised library is six times as large, and its user has cargo at hand.
    if variable("PROFILE") != "release" {
        return;
    }
    // target/release/build/PACKAGE/out, and beside build: deps.
    let out = variable("OUT_DIR");
    let Some(deps) = Path::new(&out).ancestors().nth(3) else {
        return;
    };
    let deps = deps.join("deps");
    if !deps.is_dir() {
        return;
    }
    let library = deps.join("libghostmem_preload.so");
    let mut stand_in = OpenOptions::new();
    let stand_in = stand_in.write(true).create_new(true).open(&library);
    if stand_in.is_err() && !library.is_file() {
        return;
    }
    println!(
        "cargo::rustc-env=GHOSTMEM_BUILT_LIBRARY={}",
        library.display()
    );
    println!("cargo::rustc-cfg=carries_library");
}
