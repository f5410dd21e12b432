//! Why a command could not do its work: one line for people, one code for scripts.

use std::fmt;

/// Exit code for input or surroundings that make the work impossible.
pub(crate) const EXIT_CANNOT: u8 = 2;
/// Exit codes of `ghostmem run`, which must not look like the program's own: those of env(1),
/// nice(1) and timeout(1).
pub(crate) const EXIT_RUN: u8 = 125;
/// The program was found and cannot be run.
pub(crate) const EXIT_NOT_RUN: u8 = 126;
/// There is no such program.
pub(crate) const EXIT_NOT_FOUND: u8 = 127;

/// An operating error that ends the command, with a code of its own or the command's. Always a
/// single line.
#[derive(Clone, Debug)]
pub(crate) struct Failure {
    line: String,
    code: Option<u8>,
}

impl Failure {
    /// Makes a failure from one line; line breaks from lower layers are flattened.
    pub(crate) fn new(line: impl fmt::Display) -> Self {
        let text = line.to_string();
        Self {
            line: text.lines().map(str::trim).collect::<Vec<_>>().join(" "),
            code: None,
        }
    }

    /// The same, with an exit code.
    pub(crate) fn ending_with(self, code: u8) -> Self {
        Self {
            code: Some(code),
            ..self
        }
    }

    /// The exit code, where `usual` is the command's.
    pub(crate) fn code_or(&self, usual: u8) -> u8 {
        self.code.unwrap_or(usual)
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.line)
    }
}

impl std::error::Error for Failure {}
