//! The one table of what can be set, and the hand-over of it from `ghostmem run` to the
//! library it loads.
//!
//! A row is a setting's text, its name, unit and default, and where it can be given:
//!
//! ```text
//!   row ─► RunSettings::NAME   what crosses from the command to the library, with the
//!                              key it has in GHOSTMEM_RUN            (handed rows)
//!       ─► SETTINGS            the list that tests of the builder, of C, C++, of the
//!                              command line and of docs/run.md walk
//!       ─► an option of `run`  made from the row alone               (`plain`)
//! ```
//! A new option of `run` without rules of its own is a row with `plain` and the use of its
//! field in the library. Where a row says that a place has it, a test fails until it does;
//! a test fails as well for what a place has and no row says.
//!
//! The variable is one, `GHOSTMEM_RUN`, of `key=value` parts with `;` between them. A value
//! is percent-escaped (only `%`, `;` and control characters are). Unknown keys are skipped,
//! so that a newer command can speak to an older library.

use core::ffi::CStr;
use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;

use crate::Backend;

/// The variable that the command hands the settings over in.
pub const VARIABLE: &CStr = c"GHOSTMEM_RUN";

/// What a setting's value is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum SettingUnit {
    /// A number of bytes.
    Bytes,
    /// A number of pages of 4 KiB.
    Pages,
    /// On or off.
    Flag,
    /// A file or folder.
    Path,
    /// One of a few names.
    Choice,
    /// The number of a process.
    Process,
    /// A part of something, in millionths, written as a percentage.
    Share,
    /// A number of something else, which the text names.
    Count,
    /// A place in the address space.
    Address,
    /// Code of the program.
    Function,
}

/// One setting, with what is known of it.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub struct Setting {
    /// Its name here.
    pub name: &'static str,
    /// What it does, in a sentence or two.
    pub text: &'static str,
    /// What its value is.
    pub unit: SettingUnit,
    /// What holds without it, as people read it; empty where that needs no word.
    pub default: &'static str,
    /// Its key in [`VARIABLE`].
    pub key: Option<&'static str>,
    /// Its option of `ghostmem run`, without the dashes.
    pub option: Option<&'static str>,
    /// That option has no rules of its own: it is made from this row.
    pub plain: bool,
    /// The method of a builder.
    pub method: Option<&'static str>,
    /// The field of the C structure `ghostmem_config`.
    pub c_field: Option<&'static str>,
    /// The field of the C++ structure `GhostConfig`.
    pub cpp_field: Option<&'static str>,
    /// An environment variable of its own.
    pub environment: Option<&'static str>,
}

/// What is said of one kind of place among a row's places.
macro_rules! place {
    ($kind:ident;) => { None };
    (option; option $name:literal $($rest:tt)*) => { Some($name) };
    (option; plain $name:literal $($rest:tt)*) => { Some($name) };
    (method; method $type:ident :: $name:ident $($rest:tt)*) => {
        Some(concat!(stringify!($type), "::", stringify!($name)))
    };
    (c; c $name:literal $($rest:tt)*) => { Some($name) };
    (cpp; cpp $name:literal $($rest:tt)*) => { Some($name) };
    (env; env $name:literal $($rest:tt)*) => { Some($name) };
    ($kind:ident; $place:tt $($rest:tt)*) => { place!($kind; $($rest)*) };
}

/// Whether `plain` is among a row's places.
macro_rules! plain {
    () => { false };
    (plain $($rest:tt)*) => { true };
    ($place:tt $($rest:tt)*) => { plain!($($rest)*) };
}

macro_rules! setting {
    ($name:ident, $key:expr, $unit:ident, $default:literal, [$($place:tt)*], [$($text:literal)+]) => {
        Setting {
            name: stringify!($name),
            text: concat!($($text),+).trim_ascii(),
            unit: SettingUnit::$unit,
            default: $default,
            key: $key,
            option: place!(option; $($place)*),
            plain: plain!($($place)*),
            method: place!(method; $($place)*),
            c_field: place!(c; $($place)*),
            cpp_field: place!(cpp; $($place)*),
            environment: place!(env; $($place)*),
        }
    };
}

macro_rules! settings {
    (
        handed { $($(#[doc = $htext:literal])+
            $handed:ident($key:literal): $type:ty = $value:expr, $hunit:ident, $hdefault:literal,
            [$($hplace:tt)*];)+ }
        others { $($(#[doc = $otext:literal])+
            $other:ident: $ounit:ident, $odefault:literal, [$($oplace:tt)*];)+ }
    ) => {
        /// All settings.
        pub const SETTINGS: &[Setting] = &[
            $(setting!($handed, Some($key), $hunit, $hdefault, [$($hplace)*], [$($htext)+]),)+
            $(setting!($other, None, $ounit, $odefault, [$($oplace)*], [$($otext)+]),)+
        ];

        /// What `ghostmem run` asks of the library it loads.
        #[derive(Debug, Clone, PartialEq, Eq)]
        pub struct RunSettings { $($(#[doc = $htext])+ pub $handed: $type,)+ }

        impl Default for RunSettings {
            fn default() -> Self {
                Self { $($handed: $value,)+ }
            }
        }

        impl RunSettings {
            /// Sets what has this key; `value` is as the variable has it.
            pub fn set(&mut self, key: &str, value: &[u8]) {
                match key {
                    $($key => self.$handed = Value::read(value),)+
                    _ => {}
                }
            }

            /// The variable's value.
            #[must_use]
            pub fn write(&self) -> OsString {
                let mut text = Vec::new();
                $(if let Some(value) = self.$handed.written() {
                    text.extend_from_slice(concat!($key, "=").as_bytes());
                    text.extend_from_slice(&value);
                    text.push(b';');
                })+
                OsString::from_vec(text)
            }
        }
    };
}

settings! {
    handed {
        /// Most bytes of uncompressed ghost pages mapped at once, in each process.
        limit("limit"): usize = 0, Bytes, "what the memory leaves", [option "limit" method HeapBuilder::resident_limit
            c "resident_limit_bytes" cpp "resident_limit_bytes" env "GHOSTMEM_LIMIT"];
        /// Each process takes no more than control groups and the machine leave it,
        /// followed while it runs.
        memory_auto("auto"): bool = false, Flag, "off", [method HeapBuilder::memory_auto];
        /// Bound on uncompressed, compressed and bookkeeping memory together; allocations
        /// beyond it fail.
        memory_limit("memory"): usize = 0, Bytes, "none", [plain "memory-limit"];
        /// Bound on everything that the program and all it starts take of the machine
        /// together: uncompressed, compressed and bookkeeping memory, and what is not ghost
        /// memory. How much stays uncompressed follows from it.
        memory("all"): usize = 0, Bytes, "auto", [option "memory"];
        /// The descriptor of the page that these processes share.
        tree_file("tree"): i32 = 0, Count, "", [];
        /// The key of that page.
        tree_key("tree-key"): Option<u64> = None, Count, "", [];
        /// Bound on everything that each process takes of the machine: uncompressed,
        /// compressed and bookkeeping memory, and what is not ghost memory. How much stays
        /// uncompressed follows from it.
        memory_each("memory-each"): usize = 0, Bytes, "none", [plain "memory-each"
            method HeapBuilder::memory c "memory_bytes" cpp "memory_bytes" env "GHOSTMEM_MEMORY"];
        /// As little memory stays uncompressed as the program bears: faults may take this
        /// share, 0.5% to 50%, of its own time and theirs together. The other limits are the
        /// most that stays.
        slowdown("slowdown"): usize = 0, Share, "none", [plain "slowdown"
            method HeapBuilder::slowdown c "slowdown_ppm" cpp "slowdown_ppm"
            env "GHOSTMEM_SLOWDOWN"];
        /// The folder of a file for cold compressed pages.
        spill("spill"): Option<PathBuf> = None, Path, "none", [option "spill"
            method Spill::dir c "spill_dir" cpp "disk_folder"];
        /// Most bytes of that file.
        spill_limit("spill-limit"): Option<u64> = None, Bytes, "what the disk allows",
            [option "spill-limit" method Spill::limit c "spill_limit_bytes"
            cpp "disk_limit_bytes"];
        /// Bytes of compressed pages that stay in memory before the coldest go to the file.
        spill_store("spill-store"): Option<usize> = None, Bytes,
            "what the memory limit leaves, else as many bytes as may be uncompressed",
            [option "spill-store" method Spill::store_limit c "spill_store_bytes"
            cpp "disk_store_bytes"];
        /// How faults are noticed.
        backend("backend"): Backend = Backend::Auto, Choice, "auto", [option "backend"
            method HeapBuilder::backend c "backend" cpp "backend" env "GHOSTMEM_BACKEND"];
        /// Blocks below this many bytes are ordinary memory.
        ghost_from("ghost-from"): usize = 0, Bytes, "on", [option "small"];
        /// Private anonymous mappings from this many bytes on are ghost memory; 0: none.
        mmap_from("mmap-from"): usize = 0, Bytes, "none", [option "mmap"];
        /// The process that reports at its end.
        reporter("reporter"): i32 = 0, Process, "", [];
        /// Print what the program used to standard error when it ends.
        stats("stats"): bool = false, Flag, "", [plain "stats"];
        /// Write what the program used to a file, as one JSON object; with %p in its name,
        /// one file for each process.
        stats_json("stats-json"): Option<PathBuf> = None, Path, "", [plain "stats-json"];
        /// Say what is in place when each process starts.
        verbose("verbose"): bool = false, Flag, "", [plain "verbose"];
        /// Programs started by the program run with GhostMem too.
        children("children"): bool = true, Flag, "on", [option "no-children"];
        /// The ring that touches are recorded in, a file of the process that keeps the
        /// record.
        trace("trace"): Option<PathBuf> = None, Path, "", [option "trace"];
        /// The process that keeps the record: only its own child is recorded.
        recorder("recorder"): i32 = 0, Process, "", [];
        /// Filters of system calls under which the command tried what works; the backend
        /// does.
        filters("filters"): Option<u64> = None, Count, "", [];
        /// These answer calls that they do not name, and end nobody for them.
        answered("answered"): bool = false, Flag, "", [];
        /// Memory files can be had, of which spare descriptors are made.
        spares("spares"): bool = true, Flag, "on", [];
        /// userfaultfd(2) may be called.
        calls_userfaultfd("uffd-call"): bool = true, Flag, "on", [];
        /// Many pages may be given back in one call.
        vectored("vectored"): bool = true, Flag, "on", [];
        /// Where this run has the engine's doorway; 0: nowhere but in the library.
        doorway("doorway"): usize = 0, Address, "", [];
    }
    others {
        /// Most pages of 4 KiB mapped at once.
        limit_pages: Pages, "5", [cpp "max_memory_pages" env "GHOSTMEM_MAX_PHYSICAL_PAGES"];
        /// That bound in hundredths of what there is.
        memory_percent: Count, "none", [c "memory_percent" cpp "memory_percent"];
        /// How pages are compressed.
        codec: Choice, "auto", [method HeapBuilder::codec c "codec" cpp "codec"];
        /// Pages ahead of a sequential or strided run are restored before they are touched.
        readahead: Flag, "on", [method HeapBuilder::readahead c "readahead" cpp "readahead"];
        /// A thread of the engine keeps frames free ahead of demand and the store tidy.
        background: Flag, "on", [method HeapBuilder::background c "background" cpp "background"];
        /// Forked children have that thread too.
        background_in_children: Flag, "on", [method HeapBuilder::background_in_children];
        /// A page restored for reading keeps its compressed copy.
        keep_copies: Flag, "on", [method HeapBuilder::keep_copies c "keep_copies"
            cpp "keep_copies"];
        /// A program that does little but fault for some seconds is told so once, on
        /// standard error.
        report_thrashing: Flag, "off", [method HeapBuilder::report_thrashing];
        /// The first allocation that the bound on the process refuses is said on standard
        /// error.
        report_denied: Flag, "on", [method HeapBuilder::report_denied];
        /// There is a file for cold pages that memory has no room for.
        spilling: Flag, "off", [method HeapBuilder::spill cpp "use_disk_backing"];
        /// The name of the file for cold pages, where it has one.
        spill_file: Path, "none", [method Spill::file c "spill_file" cpp "disk_file_path"];
        /// What is in the file is encrypted.
        spill_encrypt: Flag, "on", [method Spill::encrypt c "spill_encrypt"
            cpp "encrypt_disk_pages"];
        /// Pages are compressed before they leave for the file.
        spill_compress: Flag, "on", [method Spill::compress c "spill_compress"
            cpp "compress_before_disk"];
        /// Who is asked when a page cannot be brought back from the file.
        on_lost: Function, "the access is stopped", [method HeapBuilder::on_lost];
        /// What is refused is reported on standard error.
        report_refusals: Flag, "off", [cpp "enable_verbose_logging"];
        /// The library that `ghostmem run` loads.
        preload: Path, "the one beside the command, or that it carries",
            [env "GHOSTMEM_PRELOAD"];
    }
}

impl RunSettings {
    /// Reads the variable's value. Paths are bytes, of any encoding or none.
    #[must_use]
    pub fn parse(text: &[u8]) -> Self {
        let mut settings = Self::default();
        for part in text.split(|&byte| byte == b';') {
            if let Some(equals) = part.iter().position(|&byte| byte == b'=') {
                let (key, value) = (&part[..equals], &part[equals + 1..]);
                settings.set(str::from_utf8(key).unwrap_or(""), value);
            }
        }
        settings
    }
}

/// A type of values that cross in the variable.
trait Value: Sized {
    /// From the variable; what cannot be read is as good as none.
    fn read(value: &[u8]) -> Self;
    /// For the variable; none where there is nothing to say.
    fn written(&self) -> Option<Vec<u8>>;
}

fn number(value: &[u8]) -> usize {
    let words = str::from_utf8(value).unwrap_or("");
    words.parse().unwrap_or(0)
}

impl Value for usize {
    fn read(value: &[u8]) -> Self {
        number(value)
    }

    fn written(&self) -> Option<Vec<u8>> {
        Some(self.to_string().into_bytes())
    }
}

impl Value for i32 {
    fn read(value: &[u8]) -> Self {
        Self::try_from(number(value)).unwrap_or(0)
    }

    fn written(&self) -> Option<Vec<u8>> {
        Some(self.to_string().into_bytes())
    }
}

impl Value for bool {
    fn read(value: &[u8]) -> Self {
        number(value) != 0
    }

    fn written(&self) -> Option<Vec<u8>> {
        usize::from(*self).written()
    }
}

impl Value for Option<usize> {
    fn read(value: &[u8]) -> Self {
        Some(number(value))
    }

    fn written(&self) -> Option<Vec<u8>> {
        self.as_ref().and_then(Value::written)
    }
}

impl Value for Option<u64> {
    fn read(value: &[u8]) -> Self {
        Some(number(value) as u64)
    }

    fn written(&self) -> Option<Vec<u8>> {
        self.map(|number| number.to_string().into_bytes())
    }
}

impl Value for Option<PathBuf> {
    fn read(value: &[u8]) -> Self {
        Some(PathBuf::from(OsString::from_vec(unescape(value))))
    }

    fn written(&self) -> Option<Vec<u8>> {
        let path = self.as_ref()?;
        Some(escape(path.as_os_str().as_bytes()))
    }
}

impl Value for Backend {
    fn read(value: &[u8]) -> Self {
        match value {
            b"inline" => Self::Inline,
            b"monitor" => Self::Monitor,
            b"guard" => Self::Guard,
            b"guard-mprotect" => Self::GuardMprotect,
            _ => Self::Auto,
        }
    }

    fn written(&self) -> Option<Vec<u8>> {
        Some(self.to_string().into_bytes())
    }
}

/// Escapes what separates settings.
#[must_use]
pub fn escape(value: &[u8]) -> Vec<u8> {
    let mut escaped = Vec::new();
    for &byte in value {
        if byte == b';' || byte == b'%' || byte < b' ' {
            escaped.extend_from_slice(format!("%{byte:02x}").as_bytes());
        } else {
            escaped.push(byte);
        }
    }
    escaped
}

fn unescape(value: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut rest = value;
    while let Some((&first, tail)) = rest.split_first() {
        let hex = tail.get(..2).and_then(|digits| {
            let digits = core::str::from_utf8(digits).ok()?;
            u8::from_str_radix(digits, 16).ok()
        });
        match hex {
            Some(byte) if first == b'%' => {
                bytes.push(byte);
                rest = &tail[2..];
            }
            _ => {
                bytes.push(first);
                rest = tail;
            }
        }
    }
    bytes
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::fs;
    use std::path::Path;

    use super::*;

    #[test]
    fn a_name_a_key_an_option_or_a_field_stands_for_one_setting() {
        let once = |of: fn(&Setting) -> Option<&'static str>| {
            let all: Vec<_> = SETTINGS.iter().filter_map(of).collect();
            let distinct: BTreeSet<_> = all.iter().collect();
            assert_eq!(distinct.len(), all.len(), "{all:?}");
        };
        once(|setting| Some(setting.name));
        once(|setting| setting.key);
        once(|setting| setting.option);
        once(|setting| setting.method);
        once(|setting| setting.c_field);
        once(|setting| setting.cpp_field);
        once(|setting| setting.environment);
        for setting in SETTINGS {
            assert!(setting.text.ends_with('.'), "{setting:?}");
            assert!(!setting.plain || setting.key.is_some(), "{setting:?}");
        }
    }

    #[test]
    fn what_is_written_is_read() {
        assert_eq!(RunSettings::parse(b""), RunSettings::default());
        let nothing = RunSettings::default().write();
        assert_eq!(
            RunSettings::parse(nothing.as_bytes()),
            RunSettings::default()
        );
        let odd = PathBuf::from(OsString::from_vec(b"/a;b=%c\n\xff%41".to_vec()));
        let all = RunSettings {
            limit: 1 << 20,
            memory_auto: true,
            memory: 6,
            tree_file: 3072,
            tree_key: Some(u64::MAX),
            memory_limit: 5,
            slowdown: 50_000,
            spill: Some(odd.clone()),
            spill_limit: Some(u64::MAX),
            spill_store: Some(0),
            backend: Backend::GuardMprotect,
            ghost_from: 32 << 10,
            mmap_from: 4096,
            reporter: 77,
            stats: true,
            stats_json: Some(odd),
            verbose: true,
            children: false,
            trace: Some("/proc/1/fd/3".into()),
            ..RunSettings::default()
        };
        assert_eq!(RunSettings::parse(all.write().as_bytes()), all);
    }

    #[test]
    fn every_key_is_read_and_others_are_skipped() {
        for setting in SETTINGS {
            let mut settings = RunSettings::default();
            for value in ["0", "1", "guard"] {
                settings.set(setting.key.unwrap_or(setting.name), value.as_bytes());
                if settings != RunSettings::default() {
                    break;
                }
            }
            let read = settings != RunSettings::default();
            assert_eq!(read, setting.key.is_some(), "{setting:?}");
        }
    }

    #[test]
    fn the_table_has_the_methods_of_the_builders() {
        let root = env!("CARGO_MANIFEST_DIR");
        let mut methods = 0;
        for (file, of) in [("builder", "HeapBuilder"), ("spill", "Spill")] {
            let text = fs::read_to_string(format!("{root}/src/{file}.rs")).unwrap();
            for part in text.split("\n    pub fn ").skip(1) {
                let (name, rest) = part.split_once('(').unwrap();
                let hidden = ["faults", "heap_limit", "memory_of_tree"].contains(&name);
                if hidden || !rest.split('{').next().unwrap().contains("-> Self") {
                    continue;
                }
                let method = format!("{of}::{name}");
                let row = SETTINGS.iter().find(|row| row.method == Some(&method));
                assert!(row.is_some(), "no row of the table says {method}");
                methods += 1;
            }
        }
        let rows = SETTINGS.iter().filter(|row| row.method.is_some());
        assert_eq!(
            rows.count(),
            methods,
            "a row names a method that there is not"
        );
    }

    /// Files below a folder.
    fn files(folder: &Path, ending: &str, found: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                files(&path, ending, found);
            } else if path.to_string_lossy().ends_with(ending) {
                found.push(path);
            }
        }
    }

    #[test]
    fn the_table_has_the_environment_variables() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
        let (mut sources, mut docs) = (Vec::new(), Vec::new());
        for folder in [
            "crates/ghostmem",
            "bindings/c",
            "bindings/preload",
            "apps/ghostmem-cli",
        ] {
            files(&root.join(folder).join("src"), ".rs", &mut sources);
        }
        sources.retain(|path| !path.ends_with("ghostmem/src/settings.rs"));
        files(&root.join("docs"), ".md", &mut docs);
        let text = |paths: Vec<PathBuf>| -> String {
            paths
                .iter()
                .map(|path| fs::read_to_string(path).unwrap())
                .collect()
        };
        let (sources, docs) = (text(sources), text(docs));
        let mut there = BTreeSet::new();
        for part in sources.split("\"GHOSTMEM_").skip(1) {
            let end = part.find(|letter: char| !(letter.is_ascii_uppercase() || letter == '_'));
            there.insert(format!("GHOSTMEM_{}", &part[..end.unwrap()]));
        }
        // The variable of all of this, and one of a build.
        for other in ["GHOSTMEM_RUN", "GHOSTMEM_BUILT_LIBRARY"] {
            assert!(there.remove(other), "{other} in {there:?}");
        }
        let said = SETTINGS.iter().filter_map(|row| row.environment);
        let said: BTreeSet<String> = said.map(str::to_owned).collect();
        assert_eq!(there, said, "names in the sources, names in the table");
        for name in said {
            assert!(
                docs.contains(&format!("`{name}`")),
                "docs do not tell of {name}"
            );
        }
    }
}
