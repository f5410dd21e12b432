//! Gives the shared library its soname: programs linked against it ask the
//! loader for this name. Below 1.0 every minor version may break the ABI, so
//! the name carries it.
//!
//! And keeps it loaded after dlclose(3): its signal handlers and threads stay.
//! On Windows there are no sonames, and the library keeps itself loaded.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    if std::env::var("CARGO_CFG_TARGET_OS").is_ok_and(|os| os == "windows") {
        return;
    }
    let (major, minor) = (
        env!("CARGO_PKG_VERSION_MAJOR"),
        env!("CARGO_PKG_VERSION_MINOR"),
    );
    let version = if major == "0" {
        format!("0.{minor}")
    } else {
        major.to_owned()
    };
    println!("cargo:rustc-cdylib-link-arg=-Wl,-soname,libghostmem.so.{version}");
    println!("cargo:rustc-cdylib-link-arg=-Wl,-z,nodelete");
}
