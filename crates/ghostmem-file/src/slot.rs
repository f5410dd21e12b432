//! What the caller gives of a page, and what it keeps of it: the same on every
//! system.

/// A page to be written.
#[derive(Debug, Clone, Copy)]
pub struct Packed<'a> {
    /// Whose it is: 40 bits.
    pub owner: u64,
    /// How it is packed.
    pub codec: u8,
    /// The packed bytes, 1 to 4096.
    pub bytes: &'a [u8],
}

/// A page's place in the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct FileSlot(u32);

impl FileSlot {
    /// The slot as a number below `u32::MAX`.
    #[must_use]
    pub const fn number(self) -> u32 {
        self.0
    }

    /// The slot with a number from [`FileSlot::number`].
    #[must_use]
    pub const fn from_number(number: u32) -> Self {
        Self(number)
    }
}
