//! Arguments that several commands share.

use std::path::PathBuf;
use std::str::FromStr;

use clap::Args;

use crate::buffer::PAGE_SIZE;
use crate::data::{DataSet, Mix, Spec, TAG_SLOTS_MAX};
use crate::error::{Error, Result};
use crate::report::meminfo_bytes;

/// A number of bytes, written `4096`, `256M` or `1G` (binary multiples).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Size(pub(crate) u64);

impl FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        let (digits, shift) = match text.char_indices().last() {
            Some((at, 'K' | 'k')) => (&text[..at], 10),
            Some((at, 'M' | 'm')) => (&text[..at], 20),
            Some((at, 'G' | 'g')) => (&text[..at], 30),
            _ => (text, 0),
        };
        let number: u64 = digits
            .parse()
            .map_err(|_| format!("{text}: expected a number with an optional K, M or G"))?;
        number
            .checked_mul(1 << shift)
            .map(Self)
            .ok_or_else(|| format!("{text}: too large"))
    }
}

/// What the data set is like.
#[derive(Debug, Clone, Args)]
pub(crate) struct DataArgs {
    /// Bytes of the data set.
    #[arg(long, default_value = "1G")]
    pub(crate) size: Size,
    /// LZ4 ratio over 4 KiB pages to aim at.
    #[arg(long, default_value_t = 3.0)]
    ratio: f64,
    /// Seed of everything random in the data set.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Directory to take files from, repeatable; default: the usual places.
    #[arg(long)]
    from: Vec<PathBuf>,
}

impl DataArgs {
    /// Builds the data set with tags for `threads` threads.
    pub(crate) fn build(&self, threads: u32) -> Result<(DataSet, Mix)> {
        let pages = u32::try_from(self.size.0 / PAGE_SIZE as u64)
            .map_err(|_| Error::Failed("--size: at most 16 TiB".into()))?;
        if pages < 1024 {
            return Err(Error::Failed("--size: at least 4M".into()));
        }
        if threads == 0 || threads > TAG_SLOTS_MAX {
            return Err(Error::Failed(format!("--threads: 1 to {TAG_SLOTS_MAX}")));
        }
        if meminfo_bytes("MemAvailable") < self.size.0 * 5 / 2 {
            return Err(Error::Skipped(
                "not enough memory: data set, buffer and spare need 2.5 times --size".into(),
            ));
        }
        eprintln!("building the data set");
        DataSet::build(&Spec {
            pages,
            ratio: self.ratio,
            slots: threads,
            seed: self.seed,
            from: self.from.clone(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Proves the suffixes, and that nonsense and overflow are refused.
    #[test]
    fn sizes() {
        assert_eq!("4096".parse(), Ok(Size(4096)));
        assert_eq!("256M".parse(), Ok(Size(256 << 20)));
        assert_eq!("1g".parse(), Ok(Size(1 << 30)));
        assert!("M".parse::<Size>().is_err());
        assert!("1T".parse::<Size>().is_err());
        assert!("99999999999G".parse::<Size>().is_err());
    }
}
