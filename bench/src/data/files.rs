//! Real files of the machine as streams of pages.

use std::fs::{self, File};
use std::io::{ErrorKind, Read};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use ghostmem_lab::rng::Rng;

use super::Kind;
use crate::error::{Error, Result};

/// Searched when the user names nothing; those that do not exist are passed
/// over. Directories of the Rust toolchain are added below the home directory.
const USUAL: [&str; 6] = [
    "/usr/bin",
    "/usr/include",
    "/usr/lib",
    "/usr/local",
    "/usr/share",
    "/usr/src",
];
const USUAL_HOME: [&str; 2] = [".rustup/toolchains", ".cargo/registry/src"];

/// At most this much of one file, so that no single giant decides the mix.
const FILE_BYTES_MAX: u64 = 8 << 20;

/// A file worth reading.
#[derive(Debug, Clone)]
pub(super) struct Found {
    path: PathBuf,
    pub(super) kind: Kind,
}

/// All readable files of known kinds below `from` (or the usual places), in an
/// order fixed by `seed`.
pub(super) fn find(from: &[PathBuf], seed: u64) -> Result<Vec<Found>> {
    let mut roots = from.to_vec();
    for root in &roots {
        if !root.is_dir() {
            return Err(Error::Failed(format!("{} is no directory", root.display())));
        }
    }
    if roots.is_empty() {
        roots.extend(USUAL.iter().map(PathBuf::from));
        if let Some(home) = std::env::var_os("HOME") {
            roots.extend(USUAL_HOME.iter().map(|dir| Path::new(&home).join(dir)));
        }
    }
    let mut found = Vec::new();
    for root in roots {
        walk(&root, &mut found);
    }
    found.sort_by(|a, b| a.path.cmp(&b.path));
    let mut rng = Rng::new(seed ^ 0x6669_6c65);
    for last in (1..found.len()).rev() {
        found.swap(last, rng.below(last as u64 + 1) as usize);
    }
    Ok(found)
}

fn walk(dir: &Path, found: &mut Vec<Found>) {
    // A directory that cannot be read is no loss: the rest is large.
    let Ok(entries) = fs::read_dir(dir) else {
        return;
    };
    for entry in entries.flatten() {
        let path = entry.path();
        match entry.file_type() {
            Ok(kind) if kind.is_dir() => walk(&path, found),
            Ok(kind) if kind.is_file() => {
                if let Some(kind) = classify(&path) {
                    found.push(Found { path, kind });
                }
            }
            _ => {}
        }
    }
}

/// The kind of a file by its name; programs without a telling name by their
/// first bytes.
fn classify(path: &Path) -> Option<Kind> {
    let name = path.file_name()?.to_str()?;
    let extension = path.extension().and_then(|ext| ext.to_str()).unwrap_or("");
    match extension {
        "c" | "h" | "cc" | "cpp" | "hpp" | "hh" | "rs" | "py" | "pl" | "pm" | "js" | "ts"
        | "sh" | "go" | "java" | "S" | "rb" | "lua" | "tcl" | "cmake" | "css" => Some(Kind::Source),
        "html" | "htm" | "md" | "txt" | "rst" | "xml" | "po" | "tex" | "csv" | "yaml" | "yml"
        | "toml" => Some(Kind::Docs),
        "json" => Some(Kind::Json),
        "so" | "o" | "a" | "rlib" => Some(Kind::Code),
        _ if name.contains(".so.") => Some(Kind::Code),
        "" if name == "copyright" => Some(Kind::Docs),
        "" => {
            let executable = path.metadata().ok()?.permissions().mode() & 0o111 != 0;
            let mut magic = [0; 4];
            (executable
                && File::open(path).ok()?.read_exact(&mut magic).is_ok()
                && magic == *b"\x7fELF")
                .then_some(Kind::Code)
        }
        _ => None,
    }
}

/// The files of one kind, one after the other, over and over.
#[derive(Debug)]
pub(super) struct FileStream {
    files: Vec<PathBuf>,
    next: usize,
    open: Option<std::io::Take<File>>,
}

impl FileStream {
    /// A stream over `files`, which is not empty.
    pub(super) fn new(files: Vec<&Found>) -> Self {
        Self {
            files: files.into_iter().map(|file| file.path.clone()).collect(),
            next: 0,
            open: None,
        }
    }

    /// Leaves the current file.
    pub(super) fn next_file(&mut self) {
        self.open = None;
    }

    /// The next page of the stream. Files are laid end to end. Should no file
    /// be readable any more, the rest of the page stays zero.
    pub(super) fn fill(&mut self, page: &mut [u8]) {
        page.fill(0);
        let mut filled = 0;
        let mut misses = 0;
        while filled < page.len() && misses <= self.files.len() {
            let Some(file) = &mut self.open else {
                let path = &self.files[self.next % self.files.len()];
                self.next += 1;
                self.open = File::open(path).ok().map(|file| file.take(FILE_BYTES_MAX));
                misses += 1;
                continue;
            };
            match file.read(&mut page[filled..]) {
                Ok(0) => self.open = None,
                Ok(read) => {
                    filled += read;
                    misses = 0;
                }
                Err(err) if err.kind() == ErrorKind::Interrupted => {}
                Err(_) => self.open = None,
            }
        }
    }
}
