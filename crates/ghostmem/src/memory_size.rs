//! [`MemorySize`]: how much memory, as people say it.

use core::fmt::{self, Write as _};
use core::str::FromStr;
use std::env;
use std::sync::atomic::{AtomicBool, Ordering};

use ghostmem_os::found;
use ghostmem_os::message::Line;

use crate::Error;
use crate::size::{SizeError, parse_percent, parse_size, parse_slowdown};

/// How much memory: so many bytes, a part of what there is, or what there is.
///
/// ```
/// use ghostmem::MemorySize;
/// assert_eq!("64M".parse(), Ok(MemorySize::Bytes(64 << 20)));
/// assert_eq!("12.5%".parse(), Ok(MemorySize::Percent(12.5)));
/// assert_eq!("auto".parse(), Ok(MemorySize::Auto));
/// assert!("1e9".parse::<MemorySize>().is_err());
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Default)]
#[non_exhaustive]
pub enum MemorySize {
    /// What this process may have here: the least that a level of its control groups
    /// (versions 1 and 2), `RLIMIT_AS`, `RLIMIT_DATA` and the machine's available memory
    /// leave it.
    #[default]
    Auto,
    /// So many bytes.
    Bytes(usize),
    /// So many hundredths, more than 0 and at most 100, of the smallest of the limits
    /// that [`MemorySize::Auto`] looks at.
    Percent(f64),
}

impl MemorySize {
    /// What it stands for here and now, bytes; `None` for [`MemorySize::Auto`] where the
    /// system does not tell what the process takes (on Windows, or without `/proc`).
    #[must_use]
    pub fn bytes(self) -> Option<usize> {
        let fits = |bytes: u64| usize::try_from(bytes).unwrap_or(usize::MAX);
        match self {
            Self::Auto => found::within_reach_bytes().map(fits),
            Self::Bytes(bytes) => Some(bytes),
            // A percentage that is none stands for nothing: `as` makes it 0, or the most.
            Self::Percent(percent) => {
                Some((found::limit_bytes() as f64 * percent / 100.0) as usize)
            }
        }
    }
}

impl From<usize> for MemorySize {
    fn from(bytes: usize) -> Self {
        Self::Bytes(bytes)
    }
}

impl fmt::Display for MemorySize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Bytes(bytes) => write!(f, "{bytes}"),
            Self::Percent(percent) => write!(f, "{percent}%"),
        }
    }
}

/// Why a text is no [`MemorySize`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemorySizeError(SizeError);

impl fmt::Display for MemorySizeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}; or write auto, or a percentage like 25%", self.0)
    }
}

impl core::error::Error for MemorySizeError {}

impl FromStr for MemorySize {
    type Err = MemorySizeError;

    /// Reads `64M`, `25%` or `auto`.
    fn from_str(text: &str) -> Result<Self, MemorySizeError> {
        let text = text.trim();
        if text == "auto" {
            return Ok(Self::Auto);
        }
        if text.eq_ignore_ascii_case("auto") {
            return Err(MemorySizeError(SizeError::Capitals));
        }
        if let Some(percent) = parse_percent(text, 100) {
            return percent.map(Self::Percent).map_err(MemorySizeError);
        }
        match parse_size(text) {
            Ok(0) => Err(MemorySizeError(SizeError::Zero)),
            Ok(bytes) => match usize::try_from(bytes) {
                Ok(bytes) => Ok(Self::Bytes(bytes)),
                Err(_) => Err(MemorySizeError(SizeError::TooLarge(text.to_owned()))),
            },
            Err(error) => Err(MemorySizeError(error)),
        }
    }
}

/// The value of a variable of the environment, if there is one. One that cannot be read
/// is reported on the standard error stream, once.
///
/// # Errors
/// [`Error::Environment`] for one that cannot be read.
#[doc(hidden)]
pub fn from_environment(name: &'static str) -> Result<Option<MemorySize>, Error> {
    let Some(value) = env::var_os(name) else {
        return Ok(None);
    };
    let value = value.to_string_lossy();
    value.parse::<MemorySize>().map(Some).map_err(|cause| {
        reported(Error::Environment {
            name,
            value: value.to_string(),
            cause,
        })
    })
}

/// The share of time that faults may take by `GHOSTMEM_SLOWDOWN`, in millionths, if that is
/// there. One that cannot be read is reported on the standard error stream, once.
///
/// # Errors
/// [`Error::EnvironmentSlowdown`] for one that cannot be read.
#[doc(hidden)]
pub fn slowdown_from_environment() -> Result<Option<u32>, Error> {
    let Some(value) = env::var_os("GHOSTMEM_SLOWDOWN") else {
        return Ok(None);
    };
    let value = value.to_string_lossy();
    parse_slowdown(&value).map(Some).map_err(|_| {
        reported(Error::EnvironmentSlowdown {
            value: value.to_string(),
        })
    })
}

/// Says what is wrong with a variable, the first time.
fn reported(error: Error) -> Error {
    static REPORTED: AtomicBool = AtomicBool::new(false);
    if !REPORTED.swap(true, Ordering::Relaxed) {
        let mut line = Line::new();
        // Cut off where it is too long.
        let _written = write!(line, "{error}");
        line.print();
    }
    error
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_parts_and_auto_are_read_and_written() {
        for (text, size) in [
            ("64M", MemorySize::Bytes(64 << 20)),
            (" 4096 ", MemorySize::Bytes(4096)),
            ("25%", MemorySize::Percent(25.0)),
            ("100%", MemorySize::Percent(100.0)),
            ("auto", MemorySize::Auto),
        ] {
            assert_eq!(text.parse(), Ok(size), "{text}");
            assert_eq!(size.to_string().parse(), Ok(size), "{text}");
        }
    }

    #[test]
    fn each_bad_value_is_told_in_one_line_of_its_own() {
        let bad = [
            "1e9",
            "-5",
            "AUTO",
            "0%",
            "",
            "0",
            "64Q",
            "x%",
            "much",
            "99999999T",
        ];
        let mut said: Vec<String> = bad
            .iter()
            .map(|text| match text.parse::<MemorySize>() {
                Ok(size) => panic!("{text:?} is {size:?}"),
                Err(error) => error.to_string(),
            })
            .collect();
        for line in &said {
            assert!(
                line.contains("write auto") && line.contains("25%"),
                "{line}"
            );
            assert!(!line.contains('\n'), "{line}");
        }
        said.sort();
        said.dedup();
        assert_eq!(said.len(), bad.len(), "{said:?}");
        assert_eq!("150%".parse::<MemorySize>(), "0%".parse());
    }

    #[test]
    fn a_part_is_of_what_is_found() {
        assert_eq!(MemorySize::Bytes(5).bytes(), Some(5));
        let part = |percent| MemorySize::Percent(percent).bytes().unwrap();
        assert!(part(10.0) > 0 && part(10.0) < part(90.0));
        assert_eq!(part(f64::NAN), 0);
        assert!(MemorySize::Auto.bytes().is_none_or(|bytes| bytes > 0));
    }
}
