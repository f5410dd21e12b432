//! The programs: files of `bench/programs`, carried inside.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::in_path;

/// Blocks that CPython and NumPy take from the kernel are ghost memory too.
const ARENAS: &[&str] = &["--mmap=256K"];

/// One program. It takes a factor on its work, prints what it found, and is the same
/// in every run.
#[derive(Debug)]
pub(super) struct Program {
    pub(super) name: &'static str,
    pub(super) file: &'static str,
    pub(super) source: &'static str,
    needs: Needs,
    /// Options of `ghostmem run` beside the limit.
    pub(super) options: &'static [&'static str],
}

/// What runs a program.
#[derive(Debug)]
enum Needs {
    /// Python with a module.
    Python(&'static str),
    Node,
}

/// Whether a program can run here.
#[derive(Debug)]
pub(super) enum Ready {
    /// By this interpreter.
    Here(PathBuf),
    /// What is missing, and the Debian package that has it.
    Missing(String, &'static str),
}

/// All, in the order of tables.
pub(super) const PROGRAMS: [Program; 6] = [
    Program {
        name: "dictionary",
        file: "dictionary.py",
        source: include_str!("../../programs/dictionary.py"),
        needs: Needs::Python("random"),
        options: ARENAS,
    },
    Program {
        name: "records",
        file: "records.py",
        source: include_str!("../../programs/records.py"),
        needs: Needs::Python("random"),
        options: ARENAS,
    },
    Program {
        name: "database",
        file: "database.py",
        source: include_str!("../../programs/database.py"),
        needs: Needs::Python("sqlite3"),
        options: ARENAS,
    },
    Program {
        name: "arrays",
        file: "arrays.py",
        source: include_str!("../../programs/arrays.py"),
        needs: Needs::Python("numpy"),
        options: ARENAS,
    },
    Program {
        name: "noise",
        file: "noise.py",
        source: include_str!("../../programs/noise.py"),
        needs: Needs::Python("numpy"),
        options: ARENAS,
    },
    Program {
        name: "buffers",
        file: "buffers.js",
        source: include_str!("../../programs/buffers.js"),
        needs: Needs::Node,
        // Its own heap stays ordinary memory; the buffers come from malloc.
        options: &[],
    },
];

impl Program {
    /// Looks for what runs it.
    pub(super) fn ready(&self) -> Ready {
        match self.needs {
            Needs::Python(module) => {
                // Debian's packages belong to the first.
                let pythons = [Some(PathBuf::from("/usr/bin/python3")), in_path("python3")];
                let mut pythons = pythons.into_iter().flatten().filter(|path| path.is_file());
                let Some(first) = pythons.next() else {
                    return Ready::Missing("python3".into(), "python3");
                };
                let found = std::iter::once(first)
                    .chain(pythons)
                    .find(|python| has_module(python, module));
                match (found, module) {
                    (Some(python), _) => Ready::Here(python),
                    (None, "numpy") => Ready::Missing("python3's numpy".into(), "python3-numpy"),
                    (None, module) => {
                        Ready::Missing(format!("python3's {module}"), "libpython3-stdlib")
                    }
                }
            }
            Needs::Node => {
                in_path("node").map_or_else(|| Ready::Missing("node".into(), "nodejs"), Ready::Here)
            }
        }
    }
}

fn has_module(python: &Path, module: &str) -> bool {
    Command::new(python)
        .args(["-c", &format!("import {module}")])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
}
