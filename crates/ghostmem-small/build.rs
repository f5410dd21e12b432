//! Compiles `csrc/shim.c` against the headers of the mimalloc that
//! `libmimalloc-sys` builds, with the same compile-time choices.

use std::env;
use std::path::PathBuf;

fn main() {
    println!("cargo:rerun-if-changed=csrc/shim.c");
    println!("cargo:rerun-if-changed=csrc/threads.h");
    println!("cargo:rerun-if-changed=build.rs");
    let include = env::var("DEP_MIMALLOC_INCLUDE_DIR")
        .expect("libmimalloc-sys tells its dependants where its headers are");
    let include = PathBuf::from(include);
    let mut build = cc::Build::new();
    build
        .file("csrc/shim.c")
        .include(&include)
        // As libmimalloc-sys without features compiles it; shim.c compares
        // layouts at run time in case another crate switched features on.
        .define("MI_DEBUG", "0")
        // constructor(100) is meant: see gm_create_exit_key.
        .flag_if_supported("-Wno-prio-ctor-dtor")
        // mimalloc's own headers are not free of these.
        .flag_if_supported("-Wno-unused-parameter");
    if env::var("CARGO_CFG_TARGET_FAMILY").is_ok_and(|family| family == "unix") {
        build.flag("-ftls-model=initial-exec");
    }
    if env::var("DEBUG").is_ok_and(|debug| debug == "false" || debug == "0") {
        build.define("MI_BUILD_RELEASE", None);
        build.define("NDEBUG", None);
    }
    build.compile("ghostmem_small_shim");
}
