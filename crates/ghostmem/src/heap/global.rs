//! The process's shared heap: made once, by whoever needs it first.

use core::sync::atomic::{AtomicUsize, Ordering};
use std::sync::OnceLock;

use ghostmem_os::{futex, thread};
use ghostmem_small::fork;

use super::Heap;
use crate::{Error, HeapBuilder, MemorySize, from_environment, slowdown_from_environment};

static GLOBAL: OnceLock<Heap> = OnceLock::new();
/// [`thread::key`] of the thread that builds the global heap, or 0.
static BUILDING: AtomicUsize = AtomicUsize::new(0);

impl Heap {
    /// The process's shared heap, made at the first call. What it may take, first match:
    ///
    /// 1. the settings that [`HeapBuilder::install_global`] was given before;
    /// 2. `GHOSTMEM_MEMORY` of the environment: `64M`, `25%` or `auto`;
    /// 3. what [`GhostAlloc::with_memory`] says, where that is the global allocator;
    /// 4. [`MemorySize::Auto`].
    ///
    /// `GHOSTMEM_LIMIT`, which takes the same, is a resident limit beside 2 to 4, and
    /// `GHOSTMEM_SLOWDOWN` (`5%`) is [`HeapBuilder::slowdown`].
    ///
    /// # Errors
    /// As [`HeapBuilder::build`]; [`Error::Environment`] when a variable cannot be read;
    /// [`Error::Reentered`] when called while this thread is building it.
    ///
    /// [`GhostAlloc::with_memory`]: crate::GhostAlloc::with_memory
    /// [`MemorySize::Auto`]: crate::MemorySize::Auto
    pub fn global() -> Result<&'static Self, Error> {
        Self::global_or(MemorySize::Auto)
    }

    /// The same; the environment may say what `memory` is instead.
    pub(crate) fn global_or(memory: MemorySize) -> Result<&'static Self, Error> {
        if let Some(heap) = GLOBAL.get() {
            return Ok(heap);
        }
        Self::make_global(|| Self::build_global(memory), Ok)
    }

    /// Makes the global heap of a builder's settings.
    pub(crate) fn install(builder: HeapBuilder) -> Result<&'static Self, Error> {
        Self::make_global(|| builder.build(), |_| Err(Error::AlreadyGlobal))
    }

    /// Makes the global heap, or says what to make of the one that is there.
    fn make_global(
        build: impl FnOnce() -> Result<Self, Error>,
        there: impl Fn(&'static Self) -> Result<&'static Self, Error>,
    ) -> Result<&'static Self, Error> {
        // A child must not wait for a thread that does not exist there.
        let _no_fork = fork::keep_out();
        let mut tries = 0_u32;
        loop {
            if let Some(heap) = GLOBAL.get() {
                return there(heap);
            }
            let me = thread::key();
            match BUILDING.compare_exchange(0, me, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => break,
                Err(builder) if builder == me => return Err(Error::Reentered),
                Err(_) => {
                    futex::pause(tries);
                    tries = tries.saturating_add(1);
                }
            }
        }
        let result = match GLOBAL.get() {
            Some(heap) => there(heap),
            None => build().map(|heap| GLOBAL.get_or_init(|| heap)),
        };
        BUILDING.store(0, Ordering::Release);
        result
    }

    /// The process's shared heap, if it exists already.
    pub(crate) fn global_if_built() -> Option<&'static Self> {
        GLOBAL.get()
    }

    fn build_global(memory: MemorySize) -> Result<Self, Error> {
        // Allocates a little: with a global allocator on this heap, from the
        // system, as the heap does not exist yet.
        let asked = from_environment("GHOSTMEM_MEMORY")?;
        let limit = from_environment("GHOSTMEM_LIMIT")?;
        let mut builder = Self::builder().memory(asked.unwrap_or(memory));
        // An automatic limit is what memory leaves.
        if let Some(limit @ (MemorySize::Bytes(_) | MemorySize::Percent(_))) = limit
            && let Some(bytes) = limit.bytes()
        {
            builder = builder.resident_limit(bytes);
        }
        if let Some(ppm) = slowdown_from_environment()? {
            builder = builder.slowdown(f64::from(ppm) / 1e4);
        }
        builder.build()
    }
}
