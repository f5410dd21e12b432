//! The checked-in headers are those of the sources.
//!
//! `GHOSTMEM_UPDATE_HEADER=1 cargo test -p ghostmem-c --test header` writes
//! `include/ghostmem.h` anew.

#![allow(clippy::unwrap_used)] // a test ends at the first failure

use std::fs;
use std::path::{Path, PathBuf};

use cbindgen::{Builder, Config, DocumentationStyle, EnumConfig, Language, RenameRule, Style};
use ghostmem::settings::SETTINGS;

/// The modules whose functions the header declares.
const SOURCES: [&str; 8] = [
    "lib",
    "status",
    "config",
    "heap",
    "default_heap",
    "memory",
    "range",
    "stats",
];

const RENAMED: [(&str, &str); 7] = [
    ("GhostmemStatus", "ghostmem_status"),
    ("GhostmemBackend", "ghostmem_backend"),
    ("GhostmemCodec", "ghostmem_codec"),
    ("GhostmemConfig", "ghostmem_config"),
    ("GhostmemHeap", "ghostmem_heap"),
    ("GhostmemPinned", "ghostmem_pinned"),
    ("GhostmemStats", "ghostmem_stats"),
];

const HEAD: &str = "\
/* GhostMem: memory that is compressed in the process while it is cold.
 *
 * Made from the sources of libghostmem by `cargo test -p ghostmem-c --test
 * header`; do not edit. Licensed under Apache-2.0 or MIT.
 *
 * All functions may be called from any thread. A function that answers a
 * status changes nothing unless it answers GHOSTMEM_STATUS_OK, and then
 * ghostmem_last_error() says why.
 */";

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).to_owned()
}

fn generated() -> String {
    let mut config = Config {
        language: Language::C,
        cpp_compat: true,
        header: Some(HEAD.to_owned()),
        include_guard: Some("GHOSTMEM_H".to_owned()),
        style: Style::Both,
        usize_is_size_t: true,
        documentation_style: DocumentationStyle::C99,
        no_includes: true,
        sys_includes: ["stdbool.h", "stddef.h", "stdint.h"]
            .map(str::to_owned)
            .into(),
        line_length: 80,
        enumeration: EnumConfig {
            rename_variants: RenameRule::ScreamingSnakeCase,
            prefix_with_name: true,
            ..EnumConfig::default()
        },
        ..Config::default()
    };
    config.export.rename = RENAMED
        .iter()
        .map(|(from, to)| ((*from).to_owned(), (*to).to_owned()))
        .collect();
    let include = ["GhostmemBackend", "GhostmemCodec", "GhostmemStatus"];
    config.export.include = include.map(str::to_owned).into();
    // The root alone: cbindgen follows its modules, and would declare every
    // function twice if it were given those too.
    let builder = Builder::new()
        .with_config(config)
        .with_src(root().join("src/lib.rs"));
    let mut text = Vec::new();
    builder.generate().unwrap().write(&mut text);
    // Rust's heading, in words that a C programmer expects.
    let text = String::from_utf8(text).unwrap();
    text.replace("// # Safety", "// What the caller owes:")
}

#[test]
fn the_c_header_is_that_of_the_sources() {
    let path = root().join("include/ghostmem.h");
    let new = generated();
    if std::env::var_os("GHOSTMEM_UPDATE_HEADER").is_some() {
        fs::write(&path, &new).unwrap();
    }
    let checked_in = fs::read_to_string(&path).unwrap_or_default();
    let differs = checked_in
        .lines()
        .zip(new.lines())
        .position(|(old, new)| old != new);
    assert!(
        checked_in == new,
        "include/ghostmem.h is not that of the sources (first difference in line {}): run \
         GHOSTMEM_UPDATE_HEADER=1 cargo test -p ghostmem-c --test header",
        differs.map_or(checked_in.lines().count().min(new.lines().count()), |n| n) + 1
    );
}

#[test]
fn every_source_is_read_and_every_function_declared() {
    let mut functions = 0;
    let header = generated();
    for entry in fs::read_dir(root().join("src")).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
        assert!(SOURCES.contains(&name.as_str()), "{name} is not in SOURCES");
        for line in fs::read_to_string(&path).unwrap().lines() {
            // Handlers that are passed on by address are not exported.
            let exported = line.trim_start().starts_with("pub ");
            if let Some(rest) = line.split("extern \"C\" fn ").nth(1).filter(|_| exported) {
                let name = rest.split('(').next().unwrap();
                assert!(header.contains(&format!("{name}(")), "{name} is missing");
                functions += 1;
            }
        }
    }
    assert!(functions > 20, "only {functions} functions were found");
}

#[test]
fn the_version_header_has_the_workspaces_version() {
    let header = fs::read_to_string(root().join("include/ghostmem/Version.h")).unwrap();
    for line in [
        concat!(
            "#define GHOSTMEM_VERSION_MAJOR ",
            env!("CARGO_PKG_VERSION_MAJOR")
        ),
        concat!(
            "#define GHOSTMEM_VERSION_MINOR ",
            env!("CARGO_PKG_VERSION_MINOR")
        ),
        concat!(
            "#define GHOSTMEM_VERSION_PATCH ",
            env!("CARGO_PKG_VERSION_PATCH")
        ),
        concat!(
            "#define GHOSTMEM_VERSION_STRING \"",
            env!("CARGO_PKG_VERSION"),
            "\""
        ),
    ] {
        assert!(header.lines().any(|l| l == line), "Version.h lacks: {line}");
    }
}

/// Fields of a structure in the header, in their order: type, name, comment.
fn fields_of(header: &str, structure: &str) -> Vec<(String, String, String)> {
    let body = header.split(&format!("struct {structure} {{\n")).nth(1);
    let body = body.unwrap().split("\n}").next().unwrap();
    let mut fields = Vec::new();
    let mut comment = Vec::new();
    for line in body.lines().map(str::trim) {
        if let Some(words) = line.strip_prefix("//") {
            comment.push(words.trim());
        } else {
            let (of, name) = line.trim_end_matches(';').rsplit_once([' ', '*']).unwrap();
            fields.push((of.to_owned(), name.to_owned(), comment.join(" ")));
            comment.clear();
        }
    }
    fields
}

/// Programs are compiled with the places of these words.
#[test]
fn the_structure_of_figures_is_that_of_the_table() {
    let fields = fields_of(&generated(), "ghostmem_stats");
    let words = ghostmem_figures();
    for (name, word, text) in &words {
        let field = fields.get(*word);
        assert_eq!(
            field,
            Some(&(
                "uint64_t".to_owned(),
                (*name).to_owned(),
                (*text).to_owned()
            )),
            "word {word} of ghostmem_stats is not {name}"
        );
    }
    assert_eq!(fields.len(), words.len(), "a field stands for no figure");
}

/// Name, word and text of the figures that have a word.
fn ghostmem_figures() -> Vec<(&'static str, usize, &'static str)> {
    let figures = ghostmem::Stats::default().figures();
    figures
        .filter_map(|figure| Some((figure.name, figure.c_word?, figure.text)))
        .collect()
}

/// What the table says and what is there, each without the other's.
fn assert_same(what: &str, said: Vec<&str>, there: Vec<&str>) {
    let lacks = |from: &[&str], all: &[&str]| {
        let missing = all.iter().filter(|name| !from.contains(name));
        missing.map(|name| (*name).to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(lacks(&there, &said), [""; 0], "missing in {what}");
    assert_eq!(lacks(&said, &there), [""; 0], "in {what}, but in no row");
}

#[test]
fn the_structures_of_settings_are_those_of_the_table() {
    let header = generated();
    let fields = fields_of(&header, "ghostmem_config");
    let own = ["struct_bytes"];
    let there = fields.iter().map(|(_, name, _)| name.as_str());
    let there = there.filter(|name| !own.contains(name)).collect();
    let said = SETTINGS.iter().filter_map(|row| row.c_field).collect();
    assert_same("ghostmem_config", said, there);

    let header = root().join("include/ghostmem/GhostMemoryManager.h");
    let header = fs::read_to_string(header).unwrap();
    let body = header.split("struct GhostConfig {").nth(1).unwrap();
    let body = body.split("};").next().unwrap();
    let fields = body.lines().filter(|line| !line.trim().starts_with("//"));
    let there = fields.filter_map(|line| line.split(" = ").next()?.split(' ').next_back());
    let there = there.filter(|name| !name.is_empty()).collect();
    let said = SETTINGS.iter().filter_map(|row| row.cpp_field).collect();
    assert_same("GhostConfig", said, there);
}
