//! GhostMem itself, with a chosen fault backend.

use std::alloc::Layout;
use std::ptr::NonNull;
use std::sync::Arc;

use ghostmem::{Backend, Heap};
use serde_json::{Value, json};

use super::{Contender, Figures, Probe};
use crate::blocks::{Block, GhostBlock};
use crate::buffer::{Buffer, PAGE};
use crate::cgroup::Cgroup;
use crate::error::{Error, Result};
use crate::report::status_bytes;

/// A heap made for measuring: it lives as long as the process.
pub(crate) fn heap(backend: &str, resident: u64) -> Result<&'static Heap> {
    let chosen = match backend {
        "auto" => Backend::Auto,
        "inline" => Backend::Inline,
        "monitor" => Backend::Monitor,
        "guard" => Backend::Guard,
        "guard-mprotect" => Backend::GuardMprotect,
        other => return Err(Error::Failed(format!("no backend named {other}"))),
    };
    let resident = usize::try_from(resident).unwrap_or(usize::MAX);
    let heap = Heap::builder()
        .resident_limit(resident)
        .backend(chosen)
        .build()
        .map_err(|err| Error::Skipped(format!("backend {backend}: {err}")))?;
    Ok(Box::leak(Box::new(heap)))
}

/// Everything but the peak, which only the kernel knows.
pub(crate) fn store_figures(heap: &Heap) -> Figures {
    let stats = heap.stats();
    Figures {
        resident: stats.resident_bytes as u64,
        data: stats.store_data_bytes as u64,
        held: stats.store_held_bytes as u64,
        metadata: stats.metadata_bytes as u64,
        peak: 0,
    }
}

/// One large allocation on a heap with a limit.
#[derive(Debug)]
pub(crate) struct Ghost {
    heap: &'static Heap,
    block: GhostBlock<'static>,
    pages: u32,
    /// Bytes resident before the heap was made.
    before: u64,
    /// The cgroup that proves the limit, and what it was charged before.
    group: Option<(Arc<Cgroup>, u64)>,
}

impl Ghost {
    /// Allocates `pages` pages on a heap that keeps `resident` bytes
    /// uncompressed.
    pub(crate) fn open(backend: &str, pages: u32, resident: u64) -> Result<Self> {
        let before = status_bytes("VmRSS");
        let heap = heap(backend, resident)?;
        let layout = Layout::from_size_align(pages as usize * PAGE, PAGE)
            .map_err(|err| Error::Failed(err.to_string()))?;
        let block = GhostBlock::new(heap, layout)
            .map_err(|err| Error::Failed(format!("allocating the buffer: {err}")))?;
        Ok(Self {
            heap,
            block,
            pages,
            before,
            group: None,
        })
    }

    /// The same inside `group`, which the caller has joined: no more than
    /// `bound` bytes are charged to it from here on, or the kernel ends the
    /// process. Nothing may be swapped.
    pub(crate) fn open_in(
        group: Cgroup,
        bound: u64,
        backend: &str,
        pages: u32,
        resident: u64,
    ) -> Result<Self> {
        let charged = group.usage()?;
        group.forbid_swap();
        group.set_limit(charged + bound)?;
        let ghost = Self::open(backend, pages, resident)?;
        Ok(Self {
            group: Some((Arc::new(group), charged)),
            ..ghost
        })
    }

    /// The heap the buffer is on.
    pub(crate) fn heap(&self) -> &'static Heap {
        self.heap
    }

    /// Compresses the whole buffer away.
    pub(crate) fn evict_all(&self) -> Result<()> {
        let range = NonNull::slice_from_raw_parts(self.block.base(), self.pages as usize * PAGE);
        self.heap
            .evict(range.as_ptr().cast_const())
            .map(drop)
            .map_err(|err| Error::Failed(format!("evict: {err}")))
    }
}

impl Contender for Ghost {
    fn buffer(&self) -> Buffer<'_> {
        self.block.buffer(self.pages)
    }

    fn settle(&mut self) -> Result<()> {
        Ok(())
    }

    fn forget(&mut self) -> Result<()> {
        self.block
            .forget()
            .map_err(|err| Error::Failed(format!("discard: {err}")))
    }

    fn faults(&self) -> u64 {
        self.heap.stats().faults
    }

    fn probe(&self) -> Probe {
        let (heap, before, group) = (self.heap, self.before, self.group.clone());
        Box::new(move || {
            let peak = match &group {
                Some((group, charged)) => group.peak()?.saturating_sub(*charged),
                None => status_bytes("VmHWM").saturating_sub(before),
            };
            Ok(Figures {
                peak,
                ..store_figures(heap)
            })
        })
    }

    fn counters(&self) -> Value {
        let stats = self.heap.stats();
        json!({
            "faults": stats.faults,
            "refaults": stats.refaults,
            "write_faults": stats.write_faults,
            "evictions_clean": stats.evictions_clean,
            "evictions_dirty": stats.evictions_dirty,
            "evictions_cancelled": stats.evictions_cancelled,
            "readahead_pages": stats.readahead_pages,
            "readahead_hits": stats.readahead_hits,
            "direct_reclaims": stats.direct_reclaims,
            "overdrafts": stats.overdrafts,
            "fault_ns_p50": stats.fault_latency.percentile(50.0),
            "fault_ns_p99": stats.fault_latency.percentile(99.0),
        })
    }
}
