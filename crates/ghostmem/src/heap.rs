//! [`Heap`]: ghost memory with limits of its own.

use core::alloc::Layout;
use core::ptr::NonNull;
use std::sync::OnceLock;

use ghostmem_os::lock::Lock;
use ghostmem_os::map::{ADDRESS_SPACE_BYTES, MapArc, Reservation};
use ghostmem_os::{OsError, PAGE_SIZE};
use ghostmem_pager::{ColdSettings, Config, Engine, PageState, Recorder};
use ghostmem_small::{ALIGN_MAX, Arena, SIZE_MAX, SmallHeap, Space, fork, seam};

use crate::{Backend, Error, HeapBuilder, SmallObjects, Stats};

mod global;
mod pinned;

pub use pinned::Pinned;

/// Ghost memory with a resident limit of its own.
///
/// A heap is a handle: clones speak of the same heap, and its memory lives
/// until the last of them is dropped. Allocations are [`Layout`]s of any size
/// from one byte to as much address space as there is; the memory is used like
/// any other. It can be given to collections through
/// [`allocator_api2::alloc::Allocator`].
///
/// ```
/// use ghostmem::Heap;
/// // Half a megabyte resident, four megabytes of data.
/// let heap = Heap::builder().resident_limit(512 << 10).build()?;
/// let mut numbers = allocator_api2::vec::Vec::new_in(heap.clone());
/// for i in 0..500_000_u64 {
///     numbers.push(i * i);
/// }
/// assert_eq!(numbers[123_456], 123_456 * 123_456);
/// assert!(heap.stats().resident_bytes <= 512 << 10);
/// # Ok::<(), ghostmem::Error>(())
/// ```
#[derive(Clone)]
pub struct Heap {
    inner: MapArc<Inner>,
}

struct Inner {
    // Dropped before the arena, also one that was of no use: its regions must be
    // gone first.
    engine: MapArc<Engine>,
    small: OnceLock<SmallObjects>,
    /// One thread at a time sets up small objects; `true` when that failed
    /// and pages serve them.
    small_setup: Lock<bool>,
    arena: Lock<Option<Arena>>,
}

/// Tells the pager which memory the small-object allocator no longer needs.
pub(crate) struct Discards(MapArc<Engine>);

impl Space for Discards {
    fn discard(&self, address: usize, bytes: usize) {
        // A range that cannot be discarded keeps its bytes, which is allowed.
        let _kept = self.0.discard(address, bytes);
    }

    fn adopt(
        &self,
        reservation: &'static Reservation,
        offset: usize,
        bytes: usize,
    ) -> Result<(), OsError> {
        Engine::adopt(&self.0, reservation, offset, bytes)
    }

    #[inline]
    fn holds_any(&self) -> bool {
        self.0.has_pins()
    }

    fn is_held(&self, address: usize, bytes: usize) -> bool {
        self.0.is_pinned(address, bytes)
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        if let Some(small) = self.small.take() {
            *self.arena.lock() = Some(small.0.close());
        }
        self.engine.shut_down();
    }
}

impl Heap {
    /// Settings for a new heap.
    pub fn builder() -> HeapBuilder {
        HeapBuilder::new()
    }

    /// A heap with default settings: it follows [`MemorySize::Auto`].
    ///
    /// [`MemorySize::Auto`]: crate::MemorySize::Auto
    ///
    /// # Errors
    /// As [`HeapBuilder::build`].
    pub fn new() -> Result<Self, Error> {
        Self::builder().build()
    }

    pub(crate) fn from_config(config: Config, spill: Option<ColdSettings>) -> Result<Self, Error> {
        let inner = MapArc::new(Inner {
            engine: Engine::new(config, spill)?,
            small: OnceLock::new(),
            small_setup: Lock::new(false),
            arena: Lock::new(None),
        })?;
        Ok(Self { inner })
    }

    #[inline]
    pub(crate) fn engine(&self) -> &MapArc<Engine> {
        &self.inner.engine
    }

    /// The small-object allocator, if anybody needed it yet.
    #[inline]
    pub(crate) fn small_if_made(&self) -> Option<&SmallHeap<Discards>> {
        self.small_objects_if_made().map(|small| &small.0)
    }

    /// The same, as what hands them out uncounted.
    #[inline]
    pub(crate) fn small_objects_if_made(&self) -> Option<&SmallObjects> {
        self.inner.small.get()
    }

    /// The small-object allocator, set up at the first use; `None` when it
    /// cannot be had (pages then serve small objects too).
    fn small(&self) -> Option<&SmallHeap<Discards>> {
        if let Some(small) = self.small_if_made() {
            return Some(small);
        }
        // A child must not find this half done, and nobody left to finish it.
        let _no_fork = fork::keep_out();
        let mut failed = self.inner.small_setup.lock();
        if let Some(small) = self.small_if_made() {
            return Some(small);
        }
        if *failed {
            return None;
        }
        if let Ok(small) = self.make_small() {
            return Some(&self.inner.small.get_or_init(|| SmallObjects(small)).0);
        }
        *failed = true;
        None
    }

    /// Sets up small objects. The engine comes last: an arena that it ever had is
    /// nobody else's while it lives, so that one stays with this heap.
    fn make_small(&self) -> Result<SmallHeap<Discards>, Error> {
        let arena = Arena::acquire().map_err(Error::Small)?;
        let small = SmallHeap::new(arena, Discards(self.engine().clone())).map_err(Error::Small)?;
        let (reservation, offset, len) = small.arena().ghost_home();
        let adopted = Engine::adopt(self.engine(), reservation, offset, len);
        if let Err(error) = adopted.and_then(|()| seam::step()) {
            *self.inner.arena.lock() = Some(small.close());
            return Err(error.into());
        }
        Ok(small)
    }

    /// Allocates memory for `layout`; its contents are unspecified. A size of
    /// zero gives a dangling, aligned pointer that may be freed or not.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`].
    pub fn allocate(&self, layout: Layout) -> Result<NonNull<[u8]>, Error> {
        self.allocate_with(layout, false)
    }

    /// As [`Heap::allocate`], all bytes zero.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`].
    pub fn allocate_zeroed(&self, layout: Layout) -> Result<NonNull<[u8]>, Error> {
        self.allocate_with(layout, true)
    }

    pub(crate) fn allocate_with(
        &self,
        layout: Layout,
        zeroed: bool,
    ) -> Result<NonNull<[u8]>, Error> {
        let (size, align) = (layout.size(), layout.align());
        if size == 0 {
            // An alignment is never zero.
            let dangling = NonNull::new(core::ptr::without_provenance_mut(align));
            let dangling = dangling.unwrap_or(NonNull::dangling());
            return Ok(NonNull::slice_from_raw_parts(dangling, 0));
        }
        let out_of_memory = || Error::OutOfMemory { bytes: size };
        if size.max(align) >= ADDRESS_SPACE_BYTES {
            // Neither memory that is given back nor waiting makes room for it.
            return Err(out_of_memory());
        }
        if size <= SIZE_MAX
            && align <= ALIGN_MAX
            && let Some(small) = self.small()
        {
            self.or_after_trim(|| self.engine().count_foreign(size))
                .map_err(|_| out_of_memory())?;
            if let Some(block) = small.allocate(size, align, zeroed) {
                return Ok(NonNull::slice_from_raw_parts(block, size));
            }
            self.engine().uncount_foreign(size);
        }
        let pages = size.div_ceil(PAGE_SIZE);
        let align_pages = align.div_ceil(PAGE_SIZE);
        // Fresh and recycled pages alike read as zero.
        let address = self
            .or_after_trim(|| Engine::allocate(self.engine(), pages, align_pages))
            .map_err(|_| out_of_memory())?;
        let block = NonNull::new(core::ptr::with_exposed_provenance_mut(address))
            .ok_or_else(out_of_memory)?;
        Ok(NonNull::slice_from_raw_parts(block, size))
    }

    /// Makes a request; one that is refused is made once more when freed small
    /// objects, whose memory is otherwise kept for a while, gave theirs back. The first
    /// one that a bound on the process refuses for good is said in a line.
    pub(crate) fn or_after_trim<T>(
        &self,
        request: impl Fn() -> Result<T, OsError>,
    ) -> Result<T, OsError> {
        let answer = self.or_quietly_after_trim(request);
        answer.inspect_err(|&refused| self.engine().say_denied(refused))
    }

    /// As [`Heap::or_after_trim`], for a request after which another one is made: nothing
    /// is said.
    pub(crate) fn or_quietly_after_trim<T>(
        &self,
        request: impl Fn() -> Result<T, OsError>,
    ) -> Result<T, OsError> {
        request().or_else(|refused| {
            let small = self.small_if_made().ok_or(refused)?;
            small.trim();
            request()
        })
    }

    /// Frees a block. A block freed twice, the middle of a block, and a
    /// pointer from elsewhere are refused and change nothing.
    ///
    /// # Safety
    /// Nobody may use the block any more, and `layout` must be the one it was
    /// allocated with.
    ///
    /// # Errors
    /// [`Error::NotAllocated`].
    pub unsafe fn deallocate(&self, block: NonNull<u8>, layout: Layout) -> Result<(), Error> {
        if layout.size() == 0 {
            return Ok(());
        }
        let address = block.as_ptr().addr();
        if let Some(small) = self.small_if_made()
            && small.contains(address)
        {
            // SAFETY: the caller's promise: the block is no longer used.
            unsafe { small.deallocate(block) }.map_err(|_| Error::NotAllocated { address })?;
            self.engine().uncount_foreign(layout.size());
            return Ok(());
        }
        self.engine()
            .free(address)
            .map(drop)
            .map_err(|_| Error::NotAllocated { address })
    }

    /// Whether an address lies in this heap's ghost memory. Lock-free.
    #[must_use]
    #[inline]
    pub fn is_ghost<T: ?Sized>(&self, address: *const T) -> bool {
        self.engine().contains(address.addr())
    }

    /// Whether the page at an address is resident now; `None` when it is not
    /// this heap's. Lock-free.
    #[must_use]
    pub fn is_resident<T: ?Sized>(&self, address: *const T) -> Option<bool> {
        let state = self.engine().page_state(address.addr())?;
        Some(matches!(state, PageState::Resident | PageState::Evicting))
    }

    /// The heap's figures. Lock-free, and cheap enough to be called every
    /// millisecond.
    #[must_use]
    pub fn stats(&self) -> Stats {
        self.engine().stats()
    }

    /// [`Stats::allocated_bytes`] alone: cheap enough for every allocation.
    #[must_use]
    pub fn allocated_bytes(&self) -> usize {
        self.engine().bytes_in_use()
    }

    /// The backend in use, never [`Backend::Auto`].
    #[must_use]
    pub fn backend(&self) -> Backend {
        let backend = self.engine().backend();
        match backend.kind() {
            ghostmem_fault::BackendKind::Inline => Backend::Inline,
            ghostmem_fault::BackendKind::Monitor => Backend::Monitor,
            ghostmem_fault::BackendKind::Guard if backend.splits_mappings() => {
                Backend::GuardMprotect
            }
            ghostmem_fault::BackendKind::Guard => Backend::Guard,
            ghostmem_fault::BackendKind::Veh => Backend::Veh,
        }
    }

    /// Records, from now on, each touch that faults: those of absent pages and
    /// first stores to pages that are open for loads only. Touches of open
    /// pages are not seen: give the heap a small limit and no readahead. `false`
    /// when it is recorded already. A forked child is not recorded.
    pub fn record(&self, recorder: Recorder) -> bool {
        self.engine().record(recorder)
    }

    /// Changes the resident limit (bytes, at least 5 pages). Pages above a
    /// lowered limit leave in the background, or as the heap is used.
    ///
    /// # Errors
    /// [`Error::LimitTooSmall`].
    pub fn set_resident_limit(&self, bytes: usize) -> Result<(), Error> {
        let least_bytes = ghostmem_pager::LIMIT_PAGES_MIN * PAGE_SIZE;
        if bytes < least_bytes {
            return Err(Error::LimitTooSmall {
                limit_bytes: bytes,
                least_bytes,
            });
        }
        self.engine().set_limit_pages(bytes / PAGE_SIZE);
        Ok(())
    }

    /// Brings the pages of a range in before they are touched, up to half the
    /// resident limit; how many pages it was.
    ///
    /// # Errors
    /// [`Error::NotGhost`], [`Error::PageLost`].
    pub fn prefetch<T>(&self, range: *const [T]) -> Result<usize, Error> {
        let (address, len) = parts(range);
        self.engine()
            .prefetch(address, len)
            .map_err(|error| match error.errno {
                5 => Error::PageLost { address },
                _ => Error::NotGhost { address },
            })
    }

    /// Evicts the pages of a range now; how many pages it was.
    ///
    /// # Errors
    /// [`Error::NotGhost`].
    pub fn evict<T>(&self, range: *const [T]) -> Result<usize, Error> {
        let (address, len) = parts(range);
        self.engine()
            .evict(address, len)
            .map_err(|_| Error::NotGhost { address })
    }

    /// Evicts the page that reclaim would take next; `false` when there is
    /// none. (The seed's `EvictLRUPage`.)
    ///
    /// # Errors
    /// [`Error::Os`] when no working memory can be had.
    pub fn evict_coldest(&self) -> Result<bool, Error> {
        Ok(self.engine().evict_coldest()?)
    }

    /// Makes the pages of a range the next to leave.
    ///
    /// # Errors
    /// [`Error::NotGhost`].
    pub fn make_cold<T>(&self, range: *const [T]) -> Result<(), Error> {
        let (address, len) = parts(range);
        self.engine()
            .make_cold(address, len)
            .map_err(|_| Error::NotGhost { address })
    }

    /// Forgets the contents of the whole pages inside a range: they read as
    /// zero afterwards and cost nothing. Pinned pages are left alone.
    ///
    /// # Safety
    /// The bytes change under whoever refers to them, so nobody may.
    ///
    /// # Errors
    /// [`Error::NotGhost`].
    pub unsafe fn discard<T>(&self, range: *mut [T]) -> Result<(), Error> {
        let (address, len) = parts(range.cast_const());
        self.engine()
            .discard(address, len)
            .map_err(|_| Error::NotGhost { address })
    }

    /// Whether a file descriptor is one of the engine's own: one that a program
    /// which closes what it did not open must leave alone. Lock-free,
    /// async-signal-safe.
    #[must_use]
    #[cfg(not(windows))]
    pub fn owns_descriptor(fd: i32) -> bool {
        ghostmem_os::descriptor::is_ours(fd)
    }

    /// Leaves a number to the program that the engine only keeps in reserve for
    /// forks, as the program is about to put a file of its own there; `false` when
    /// it is none of those. Lock-free, async-signal-safe.
    #[must_use]
    #[cfg(not(windows))]
    pub fn cede_descriptor(fd: i32) -> bool {
        ghostmem_os::descriptor::cede(fd)
    }

    /// Calls `call` while the process has none of the heap's threads, and starts them again:
    /// for what the kernel does only for a process of one thread, such as unshare(2) of the
    /// user namespace, and setns(2). The heap goes on meanwhile, and also where a thread
    /// cannot be started again. The fault monitor's thread stays, as it serves the faults.
    ///
    /// A thread that has ended may be counted by the kernel for a moment longer: ask again
    /// where the call is refused.
    ///
    /// ```
    /// # use ghostmem::Heap;
    /// let heap = Heap::builder().resident_limit(1 << 20).build()?;
    /// let answer = heap.without_threads(|| 42);
    /// assert_eq!(answer, 42);
    /// # Ok::<(), ghostmem::Error>(())
    /// ```
    #[cfg(not(windows))]
    pub fn without_threads<R>(&self, call: impl FnOnce() -> R) -> R {
        self.engine().without_threads(call)
    }

    /// Puts the fault handlers back in place after the program installed its
    /// own for SIGBUS or SIGSEGV; those get what is not ours.
    ///
    /// # Errors
    /// [`Error::Os`].
    pub fn rearm() -> Result<(), Error> {
        Ok(ghostmem_fault::rearm()?)
    }
}

impl core::fmt::Debug for Heap {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        let stats = self.stats();
        f.debug_struct("Heap")
            .field("backend", &self.backend())
            .field("resident_bytes", &stats.resident_bytes)
            .field("resident_limit_bytes", &stats.resident_limit_bytes)
            .finish_non_exhaustive()
    }
}

pub(crate) fn parts<T>(range: *const [T]) -> (usize, usize) {
    (range.cast::<u8>().addr(), range.len() * size_of::<T>())
}
