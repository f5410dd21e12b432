//! Sizes as people write them (`20K`, `1.5G`, `12.5%`) and as people read them (`128 MiB`).
//! How they are read is the library's business, whose variables of the environment take the same.

use std::fmt;

use ghostmem::size;

/// Most hundredths of the data that an amount may be.
const PERCENT_MOST: u32 = 10_000;

/// An amount of memory, absolute or relative to the data of the demo.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Amount {
    /// So many bytes.
    Bytes(u64),
    /// So many hundredths of the data.
    Percent(f64),
}

impl Amount {
    /// The amount in bytes when the data is `data_bytes` long.
    pub(crate) fn of(self, data_bytes: u64) -> u64 {
        match self {
            Self::Bytes(bytes) => bytes,
            // A percentage is at most 10000, so the product stays far inside f64's range.
            Self::Percent(percent) => (data_bytes as f64 * percent / 100.0) as u64,
        }
    }
}

/// Reads `"20K"`, `"4M"`, `"1.5GiB"`, `"4096"` as bytes.
///
/// # Errors
/// One line saying what was wrong and what is accepted.
pub(crate) fn parse_size(text: &str) -> Result<u64, String> {
    size::parse_size(text).map_err(|error| error.to_string())
}

/// Reads a size that must hold something.
///
/// # Errors
/// As [`parse_size`], and for zero.
pub(crate) fn parse_nonzero_size(text: &str) -> Result<u64, String> {
    match parse_size(text)? {
        0 => Err("must be more than 0".to_string()),
        bytes => Ok(bytes),
    }
}

/// Reads a size or a percentage of the data.
///
/// # Errors
/// As [`parse_size`], and for zero or a percentage outside 0 to 10000.
pub(crate) fn parse_amount(text: &str) -> Result<Amount, String> {
    match size::parse_percent(text, PERCENT_MOST) {
        None => parse_nonzero_size(text).map(Amount::Bytes),
        Some(Ok(percent)) => Ok(Amount::Percent(percent)),
        Some(Err(error)) => Err(error.to_string()),
    }
}

/// Reads a share of time from 0.5 % to 50 %; it is in millionths.
///
/// # Errors
/// One line saying what is accepted.
pub(crate) fn parse_slowdown(text: &str) -> Result<u64, String> {
    let ppm = size::parse_slowdown(text).map_err(|error| error.to_string())?;
    Ok(ppm.into())
}

/// Shows bytes with three significant digits and a binary unit.
pub(crate) struct Bytes(pub(crate) u64);

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
        let mut value = self.0 as f64;
        let mut unit = 0;
        // 1023.5 and up would be printed as 1024 of the smaller unit.
        while value >= 1023.5 && unit + 1 < UNITS.len() {
            value /= 1024.0;
            unit += 1;
        }
        let decimals = match value {
            _ if unit == 0 => 0,
            v if v < 9.995 => 2,
            v if v < 99.95 => 1,
            _ => 0,
        };
        f.pad(&format!("{value:.decimals$} {}", UNITS[unit]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_powers_of_1024_in_every_spelling() {
        assert_eq!(parse_size("4096"), Ok(4096));
        assert_eq!(parse_size("20K"), Ok(20 << 10));
        assert_eq!(parse_size("20kb"), Ok(20 << 10));
        assert_eq!(parse_size(" 4 MiB "), Ok(4 << 20));
        assert_eq!(parse_size("1.5G"), Ok(3 << 29));
        assert_eq!(parse_size("2t"), Ok(2 << 40));
        assert_eq!(parse_size("0"), Ok(0));
    }

    #[test]
    fn nonsense_sizes_are_refused() {
        for text in [
            "",
            "K",
            "12Q",
            "1..5M",
            "-4M",
            "4 M M",
            "99999999T",
            "1e9",
            "NaN",
            "1.5e999",
        ] {
            assert!(parse_size(text).is_err(), "{text:?} was accepted");
        }
        assert!(parse_nonzero_size("0").is_err());
        assert!(parse_nonzero_size("0.2").is_err());
    }

    #[test]
    fn percentages_are_of_the_data() {
        assert_eq!(parse_amount("12.5%"), Ok(Amount::Percent(12.5)));
        assert_eq!(parse_amount("12.5%").map(|a| a.of(1 << 30)), Ok(128 << 20));
        assert_eq!(parse_amount("4M").map(|a| a.of(1 << 30)), Ok(4 << 20));
        for text in ["0%", "-1%", "%", "x%", "NaN%", "inf%", "0"] {
            assert!(parse_amount(text).is_err(), "{text:?} was accepted");
        }
    }

    #[test]
    fn bytes_are_shown_with_three_digits() {
        let shown = |bytes: u64| Bytes(bytes).to_string();
        assert_eq!(shown(0), "0 B");
        assert_eq!(shown(1023), "1023 B");
        assert_eq!(shown(20480), "20.0 KiB");
        assert_eq!(shown(128 << 20), "128 MiB");
        assert_eq!(shown(1 << 30), "1.00 GiB");
        assert_eq!(shown((1 << 30) - 1), "1.00 GiB");
        assert_eq!(format!("{:>9}", Bytes(1024)), " 1.00 KiB");
    }
}
