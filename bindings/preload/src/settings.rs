//! What `ghostmem run` asks for, as it travels in the environment.
//!
//! The settings and their form are `ghostmem::settings`; here is how the library finds them
//! before there is a C library to ask. Without the variable it does nothing at all.

use core::ffi::{CStr, c_char};

pub(crate) use ghostmem::settings::RunSettings as Settings;

/// The variable's name.
pub(crate) const VARIABLE: &CStr = ghostmem::settings::VARIABLE;

/// The value of a variable in an environment block.
///
/// # Safety
/// `environment` is null or a null-terminated array of C strings that stay as
/// they are for as long as the result is used.
pub(crate) unsafe fn value_in<'a>(
    environment: *const *const c_char,
    name: &CStr,
) -> Option<&'a CStr> {
    if environment.is_null() {
        return None;
    }
    let mut entry = environment;
    loop {
        // SAFETY: not past the terminating null, by the loop.
        let text = unsafe { *entry };
        if text.is_null() {
            return None;
        }
        // SAFETY: a C string, by the caller's promise.
        let text = unsafe { CStr::from_ptr(text) };
        let bytes = text.to_bytes_with_nul();
        if let Some(rest) = bytes.strip_prefix(name.to_bytes())
            && let Some(value) = rest.strip_prefix(b"=")
        {
            return CStr::from_bytes_with_nul(value).ok();
        }
        // SAFETY: the array goes on to its null.
        entry = unsafe { entry.add(1) };
    }
}
