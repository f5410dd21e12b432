//! Finding the program, and refusing those that no library can be loaded into.

use std::ffi::{CString, OsStr, OsString};
use std::fs::{self, File};
use std::io::Read;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use ghostmem_os::loader::CLibrary;
use ghostmem_os::machine;

use crate::failure::{EXIT_NOT_FOUND, EXIT_NOT_RUN, Failure};

use super::elf::{self, Kind};

/// Interpreters of interpreters followed, as the kernel does.
const SCRIPTS_MAX: usize = 5;

/// What is known of a program.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Needs {
    /// Why it is known to make system calls where they cannot be redirected.
    pub(crate) raw_system_calls: Option<&'static str>,
    /// It is a file of commands without a `#!` line, for [`SHELL`].
    pub(crate) shell: bool,
}

/// What runs such files (execvp(3)).
pub(crate) const SHELL: &str = "/bin/sh";

/// Finds a program as a shell would.
///
/// # Errors
/// When there is none that can be run.
pub(crate) fn find(name: &OsStr) -> Result<PathBuf, Failure> {
    let shown = name.display();
    let not_run = |why: String| Err(Failure::new(why).ending_with(EXIT_NOT_RUN));
    if name.as_bytes().contains(&b'/') {
        let path = PathBuf::from(name);
        return match fs::metadata(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                Err(Failure::new(format!("{shown}: {error}")).ending_with(EXIT_NOT_FOUND))
            }
            Err(error) => not_run(format!("{shown}: {error}")),
            Ok(found) if found.is_dir() => not_run(format!("{shown} is a folder")),
            Ok(found) if found.permissions().mode() & 0o111 == 0 => {
                not_run(format!("{shown} is not executable"))
            }
            Ok(_) => Ok(path),
        };
    }
    let path = std::env::var_os("PATH").unwrap_or_else(|| OsString::from("/usr/bin:/bin"));
    // As execvp(3) goes on behind one that it may not run, and tells of it in the end.
    let mut refused = None;
    for candidate in std::env::split_paths(&path).map(|folder| folder.join(name)) {
        let why = match fs::metadata(&candidate) {
            Ok(found) if found.is_file() && found.permissions().mode() & 0o111 != 0 => {
                return Ok(candidate);
            }
            Ok(_) => "is not executable".to_owned(),
            Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => error.to_string(),
            Err(_) => continue,
        };
        refused.get_or_insert(format!("{}: {why}", candidate.display()));
    }
    match refused {
        Some(why) if !name.is_empty() => not_run(why),
        _ => {
            let why = format!("{shown}: no such program in PATH");
            Err(Failure::new(why).ending_with(EXIT_NOT_FOUND))
        }
    }
}

/// Looks at a program and the interpreters of a script.
///
/// # Errors
/// One line when the library cannot be loaded into it.
pub(crate) fn inspect(path: &Path) -> Result<Needs, Failure> {
    let mut path = path.to_owned();
    let mut shell = false;
    for round in 0..SCRIPTS_MAX {
        let step = inspect_one(&path).map_err(|why| why.ending_with(EXIT_NOT_RUN))?;
        match step {
            Step::Program(needs) => return Ok(Needs { shell, ..needs }),
            Step::Script(interpreter) => path = find_interpreter(interpreter)?,
            Step::Commands if round == 0 => {
                shell = true;
                path = PathBuf::from(SHELL);
            }
            Step::Commands => break,
        }
    }
    let why = format!("{}: its interpreter is none", path.display());
    Err(Failure::new(why).ending_with(EXIT_NOT_RUN))
}

enum Step {
    Program(Needs),
    /// Its `#!` line: interpreter and first argument.
    Script((PathBuf, Option<OsString>)),
    /// A file of commands that names no interpreter.
    Commands,
}

fn inspect_one(path: &Path) -> Result<Step, Failure> {
    let shown = path.display();
    let cannot = |error: std::io::Error| Failure::new(format!("{shown}: {error}"));
    let mut file = File::open(path).map_err(cannot)?;
    let mode = file.metadata().map_err(cannot)?;
    match elf::kind(&mut file).map_err(cannot)? {
        Kind::Dynamic {
            library: CLibrary::Other,
            ..
        } => Err(Failure::new(format!(
            "{shown} is linked against a C library other than glibc: 'ghostmem run' needs glibc"
        ))),
        Kind::Dynamic {
            library: CLibrary::OldGlibc,
            ..
        } => Err(Failure::new(format!(
            "{shown} is started by the loader of a glibc that is too old: 'ghostmem run' needs \
             glibc 2.34 or newer"
        ))),
        Kind::Dynamic { .. } if gains_privileges(&mode) => Err(Failure::new(format!(
            "{shown} is setuid or setgid: the loader takes no library \
             into such programs; run it as the user it changes to"
        ))),
        Kind::Dynamic { .. } if gains_capabilities(path) => Err(Failure::new(format!(
            "{shown} has capabilities of its own: the loader takes no library into such \
             programs; run it as root"
        ))),
        Kind::Dynamic {
            sanitizer: Some(name),
            ..
        } => Err(Failure::new(format!(
            "{shown} is built with {name}, whose allocator serves it: \
             its memory cannot be taken over; use a build without"
        ))),
        Kind::Dynamic {
            raw_system_calls, ..
        } => Ok(Step::Program(Needs {
            raw_system_calls,
            shell: false,
        })),
        Kind::Static => Err(Failure::new(format!(
            "{shown} is statically linked: no library can be loaded into it, so its memory cannot \
             be taken over; use a dynamically linked build"
        ))),
        Kind::Bits32 => Err(Failure::new(format!(
            "{shown} is a 32-bit program: 'ghostmem run' works with 64-bit x86 programs"
        ))),
        Kind::OtherMachine => Err(Failure::new(format!(
            "{shown} is for another processor: 'ghostmem run' works with 64-bit x86 programs"
        ))),
        Kind::NotElf => script(path),
    }
}

/// Whether running it changes who runs it (execve(2)).
fn gains_privileges(found: &fs::Metadata) -> bool {
    const SETUID: u32 = 0o4000;
    const SETGID: u32 = 0o2010;
    let mode = found.mode();
    let (user, group) = own_ids();
    let changes_user = mode & SETUID != 0 && found.uid() != user;
    let changes_group = mode & SETGID == SETGID && found.gid() != group;
    changes_user || changes_group
}

/// Whether running it gives its user capabilities (execve(2)). Root has them.
fn gains_capabilities(path: &Path) -> bool {
    let name = CString::new(path.as_os_str().as_bytes());
    own_ids().0 != 0 && name.is_ok_and(|name| machine::gives_capabilities(&name))
}

/// The effective user and group of this process.
fn own_ids() -> (u32, u32) {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let id = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        line.and_then(|line| line.split_whitespace().nth(1))
            .and_then(|id| id.parse().ok())
            .unwrap_or(0)
    };
    (id("Uid:"), id("Gid:"))
}

fn script(path: &Path) -> Result<Step, Failure> {
    let mut start = Vec::new();
    let read = File::open(path).and_then(|file| file.take(256).read_to_end(&mut start));
    read.map_err(|error| Failure::new(format!("{}: {error}", path.display())))?;
    let line = start.split(|&byte| byte == b'\n').next().unwrap_or(&[]);
    let Some(line) = line.strip_prefix(b"#!") else {
        // What shells look at, too.
        if !line.contains(&0) {
            return Ok(Step::Commands);
        }
        return Err(Failure::new(format!(
            "{} is neither a program nor a script",
            path.display()
        )));
    };
    let mut words = line
        .split(|byte| byte.is_ascii_whitespace())
        .filter(|word| !word.is_empty())
        .map(|word| OsString::from_vec(word.to_vec()));
    // The kernel takes a line that names nothing for none.
    let Some(interpreter) = words.next() else {
        return Ok(Step::Commands);
    };
    Ok(Step::Script((PathBuf::from(interpreter), words.next())))
}

/// The interpreter itself; for `/usr/bin/env NAME`, the one it will find.
fn find_interpreter(
    (interpreter, argument): (PathBuf, Option<OsString>),
) -> Result<PathBuf, Failure> {
    let is_env = interpreter.file_name() == Some(OsStr::new("env"));
    match argument {
        Some(name) if is_env && !name.as_bytes().starts_with(b"-") => find(&name),
        _ => find(interpreter.as_os_str()),
    }
}
