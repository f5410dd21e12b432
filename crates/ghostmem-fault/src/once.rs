//! What exists once in the process, and who makes it.

use std::sync::OnceLock;

use ghostmem_os::OsError;
use ghostmem_os::lock::Lock;

/// One thread at a time makes something that exists once in the process. Held
/// over fork(2), so that the child finds each of them made or not begun.
pub(crate) static OPENING: Lock<()> = Lock::new(());

/// What `cell` holds, made by `open` at the first call.
pub(crate) fn get_or_open<T>(
    cell: &'static OnceLock<T>,
    open: impl FnOnce() -> Result<T, OsError>,
) -> Result<&'static T, OsError> {
    if let Some(value) = cell.get() {
        return Ok(value);
    }
    let _opening = OPENING.lock();
    if let Some(value) = cell.get() {
        return Ok(value);
    }
    let value = open()?;
    Ok(cell.get_or_init(|| value))
}
