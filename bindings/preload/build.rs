//! Sends what this library calls of libc by way of `src/names.rs`: the linker renames those
//! references (`--wrap` of ld(1)).

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=src/names.in");
    let list = include_str!("src/names.in");
    let names = list
        .trim()
        .trim_start_matches("names! {")
        .trim_end_matches('}');
    for name in names.split_whitespace() {
        println!("cargo::rustc-cdylib-link-arg=-Wl,--wrap={name}");
    }
}
