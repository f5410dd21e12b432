//! Blocks of whole pages, and the regions they come from.

use core::sync::atomic::Ordering;

use ghostmem_fault::Home;
use ghostmem_os::error::ENOMEM;
use ghostmem_os::map::{Access, MapArc, Reservation};
use ghostmem_os::{OsError, PAGE_SIZE, machine};

use crate::parts::config::LIMIT_PAGES_MIN;
use crate::parts::engine::{Engine, REGION_ALIGN};

/// Address space asked for when a heap needs its first region of blocks;
/// halved until the kernel agrees.
const REGION_BYTES: usize = 1 << 36;

/// The least, where address space is scarce.
const REGION_BYTES_MIN: usize = 4 << 20;

impl Engine {
    /// Allocates a block of whole pages, all zero; its first address.
    ///
    /// # Errors
    /// `ENOMEM` when there is no address space, or the memory limit would not
    /// hold it.
    pub fn allocate(
        this: &MapArc<Self>,
        pages: usize,
        align_pages: usize,
    ) -> Result<usize, OsError> {
        let full = OsError::new("allocate", ENOMEM);
        let bytes = pages.checked_mul(PAGE_SIZE).ok_or(full)?;
        this.allocated.fetch_add(bytes, Ordering::Relaxed);
        this.admit(0)
            .and_then(|()| Self::place(this, pages, align_pages))
            .inspect_err(|_| this.note_freed(bytes))
    }

    /// Finds room for a block that was admitted, in a new region if need be.
    pub(crate) fn place(
        this: &MapArc<Self>,
        pages: usize,
        align_pages: usize,
    ) -> Result<usize, OsError> {
        let full = OsError::new("allocate", ENOMEM);
        loop {
            for region in this.regions() {
                // Runs are aligned within their region: its start must be too.
                let aligned = region.base().is_multiple_of(align_pages * PAGE_SIZE);
                if !aligned {
                    continue;
                }
                let run = region
                    .blocks
                    .as_ref()
                    .and_then(|b| b.allocate(pages, align_pages));
                if let Some(run) = run {
                    return Ok(region.base() + run.first * PAGE_SIZE);
                }
            }
            let room = pages
                .checked_add(align_pages)
                .and_then(usize::checked_next_power_of_two);
            let least = room
                .and_then(|pages| pages.checked_mul(PAGE_SIZE))
                .ok_or(full)?;
            let most = region_bytes();
            let least = least.max(REGION_BYTES_MIN);
            let mut bytes = most.max(least);
            // The block itself may need more alignment than a region has.
            let align = (align_pages * PAGE_SIZE).max(REGION_ALIGN);
            loop {
                let made = Reservation::new(bytes, align, Access::ReadWrite)
                    .and_then(|reservation| Self::add_region(this, Home::Own(reservation), true));
                match made {
                    Ok(_) => break,
                    Err(_) if bytes / 2 >= least => bytes /= 2,
                    Err(error) => return Err(error),
                }
            }
        }
    }

    /// Changes the resident limit; excess pages leave as the heap is used, or
    /// in the background.
    pub fn set_limit_pages(&self, pages: usize) {
        let pages = i64::try_from(pages.max(LIMIT_PAGES_MIN)).unwrap_or(i64::MAX);
        if let Some(slowed) = &self.slowdown {
            slowed.set_most_pages(pages);
        }
        match &self.bound {
            Some(bound) => {
                bound.set_most_pages(pages);
                self.look();
            }
            None => self.budget.set_limit(pages.min(self.slowed_pages())),
        }
        self.share_store();
        self.wake_worker();
    }
}

/// [`REGION_BYTES`], or a quarter of the address space that the process may have yet:
/// the program needs some itself.
fn region_bytes() -> usize {
    let quarter = machine::address_space_left().map_or(usize::MAX, |left| {
        usize::try_from(left / 4).unwrap_or(usize::MAX)
    });
    if quarter >= REGION_BYTES {
        return REGION_BYTES;
    }
    1 << quarter.max(REGION_BYTES_MIN).ilog2()
}
