//! Settings of a heap, as C fills them in.
//!
//! Every field is a plain number. Zero is not a default by itself: a program
//! starts from `ghostmem_config_init`, so that fields it never heard of keep
//! theirs.

use core::ffi::{CStr, c_char};
use std::path::{Path, PathBuf};

use ghostmem::{Backend, Codec, Heap, HeapBuilder, MemorySize, Spill};

use crate::status::{GhostmemStatus, invalid};

/// How a heap learns of touches.
#[repr(u32)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GhostmemBackend {
    /// The best this machine allows: inline, else guard; on Windows veh.
    Auto = 0,
    /// userfaultfd, faults resolved on the faulting thread. Fastest. A system
    /// call given an absent page fails with EFAULT: pin such buffers.
    Inline = 1,
    /// userfaultfd, faults resolved by engine threads. Slower; system calls
    /// see the memory (with a privileged userfaultfd).
    Monitor = 2,
    /// Guard pages on a mapped memory file, where userfaultfd is refused.
    Guard = 3,
    /// As guard, by mprotect(2) alone.
    GuardMprotect = 4,
    /// Windows: a vectored exception handler, faults resolved on the faulting
    /// thread. A system call given an absent page fails with
    /// ERROR_NOACCESS: pin such buffers.
    Veh = 5,
}

/// How pages are compressed.
#[repr(u32)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GhostmemCodec {
    /// The engine's choice: LZ4 for now.
    Auto = 0,
    /// LZ4, fastest setting.
    Lz4 = 1,
}

/// Settings of a heap. Fill it with `ghostmem_config_init`, then change what
/// you want to be different.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GhostmemConfig {
    /// How much of the structure is filled in, set by `ghostmem_config_init`.
    pub struct_bytes: usize,
    /// Most bytes of uncompressed pages mapped at any moment, at least 5 pages
    /// (20480). 0: what the bound on the process leaves.
    pub resident_limit_bytes: usize,
    /// The most that the process takes of the machine, bytes, as the kernel
    /// charges it: uncompressed and compressed pages, tables, and memory that is
    /// not ghost. How many pages stay uncompressed follows from it. Allocations
    /// that cannot fit, going by the compression seen so far, fail. SIZE_MAX:
    /// what control groups, limits of the process and the machine leave it. 0:
    /// the same where there is no resident limit either, else none.
    pub memory_bytes: usize,
    /// One of `ghostmem_backend`.
    pub backend: u32,
    /// One of `ghostmem_codec`.
    pub codec: u32,
    /// Not 0: pages ahead of a sequential or strided run are restored before
    /// they are touched. Default 1.
    pub readahead: u32,
    /// Not 0: an engine thread keeps frames free ahead of demand and the store
    /// tidy. Default 1.
    pub background: u32,
    /// Not 0: a page restored for reading keeps its compressed copy, so that
    /// evicting it again is free. Default 1.
    pub keep_copies: u32,
    /// In place of `memory_bytes`: hundredths, 1 to 100, of the smallest of those
    /// limits. 0: none.
    pub memory_percent: u32,
    /// A folder: cold compressed pages go to a nameless file there when memory
    /// has its share of them. Null: they stay in memory. The text may be freed
    /// when the heap is made.
    pub spill_dir: *const c_char,
    /// The same with a file of that name: it is locked against others and
    /// removed when the heap ends (the default heap's when the process ends by
    /// exit). One that a killed process left is taken over, any other file of
    /// that name is refused. Null: none. Not together with `spill_dir`.
    pub spill_file: *const c_char,
    /// Most bytes of the file. 0: what the disk allows.
    pub spill_limit_bytes: u64,
    /// Bytes of compressed pages that stay in memory before the coldest go to
    /// the file; 0: none. SIZE_MAX, the default: what the memory limit leaves
    /// beside resident pages, or as much as the resident limit where there is
    /// none.
    pub spill_store_bytes: usize,
    /// Not 0: what is in the file is encrypted. A checksum is kept in either
    /// case. Default 1.
    pub spill_encrypt: u32,
    /// 0: pages are not compressed at all. Only with a file. Default 1.
    pub spill_compress: u32,
    /// As little memory stays uncompressed as the program bears: faults may take
    /// this share of its own time and theirs together, in millionths (50000 is
    /// 5 %), 5000 to 500000. The other limits are the most that stays. 0: none.
    pub slowdown_ppm: u32,
}

/// A configuration as it was read: no pointer of the caller's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Asked {
    pub(crate) resident_limit_bytes: usize,
    pub(crate) memory_bytes: usize,
    pub(crate) memory_percent: u32,
    pub(crate) backend: u32,
    codec: u32,
    readahead: bool,
    background: bool,
    keep_copies: bool,
    spill_dir: Option<PathBuf>,
    spill_file: Option<PathBuf>,
    spill_limit_bytes: u64,
    spill_store_bytes: usize,
    spill_encrypt: bool,
    spill_compress: bool,
    pub(crate) slowdown_ppm: u32,
}

/// A path of the caller's, or none for null.
///
/// # Safety
/// `text` is null or a C string.
unsafe fn path(text: *const c_char) -> Option<PathBuf> {
    if text.is_null() {
        return None;
    }
    // SAFETY: the caller's promise.
    let text = unsafe { CStr::from_ptr(text) };
    #[cfg(unix)]
    let path = <std::ffi::OsStr as std::os::unix::ffi::OsStrExt>::from_bytes(text.to_bytes());
    // Elsewhere paths are no bytes; the interface has them in UTF-8.
    #[cfg(not(unix))]
    let path = text.to_string_lossy().into_owned();
    Some(PathBuf::from(path))
}

/// Size of the structure in the first version that had it.
const FIRST_BYTES: usize = 48;

impl GhostmemConfig {
    pub(crate) const DEFAULT: Self = Self {
        struct_bytes: size_of::<Self>(),
        resident_limit_bytes: 0,
        memory_bytes: 0,
        backend: GhostmemBackend::Auto as u32,
        codec: GhostmemCodec::Auto as u32,
        readahead: 1,
        background: 1,
        keep_copies: 1,
        memory_percent: 0,
        spill_dir: core::ptr::null(),
        spill_file: core::ptr::null(),
        spill_limit_bytes: 0,
        spill_store_bytes: usize::MAX,
        spill_encrypt: 1,
        spill_compress: 1,
        slowdown_ppm: 0,
    };

    /// The caller's settings, or the defaults for null.
    ///
    /// # Safety
    /// `config` is null or points to a structure of at least the bytes its
    /// `struct_bytes` says, and its paths are null or C strings.
    pub(crate) unsafe fn read(config: *const Self) -> Result<Asked, GhostmemStatus> {
        if config.is_null() {
            return Ok(Asked::default());
        }
        // SAFETY: the caller's promise; every version has this field first.
        let struct_bytes = unsafe { config.cast::<usize>().read() };
        if !(FIRST_BYTES..=size_of::<Self>()).contains(&struct_bytes) {
            return Err(invalid(
                "ghostmem_config.struct_bytes is none of this version's: call \
                 ghostmem_config_init first, and use a library at least as new as its header",
            ));
        }
        let mut read = Self::DEFAULT;
        // SAFETY: the caller's promise for the size just read, which is not
        // more than that of the local.
        unsafe {
            (&raw mut read)
                .cast::<u8>()
                .copy_from_nonoverlapping(config.cast::<u8>(), struct_bytes);
        }
        // SAFETY: the caller's promise, or null where the structure is shorter.
        let spill_dir = unsafe { path(read.spill_dir) };
        // SAFETY: as above.
        let spill_file = unsafe { path(read.spill_file) };
        Ok(Asked {
            spill_dir,
            spill_file,
            ..Asked::of(&read)
        })
    }
}

impl Default for Asked {
    fn default() -> Self {
        Self::of(&GhostmemConfig::DEFAULT)
    }
}

impl Asked {
    /// All but the paths. A field that nobody reads does not compile.
    const fn of(config: &GhostmemConfig) -> Self {
        let GhostmemConfig {
            struct_bytes: _,
            resident_limit_bytes,
            memory_bytes,
            backend,
            codec,
            readahead,
            background,
            keep_copies,
            memory_percent,
            spill_dir: _,
            spill_file: _,
            spill_limit_bytes,
            spill_store_bytes,
            spill_encrypt,
            spill_compress,
            slowdown_ppm,
        } = *config;
        Self {
            resident_limit_bytes,
            memory_bytes,
            memory_percent,
            backend,
            codec,
            readahead: readahead != 0,
            background: background != 0,
            keep_copies: keep_copies != 0,
            spill_dir: None,
            spill_file: None,
            spill_limit_bytes,
            spill_store_bytes,
            spill_encrypt: spill_encrypt != 0,
            spill_compress: spill_compress != 0,
            slowdown_ppm,
        }
    }

    /// The name of the file, if it has one.
    pub(crate) fn spill_file(&self) -> Option<&Path> {
        self.spill_file.as_deref()
    }

    fn spill(&self) -> Result<Option<Spill>, GhostmemStatus> {
        let spill = match (&self.spill_dir, &self.spill_file) {
            (None, None) if self.spill_compress => return Ok(None),
            (None, None) => {
                return Err(invalid(
                    "spill_compress is 0 without a file: memory holds compressed pages only, set \
                     spill_dir or spill_file",
                ));
            }
            (Some(_), Some(_)) => {
                return Err(invalid(
                    "both spill_dir and spill_file are set: leave one of them null",
                ));
            }
            (Some(dir), None) => Spill::dir(dir),
            (None, Some(file)) => Spill::file(file),
        };
        let mut spill = spill
            .encrypt(self.spill_encrypt)
            .compress(self.spill_compress);
        if self.spill_limit_bytes != 0 {
            spill = spill.limit(self.spill_limit_bytes);
        }
        if self.spill_store_bytes != usize::MAX {
            spill = spill.store_limit(self.spill_store_bytes);
        }
        Ok(Some(spill))
    }

    pub(crate) fn builder(&self) -> Result<HeapBuilder, GhostmemStatus> {
        let backend = match self.backend {
            0 => Backend::Auto,
            1 => Backend::Inline,
            2 => Backend::Monitor,
            3 => Backend::Guard,
            4 => Backend::GuardMprotect,
            5 => Backend::Veh,
            _ => return Err(invalid("backend is none of ghostmem_backend")),
        };
        let codec = match self.codec {
            0 => Codec::Auto,
            1 => Codec::Lz4,
            _ => return Err(invalid("codec is none of ghostmem_codec")),
        };
        let mut builder = Heap::builder()
            .backend(backend)
            .codec(codec)
            .readahead(self.readahead)
            .background(self.background)
            .keep_copies(self.keep_copies);
        if self.resident_limit_bytes != 0 {
            builder = builder.resident_limit(self.resident_limit_bytes);
        }
        match (self.memory_bytes, self.memory_percent) {
            (0, 0) => {}
            (0, percent) => builder = builder.memory(MemorySize::Percent(percent.into())),
            (usize::MAX, 0) => builder = builder.memory(MemorySize::Auto),
            (bytes, 0) => builder = builder.memory(bytes),
            _ => {
                return Err(invalid(
                    "both memory_bytes and memory_percent are set: leave one of them 0",
                ));
            }
        }
        if self.slowdown_ppm != 0 {
            // Hundredths.
            builder = builder.slowdown(f64::from(self.slowdown_ppm) / 1e4);
        }
        if let Some(spill) = self.spill()? {
            builder = builder.spill(spill);
        }
        Ok(builder)
    }
}

/// Fills in the defaults. `config_bytes` is `sizeof(ghostmem_config)` as the
/// caller knows it. Null is ignored.
///
/// # Safety
/// `config` is null or has room for `config_bytes`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ghostmem_config_init(config: *mut GhostmemConfig, config_bytes: usize) {
    if config.is_null() {
        return;
    }
    let known = config_bytes.min(size_of::<GhostmemConfig>());
    let defaults = GhostmemConfig {
        struct_bytes: known,
        ..GhostmemConfig::DEFAULT
    };
    // SAFETY: the caller's promise: room for `config_bytes`.
    unsafe { config.cast::<u8>().write_bytes(0, config_bytes) };
    // SAFETY: `known` bytes are readable here and writable there; the source is
    // a local.
    unsafe {
        config
            .cast::<u8>()
            .copy_from_nonoverlapping((&raw const defaults).cast::<u8>(), known);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn choices_that_do_not_exist_are_refused() {
        let refused = |change: fn(&mut Asked)| {
            let mut asked = Asked::default();
            change(&mut asked);
            asked.builder().err() == Some(GhostmemStatus::InvalidArgument)
        };
        assert!(refused(|asked| asked.backend = 77));
        assert!(refused(|asked| asked.codec = 77));
        assert!(refused(|asked| asked.spill_compress = false));
        assert!(refused(|asked| {
            asked.memory_bytes = 1 << 30;
            asked.memory_percent = 50;
        }));
        assert!(refused(|asked| {
            asked.spill_dir = Some("/tmp".into());
            asked.spill_file = Some("/tmp/name".into());
        }));
        assert!(!refused(|asked| asked.spill_dir = Some("/tmp".into())));
    }

    #[test]
    fn a_newer_and_longer_structure_is_filled_in_and_read_as_far_as_known() {
        #[repr(C, align(8))]
        struct Room([u8; 128]);
        let mut room = Room([0xFF; 128]);
        let config = (&raw mut room).cast::<GhostmemConfig>();
        // SAFETY: 128 bytes of room.
        unsafe { ghostmem_config_init(config, 128) };
        assert!(
            room.0[size_of::<GhostmemConfig>()..]
                .iter()
                .all(|b| *b == 0)
        );
        // SAFETY: filled in just now, and aligned.
        let read = unsafe { GhostmemConfig::read((&raw const room).cast()) };
        assert_eq!(read, Ok(Asked::default()));
    }

    #[test]
    fn a_program_of_the_first_version_gets_what_it_had() {
        let old = GhostmemConfig {
            struct_bytes: FIRST_BYTES,
            spill_dir: core::ptr::dangling(),
            spill_compress: 0,
            ..GhostmemConfig::DEFAULT
        };
        // SAFETY: a whole structure; what comes after the first version's fields
        // is not looked at.
        let read = unsafe { GhostmemConfig::read(&raw const old) };
        assert_eq!(read, Ok(Asked::default()));
    }

    #[test]
    fn a_structure_of_another_size_is_refused() {
        let other = GhostmemConfig {
            struct_bytes: 8,
            ..GhostmemConfig::DEFAULT
        };
        // SAFETY: a whole structure.
        let read = unsafe { GhostmemConfig::read(&raw const other) };
        assert_eq!(read.err(), Some(GhostmemStatus::InvalidArgument));
    }
}
