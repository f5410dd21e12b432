//! The heap of the process that needs no handle: what the C++ headers use.
//!
//! It is made at the first request and lives until the process ends, as global
//! containers free their memory after `main`. Where its limits come from, first
//! match: the configuration, `GHOSTMEM_MEMORY` and `GHOSTMEM_LIMIT` (bytes, with a
//! unit or not, a percentage, or `auto`), `GHOSTMEM_MAX_PHYSICAL_PAGES` (pages), the
//! caller's default. With a bound on the process, a resident limit is only what was
//! asked for. `GHOSTMEM_SLOWDOWN` is a share of time that faults may take, where the
//! configuration has none. `GHOSTMEM_BACKEND` chooses the backend where the configuration does not.
//! No heap is made where one of the limits cannot be read.

use core::fmt;
use std::io::{self, Write};
use std::path::{self, Path, PathBuf};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::{env, fs, process};

use ghostmem::MemorySize;
use ghostmem_small::fork;

use crate::GHOSTMEM_PAGE_SIZE;
use crate::config::{Asked, GhostmemBackend, GhostmemConfig};
use crate::heap::GhostmemHeap;
use crate::status::{GhostmemStatus, refuse, status_of};

struct Default {
    handle: GhostmemHeap,
    /// As asked for, before the environment.
    asked: Asked,
}

static DEFAULT: OnceLock<Default> = OnceLock::new();
/// Held while the heap is made or its limit changed, so that two threads do not
/// make two. Taken only while forks are held back: a child must not wait for a
/// thread that does not exist there.
static MAKING: Mutex<()> = Mutex::new(());

pub(crate) fn is_default(heap: *const GhostmemHeap) -> bool {
    DEFAULT
        .get()
        .is_some_and(|default| core::ptr::eq(&raw const default.handle, heap))
}

/// One line on the standard error stream; nothing when that cannot be written
/// to, as `eprintln!` would panic there.
fn report(what: fmt::Arguments<'_>) {
    let _told = writeln!(io::stderr(), "ghostmem: {what}");
}

/// A number of pages from the environment; what is none is reported.
fn pages(name: &str) -> Result<Option<usize>, GhostmemStatus> {
    let Some(text) = env::var_os(name) else {
        return Ok(None);
    };
    let number = text.to_str().and_then(|text| text.trim().parse().ok());
    number.map(Some).ok_or_else(|| {
        let why = format!("{name}={} is not a number of pages", text.display());
        report(format_args!("{why}"));
        refuse(GhostmemStatus::InvalidArgument, format_args!("{why}"))
    })
}

/// A size from the environment.
fn size(name: &'static str) -> Result<Option<MemorySize>, GhostmemStatus> {
    ghostmem::from_environment(name).map_err(|error| status_of(Err(error)))
}

fn backend() -> Option<GhostmemBackend> {
    let text = env::var_os("GHOSTMEM_BACKEND")?;
    let backend = match text.to_str() {
        Some("auto") => Some(GhostmemBackend::Auto),
        Some("inline") => Some(GhostmemBackend::Inline),
        Some("monitor") => Some(GhostmemBackend::Monitor),
        Some("guard") => Some(GhostmemBackend::Guard),
        Some("guard-mprotect") => Some(GhostmemBackend::GuardMprotect),
        Some("veh") => Some(GhostmemBackend::Veh),
        _ => None,
    };
    if backend.is_none() {
        report(format_args!(
            "GHOSTMEM_BACKEND={} is none of auto, inline, monitor, guard, guard-mprotect, veh: ignored",
            text.display()
        ));
    }
    backend
}

/// Fills in from the environment, then the default, what `asked` leaves open.
fn complete(asked: &Asked, default_pages: usize) -> Result<Asked, GhostmemStatus> {
    let mut config = asked.clone();
    let bytes = |size: MemorySize| size.bytes().unwrap_or(usize::MAX);
    if config.memory_bytes == 0 && config.memory_percent == 0 {
        config.memory_bytes = match size("GHOSTMEM_MEMORY")? {
            None => 0,
            Some(MemorySize::Auto) => usize::MAX,
            Some(memory) => bytes(memory),
        };
    }
    let is_bounded = config.memory_bytes != 0 || config.memory_percent != 0;
    if config.resident_limit_bytes == 0 {
        let in_bytes = |pages: usize| pages.saturating_mul(GHOSTMEM_PAGE_SIZE);
        config.resident_limit_bytes = match size("GHOSTMEM_LIMIT")? {
            Some(MemorySize::Auto) => 0,
            Some(limit) => bytes(limit),
            None => match pages("GHOSTMEM_MAX_PHYSICAL_PAGES")? {
                Some(pages) => in_bytes(pages),
                None if is_bounded => 0,
                None => in_bytes(default_pages),
            },
        };
    }
    if config.slowdown_ppm == 0 {
        let asked = ghostmem::slowdown_from_environment();
        let asked = asked.map_err(|error| status_of(Err(error)))?;
        config.slowdown_ppm = asked.unwrap_or(0);
    }
    if config.backend == GhostmemBackend::Auto as u32 {
        config.backend = backend().unwrap_or(GhostmemBackend::Auto) as u32;
    }
    Ok(config)
}

fn make(asked: Asked, default_pages: usize) -> Result<&'static Default, GhostmemStatus> {
    let heap = complete(&asked, default_pages)?
        .builder()?
        .build()
        .map_err(|error| status_of(Err(error)))?;
    let handle = GhostmemHeap { heap };
    if let Some(file) = asked.spill_file() {
        remove_at_exit(file);
    }
    Ok(DEFAULT.get_or_init(|| Default { handle, asked }))
}

/// The name of the default heap's file, and the process that made it.
static NAMED: OnceLock<(PathBuf, u32)> = OnceLock::new();

/// The heap never ends, so its file's name must be taken away otherwise.
fn remove_at_exit(file: &Path) {
    // A child that changed its directory still means the same file.
    let file = path::absolute(file).unwrap_or_else(|_| file.to_owned());
    if NAMED.set((file, process::id())).is_ok() {
        // SAFETY: a function that stays loaded as long as the library; one that
        // is unloaded has its handlers run then.
        let refused = unsafe { libc::atexit(remove_name) };
        if refused != 0 {
            report(format_args!(
                "no room for an exit handler: the spill file stays when the process ends"
            ));
        }
    }
}

/// Children that were forked share the name with their parent, who keeps it.
extern "C" fn remove_name() {
    if let Some((file, process)) = NAMED.get()
        && *process == process::id()
    {
        let _gone_already = fs::remove_file(file);
    }
}

/// The process's default heap, made at the first call. `default_pages` is its
/// resident limit, unless a configuration or the environment said otherwise:
/// `GHOSTMEM_MEMORY` as `memory_bytes`, `GHOSTMEM_LIMIT` as
/// `resident_limit_bytes`, both with a unit (64M), as a percentage (25%) or
/// auto, `GHOSTMEM_MAX_PHYSICAL_PAGES`; and `GHOSTMEM_SLOWDOWN` (5%) as
/// `slowdown_ppm`. 0 stands for what the process may have
/// here. Null when it cannot be made, or a variable cannot be read, see
/// `ghostmem_last_error`.
#[unsafe(no_mangle)]
pub extern "C" fn ghostmem_default_heap(default_pages: usize) -> *mut GhostmemHeap {
    let pointer = |default: &'static Default| (&raw const default.handle).cast_mut();
    if let Some(default) = DEFAULT.get() {
        return pointer(default);
    }
    let _no_fork = fork::keep_out();
    let _making = MAKING.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(default) = DEFAULT.get() {
        return pointer(default);
    }
    make(Asked::default(), default_pages).map_or(core::ptr::null_mut(), pointer)
}

/// Makes the default heap with settings of the caller's, or, when it exists,
/// changes its resident limit. `config` may be null; where it names no limit,
/// the environment and then `default_pages` do, as in `ghostmem_default_heap`.
/// `GHOSTMEM_STATUS_ALREADY_INITIALIZED` when the heap exists with other
/// settings than a limit: call this before the first allocation.
///
/// # Safety
/// `config` is null or points to a whole structure.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ghostmem_default_heap_configure(
    config: *const GhostmemConfig,
    default_pages: usize,
) -> GhostmemStatus {
    // SAFETY: the caller's promise.
    let asked = match unsafe { GhostmemConfig::read(config) } {
        Ok(asked) => asked,
        Err(status) => return status,
    };
    let _no_fork = fork::keep_out();
    let _making = MAKING.lock().unwrap_or_else(PoisonError::into_inner);
    let Some(default) = DEFAULT.get() else {
        return make(asked, default_pages).map_or_else(|status| status, |_| GhostmemStatus::Ok);
    };
    let mut but_for_limit = asked.clone();
    but_for_limit.resident_limit_bytes = default.asked.resident_limit_bytes;
    if but_for_limit != default.asked {
        return refuse(
            GhostmemStatus::AlreadyInitialized,
            format_args!(
                "the default heap is in use already, only its resident limit can change now: \
                 configure it before the first allocation"
            ),
        );
    }
    let limit_bytes = match complete(&asked, default_pages) {
        Ok(config) => config.resident_limit_bytes,
        Err(status) => return status,
    };
    if limit_bytes == 0 {
        // Neither the caller nor the environment names a limit.
        return GhostmemStatus::Ok;
    }
    status_of(default.handle.heap.set_resident_limit(limit_bytes))
}
