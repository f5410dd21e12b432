//! GhostMem itself, with a chosen fault backend.

use std::alloc::Layout;
use std::path::Path;
use std::ptr::NonNull;
use std::sync::Arc;

use ghostmem::{Backend, Heap, HeapBuilder, Spill};
use serde_json::Value;

use super::{BACKENDS, Contender, Figures, Probe};
use crate::blocks::{Block, GhostBlock};
use crate::buffer::{Buffer, PAGE_SIZE};
use crate::cgroup::Cgroup;
use crate::error::{Error, Result};
use crate::report::status_bytes;

/// How much of a limit on everything stays uncompressed: a sixteenth. The more is
/// compressed, the less is on the disk, and that is what costs.
const RESIDENT_SHARE: u64 = 16;

/// A heap made for measuring: it lives as long as the process.
pub(crate) fn heap(backend: &str, resident: u64) -> Result<&'static Heap> {
    build(backend, builder(backend, resident)?)
}

fn build(backend: &str, builder: HeapBuilder) -> Result<&'static Heap> {
    let heap = builder
        .build()
        .map_err(|err| Error::Skipped(format!("backend {backend}: {err}")))?;
    Ok(Box::leak(Box::new(heap)))
}

fn builder(backend: &str, resident: u64) -> Result<HeapBuilder> {
    let chosen = match backend {
        "auto" => Backend::Auto,
        "inline" => Backend::Inline,
        "monitor" => Backend::Monitor,
        "guard" => Backend::Guard,
        "guard-mprotect" => Backend::GuardMprotect,
        other => return Err(Error::Failed(format!("no backend named {other}"))),
    };
    let resident = usize::try_from(resident).unwrap_or(usize::MAX);
    Ok(Heap::builder().resident_limit(resident).backend(chosen))
}

/// A heap with a file in `dir`: everything within `limit` bytes of memory, or, if
/// the file is to stay idle, `limit` bytes uncompressed and no limit on the rest.
fn spilling_heap(limit: u64, dir: &Path, idle: bool) -> Result<&'static Heap> {
    let name = BACKENDS[0];
    let spill = Spill::dir(dir);
    let builder = if idle {
        builder(name, limit)?.spill(spill.store_limit(usize::MAX))
    } else {
        let all = usize::try_from(limit).unwrap_or(usize::MAX);
        builder(name, limit / RESIDENT_SHARE)?
            .heap_limit(all)
            .spill(spill)
    };
    build(name, builder)
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
        Self::on(heap(backend, resident)?, before, pages)
    }

    /// The same on a heap with a file in `dir`, see [`spilling_heap`], within
    /// `bound` bytes.
    pub(crate) fn open_spilling(
        group: Option<Cgroup>,
        bound: u64,
        pages: u32,
        limit: u64,
        dir: &Path,
        idle: bool,
    ) -> Result<Self> {
        let charged = match &group {
            Some(group) => {
                let charged = group.usage()?;
                group.forbid_swap();
                group.set_limit(charged + bound)?;
                charged
            }
            None => 0,
        };
        let before = status_bytes("VmRSS");
        let ghost = Self::on(spilling_heap(limit, dir, idle)?, before, pages)?;
        Ok(Self {
            group: group.map(|group| (Arc::new(group), charged)),
            ..ghost
        })
    }

    fn on(heap: &'static Heap, before: u64, pages: u32) -> Result<Self> {
        let layout = Layout::from_size_align(pages as usize * PAGE_SIZE, PAGE_SIZE)
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
        let range =
            NonNull::slice_from_raw_parts(self.block.base(), self.pages as usize * PAGE_SIZE);
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
        let figures = stats.figures().map(|figure| (figure.name, figure.value));
        // What the records have called the two since before they were figures.
        figures
            .chain([
                ("fault_ns_p50", stats.fault_p50_ns()),
                ("fault_ns_p99", stats.fault_p99_ns()),
            ])
            .map(|(name, value)| (name.to_owned(), Value::from(value)))
            .collect()
    }
}
