//! Settings of a heap, as C fills them in.
//!
//! Every field is a plain number. Zero is not a default by itself: a program
//! starts from `ghostmem_config_init`, so that fields it never heard of keep
//! theirs.

use ghostmem::{Backend, Codec, Heap, HeapBuilder};

use crate::status::{GhostmemStatus, invalid};

/// How a heap learns of touches.
#[repr(u32)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GhostmemBackend {
    /// The best this machine allows: inline, else guard.
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
    /// (20480). 0: half of the smaller of the control group's limit and the
    /// machine's memory.
    pub resident_limit_bytes: usize,
    /// Bound on resident pages, compressed pages and metadata together.
    /// Allocations that would not fit, going by the compression seen so far,
    /// fail. 0: none.
    pub memory_limit_bytes: usize,
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
    /// 0.
    pub reserved: u32,
}

/// Size of the structure in the first version that had it.
const FIRST_BYTES: usize = 48;

impl GhostmemConfig {
    pub(crate) const DEFAULT: Self = Self {
        struct_bytes: size_of::<Self>(),
        resident_limit_bytes: 0,
        memory_limit_bytes: 0,
        backend: GhostmemBackend::Auto as u32,
        codec: GhostmemCodec::Auto as u32,
        readahead: 1,
        background: 1,
        keep_copies: 1,
        reserved: 0,
    };

    /// The caller's settings, or the defaults for null.
    ///
    /// # Safety
    /// `config` is null or points to a structure of at least the bytes its
    /// `struct_bytes` says.
    pub(crate) unsafe fn read(config: *const Self) -> Result<Self, GhostmemStatus> {
        if config.is_null() {
            return Ok(Self::DEFAULT);
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
        Ok(read)
    }

    pub(crate) fn builder(&self) -> Result<HeapBuilder, GhostmemStatus> {
        let backend = match self.backend {
            0 => Backend::Auto,
            1 => Backend::Inline,
            2 => Backend::Monitor,
            3 => Backend::Guard,
            4 => Backend::GuardMprotect,
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
            .readahead(self.readahead != 0)
            .background(self.background != 0)
            .keep_copies(self.keep_copies != 0);
        if self.resident_limit_bytes != 0 {
            builder = builder.resident_limit(self.resident_limit_bytes);
        }
        if self.memory_limit_bytes != 0 {
            builder = builder.memory_limit(self.memory_limit_bytes);
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
        let wrong = GhostmemConfig {
            backend: 77,
            ..GhostmemConfig::DEFAULT
        };
        assert_eq!(wrong.builder().err(), Some(GhostmemStatus::InvalidArgument));
        let wrong = GhostmemConfig {
            codec: 77,
            ..GhostmemConfig::DEFAULT
        };
        assert_eq!(wrong.builder().err(), Some(GhostmemStatus::InvalidArgument));
    }

    #[test]
    fn a_newer_and_longer_structure_is_filled_in_and_read_as_far_as_known() {
        #[repr(C, align(8))]
        struct Room([u8; 64]);
        let mut room = Room([0xFF; 64]);
        let config = (&raw mut room).cast::<GhostmemConfig>();
        // SAFETY: 64 bytes of room.
        unsafe { ghostmem_config_init(config, 64) };
        assert!(
            room.0[size_of::<GhostmemConfig>()..]
                .iter()
                .all(|b| *b == 0)
        );
        // SAFETY: filled in just now, and aligned.
        let read = unsafe { GhostmemConfig::read((&raw const room).cast()) };
        assert_eq!(read, Ok(GhostmemConfig::DEFAULT));
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
