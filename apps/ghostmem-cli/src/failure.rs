//! Why a command could not do its work: one line for people, one code for scripts.

use std::fmt;

/// Exit code for input or surroundings that make the work impossible.
pub(crate) const EXIT_CANNOT: u8 = 2;

/// An operating error that ends the command with [`EXIT_CANNOT`]. Always a single line.
#[derive(Clone, Debug)]
pub(crate) struct Failure(String);

impl Failure {
    /// Makes a failure from one line; line breaks from lower layers are flattened.
    pub(crate) fn new(line: impl fmt::Display) -> Self {
        let text = line.to_string();
        Self(text.lines().map(str::trim).collect::<Vec<_>>().join(" "))
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Failure {}
