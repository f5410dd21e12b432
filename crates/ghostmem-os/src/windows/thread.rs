//! Threads of the engine, and who is running.

use core::ffi::c_void;

use windows_sys::Win32::Foundation::{CloseHandle, HANDLE};
use windows_sys::Win32::System::Threading::{
    CreateThread, GetCurrentProcessorNumber, GetCurrentThreadId, INFINITE,
    STACK_SIZE_PARAM_IS_A_RESERVATION, SwitchToThread, WaitForSingleObject,
};

use crate::error::OsError;
use crate::map::MapArc;
use crate::shards;

/// Gives up the processor. Safe in an exception handler.
pub fn yield_now() {
    // SAFETY: no preconditions.
    unsafe { SwitchToThread() };
}

/// A number that differs between live threads of the process: the address of
/// the thread's environment block. One instruction, safe in an exception
/// handler.
#[must_use]
pub fn key() -> usize {
    let block: usize;
    // SAFETY: on x86-64 Windows %gs:0x30 is the block's own address.
    unsafe {
        core::arch::asm!("mov {}, gs:[0x30]", out(reg) block, options(nostack, preserves_flags, readonly));
    }
    block
}

/// A place among `count` counters that are kept apart so that processors do not
/// share a cache line: that of the processor the thread runs on now. A later
/// call may give another. Safe in an exception handler.
///
/// # Panics
/// When `count` is 0.
#[must_use]
pub fn shard(count: usize) -> usize {
    // SAFETY: no preconditions.
    let processor = unsafe { GetCurrentProcessorNumber() };
    shards::of_processor(processor as usize, count)
}

/// The system's id of the calling thread. Safe in an exception handler.
#[must_use]
pub fn tid() -> u32 {
    // SAFETY: no preconditions.
    unsafe { GetCurrentThreadId() }
}

/// On systems with signals: all of them blocked while this value lives. Windows
/// runs nothing of the program's on a thread that does not ask for it, and the
/// engine never waits alertably.
#[derive(Debug, Default)]
pub struct SignalsBlocked;

impl SignalsBlocked {
    /// Nothing to block.
    #[must_use]
    pub const fn new() -> Self {
        Self
    }

    /// Nothing to block.
    #[must_use]
    pub const fn all_but_faults() -> Self {
        Self
    }
}

/// Where it ends is where signals come again elsewhere.
impl Drop for SignalsBlocked {
    fn drop(&mut self) {}
}

/// A running engine thread, to be joined.
#[derive(Debug)]
pub struct EngineThread {
    handle: HANDLE,
}

// SAFETY: a thread's handle means the same on every thread of the process.
unsafe impl Send for EngineThread {}
// SAFETY: as above; nothing is changed through a shared reference.
unsafe impl Sync for EngineThread {}

impl EngineThread {
    /// Starts a thread that calls `body(&shared)`, holding one handle of
    /// `shared` until it ends.
    ///
    /// Not `std::thread`: that allocates from the program's allocator, which
    /// may be a ghost heap, and an engine thread must own no ghost memory.
    ///
    /// # Errors
    /// The system's refusal of memory or of the thread.
    pub fn spawn_with<T: Send + Sync + 'static>(
        _name: &core::ffi::CStr,
        shared: MapArc<T>,
        body: fn(&T),
    ) -> Result<Self, OsError> {
        const STACK_BYTES: usize = 256 * 1024;
        struct Start<T: Send + Sync + 'static> {
            shared: MapArc<T>,
            body: fn(&T),
        }
        unsafe extern "system" fn run<T: Send + Sync + 'static>(start: *mut c_void) -> u32 {
            // SAFETY: `spawn_with` gave up exactly this handle to us.
            let start: MapArc<Start<T>> = unsafe { MapArc::from_raw(start.cast()) };
            (start.body)(&start.shared);
            0
        }
        let start = MapArc::new(Start { shared, body })?;
        let raw = MapArc::into_raw(start);
        // SAFETY: `run` has the required signature and takes what `raw` is.
        let handle = unsafe {
            CreateThread(
                core::ptr::null(),
                STACK_BYTES,
                Some(run::<T>),
                raw.cast(),
                STACK_SIZE_PARAM_IS_A_RESERVATION,
                core::ptr::null_mut(),
            )
        };
        if handle.is_null() {
            let error = OsError::last("CreateThread");
            // SAFETY: no thread was made that could have taken it.
            drop(unsafe { MapArc::<Start<T>>::from_raw(raw) });
            return Err(error);
        }
        Ok(Self { handle })
    }

    /// Waits for the thread to end.
    pub fn join(self) {
        // SAFETY: the handle is ours and still open.
        unsafe { WaitForSingleObject(self.handle, INFINITE) };
    }

    /// Gives up the handle of a thread that does not exist in this process:
    /// never the case where there is no fork.
    pub fn forget_after_fork(self) {}
}

impl Drop for EngineThread {
    fn drop(&mut self) {
        // SAFETY: our own handle, closed once; the thread is not affected.
        unsafe { CloseHandle(self.handle) };
    }
}

/// Registers handlers that run around every fork of the process: there is none.
///
/// # Errors
/// Never.
pub const fn at_fork(
    _prepare: extern "C" fn(),
    _parent: extern "C" fn(),
    _child: extern "C" fn(),
) -> Result<(), OsError> {
    Ok(())
}
