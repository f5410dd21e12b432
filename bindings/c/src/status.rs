//! What a call answers: a number, and on request a sentence.
//!
//! The sentence lies in a fixed buffer of each thread, so that saying why an
//! allocation failed allocates nothing.

use core::cell::RefCell;
use core::ffi::{CStr, c_char};
use core::fmt::{self, Write};

use ghostmem::Error;

/// What a call answers; zero is success.
#[repr(i32)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GhostmemStatus {
    /// Done.
    Ok = 0,
    /// A null pointer, or a number that is none of its choices.
    InvalidArgument = 1,
    /// No memory or address space, or the memory limit does not hold it.
    OutOfMemory = 2,
    /// A limit below the smallest that can work.
    LimitTooSmall = 3,
    /// The fault backend asked for, or every one, cannot work here.
    BackendUnavailable = 4,
    /// No live block starts there: freed already, never allocated by this
    /// heap, or the middle of a block.
    NotAllocated = 5,
    /// The range is not ghost memory of this heap.
    NotGhost = 6,
    /// So many pages are pinned that the limit would leave too few for
    /// everything else.
    TooManyPinned = 7,
    /// The contents of a page could not be brought back.
    PageLost = 8,
    /// The default heap exists with other settings than those asked for.
    AlreadyInitialized = 9,
    /// What was asked for does not exist in this version.
    Unsupported = 10,
    /// The kernel refused a call.
    System = 11,
}

impl GhostmemStatus {
    const ALL: [Self; 12] = [
        Self::Ok,
        Self::InvalidArgument,
        Self::OutOfMemory,
        Self::LimitTooSmall,
        Self::BackendUnavailable,
        Self::NotAllocated,
        Self::NotGhost,
        Self::TooManyPinned,
        Self::PageLost,
        Self::AlreadyInitialized,
        Self::Unsupported,
        Self::System,
    ];

    const fn text(self) -> &'static CStr {
        match self {
            Self::Ok => c"success",
            Self::InvalidArgument => c"invalid argument",
            Self::OutOfMemory => c"out of memory",
            Self::LimitTooSmall => c"limit too small",
            Self::BackendUnavailable => c"fault backend unavailable",
            Self::NotAllocated => c"not the start of a live block",
            Self::NotGhost => c"not ghost memory of this heap",
            Self::TooManyPinned => c"too many pages pinned",
            Self::PageLost => c"page lost",
            Self::AlreadyInitialized => c"already initialized",
            Self::Unsupported => c"not supported by this version",
            Self::System => c"system call failed",
        }
    }
}

/// Bytes of a message with its terminator; longer ones are cut.
const MESSAGE_BYTES: usize = 256;

// `ghostmem_last_error` hands out the address of the whole as that of `bytes`.
#[repr(C)]
struct Message {
    bytes: [u8; MESSAGE_BYTES],
    len: usize,
}

impl Write for Message {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        // The last byte stays zero, whatever is written.
        let room = MESSAGE_BYTES - 1 - self.len;
        let taken = text.len().min(room);
        self.bytes[self.len..self.len + taken].copy_from_slice(&text.as_bytes()[..taken]);
        self.len += taken;
        Ok(())
    }
}

thread_local! {
    static LAST: RefCell<Message> = const {
        RefCell::new(Message { bytes: [0; MESSAGE_BYTES], len: 0 })
    };
}

/// Keeps `message` for `ghostmem_last_error` and gives `status` back.
pub(crate) fn refuse(status: GhostmemStatus, message: fmt::Arguments<'_>) -> GhostmemStatus {
    // Refused only while this thread ends, when nobody can ask any more, or
    // from a signal handler that interrupted this very function.
    let _told = LAST.try_with(|last| {
        if let Ok(mut last) = last.try_borrow_mut() {
            *last = Message {
                bytes: [0; MESSAGE_BYTES],
                len: 0,
            };
            // `Message` takes any text.
            let _written = last.write_fmt(message);
        }
    });
    status
}

/// A null pointer where one is needed, or a choice that does not exist.
pub(crate) fn invalid(what: &str) -> GhostmemStatus {
    refuse(GhostmemStatus::InvalidArgument, format_args!("{what}"))
}

pub(crate) fn status_of(result: Result<(), Error>) -> GhostmemStatus {
    let error = match result {
        Ok(()) => return GhostmemStatus::Ok,
        Err(error) => error,
    };
    let status = match error {
        Error::LimitTooSmall { .. } | Error::MemoryTooSmall { .. } => GhostmemStatus::LimitTooSmall,
        Error::MemoryPercent
        | Error::Environment { .. }
        | Error::Slowdown
        | Error::SlowdownWithoutThread
        | Error::EnvironmentSlowdown { .. } => GhostmemStatus::InvalidArgument,
        Error::BackendUnavailable { .. } | Error::NoBackend { .. } | Error::PageSize => {
            GhostmemStatus::BackendUnavailable
        }
        Error::OutOfMemory { .. } => GhostmemStatus::OutOfMemory,
        Error::NotAllocated { .. } => GhostmemStatus::NotAllocated,
        Error::NotGhost { .. } => GhostmemStatus::NotGhost,
        Error::TooManyPinned => GhostmemStatus::TooManyPinned,
        Error::PageLost { .. } => GhostmemStatus::PageLost,
        _ => GhostmemStatus::System,
    };
    refuse(status, format_args!("{error}"))
}

/// A word or two for a status: static, never null, also for numbers that are
/// none.
#[unsafe(no_mangle)]
pub extern "C" fn ghostmem_status_text(status: i32) -> *const c_char {
    let known = GhostmemStatus::ALL.iter().find(|s| **s as i32 == status);
    known.map_or(c"unknown status", |s| s.text()).as_ptr()
}

/// Why the last refused call of this thread was refused, in one line that says
/// what to do; empty when none was. Valid until the thread's next call that is
/// refused.
#[unsafe(no_mangle)]
pub extern "C" fn ghostmem_last_error() -> *const c_char {
    LAST.try_with(|last| last.as_ptr().cast::<c_char>().cast_const())
        .unwrap_or(c"".as_ptr())
}

/// The library's version, "major.minor.patch".
#[unsafe(no_mangle)]
pub extern "C" fn ghostmem_version() -> *const c_char {
    const VERSION: &str = concat!(env!("CARGO_PKG_VERSION"), "\0");
    VERSION.as_ptr().cast()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn last() -> String {
        // SAFETY: this thread's buffer ends with a zero byte.
        let text = unsafe { CStr::from_ptr(ghostmem_last_error()) };
        text.to_str().unwrap().to_owned()
    }

    #[test]
    fn a_message_is_kept_until_the_next_and_cut_to_the_buffer() {
        assert_eq!(last(), "");
        assert_eq!(
            status_of(Err(Error::TooManyPinned)),
            GhostmemStatus::TooManyPinned
        );
        assert!(last().contains("unpin some"), "{}", last());
        let _status = invalid(&"x".repeat(1000));
        assert_eq!(last().len(), MESSAGE_BYTES - 1);
        let _status = invalid("short");
        assert_eq!(last(), "short");
    }

    #[test]
    fn every_status_has_a_text_of_its_own() {
        let mut texts: Vec<_> = GhostmemStatus::ALL.iter().map(|s| s.text()).collect();
        texts.sort_unstable();
        texts.dedup();
        assert_eq!(texts.len(), GhostmemStatus::ALL.len());
        for (number, status) in GhostmemStatus::ALL.iter().enumerate() {
            assert_eq!(*status as usize, number);
        }
    }
}
