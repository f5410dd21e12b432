//! A region as the pager sees it: words, resident set and pins beside the
//! backend's mapping.

use core::sync::atomic::{AtomicU32, AtomicUsize, Ordering};

use ghostmem_fault::{Home, Opened, Region as Mapped};
use ghostmem_os::OsError;
use ghostmem_os::map::ZeroArray;
use ghostmem_os::shards::LineStart;
use ghostmem_os::touched::Touched;
use ghostmem_store::Owner;
use ghostmem_table::{AtomicU64, PageTable};

use crate::parts::blocks::BlockSpace;
use crate::parts::holes::Holes;
use crate::parts::protecting::Protecting;
use crate::parts::resident::ResidentSet;

/// Pages in a region are numbered with this many bits, so that a region and a
/// page fit in the 40 bits of a [`PageId`].
const PAGE_BITS: u32 = 32;

/// What faults read lies apart from what evictors and allocations write.
#[repr(C)]
pub(crate) struct Region {
    pub(crate) mapped: Mapped,
    pub(crate) table: PageTable<ZeroArray<AtomicU64>>,
    pub(crate) resident: ResidentSet,
    /// How often each page is pinned; touched only where pages are.
    pub(crate) pins: ZeroArray<AtomicU32>,
    /// Memory behind `pins`.
    pub(crate) pins_touched: Touched,
    /// Pages with at least one pin.
    pub(crate) pinned_pages: AtomicUsize,
    pub(crate) index: u32,
    /// Which pages belong to blocks; `None` when somebody else (the small
    /// object allocator) hands them out.
    pub(crate) blocks: Option<BlockSpace>,
    /// Pages of blocks that their owner does not have any more.
    pub(crate) holes: Holes,
    _written: LineStart,
    /// Evictors that protect its pages.
    pub(crate) protecting: Protecting,
}

impl Region {
    pub(crate) fn new(
        backend: Opened,
        home: Home,
        index: u32,
        with_blocks: bool,
    ) -> Result<Self, OsError> {
        let mapped = Mapped::new(backend, home)?;
        let pages = mapped.span().pages();
        assert!(pages <= 1 << PAGE_BITS, "a region has at most 2^32 pages");
        Ok(Self {
            table: PageTable::new(ZeroArray::new(pages)?),
            resident: ResidentSet::new(pages)?,
            pins: ZeroArray::new(pages)?,
            pins_touched: Touched::new::<AtomicU32>(pages)?,
            pinned_pages: AtomicUsize::new(0),
            blocks: if with_blocks {
                Some(BlockSpace::new(pages)?)
            } else {
                None
            },
            holes: Holes::new(pages)?,
            mapped,
            index,
            _written: LineStart,
            protecting: Protecting::new(),
        })
    }

    pub(crate) fn pages(&self) -> usize {
        self.table.pages()
    }

    pub(crate) fn base(&self) -> usize {
        self.mapped.span().base()
    }

    /// Whether a page may be touched: it is part of a block, or of memory
    /// handed out by somebody else, no hole in it, and its place was not given away.
    pub(crate) fn is_allocated(&self, page: usize) -> bool {
        let is_handed_out = self
            .blocks
            .as_ref()
            .is_none_or(|blocks| blocks.block_of(page).is_some());
        is_handed_out && self.holes.of(page).is_none() && !self.mapped.is_away(page)
    }

    /// The page's number, unique in the heap.
    pub(crate) fn id(&self, page: usize) -> PageId {
        PageId::new(self.index, page)
    }

    /// Memory this region's tables take now, bytes, at most: from counters, in
    /// constant time.
    pub(crate) fn metadata_bytes(&self) -> usize {
        self.resident.metadata_bytes()
            + self.mapped.metadata_bytes()
            + self.pins_touched.bytes()
            + self.holes.metadata_bytes()
            + self.blocks.as_ref().map_or(0, BlockSpace::metadata_bytes)
    }

    /// Whether a page of the range is pinned. Looks only where pages ever were.
    pub(crate) fn has_pins_in(&self, first: usize, end: usize) -> bool {
        let group = ghostmem_os::PAGE_SIZE / size_of::<AtomicU32>();
        self.has_pins()
            && self.pins_touched.pages().any(|at| {
                let start = (at * group).max(first);
                (start..((at + 1) * group).min(end))
                    .any(|page| self.pins[page].load(Ordering::SeqCst) > 0)
            })
    }

    pub(crate) fn has_pins(&self) -> bool {
        self.pinned_pages.load(Ordering::Relaxed) > 0
    }
}

/// A page of a heap, by region and number there: 40 bits, which the tiers keep beside
/// the page's bytes as their [`Owner`].
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub(crate) struct PageId(Owner);

impl PageId {
    pub(crate) fn new(region: u32, page: usize) -> Self {
        Self(Owner::new((u64::from(region) << PAGE_BITS) | page as u64))
    }

    /// The page whose bytes a tier keeps; nonsense where the tier has it from a slot
    /// that changed meanwhile.
    pub(crate) const fn of(owner: Owner) -> Self {
        Self(owner)
    }

    pub(crate) const fn owner(self) -> Owner {
        self.0
    }

    pub(crate) const fn get(self) -> u64 {
        self.0.get()
    }

    /// The region's number; there may be no such region.
    pub(crate) const fn region(self) -> usize {
        (self.get() >> PAGE_BITS) as usize
    }

    /// The page's number in the region; it may be beyond the region's end.
    pub(crate) const fn page(self) -> usize {
        (self.get() & ((1 << PAGE_BITS) - 1)) as usize
    }
}
