//! [`Spill`]: a file for what memory has no room for.

use std::path::PathBuf;

use ghostmem_file::{Faults, Options};
use ghostmem_pager::{Cold, ColdSettings};

use crate::Error;

/// Where cold pages go when the store of compressed pages has its share of
/// memory: a file on a disk.
///
/// By default the file has no name (`O_TMPFILE`), so that nothing of it is left
/// however the process ends, and what is in it is encrypted with a key that
/// exists in memory only.
///
/// ```
/// use ghostmem::{Heap, Spill};
/// let heap = Heap::builder()
///     .resident_limit(1 << 20)
///     .spill(Spill::dir("/var/tmp").store_limit(1 << 20))
///     .build()?;
/// // Sixteen megabytes that do not compress: one resident, about one in memory
/// // as it is, the rest in the file.
/// let mut state = 1_u64;
/// let mut numbers = allocator_api2::vec::Vec::new_in(heap.clone());
/// for _ in 0..2 << 20 {
///     state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
///     numbers.push(state ^ state >> 33);
/// }
/// # let sum = numbers.iter().fold(0_u64, |sum, n| sum.wrapping_add(*n));
/// # assert_ne!(sum, 0);
/// while heap.stats().file_pages == 0 {
///     std::thread::yield_now();
/// }
/// # Ok::<(), ghostmem::Error>(())
/// ```
#[derive(Debug, Clone)]
#[must_use = "does nothing until it is given to a builder"]
pub struct Spill {
    options: Options,
    pub(crate) compress: bool,
    store_limit: Option<usize>,
}

impl Spill {
    /// A nameless file in a directory, which must allow writing. One that is known to
    /// keep files in memory (tmpfs, ramfs, an overlay with its upper folder there) is
    /// refused.
    pub fn dir(path: impl Into<PathBuf>) -> Self {
        Self::with(Options::unnamed(path.into()))
    }

    /// A file of that name. It is locked against others and removed when the heap
    /// ends. One that a killed process left is taken over; any other file of that
    /// name is refused.
    pub fn file(path: impl Into<PathBuf>) -> Self {
        Self::with(Options::named(path.into()))
    }

    const fn with(options: Options) -> Self {
        Self {
            options: options.on_disk_only(true),
            compress: true,
            store_limit: None,
        }
    }

    /// Most bytes of the file, at least 8 MiB. Default: what the file system
    /// allows.
    pub fn limit(mut self, bytes: u64) -> Self {
        self.options = self.options.limit_bytes(bytes);
        self
    }

    /// Whether what is in the file is encrypted (`true` unless said otherwise).
    /// A checksum is kept in either case: what comes back wrong is refused.
    pub fn encrypt(mut self, on: bool) -> Self {
        self.options = self.options.encrypt(on);
        self
    }

    /// Whether pages are compressed at all before they leave (`true` unless said
    /// otherwise). Without it every evicted page takes 4 KiB, in memory and in
    /// the file.
    pub fn compress(mut self, on: bool) -> Self {
        self.compress = on;
        self
    }

    /// Bytes of compressed pages that stay in memory before the coldest go to
    /// the file; 0: as soon as they are evicted. Default: what the memory limit
    /// leaves beside resident pages, or as much as the resident limit where
    /// there is none.
    pub fn store_limit(mut self, bytes: usize) -> Self {
        self.store_limit = Some(bytes);
        self
    }

    /// Makes operations on the file fail as a test wants.
    #[doc(hidden)]
    pub fn faults(mut self, faults: &'static dyn Faults) -> Self {
        self.options = self.options.faults(faults);
        self
    }

    /// Whether the folder will do, as far as that can be told without a file in it.
    ///
    /// # Errors
    /// [`ghostmem_file::OpenError::InMemory`].
    #[cfg(not(windows))]
    #[doc(hidden)]
    pub fn refuse_memory(folder: &std::path::Path) -> Result<(), Error> {
        match Options::unnamed(folder).kept_in_memory_by() {
            None => Ok(()),
            Some(kept_by) => Err(Error::Spill(ghostmem_file::OpenError::InMemory {
                path: folder.display().to_string(),
                kept_by,
            })),
        }
    }

    /// Opens the file.
    pub(crate) fn open(&self) -> Result<ColdSettings, Error> {
        let tier = Cold::file(&self.options).map_err(Error::Spill)?;
        ColdSettings::new(tier, self.store_limit).map_err(Error::Tier)
    }
}
