//! Pages taken out of a block, and given back to it.
//!
//! ```text
//!   reserve ─► hole ── open_holes ─► empty ── touch ─► resident ...
//!               ▲                      │                  │
//!               ├──── close_empty ─────┘                  │
//!               └──── make_holes ◄────────────────────────┘
//! ```
//! A hole does not count as handed out.

use core::sync::atomic::{Ordering, fence};

use ghostmem_os::error::EAGAIN;
use ghostmem_os::map::MapArc;
use ghostmem_os::{OsError, PAGE_SIZE, futex};
use ghostmem_table::PageState;

use crate::calls::discard::Left;
use crate::parts::engine::Engine;
use crate::parts::holes::Hole;
use crate::parts::region::Region;

impl Engine {
    /// Makes holes of the pages of a range: their contents are gone, and so is a lock on
    /// them; a touch is refused until [`Engine::fill_holes`], or until their block is
    /// freed. Pinned pages keep their frames, and can be touched.
    ///
    /// # Errors
    /// `EINVAL` when the range is not this engine's.
    pub fn make_holes(&self, address: usize, len: usize, hole: Hole) -> Result<(), OsError> {
        let (region, first, end) = self.pages_of("make_holes", address, len)?;
        let made = region.holes.make(first, end, hole);
        self.note_freed(made * PAGE_SIZE);
        self.note_closed(made);
        // Pairs with the one in `keep_allocated`: no fault claims an empty page of the
        // range after we passed it.
        fence(Ordering::SeqCst);
        self.discard_pages(region, first, end, true)?;
        if !region.has_pins_in(first, end) {
            bar_for_kernel(region, first, end);
        }
        Ok(())
    }

    /// Gives the holes of a range back to their blocks, as zero pages. Those that were given
    /// away stay what they are: [`Engine::retake`] finds them closed.
    ///
    /// # Errors
    /// `EINVAL` when the range is not this engine's; `ENOMEM` when the process has no
    /// mapping left.
    pub fn fill_holes(&self, address: usize, len: usize) -> Result<(), OsError> {
        let (region, first, end) = self.pages_of("fill_holes", address, len)?;
        for (first, end) in own_parts(region, first, end) {
            unbar_for_kernel(region, first, end)?;
            self.note_allocated(region.holes.fill(first, end) * PAGE_SIZE);
        }
        Ok(())
    }

    /// As [`Engine::fill_holes`], if the memory limit holds them.
    ///
    /// # Errors
    /// `EINVAL` when the range is not this engine's; `ENOMEM` when the memory limit does
    /// not hold what is opened: nothing is then.
    pub fn open_holes(&self, address: usize, len: usize) -> Result<(), OsError> {
        let (region, first, end) = self.pages_of("open", address, len)?;
        let mut holes = 0;
        for (mut page, end) in own_parts(region, first, end) {
            while page < end {
                let next = region.holes.run_end(page, end);
                holes += if region.holes.of(page).is_some() {
                    next - page
                } else {
                    0
                };
                page = next;
            }
        }
        self.note_allocated(holes * PAGE_SIZE);
        self.unwritten.note(holes, self.written_pages());
        // Counted until the pages are: of two that ask at once one sees the other.
        let filled = self.admit(0).and_then(|()| self.fill_holes(address, len));
        self.note_freed(holes * PAGE_SIZE);
        filled.inspect_err(|_| self.note_closed(holes))
    }

    /// Reserves a block of whole pages, all closed; its first address. The memory limit
    /// is not asked: pages count when they are opened.
    ///
    /// # Errors
    /// `ENOMEM` when there is no address space.
    pub fn reserve(
        this: &MapArc<Self>,
        pages: usize,
        align_pages: usize,
    ) -> Result<usize, OsError> {
        let address = Self::place(this, pages, align_pages)?;
        this.note_allocated(pages * PAGE_SIZE);
        this.make_holes(address, pages * PAGE_SIZE, Hole::Closed)?;
        Ok(address)
    }

    /// Closes those pages of a range that are empty; how many bytes of it stay open, as
    /// their pages have contents.
    ///
    /// # Errors
    /// `EINVAL` when the range is not this engine's.
    pub fn close_empty(&self, address: usize, len: usize) -> Result<usize, OsError> {
        let (region, first, end) = self.pages_of("close", address, len)?;
        let made = region.holes.make(first, end, Hole::Closed);
        // As in `make_holes`: either a fault sees the hole, or we see its claim.
        fence(Ordering::SeqCst);
        let (mut page, mut full) = (first, 0);
        while let Some((written, group_end)) = region.resident.next_written(page, end) {
            for page in written..group_end {
                if has_contents(region, page) {
                    full += region.holes.fill(page, page + 1);
                }
            }
            page = group_end;
        }
        bar_for_kernel(region, first, end);
        self.note_freed(made * PAGE_SIZE);
        self.note_closed(made);
        self.note_allocated(full * PAGE_SIZE);
        Ok(full * PAGE_SIZE)
    }

    /// Gives the pages of a range to another mapping, which the caller puts in their
    /// place: they are closed holes, whatever they held is gone, and nothing acts on their
    /// addresses until [`Engine::retake`], or until their block is freed.
    ///
    /// # Errors
    /// `EINVAL` when the range is not this engine's; `EAGAIN`, with nothing done, when some
    /// of its pages are pinned. The system's refusal to take a frame: contents may be gone.
    pub fn give_away(&self, address: usize, len: usize) -> Result<(), OsError> {
        let busy = OsError::new("give_away", EAGAIN);
        let (region, first, end) = self.pages_of("give_away", address, len)?;
        if region.has_pins_in(first, end) {
            return Err(busy);
        }
        let made = region.holes.make(first, end, Hole::Closed);
        self.note_freed(made * PAGE_SIZE);
        self.note_closed(made);
        // As in `make_holes`.
        fence(Ordering::SeqCst);
        if self.discard_pages(region, first, end, true)? != Left::default() {
            // Pinned just now, or locked by means that are not known here.
            self.note_allocated(region.holes.fill(first, end) * PAGE_SIZE);
            return Err(busy);
        }
        self.quietly_in(region, (first, end), |_, region, (first, end), _| {
            region.mapped.give_away(first, end - first);
        })?;
        // As for a pin: who lost one of these pages to us may be about to protect it.
        region.protecting.wait_for_those_inside();
        Ok(())
    }

    /// Takes what of a range was given away back: closed holes, whatever lay there.
    ///
    /// # Errors
    /// `EINVAL` when the range is not this engine's; the system's refusal: the rest stays
    /// away.
    pub fn retake(&self, address: usize, len: usize) -> Result<(), OsError> {
        let (region, first, end) = self.pages_of("retake", address, len)?;
        let mut page = first;
        loop {
            let start = region.mapped.next_away(page, end, true);
            if start >= end {
                return Ok(());
            }
            page = region.mapped.next_away(start, end, false);
            self.quietly_in(region, (start, page), |_, region, (start, end), _| {
                region.mapped.retake(start, end - start)
            })??;
        }
    }

    /// Whether the page at an address was given away, and how many bytes from there on, of
    /// `len` at most, are like it; `None` for what is not this engine's. Lock-free.
    #[must_use]
    pub fn away_run(&self, address: usize, len: usize) -> Option<(bool, usize)> {
        let (region, first, end) = self.pages_of("look", address, len).ok()?;
        let away = region.mapped.is_away(first);
        let until = region.mapped.next_away(first, end, !away);
        Some((away, (until - first) * PAGE_SIZE))
    }

    /// What the pages from an address on are, and how many bytes of them, of `len` at
    /// most, are alike; `None` for what is not this engine's. Lock-free.
    #[must_use]
    pub fn hole_run(&self, address: usize, len: usize) -> Option<(Option<Hole>, usize)> {
        let (region, first, end) = self.pages_of("look", address, len).ok()?;
        let until = region.holes.run_end(first, end);
        Some((region.holes.of(first), (until - first) * PAGE_SIZE))
    }

    /// The next pages from an address on that have contents, of `len` bytes at most:
    /// first address and bytes. Lock-free; what changes meanwhile is seen or not.
    #[must_use]
    pub fn next_contents(&self, address: usize, len: usize) -> Option<(usize, usize)> {
        let (region, first, end) = self.pages_of("look", address, len).ok()?;
        let is_full = |page: usize| region.table.load(page).state() != PageState::Empty;
        let mut page = first;
        while let Some((written, group_end)) = region.resident.next_written(page, end) {
            if let Some(start) = (written..group_end).find(|&page| is_full(page)) {
                let stop = (start..end).find(|&page| !is_full(page)).unwrap_or(end);
                let at = region.base() + start * PAGE_SIZE;
                return Some((at, (stop - start) * PAGE_SIZE));
            }
            page = group_end;
        }
        None
    }

    /// Whether there ever was a hole. Lock-free.
    #[must_use]
    pub fn has_holes(&self) -> bool {
        self.regions().any(|region| region.holes.any())
    }

    /// Bytes of blocks that are closed. Lock-free.
    #[must_use]
    pub fn closed_bytes(&self) -> usize {
        let pages: usize = self.regions().map(|region| region.holes.closed()).sum();
        pages * PAGE_SIZE
    }

    /// Whether some page of a range is unmapped, or part of no block. Lock-free.
    #[must_use]
    pub fn has_unmapped(&self, address: usize, len: usize) -> bool {
        let Ok((region, first, end)) = self.pages_of("has_unmapped", address, len) else {
            return true;
        };
        let mut page = first;
        while let Some(blocks) = region.blocks.as_ref().filter(|_| page < end) {
            let Some(run) = blocks.block_of(page) else {
                return true;
            };
            page = run.first + run.pages;
        }
        region.holes.is_unmapped_in(first, end)
    }

    /// Why a touch of an address would be refused; `None` where it would not, and for
    /// what is not this engine's. Lock-free, async-signal-safe.
    #[must_use]
    pub fn hole_at(&self, address: usize) -> Option<Hole> {
        let (region, page) = self.locate(address)?;
        region
            .holes
            .of(page)
            .or_else(|| (!region.is_allocated(page)).then_some(Hole::Unmapped))
    }
}

/// The parts of a range that were not given away: first page and end of each.
fn own_parts(
    region: &Region,
    first: usize,
    end: usize,
) -> impl Iterator<Item = (usize, usize)> + '_ {
    let mut page = first;
    core::iter::from_fn(move || {
        let start = region.mapped.next_away(page, end, false);
        page = region.mapped.next_away(start, end, true);
        (start < end).then_some((start, page))
    })
}

/// Has the kernel refuse touches of holes, too, where it would wait for the engine's
/// threads. Where it has no mapping left for that, the program is told by them.
fn bar_for_kernel(region: &Region, first: usize, end: usize) {
    let _told_otherwise = each_run(region, first, end, |page, pages| {
        region.mapped.bar(page, pages, true)
    });
}

/// Ends what [`bar_for_kernel`] did, before holes are filled.
///
/// # Errors
/// The system's refusal.
pub(crate) fn unbar_for_kernel(region: &Region, first: usize, end: usize) -> Result<(), OsError> {
    each_run(region, first, end, |page, pages| {
        region.mapped.bar(page, pages, false)
    })
}

/// Calls `body` with each run of holes, where the kernel waits for the engine's threads.
fn each_run(
    region: &Region,
    first: usize,
    end: usize,
    body: impl Fn(usize, usize) -> Result<(), OsError>,
) -> Result<(), OsError> {
    let mut page = if region.mapped.is_monitored() {
        first
    } else {
        end
    };
    while page < end {
        let next = region.holes.run_end(page, end);
        if region.holes.of(page).is_some() {
            body(page, next - page)?;
        }
        page = next;
    }
    Ok(())
}

/// Whether a page is anything but empty, once whoever is busy with it is done.
fn has_contents(region: &Region, page: usize) -> bool {
    let mut tries = 0_u32;
    loop {
        match region.table.load(page).state() {
            PageState::Empty => return false,
            PageState::Claimed | PageState::Dropping => {
                futex::pause(tries);
                tries = tries.saturating_add(1);
            }
            _ => return true,
        }
    }
}

#[cfg(test)]
mod tests {
    use ghostmem_fault::AccessKind;
    use ghostmem_os::error::EINVAL;

    use super::*;
    use crate::Config;

    fn store(engine: &Engine, address: usize) -> Result<(), OsError> {
        let (region, page) = engine.locate(address).unwrap();
        engine.touch(region, page, AccessKind::Write)
    }

    #[test]
    fn what_is_reserved_is_no_memory_until_it_is_opened() {
        let engine = Engine::new(Config::for_tests(64), None).unwrap();
        let all = 1000 * PAGE_SIZE;
        let block = Engine::reserve(&engine, 1000, 1).unwrap();
        let (fourth, fifth) = (block + 4 * PAGE_SIZE, block + 5 * PAGE_SIZE);
        assert_eq!(engine.allocated_bytes(), 0);
        assert_eq!(store(&engine, fifth).unwrap_err().errno, EINVAL);
        engine.open_holes(fourth, 3 * PAGE_SIZE).unwrap();
        assert_eq!(engine.allocated_bytes(), 3 * PAGE_SIZE);
        store(&engine, fifth).unwrap();
        let run = engine.hole_run(block, all);
        assert_eq!(run, Some((Some(Hole::Closed), 4 * PAGE_SIZE)));
        assert_eq!(engine.next_contents(block, all), Some((fifth, PAGE_SIZE)));
        // What has contents is not lost by it.
        assert_eq!(engine.close_empty(block, all), Ok(PAGE_SIZE));
        assert_eq!(engine.allocated_bytes(), PAGE_SIZE);
        assert!(store(&engine, fourth).is_err());
        store(&engine, fifth).unwrap();
        engine.discard(block, all).unwrap();
        assert_eq!(engine.close_empty(block, all), Ok(0));
        // Whoever gets the pages next may touch them.
        assert_eq!(engine.free(block), Ok(all));
        assert_eq!(engine.allocated_bytes(), 0);
        assert_eq!(Engine::allocate(&engine, 1000, 1), Ok(block));
        (0..1000).for_each(|page| store(&engine, block + page * PAGE_SIZE).unwrap());
        engine.shut_down();
    }

    /// As Java does it: it opens far more than it writes, and ends where that is refused.
    #[cfg(target_os = "linux")]
    #[test]
    fn under_a_bound_what_is_opened_counts_little_until_it_is_written() {
        const MIB: usize = 1 << 20;
        let taken = ghostmem_os::meter::Meter::new().process_bytes().unwrap() as usize;
        // The other tests of this process may take or free 60 MiB.
        let config = Config {
            process_limit_bytes: Some(taken + 256 * MIB),
            store_capacity_bytes: 512 * MIB,
            ..Config::for_tests(1 << 20)
        };
        let engine = Engine::new(config, None).unwrap();
        let pages = |mib: usize| mib * MIB / PAGE_SIZE;
        let block = Engine::reserve(&engine, pages(16 << 10), 1).unwrap();
        // At four to one 512 MiB, which no bound holds here.
        assert!(Engine::allocate(&engine, pages(2048), 1).is_err());
        engine.open_holes(block, 2048 * MIB).unwrap();
        let beside = Engine::allocate(&engine, pages(64), 1).unwrap();
        engine.free(beside).unwrap();
        assert!(engine.open_holes(block, 16 << 30).is_err(), "all of it");
        let left = || engine.unwritten.left(engine.written_pages()) as usize;
        // A block that is freed is taken for a part of it.
        assert_eq!(left(), pages(2048 - 64));
        store(&engine, block).unwrap();
        assert_eq!(left(), pages(2048 - 64) - 1);
        engine.close_empty(block, 1024 * MIB).unwrap();
        assert!(left() < pages(1024 - 64) + 2);
        engine.free(block).unwrap();
        assert_eq!(left(), 0);
        engine.shut_down();
    }

    #[test]
    fn a_page_is_filled_or_closed_and_never_both() {
        const PAGES: usize = 8;
        let engine = Engine::new(Config::for_tests(64), None).unwrap();
        let block = Engine::allocate(&engine, PAGES, 1).unwrap();
        for _ in 0..200 {
            let start = std::sync::Barrier::new(2);
            let (stored, left) = std::thread::scope(|scope| {
                let writer = scope.spawn(|| {
                    start.wait();
                    let pages = (0..PAGES).map(|page| block + page * PAGE_SIZE);
                    pages.filter(|&page| store(&engine, page).is_ok()).count()
                });
                start.wait();
                let left = engine.close_empty(block, PAGES * PAGE_SIZE).unwrap();
                (writer.join().unwrap(), left / PAGE_SIZE)
            });
            // Readahead may have put pages in place beside those.
            assert!(stored <= left, "{stored} pages stored to, {left} left open");
            let (region, first) = engine.locate(block).unwrap();
            for page in first..first + PAGES {
                let is_empty = region.table.load(page).state() == PageState::Empty;
                assert_eq!(region.holes.of(page).is_some(), is_empty);
            }
            engine.discard(block, PAGES * PAGE_SIZE).unwrap();
            engine.open_holes(block, PAGES * PAGE_SIZE).unwrap();
        }
        engine.shut_down();
    }

    #[test]
    fn a_hole_is_not_to_be_had_until_it_is_filled_or_its_block_is_freed() {
        let engine = Engine::new(Config::for_tests(64), None).unwrap();
        let block = Engine::allocate(&engine, 8, 1).unwrap();
        let second = block + PAGE_SIZE;
        engine.pin(block, 8 * PAGE_SIZE).unwrap();
        engine.unpin(block, 8 * PAGE_SIZE).unwrap();
        for hole in [Hole::Unmapped, Hole::Closed] {
            engine.make_holes(second, PAGE_SIZE, hole).unwrap();
            assert_eq!(engine.hole_at(second), Some(hole));
            assert_eq!(engine.hole_at(block), None);
            assert!(engine.pin(second, 1).is_err());
            engine.pin(block, 1).unwrap();
            engine.unpin(block, 1).unwrap();
        }
        engine.fill_holes(second, PAGE_SIZE).unwrap();
        engine.pin(second, 1).unwrap();
        engine.unpin(second, 1).unwrap();
        engine
            .make_holes(second, PAGE_SIZE, Hole::Unmapped)
            .unwrap();
        engine.free(block).unwrap();
        assert_eq!(engine.hole_at(block), Some(Hole::Unmapped));
        // The same place for the next, whole.
        assert_eq!(Engine::allocate(&engine, 8, 1), Ok(block));
        assert_eq!(engine.hole_at(second), None);
        engine.pin(block, 8 * PAGE_SIZE).unwrap();
        engine.unpin(block, 8 * PAGE_SIZE).unwrap();
        engine.shut_down();
    }
}
