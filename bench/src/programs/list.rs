//! The programs: files of `bench/programs`, carried inside, and commands of the user.
//!
//! A file is called with a factor on its work and a folder of its own, prints what it
//! found, and prints the same in every run. One that *prepares* is first called once with
//! the word `prepare` behind these: what it needs is then made outside of what is measured.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::attempt::empty_for_all;
use crate::error::{Error, Result};

/// One program that is carried inside.
#[derive(Debug)]
pub(super) struct Program {
    pub(super) name: &'static str,
    file: &'static str,
    source: &'static str,
    runs_by: Interpreter,
    /// What it calls, and the Debian package of each.
    tools: &'static [(&'static str, &'static str)],
    prepares: bool,
}

/// What runs a program.
#[derive(Debug)]
enum Interpreter {
    /// Python with a module.
    Python(&'static str),
    /// A command and its Debian package.
    Tool(&'static str, &'static str),
}

/// A program that can run here.
#[derive(Debug)]
pub(super) struct Ready {
    pub(super) name: String,
    pub(super) command: Vec<String>,
    prepares: bool,
}

/// Whether a program can run here.
#[derive(Debug)]
pub(super) enum Found {
    Here(Ready),
    /// What is missing, and the Debian package that has it.
    Missing(String, &'static str),
}

/// Folders of commands that are not in `PATH`: Debian's of PostgreSQL, by version.
const SERVERS: &str = "/usr/lib/postgresql";
const BASH: Interpreter = Interpreter::Tool("bash", "bash");

/// All, in the order of tables: ours, and then the showcase's.
pub(super) const PROGRAMS: [Program; 12] = [
    Program {
        name: "dictionary",
        file: "dictionary.py",
        source: include_str!("../../programs/dictionary.py"),
        runs_by: Interpreter::Python("random"),
        tools: &[],
        prepares: false,
    },
    Program {
        name: "records",
        file: "records.py",
        source: include_str!("../../programs/records.py"),
        runs_by: Interpreter::Python("random"),
        tools: &[],
        prepares: false,
    },
    Program {
        name: "database",
        file: "database.py",
        source: include_str!("../../programs/database.py"),
        runs_by: Interpreter::Python("sqlite3"),
        tools: &[],
        prepares: false,
    },
    Program {
        name: "arrays",
        file: "arrays.py",
        source: include_str!("../../programs/arrays.py"),
        runs_by: Interpreter::Python("numpy"),
        tools: &[],
        prepares: false,
    },
    Program {
        name: "noise",
        file: "noise.py",
        source: include_str!("../../programs/noise.py"),
        runs_by: Interpreter::Python("numpy"),
        tools: &[],
        prepares: false,
    },
    Program {
        name: "buffers",
        file: "buffers.js",
        source: include_str!("../../programs/buffers.js"),
        runs_by: Interpreter::Tool("node", "nodejs"),
        tools: &[],
        prepares: false,
    },
    Program {
        name: "redis",
        file: "redis.py",
        source: include_str!("../../programs/redis.py"),
        runs_by: Interpreter::Python("socket"),
        tools: &[("redis-server", "redis-server")],
        prepares: false,
    },
    Program {
        name: "gxx",
        file: "gxx.sh",
        source: include_str!("../../programs/gxx.sh"),
        runs_by: BASH,
        tools: &[("g++", "g++")],
        prepares: true,
    },
    Program {
        name: "node",
        file: "objects.js",
        source: include_str!("../../programs/objects.js"),
        runs_by: Interpreter::Tool("node", "nodejs"),
        tools: &[],
        prepares: false,
    },
    Program {
        name: "ruby",
        file: "hashes.rb",
        source: include_str!("../../programs/hashes.rb"),
        runs_by: Interpreter::Tool("ruby", "ruby"),
        tools: &[],
        prepares: false,
    },
    Program {
        name: "postgresql",
        file: "postgresql.sh",
        source: include_str!("../../programs/postgresql.sh"),
        runs_by: BASH,
        tools: &[
            ("postgres", "postgresql"),
            ("psql", "postgresql-client"),
            ("runuser", "util-linux"),
        ],
        prepares: true,
    },
    Program {
        name: "git",
        file: "git.sh",
        source: include_str!("../../programs/git.sh"),
        runs_by: BASH,
        tools: &[("git", "git"), ("python3", "python3")],
        prepares: true,
    },
];

impl Program {
    /// Looks for what runs it; writes it to `work`.
    pub(super) fn find(&self, scale: f64, work: &Path) -> Result<Found> {
        let interpreter = match self.runs_by.find() {
            Ok(interpreter) => interpreter,
            Err((what, package)) => return Ok(Found::Missing(what, package)),
        };
        for &(tool, package) in self.tools {
            if tool_named(tool).is_none() {
                return Ok(Found::Missing(tool.into(), package));
            }
        }
        let (file, folder) = (work.join(self.file), work.join(self.name));
        fs::write(&file, self.source).map_err(|err| Error::io(file.display(), &err))?;
        empty_for_all(&folder)?;
        let words = [interpreter, file, scale.to_string().into(), folder];
        Ok(Found::Here(Ready {
            name: self.name.into(),
            command: words
                .iter()
                .map(|word| word.to_string_lossy().into_owned())
                .collect(),
            prepares: self.prepares,
        }))
    }
}

impl Ready {
    /// A command of the user, the `number`th.
    pub(super) fn of_user(number: usize, command: &str) -> Self {
        Self {
            name: format!("command-{number}"),
            command: ["/bin/sh", "-c", command].map(str::to_owned).into(),
            prepares: false,
        }
    }

    /// What makes it ready for its runs.
    pub(super) fn preparation(&self) -> Option<Vec<String>> {
        let word = std::iter::once("prepare".to_owned());
        self.prepares
            .then(|| self.command.iter().cloned().chain(word).collect())
    }
}

impl Interpreter {
    /// The command, or what is missing and its package.
    fn find(&self) -> std::result::Result<PathBuf, (String, &'static str)> {
        match *self {
            Self::Python(module) => {
                // Debian's packages belong to the first.
                let pythons = [Some(PathBuf::from("/usr/bin/python3")), in_path("python3")];
                let mut pythons = pythons.into_iter().flatten().filter(|path| path.is_file());
                let Some(first) = pythons.next() else {
                    return Err(("python3".into(), "python3"));
                };
                let found = std::iter::once(first)
                    .chain(pythons)
                    .find(|python| has_module(python, module));
                found.ok_or_else(|| match module {
                    "numpy" => ("python3's numpy".into(), "python3-numpy"),
                    module => (format!("python3's {module}"), "libpython3-stdlib"),
                })
            }
            Self::Tool(name, package) => in_path(name).ok_or_else(|| (name.into(), package)),
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

/// A command by its name, servers included.
fn tool_named(name: &str) -> Option<PathBuf> {
    let versions = fs::read_dir(SERVERS).into_iter().flatten().flatten();
    in_path(name).or_else(|| {
        versions
            .map(|version| version.path().join("bin").join(name))
            .find(|file| file.is_file())
    })
}

/// Looks for an executable file in the folders of `PATH`.
fn in_path(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path)
        .map(|folder| folder.join(name))
        .find(|file| file.is_file())
}
