//! A shared library with the C++ interface of `GhostMemoryManager`.
//!
//! Unsafe room: the library is foreign code, loaded and called on the user's
//! word that it is what `--peer` says.
//!
//! Two ways. Without headers its functions are looked up by their mangled names
//! (Itanium C++ ABI), and its limit is what it was built with. With
//! `--peer-include` a few lines of C++ are compiled against its own headers and
//! loaded after it, and its limit is set through `GhostConfig::max_memory_pages`.

use std::ffi::{CStr, CString, c_int, c_void};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::ptr::NonNull;

use super::{Contender, Figures, Probe};
use crate::blocks::Block;
use crate::buffer::{Buffer, PAGE_SIZE};
use crate::error::{Error, Result};
use crate::report::status_bytes;
use crate::sys;

type Open = unsafe extern "C" fn(usize) -> c_int;
type Allocate = unsafe extern "C" fn(usize) -> *mut c_void;
type Free = unsafe extern "C" fn(*mut c_void, usize);
type Instance = unsafe extern "C" fn() -> *mut c_void;
type AllocateGhost = unsafe extern "C" fn(*mut c_void, usize) -> *mut c_void;
type DeallocateGhost = unsafe extern "C" fn(*mut c_void, *mut c_void, usize);

const SHIM: &str = r#"#include "ghostmem/GhostMemoryManager.h"
extern "C" int ghostmem_bench_open(std::size_t pages) {
    GhostConfig config;
    config.max_memory_pages = pages;
    return GhostMemoryManager::Instance().Initialize(config) ? 1 : 0;
}
extern "C" void* ghostmem_bench_allocate(std::size_t size) {
    return GhostMemoryManager::Instance().AllocateGhost(size);
}
extern "C" void ghostmem_bench_free(void* block, std::size_t size) {
    GhostMemoryManager::Instance().DeallocateGhost(block, size);
}
"#;

/// Compiles the shim against the headers below `include` into `directory`. It
/// is not linked to the library: whoever loads it has loaded that before.
///
/// # Errors
/// The compiler's first complaint.
pub(crate) fn compile_shim(include: &Path, directory: &Path) -> Result<PathBuf> {
    let source = directory.join("peer.cpp");
    let shim = directory.join("peer.so");
    std::fs::write(&source, SHIM).map_err(|err| Error::io(source.display(), &err))?;
    let compiler = std::env::var_os("CXX").unwrap_or_else(|| "c++".into());
    let output = Command::new(&compiler)
        .args(["-std=c++17", "-O2", "-shared", "-fPIC", "-I"])
        .arg(include)
        .arg("-o")
        .args([&shim, &source])
        .output()
        .map_err(|err| Error::io(format!("running {}", compiler.display()), &err))?;
    if output.status.success() {
        return Ok(shim);
    }
    let text = String::from_utf8_lossy(&output.stderr);
    let line = text.lines().find(|line| line.contains("error"));
    Err(Error::Failed(format!(
        "--peer-include {}: the headers do not compile: {}",
        include.display(),
        line.or(text.lines().next()).unwrap_or("no message")
    )))
}

#[derive(Debug, Clone, Copy)]
enum Calls {
    Shim {
        allocate: Allocate,
        free: Free,
    },
    Mangled {
        instance: *mut c_void,
        allocate: AllocateGhost,
        free: DeallocateGhost,
    },
}

/// The loaded library; it stays loaded until the process ends.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Library(Calls);

// SAFETY: the interface promises calls from any thread.
unsafe impl Send for Library {}
// SAFETY: as above.
unsafe impl Sync for Library {}

fn last_error() -> String {
    // SAFETY: dlerror has no preconditions.
    let text = unsafe { libc::dlerror() };
    if text.is_null() {
        return "no reason given".to_owned();
    }
    // SAFETY: dlerror returned a string that is valid until the next dl call
    // of this thread.
    unsafe { CStr::from_ptr(text) }
        .to_string_lossy()
        .into_owned()
}

/// Address of a function by its name; `None` when there is none.
fn symbol(handle: NonNull<c_void>, name: &CStr) -> Option<NonNull<c_void>> {
    // SAFETY: the handle came from dlopen and is never closed.
    NonNull::new(unsafe { libc::dlsym(handle.as_ptr(), name.as_ptr()) })
}

impl Library {
    /// Loads the files at `paths` in order, the library and perhaps the shim.
    /// `limit` bytes may be resident, if that can be said to it.
    ///
    /// # Errors
    /// They cannot be loaded, have not the interface, or refuse the limit.
    pub(crate) fn load(paths: &[PathBuf], limit: u64) -> Result<Self> {
        let mut last = None;
        for path in paths {
            // Without a slash the loader would search its own directories.
            let path = path
                .canonicalize()
                .map_err(|err| Error::io(format!("--peer {}", path.display()), &err))?;
            let name = CString::new(path.as_os_str().as_encoded_bytes())
                .map_err(|_| Error::Failed("--peer: a path with a zero byte".into()))?;
            // SAFETY: the path is a string that outlives the call; what the
            // library's constructors do is the user's word.
            let handle = unsafe { libc::dlopen(name.as_ptr(), libc::RTLD_NOW | libc::RTLD_GLOBAL) };
            match NonNull::new(handle) {
                Some(handle) => last = Some(handle),
                None => return Err(Error::Failed(format!("--peer: {}", last_error()))),
            }
        }
        let handle = last.ok_or_else(|| Error::Failed("no --peer".into()))?;
        let shim = (
            symbol(handle, c"ghostmem_bench_open"),
            symbol(handle, c"ghostmem_bench_allocate"),
            symbol(handle, c"ghostmem_bench_free"),
        );
        if let (Some(open), Some(allocate), Some(free)) = shim {
            // SAFETY: the shim defines this name with this type.
            let open: Open = unsafe { std::mem::transmute(open) };
            // SAFETY: as above.
            let allocate: Allocate = unsafe { std::mem::transmute(allocate) };
            // SAFETY: as above.
            let free: Free = unsafe { std::mem::transmute(free) };
            // SAFETY: the shim takes any number.
            if unsafe { open(limit as usize / PAGE_SIZE) } == 0 {
                return Err(Error::Failed("--peer: Initialize answered false".into()));
            }
            return Ok(Self(Calls::Shim { allocate, free }));
        }
        let mangled = (
            symbol(handle, c"_ZN18GhostMemoryManager8InstanceEv"),
            symbol(handle, c"_ZN18GhostMemoryManager13AllocateGhostEm"),
            symbol(handle, c"_ZN18GhostMemoryManager15DeallocateGhostEPvm"),
        );
        let (Some(instance), Some(allocate), Some(free)) = mangled else {
            return Err(Error::Failed(
                "--peer: the library exports no GhostMemoryManager with Instance, AllocateGhost \
                 and DeallocateGhost: give its headers with --peer-include"
                    .into(),
            ));
        };
        // SAFETY: the mangled name fixes a static function without parameters,
        // and a reference is returned as an address.
        let instance: Instance = unsafe { std::mem::transmute(instance) };
        // SAFETY: the mangled name fixes a member function of one size_t; the
        // object comes first. It returns void* by the interface.
        let allocate: AllocateGhost = unsafe { std::mem::transmute(allocate) };
        // SAFETY: likewise, of a void* and a size_t.
        let free: DeallocateGhost = unsafe { std::mem::transmute(free) };
        // SAFETY: the interface allows the call at any time.
        let instance = unsafe { instance() };
        Ok(Self(Calls::Mangled {
            instance,
            allocate,
            free,
        }))
    }

    /// A block of `size` bytes, at least 8.
    pub(crate) fn take(self, size: usize) -> Result<PeerBlock> {
        assert!(size >= 8, "block too small");
        let base = match self.0 {
            // SAFETY: the interface takes any size.
            Calls::Shim { allocate, .. } => unsafe { allocate(size) },
            Calls::Mangled {
                instance, allocate, ..
            } => {
                // SAFETY: as above, on the library's own instance.
                unsafe { allocate(instance, size) }
            }
        };
        let base = NonNull::new(base.cast::<u8>())
            .ok_or_else(|| Error::Failed(format!("the peer has no {size} bytes")))?;
        if base.addr().get() % 8 != 0 {
            return Err(Error::Failed("the peer's blocks are not aligned".into()));
        }
        Ok(PeerBlock {
            library: self,
            base,
            size,
        })
    }
}

/// A block of the library, given back on drop.
#[derive(Debug)]
pub(crate) struct PeerBlock {
    library: Library,
    base: NonNull<u8>,
    size: usize,
}

// SAFETY: the library returned this address for at least 8 bytes, it was
// checked for alignment, and this value is its only owner.
unsafe impl Block for PeerBlock {
    fn base(&self) -> NonNull<u8> {
        self.base
    }

    fn size(&self) -> usize {
        self.size
    }
}

impl Drop for PeerBlock {
    fn drop(&mut self) {
        let block = self.base.as_ptr().cast();
        match self.library.0 {
            // SAFETY: the block came from this library with this size and is
            // given back once.
            Calls::Shim { free, .. } => unsafe { free(block, self.size) },
            Calls::Mangled { instance, free, .. } => {
                // SAFETY: as above.
                unsafe { free(instance, block, self.size) }
            }
        }
    }
}

/// One large block of the library, measured.
#[derive(Debug)]
pub(crate) struct Peer {
    block: PeerBlock,
    pages: u32,
    before: u64,
}

impl Peer {
    /// Allocates `pages` pages, of which `resident` bytes may be uncompressed.
    pub(crate) fn open(paths: &[PathBuf], pages: u32, resident: u64) -> Result<Self> {
        let before = status_bytes("VmRSS");
        let block = Library::load(paths, resident)?.take(pages as usize * PAGE_SIZE)?;
        if !block.base.addr().get().is_multiple_of(PAGE_SIZE) {
            return Err(Error::Skipped(
                "the peer's blocks are not page-aligned".into(),
            ));
        }
        Ok(Self {
            block,
            pages,
            before,
        })
    }
}

impl Contender for Peer {
    fn buffer(&self) -> Buffer<'_> {
        // SAFETY: the block is page-aligned (checked when it was taken) and has
        // so many pages; the borrow keeps it, and only buffers access it.
        unsafe { Buffer::new(self.block.base, self.pages) }
    }

    fn settle(&mut self) -> Result<()> {
        Ok(())
    }

    fn forget(&mut self) -> Result<()> {
        // The interface has no way to forget; it is overwritten.
        Ok(())
    }

    fn faults(&self) -> u64 {
        sys::usage().major_faults
    }

    fn probe(&self) -> Probe {
        let before = self.before;
        Box::new(move || {
            Ok(Figures {
                resident: status_bytes("VmRSS").saturating_sub(before),
                peak: status_bytes("VmHWM").saturating_sub(before),
                ..Figures::default()
            })
        })
    }
}
