//! Making a heap.

use core::fmt;

use ghostmem_codec::AnyCodec;
use ghostmem_fault::{BackendKind, Opened};
use ghostmem_os::error::ENOSYS;
use ghostmem_os::tree::Tree;
use ghostmem_os::{OsError, PAGE_SIZE, machine};
use ghostmem_pager::{Config, LIMIT_PAGES_MIN};

use crate::{Error, Heap, LostHandler, MemorySize, Spill, size};

/// How a heap learns of touches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Hash)]
#[non_exhaustive]
pub enum Backend {
    /// The best this machine allows: inline, else guard; on Windows veh.
    #[default]
    Auto,
    /// userfaultfd, faults resolved on the faulting thread. Fastest. A system
    /// call given an absent page fails with `EFAULT`: pin such buffers.
    Inline,
    /// userfaultfd, faults resolved by engine threads. Slower; system calls
    /// see the memory (with a privileged userfaultfd).
    Monitor,
    /// Guard pages on a mapped memory file. Works where userfaultfd is refused.
    Guard,
    /// As `Guard`, by mprotect(2) alone, as on kernels before 6.15.
    GuardMprotect,
    /// Windows: a vectored exception handler, faults resolved on the faulting
    /// thread. A system call given an absent page fails with
    /// `ERROR_NOACCESS`: pin such buffers.
    Veh,
}

impl fmt::Display for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::Inline => "inline",
            Self::Monitor => "monitor",
            Self::Guard => "guard",
            Self::GuardMprotect => "guard-mprotect",
            Self::Veh => "veh",
        })
    }
}

/// How pages are compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Hash)]
#[non_exhaustive]
pub enum Codec {
    /// The engine's choice: LZ4 for now.
    #[default]
    Auto,
    /// LZ4, fastest setting.
    Lz4,
}

impl Codec {
    /// The codec that it stands for.
    const fn chosen(self) -> AnyCodec {
        match self {
            Self::Auto | Self::Lz4 => AnyCodec::Lz4,
        }
    }
}

/// Less address space than this is needed for the program itself, bytes.
const SCARCE_BYTES: usize = 512 << 20;

/// Settings of a heap to be built. Every one has a default that looks at the
/// machine.
///
/// ```
/// use ghostmem::Heap;
/// let heap = Heap::builder().resident_limit(1 << 20).build()?;
/// assert_eq!(heap.stats().resident_limit_bytes, 1 << 20);
/// # Ok::<(), ghostmem::Error>(())
/// ```
#[derive(Debug, Clone)]
#[must_use = "a builder does nothing until `build`"]
pub struct HeapBuilder {
    resident_limit: Option<usize>,
    heap_limit: Option<usize>,
    memory: Option<MemorySize>,
    memory_auto: bool,
    tree: Option<&'static Tree>,
    slowdown: Option<f64>,
    backend: Backend,
    codec: Codec,
    readahead: bool,
    background: bool,
    background_in_children: bool,
    keep_copies: bool,
    report_thrashing: bool,
    report_denied: bool,
    spill: Option<Spill>,
    on_lost: Option<LostHandler>,
}

impl HeapBuilder {
    pub(crate) const fn new() -> Self {
        Self {
            resident_limit: None,
            heap_limit: None,
            memory: None,
            memory_auto: false,
            tree: None,
            slowdown: None,
            backend: Backend::Auto,
            codec: Codec::Auto,
            readahead: true,
            background: true,
            background_in_children: true,
            keep_copies: true,
            report_thrashing: false,
            report_denied: true,
            spill: None,
            on_lost: None,
        }
    }

    /// Most bytes of uncompressed ghost pages mapped at any moment, rounded
    /// down to pages; at least 5 pages (20480). Default: what [`HeapBuilder::memory`]
    /// leaves.
    pub fn resident_limit(mut self, bytes: usize) -> Self {
        self.resident_limit = Some(bytes);
        self
    }

    /// Bound on what this heap takes, resident pages, compressed pages and metadata
    /// together, bytes: for tests of what is refused at an allocation, which know what
    /// the heap takes and not what the process does.
    #[doc(hidden)]
    pub fn heap_limit(mut self, bytes: usize) -> Self {
        self.heap_limit = Some(bytes);
        self
    }

    /// The most that the *process* takes of the machine, as the kernel charges it:
    /// resident ghost pages, compressed pages, copies and tables, and the memory that is
    /// not ghost, which is measured. How many pages are resident follows from what is
    /// left; [`HeapBuilder::resident_limit`] is then only the most of them. Allocations
    /// that cannot fit, going by the compression seen so far, fail. A touch that cannot
    /// be served within it gets the signal of a lost page, after a line on standard error.
    ///
    /// Memory that is not ghost cannot be refused when it grows; the heap makes room for
    /// it. Default: [`MemorySize::Auto`], or no bound where there is a resident limit.
    /// Elsewhere than on Linux there is no bound, and bytes are refused.
    ///
    /// ```
    /// use ghostmem::{Heap, MemorySize};
    /// let heap = Heap::builder().memory(512 << 20).build()?;
    /// assert_eq!(heap.stats().process_bound_bytes, 512 << 20);
    /// let heap = Heap::builder().memory(MemorySize::Percent(50.0)).build()?;
    /// let asked: MemorySize = "auto".parse().expect("the simplest");
    /// let heap = Heap::builder().memory(asked).build()?;
    /// # Ok::<(), ghostmem::Error>(())
    /// ```
    pub fn memory(mut self, size: impl Into<MemorySize>) -> Self {
        self.memory = Some(size.into());
        self
    }

    /// The process takes no more than memory groups and the machine leave it, followed
    /// while it runs, with a reserve for others; [`HeapBuilder::memory`] may bound it
    /// further. Default: no. Linux only.
    pub fn memory_auto(mut self) -> Self {
        self.memory_auto = true;
        self
    }

    /// The process has a bound together with the others of a tree: for `ghostmem run`.
    #[doc(hidden)]
    pub fn memory_of_tree(mut self, tree: &'static Tree) -> Self {
        self.tree = Some(tree);
        self
    }

    /// As little memory stays uncompressed as the program bears: faults may take so many
    /// hundredths (0.5 to 50) of its own time and theirs together. A background thread looks
    /// some times a second at what they took, shrinks slowly while that is less, and backs
    /// off at once when it is more. [`HeapBuilder::memory`] and
    /// [`HeapBuilder::resident_limit`] are the most that it may come to. Default: none.
    ///
    /// The program's own time is what the process computes for (user time), less what the
    /// heap's background thread does. A program that sleeps keeps what it has. Only with a
    /// background thread; a forked child without one is not limited by it.
    /// `Stats::slowdown_reached_ppm` says what was reached.
    ///
    /// ```
    /// use ghostmem::Heap;
    /// let heap = Heap::builder().slowdown(5.0).build()?;
    /// assert_eq!(heap.stats().slowdown_asked_ppm, 50_000);
    /// # Ok::<(), ghostmem::Error>(())
    /// ```
    pub fn slowdown(mut self, percent: f64) -> Self {
        self.slowdown = Some(percent);
        self
    }

    /// How touches are noticed. Default: [`Backend::Auto`].
    pub fn backend(mut self, backend: Backend) -> Self {
        self.backend = backend;
        self
    }

    /// How pages are compressed. Default: [`Codec::Auto`].
    pub fn codec(mut self, codec: Codec) -> Self {
        self.codec = codec;
        self
    }

    /// Whether pages ahead of a sequential or strided run are restored before
    /// they are touched. Default: yes.
    pub fn readahead(mut self, on: bool) -> Self {
        self.readahead = on;
        self
    }

    /// Whether forked children have a background thread too (`true` unless
    /// said otherwise). Without one, faulting threads evict for themselves. Where
    /// `malloc` itself is on the heap, libc reads ghost memory (the locale) as it
    /// starts a thread, with every signal blocked: no engine thread may start
    /// there once pages can be absent.
    pub fn background_in_children(mut self, on: bool) -> Self {
        self.background_in_children = on;
        self
    }

    /// Whether a thread of the engine keeps frames free ahead of demand and
    /// the store tidy. Without it, faulting threads evict for themselves and
    /// the store is never compacted. Default: yes.
    pub fn background(mut self, on: bool) -> Self {
        self.background = on;
        self
    }

    /// Whether a page restored for reading keeps its compressed copy, so that
    /// evicting it again is free. Costs the copies' memory. Default: yes.
    pub fn keep_copies(mut self, on: bool) -> Self {
        self.keep_copies = on;
        self
    }

    /// Whether a line on the standard error stream says, once, that the program has done
    /// little but fault for some seconds, and what it would take to hold all of its pages
    /// uncompressed. Only with a background thread, and not in forked children. Default:
    /// no.
    pub fn report_thrashing(mut self, on: bool) -> Self {
        self.report_thrashing = on;
        self
    }

    /// Whether a line on the standard error stream says, once for each process, that the
    /// bound on it refuses an allocation, and how much is missing. Off for a program that
    /// says so itself. Default: yes.
    pub fn report_denied(mut self, on: bool) -> Self {
        self.report_denied = on;
        self
    }

    /// A file for cold pages that memory has no room for. Default: none.
    pub fn spill(mut self, spill: Spill) -> Self {
        self.spill = Some(spill);
        self
    }

    /// Who is asked when a page's bytes cannot be brought back from the file:
    /// whether to read once more, or to stop the access. Default: a line on
    /// standard error, and the access is stopped.
    ///
    /// It runs in the fault handler, signals blocked, and may only do what is
    /// async-signal-safe; it must not touch ghost memory.
    pub fn on_lost(mut self, handler: LostHandler) -> Self {
        self.on_lost = Some(handler);
        self
    }

    /// The bound on the process, bytes, if there is to be one, and whether what memory
    /// groups and the machine leave is one as well.
    fn process_bound(&self) -> Result<(Option<usize>, bool), Error> {
        // Where nobody says what the process takes, nothing can be followed.
        let can_follow = || machine::process_bytes().is_some();
        let limited = self.resident_limit.is_some() || self.heap_limit.is_some();
        let size = match self.memory {
            None if limited => return Ok((None, self.memory_auto)),
            asked => asked.unwrap_or_default(),
        };
        let bytes = match size {
            MemorySize::Auto => return Ok((None, can_follow())),
            MemorySize::Bytes(bytes) => Some(bytes),
            MemorySize::Percent(percent) if percent > 0.0 && percent <= 100.0 => size.bytes(),
            MemorySize::Percent(_) => return Err(Error::MemoryPercent),
        };
        bytes.map_or(Ok(()), check_memory)?;
        Ok((bytes, self.memory_auto))
    }

    /// Builds the heap that [`Heap::global`] gives from now on, before anything else
    /// needs it. The environment changes nothing of it.
    ///
    /// ```
    /// use ghostmem::{Error, Heap};
    /// let heap = Heap::builder().resident_limit(1 << 20).install_global()?;
    /// assert_eq!(Heap::global()?.stats().resident_limit_bytes, 1 << 20);
    /// // Once it is there it stays as it is.
    /// let again = Heap::builder().resident_limit(2 << 20).install_global();
    /// assert_eq!(again.unwrap_err(), Error::AlreadyGlobal);
    /// # Ok::<(), ghostmem::Error>(())
    /// ```
    ///
    /// With [`GhostAlloc`] as the global allocator the heap is there before `main`:
    /// [`GhostAlloc::with_memory`] sets that one up.
    ///
    /// [`GhostAlloc`]: crate::GhostAlloc
    /// [`GhostAlloc::with_memory`]: crate::GhostAlloc::with_memory
    ///
    /// # Errors
    /// As [`HeapBuilder::build`]; [`Error::AlreadyGlobal`] when it is there already.
    pub fn install_global(self) -> Result<&'static Heap, Error> {
        Heap::install(self)
    }

    /// Builds the heap.
    ///
    /// # Errors
    /// A limit that is too small, a backend that cannot work here, or the
    /// kernel's refusal of memory.
    pub fn build(self) -> Result<Heap, Error> {
        let least_bytes = LIMIT_PAGES_MIN * PAGE_SIZE;
        if !machine::page_size_is_supported() {
            return Err(Error::PageSize);
        }
        let slowdown_ppm = match self.slowdown {
            None => 0,
            Some(_) if !self.background => return Err(Error::SlowdownWithoutThread),
            Some(percent) => size::slowdown_ppm(percent).ok_or(Error::Slowdown)?,
        };
        let machine_bytes = machine::cgroup_limit_bytes().map_or(machine::ram_bytes(), |limit| {
            limit.min(machine::ram_bytes())
        });
        let machine_bytes = usize::try_from(machine_bytes).unwrap_or(usize::MAX);
        let (memory, follows) = self.process_bound()?;
        let default_bytes = match (&self.spill, self.heap_limit) {
            // Some of the limit is for compressed pages: with a file they may
            // be many times as many.
            (Some(_), Some(limit)) => (machine_bytes / 2).min(limit / 4 * 3),
            _ if memory.is_some() || follows || self.tree.is_some() => machine_bytes,
            _ => machine_bytes / 2,
        };
        let limit_bytes = self
            .resident_limit
            .unwrap_or(default_bytes.max(least_bytes));
        // More resident pages than the heap may have cannot be held.
        let limit_bytes = self
            .heap_limit
            .map_or(limit_bytes, |limit| limit_bytes.min(limit));
        if limit_bytes < least_bytes {
            return Err(Error::LimitTooSmall {
                limit_bytes,
                least_bytes,
            });
        }
        let address_space_bytes = machine::address_space_left().map_or(usize::MAX, |limit| {
            usize::try_from(limit).unwrap_or(usize::MAX)
        });
        let config = |backend| Config {
            limit_pages: limit_bytes / PAGE_SIZE,
            memory_limit_bytes: self.heap_limit,
            process_limit_bytes: memory,
            follow_supplies: follows,
            tree: self.tree,
            slowdown_ppm,
            backend,
            codec: self.codec.chosen(),
            compress: self.spill.as_ref().is_none_or(|spill| spill.compress),
            on_lost: self.on_lost,
            readahead: self.readahead,
            background: self.background,
            background_in_children: self.background_in_children,
            keep_copies: self.keep_copies,
            // Compressed pages live in memory too: never more than there is.
            // Nor more than a quarter of the address space that is left, an eighth
            // where that is scarce.
            report_thrashing: self.report_thrashing,
            report_denied: self.report_denied,
            store_capacity_bytes: machine_bytes.max(1 << 30).min(
                if address_space_bytes < SCARCE_BYTES {
                    address_space_bytes / 8
                } else {
                    address_space_bytes / 4
                },
            ),
        };
        let spill = || self.spill.as_ref().map(Spill::open).transpose();
        match self.backend {
            Backend::Auto => {
                let mut cause = OsError::new("userfaultfd", ENOSYS);
                for &kind in BackendKind::PREFERRED {
                    match Opened::open(kind) {
                        Ok(opened) => return Heap::from_config(config(opened), spill()?),
                        Err(error) => cause = error,
                    }
                }
                Err(Error::NoBackend { cause })
            }
            backend => {
                let kind = match backend {
                    Backend::Monitor => BackendKind::Monitor,
                    Backend::Guard | Backend::GuardMprotect => BackendKind::Guard,
                    Backend::Veh => BackendKind::Veh,
                    _ => BackendKind::Inline,
                };
                let opened = if backend == Backend::GuardMprotect {
                    Opened::guard_by_mprotect()
                } else {
                    Opened::open(kind)
                }
                .map_err(|cause| Error::BackendUnavailable { backend, cause })?;
                Heap::from_config(config(opened), spill()?)
            }
        }
    }
}

/// Whether a bound of so many bytes on the process leaves 1 MiB for pages, and as much
/// for tables and slots.
fn check_memory(bytes: usize) -> Result<(), Error> {
    const LEAST: usize = 2 << 20;
    // Up to an eighth of the bound stays free.
    let least_for = |taken: usize| taken.saturating_add(LEAST).saturating_mul(8) / 7;
    let taken_bytes = match machine::process_bytes() {
        Some(taken) => usize::try_from(taken).unwrap_or(usize::MAX),
        // Too little for any process.
        None if bytes < least_for(0) => 0,
        None => return Err(OsError::new("/proc/self/status", ENOSYS).into()),
    };
    let least_bytes = least_for(taken_bytes);
    if bytes < least_bytes {
        return Err(Error::MemoryTooSmall {
            bytes,
            taken_bytes,
            least_bytes,
        });
    }
    Ok(())
}
