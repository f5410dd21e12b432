//! Sizes as people write them: `4096`, `20K`, `4M`, `1.5G`.
//!
//! Units are powers of 1024; `K`, `KB` and `KiB` mean the same. Nothing here rounds up
//! silently: a fraction of a byte is dropped, a value beyond `u64` is an error.

use core::fmt;

/// Why a size cannot be read.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum SizeError {
    /// There is nothing.
    Empty,
    /// A number below zero.
    Negative,
    /// `1e9`.
    Exponent,
    /// A unit that there is not.
    Unit(String),
    /// Something else.
    NoNumber,
    /// None at all.
    Zero,
    /// More than 64 bits hold.
    TooLarge(String),
    /// A percentage outside of what makes sense, which is told.
    Share {
        /// The largest that does.
        most_percent: u32,
    },
    /// A percent sign behind something else.
    NoShare,
    /// `AUTO`.
    Capitals,
    /// A share of time outside of what makes sense, or none.
    Slowdown,
}

impl fmt::Display for SizeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Empty => f.write_str("there is no size: write for example 4096, 20K, 4M or 1.5G"),
            Self::Negative => f.write_str("a size is not below zero"),
            Self::Exponent => f.write_str("a size has no exponent: write for example 20K or 1.5G"),
            Self::Unit(unit) => write!(
                f,
                "unknown unit '{unit}': write bytes or K, M, G, T (powers of 1024)"
            ),
            Self::NoNumber => f.write_str("not a size: write for example 4096, 20K, 4M or 1.5G"),
            Self::Zero => f.write_str("must be more than 0"),
            Self::TooLarge(size) => {
                write!(f, "'{size}' is more than this machine can address")
            }
            Self::Share { most_percent } => {
                write!(f, "must be more than 0% and at most {most_percent}%")
            }
            Self::NoShare => f.write_str("not a percentage: write for example 12.5%"),
            Self::Capitals => f.write_str("'auto' has small letters"),
            Self::Slowdown => f.write_str("write a share from 0.5% to 50%, for example 5%"),
        }
    }
}

impl core::error::Error for SizeError {}

/// Reads `"20K"`, `"4M"`, `"1.5GiB"`, `"4096"` as bytes.
///
/// # Errors
/// What it is instead.
pub fn parse_size(text: &str) -> Result<u64, SizeError> {
    let text = text.trim();
    if text.is_empty() {
        return Err(SizeError::Empty);
    }
    let is_digit = |letter: char| letter.is_ascii_digit() || letter == '.';
    if let Some(rest) = text.strip_prefix('-')
        && rest.starts_with(is_digit)
    {
        return Err(SizeError::Negative);
    }
    let split = text.find(|letter| !is_digit(letter)).unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let unit = unit.trim();
    let shift = match unit.to_ascii_lowercase().as_str() {
        _ if number.is_empty() => return Err(SizeError::NoNumber),
        "" | "b" => 0,
        "k" | "kb" | "kib" => 10,
        "m" | "mb" | "mib" => 20,
        "g" | "gb" | "gib" => 30,
        "t" | "tb" | "tib" => 40,
        other => {
            let exponent = other.strip_prefix('e').is_some_and(|rest| {
                let digits = rest.trim_start_matches(['+', '-']);
                digits.starts_with(|letter: char| letter.is_ascii_digit())
            });
            return Err(if exponent {
                SizeError::Exponent
            } else {
                SizeError::Unit(unit.to_owned())
            });
        }
    };
    let too_large = || SizeError::TooLarge(text.to_owned());
    if let Ok(whole) = number.parse::<u64>() {
        return whole.checked_mul(1 << shift).ok_or_else(too_large);
    }
    let value: f64 = number.parse().map_err(|_| SizeError::NoNumber)?;
    let bytes = value * (1_u64 << shift) as f64;
    if bytes >= u64::MAX as f64 {
        return Err(too_large());
    }
    Ok(bytes as u64)
}

/// Reads a percentage, such as `"12.5%"`, of more than 0 and at most `most_percent`;
/// `None` for a text without a percent sign.
///
/// # Errors
/// What it is instead.
pub fn parse_percent(text: &str, most_percent: u32) -> Option<Result<f64, SizeError>> {
    let number = text.trim().strip_suffix('%')?.trim();
    Some(match number.parse::<f64>() {
        Ok(percent) if percent > 0.0 && percent <= f64::from(most_percent) => Ok(percent),
        Ok(percent) if !percent.is_nan() => Err(SizeError::Share { most_percent }),
        _ => Err(SizeError::NoShare),
    })
}

/// Least and most share of time that faults may take, in millionths.
pub const SLOWDOWN_PPM: core::ops::RangeInclusive<u32> = 5_000..=500_000;

/// The share in millionths for one per cent of it; `None` for one that makes no sense.
#[must_use]
pub fn slowdown_ppm(percent: f64) -> Option<u32> {
    // `as` makes what is no number 0, and what is too large the most.
    let ppm = (percent * 1e4).round() as u32;
    SLOWDOWN_PPM.contains(&ppm).then_some(ppm)
}

/// Reads a share of time, such as `"5%"`; it is in millionths.
///
/// # Errors
/// [`SizeError::Slowdown`] for anything else than 0.5 % to 50 %.
pub fn parse_slowdown(text: &str) -> Result<u32, SizeError> {
    let percent = parse_percent(text, 100).and_then(Result::ok);
    percent.and_then(slowdown_ppm).ok_or(SizeError::Slowdown)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_powers_of_1024_in_every_spelling() {
        for (text, bytes) in [
            ("4096", 4096),
            ("20K", 20 << 10),
            ("20kb", 20 << 10),
            (" 4 MiB ", 4 << 20),
            ("1.5G", 3 << 29),
            ("2t", 2 << 40),
            ("0", 0),
            ("0.2", 0),
        ] {
            assert_eq!(parse_size(text), Ok(bytes), "{text:?}");
        }
    }

    #[test]
    fn what_is_no_size_is_refused_by_its_name() {
        let unit = |unit: &str| SizeError::Unit(unit.to_owned());
        let too_large = |text: &str| SizeError::TooLarge(text.to_owned());
        for (text, why) in [
            ("", SizeError::Empty),
            (" ", SizeError::Empty),
            ("K", SizeError::NoNumber),
            ("much", SizeError::NoNumber),
            ("NaN", SizeError::NoNumber),
            ("12Q", unit("Q")),
            ("4 M M", unit("M M")),
            ("1..5M", SizeError::NoNumber),
            ("-4M", SizeError::Negative),
            ("-", SizeError::NoNumber),
            ("1e9", SizeError::Exponent),
            ("1.5E+999", SizeError::Exponent),
            ("1e", unit("e")),
            ("99999999T", too_large("99999999T")),
            ("99999999.5T", too_large("99999999.5T")),
        ] {
            assert_eq!(parse_size(text), Err(why), "{text:?}");
        }
    }

    #[test]
    fn shares_of_time_are_half_a_per_cent_to_half() {
        for (text, ppm) in [("5%", 50_000), (" 0.5 %", 5_000), ("50%", 500_000)] {
            assert_eq!(parse_slowdown(text), Ok(ppm), "{text}");
        }
        for text in [
            "0.49%", "50.1%", "5", "0%", "-5%", "x%", "NaN%", "inf%", "", "auto",
        ] {
            assert_eq!(parse_slowdown(text), Err(SizeError::Slowdown), "{text}");
        }
        assert_eq!(slowdown_ppm(f64::NAN), None);
    }

    #[test]
    fn percentages_end_where_they_are_told_to() {
        assert_eq!(parse_percent("12.5 %", 100), Some(Ok(12.5)));
        assert_eq!(parse_percent("150%", 10_000), Some(Ok(150.0)));
        assert_eq!(parse_percent("4M", 100), None);
        for text in ["0%", "-1%", "150%", "inf%"] {
            let share = SizeError::Share { most_percent: 100 };
            assert_eq!(parse_percent(text, 100), Some(Err(share)), "{text}");
        }
        for text in ["%", "x%", "NaN%"] {
            assert_eq!(parse_percent(text, 100), Some(Err(SizeError::NoShare)));
        }
    }
}
