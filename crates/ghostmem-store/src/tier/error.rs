//! What can go wrong with a tier, in one line each.
//!
//! Both errors are copied and printed in fault handlers and on engine threads: they
//! own nothing, and their `Display` allocates nothing.

use core::fmt;

use ghostmem_os::error::Errno;

/// Why a batch was not written. Nothing of it was: the pages are still the
/// caller's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum WriteError {
    /// There is no room where the tier is. Of a file: the disk is full, a quota
    /// (`EDQUOT`), or the largest file it or `RLIMIT_FSIZE` allows (`EFBIG`).
    NoSpace {
        /// Which of them.
        errno: i32,
    },
    /// The tier has the size it may have.
    LimitReached,
    /// What is below does not take it. Of a file: the disk, at two different places.
    Io {
        /// The error.
        errno: i32,
    },
    /// No slot is free: the tier holds as many pages as it can name, or a child of
    /// many generations still reads from as many of its ancestors as it can. `tend`
    /// makes room for either.
    Full,
    /// A new key, needed now, cannot be had: no random bytes, or all places for keys
    /// hold keys of pages that are still alive. `tend` frees them.
    NoKey,
    /// A page longer than 4096 bytes, or empty, or more pages than places for
    /// slots.
    BadPage,
    /// A child that ran no fork handlers may not write to its parent's tier.
    Stranger,
}

impl fmt::Display for WriteError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::NoSpace { errno } => {
                write!(f, "the tier for cold pages cannot grow: {}", Errno(errno))
            }
            Self::LimitReached => f.write_str("the tier for cold pages has reached its limit"),
            Self::Io { errno } => write!(
                f,
                "the tier for cold pages takes no writes: {}",
                Errno(errno)
            ),
            Self::Full => f.write_str("the tier holds as many cold pages as it can name"),
            Self::NoKey => f.write_str("no new key for cold pages can be had now"),
            Self::BadPage => f.write_str("a cold page must have 1 to 4096 bytes"),
            Self::Stranger => {
                f.write_str("a child that ran no fork handlers must not write cold pages")
            }
        }
    }
}

impl core::error::Error for WriteError {}

/// A page that a tier does not give back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct TierError {
    /// The tier. Of a file: it, or the directory of an unlinked one.
    pub tier: &'static str,
    /// Where in it the page is, bytes from its beginning, if it has such places.
    pub offset: Option<u64>,
    /// What happened.
    pub cause: TierCause,
}

impl TierError {
    /// The error of a tier that has places by bytes.
    #[must_use]
    pub const fn at(tier: &'static str, offset: u64, cause: TierCause) -> Self {
        Self {
            tier,
            offset: Some(offset),
            cause,
        }
    }

    /// The error of a tier that has none, or of a page that is nowhere in it.
    #[must_use]
    pub const fn of(tier: &'static str, cause: TierCause) -> Self {
        Self {
            tier,
            offset: None,
            cause,
        }
    }
}

/// What happened to a page that a tier does not give back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum TierCause {
    /// The read failed.
    Io {
        /// The error.
        errno: i32,
    },
    /// The file ends before the page does.
    Short {
        /// Bytes of the page that are there.
        got_bytes: usize,
        /// Bytes that it has.
        wanted_bytes: usize,
    },
    /// The bytes are not the ones that were sealed: changed, moved, or older.
    Tampered,
    /// As `Tampered`, without encryption.
    Checksum,
    /// The page there is another owner's.
    WrongOwner,
    /// The bytes are as they were written, and mean nothing to the codec.
    Undecodable,
    /// No page has this slot.
    NoRecord,
    /// The buffer that was given is too short.
    NoBuffer,
}

impl fmt::Display for TierError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.tier)?;
        if let Some(offset) = self.offset {
            write!(f, " at offset {offset}")?;
        }
        f.write_str(": ")?;
        match self.cause {
            TierCause::Io { errno } => write!(f, "{}", Errno(errno)),
            TierCause::Short {
                got_bytes,
                wanted_bytes,
            } => write!(
                f,
                "the file was cut short, {got_bytes} of {wanted_bytes} bytes are there"
            ),
            TierCause::Tampered => {
                f.write_str("the bytes there are not the ones that were written (wrong tag)")
            }
            TierCause::Checksum => {
                f.write_str("the bytes there are not the ones that were written (wrong checksum)")
            }
            TierCause::WrongOwner => f.write_str("the record there is another page's"),
            TierCause::Undecodable => f.write_str("the record there does not decode"),
            TierCause::NoRecord => f.write_str("no page was written there"),
            TierCause::NoBuffer => f.write_str("the buffer for reading it is too short"),
        }
    }
}

impl core::error::Error for TierError {}
