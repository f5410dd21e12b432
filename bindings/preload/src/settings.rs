//! What `ghostmem run` asks for, as it travels in the environment.
//!
//! One variable, `GHOSTMEM_RUN`, of `name=value` parts with `;` between them.
//! A value is percent-escaped (only `%`, `;` and control characters are).
//! Unknown names are skipped, so that a newer command can speak to an older
//! library. Without the variable the library does nothing at all.

use core::ffi::{CStr, c_char};
use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

use ghostmem::Backend;

/// The variable's name.
pub(crate) const VARIABLE: &CStr = c"GHOSTMEM_RUN";

/// The parsed variable.
#[derive(Debug, Clone)]
pub(crate) struct Settings {
    /// Most bytes of ghost pages resident; 0: the heap's default.
    pub(crate) limit: usize,
    /// Follow the machine's free memory and the control group.
    pub(crate) follow: bool,
    /// Bound on resident, stored and metadata bytes; 0: none.
    pub(crate) memory_limit: usize,
    /// The folder of the file for cold pages.
    pub(crate) spill: Option<PathBuf>,
    /// Most bytes of it.
    pub(crate) spill_limit: Option<u64>,
    /// Bytes of compressed pages that stay in memory before it is used.
    pub(crate) spill_store: Option<usize>,
    pub(crate) backend: Backend,
    /// Blocks below this many bytes are ordinary memory.
    pub(crate) ghost_from: usize,
    /// Private anonymous mappings from this many bytes on are ghost memory; 0:
    /// none.
    pub(crate) mmap_from: usize,
    /// The process that reports at its end.
    pub(crate) reporter: i32,
    pub(crate) stats: bool,
    pub(crate) stats_json: Option<PathBuf>,
    pub(crate) verbose: bool,
    /// Programs started by this one get the library too.
    pub(crate) children: bool,
    /// The ring that touches are recorded in, a file of the process that keeps
    /// the record.
    pub(crate) trace: Option<PathBuf>,
    /// That process: only its own child is recorded.
    pub(crate) recorder: i32,
}

impl Settings {
    /// Parses the variable's value. Paths are bytes, of any encoding or none.
    pub(crate) fn parse(text: &[u8]) -> Self {
        let mut settings = Self {
            limit: 0,
            follow: false,
            memory_limit: 0,
            spill: None,
            spill_limit: None,
            spill_store: None,
            backend: Backend::Auto,
            ghost_from: 0,
            mmap_from: 0,
            reporter: 0,
            stats: false,
            stats_json: None,
            verbose: false,
            children: true,
            trace: None,
            recorder: 0,
        };
        for part in text.split(|&byte| byte == b';') {
            let Some(equals) = part.iter().position(|&byte| byte == b'=') else {
                continue;
            };
            let (name, value) = (&part[..equals], &part[equals + 1..]);
            let words = str::from_utf8(value).unwrap_or("");
            let number = words.parse::<usize>().unwrap_or(0);
            match str::from_utf8(name).unwrap_or("") {
                "limit" => settings.limit = number,
                "follow" => settings.follow = number != 0,
                "memory" => settings.memory_limit = number,
                "spill" => settings.spill = Some(unescape(value)),
                "spill-limit" => settings.spill_limit = Some(number as u64),
                "spill-store" => settings.spill_store = Some(number),
                "backend" => {
                    settings.backend = match words {
                        "inline" => Backend::Inline,
                        "monitor" => Backend::Monitor,
                        "guard" => Backend::Guard,
                        "guard-mprotect" => Backend::GuardMprotect,
                        _ => Backend::Auto,
                    };
                }
                "ghost-from" => settings.ghost_from = number,
                "mmap-from" => settings.mmap_from = number,
                "reporter" => settings.reporter = i32::try_from(number).unwrap_or(0),
                "stats" => settings.stats = number != 0,
                "stats-json" => settings.stats_json = Some(unescape(value)),
                "verbose" => settings.verbose = number != 0,
                "children" => settings.children = number != 0,
                "recorder" => settings.recorder = i32::try_from(number).unwrap_or(0),
                "trace" => settings.trace = Some(unescape(value)),
                _ => {}
            }
        }
        settings
    }
}

fn unescape(value: &[u8]) -> PathBuf {
    let mut bytes = Vec::new();
    let mut rest = value;
    while let Some((&first, tail)) = rest.split_first() {
        let hex = tail.get(..2).and_then(|digits| {
            let digits = core::str::from_utf8(digits).ok()?;
            u8::from_str_radix(digits, 16).ok()
        });
        match hex {
            Some(byte) if first == b'%' => {
                bytes.push(byte);
                rest = &tail[2..];
            }
            _ => {
                bytes.push(first);
                rest = tail;
            }
        }
    }
    PathBuf::from(OsString::from_vec(bytes))
}

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
