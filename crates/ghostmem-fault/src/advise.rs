//! Advice to the kernel on a whole region.

use ghostmem_os::OsError;
use ghostmem_os::map::Span;

/// Gives the kernel `advice`, which changes no contents, on a region's range.
///
/// # Errors
/// The kernel's refusal, unless it knows no transparent huge pages.
pub(crate) fn advise(span: Span, advice: i32) -> Result<(), OsError> {
    // SAFETY: the span is reserved (its region keeps the reservation) and the advice
    // given changes no contents.
    let rc = unsafe {
        ghostmem_os::kernel::madvise(span.base() as *mut libc::c_void, span.len(), advice)
    };
    // A kernel without transparent huge pages has no such advice.
    if rc == 0 || (advice == libc::MADV_NOHUGEPAGE && ghostmem_os::error::errno() == libc::EINVAL) {
        Ok(())
    } else {
        Err(OsError::last("madvise"))
    }
}
