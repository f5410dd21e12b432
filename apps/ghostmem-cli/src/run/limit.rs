//! How much a program may keep or take: bytes, a part of the machine, or what there is.

use ghostmem::doctor;

use crate::failure::Failure;
use crate::size::{Amount, parse_amount};

/// The smallest limit a program is started with: room for what one system call or one instruction
/// may need, and for the pages that its own start touches.
const LEAST_BYTES: u64 = 1 << 20;

/// The value of `--limit` or `--memory`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Limit {
    /// So many bytes, or so many hundredths of the smaller of the control group's limit and the
    /// machine's memory.
    Fixed(Amount),
    /// What there is, followed.
    Auto,
}

impl Limit {
    /// The limit at the start, bytes; 0 lets the library look. `option` gave it.
    ///
    /// # Errors
    /// A limit that is too small.
    pub(crate) fn bytes(self, option: &str) -> Result<u64, Failure> {
        let Self::Fixed(amount) = self else {
            return Ok(0);
        };
        let bytes = match amount {
            Amount::Bytes(bytes) => bytes,
            Amount::Percent(_) => {
                let report = doctor::probe();
                let group = report.cgroup_limit_bytes.unwrap_or(u64::MAX);
                amount.of(report.ram_bytes.min(group))
            }
        };
        if bytes < LEAST_BYTES {
            return Err(Failure::new(format!(
                "{option} of {bytes} bytes is too small for a program: use at least 1M"
            )));
        }
        Ok(bytes)
    }
}

/// Reads such a value.
///
/// # Errors
/// One line saying what was wrong and what is accepted.
pub(crate) fn parse_limit(text: &str) -> Result<Limit, String> {
    if text.trim() == "auto" {
        return Ok(Limit::Auto);
    }
    parse_amount(text)
        .map(Limit::Fixed)
        .map_err(|why| format!("{why}; or write auto, or a percentage like 25%"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_bytes_parts_or_auto() {
        assert_eq!(parse_limit("auto"), Ok(Limit::Auto));
        assert_eq!(
            parse_limit("256M"),
            Ok(Limit::Fixed(Amount::Bytes(256 << 20)))
        );
        assert_eq!(parse_limit("25%"), Ok(Limit::Fixed(Amount::Percent(25.0))));
        for text in ["much", "1e9", "-5", "AUTO"] {
            let why = parse_limit(text).expect_err("no limit");
            assert!(why.contains("auto") && why.contains('%'), "{text}: {why}");
        }
        assert!(parse_limit("0").is_err());
    }

    #[test]
    fn a_limit_too_small_for_any_program_is_refused() {
        assert!(Limit::Fixed(Amount::Bytes(4096)).bytes("--limit").is_err());
        assert_eq!(
            Limit::Fixed(Amount::Bytes(1 << 20)).bytes("--limit").ok(),
            Some(1 << 20)
        );
    }
}
