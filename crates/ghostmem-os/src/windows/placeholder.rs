//! Placeholders: reserved address space whose single pages can be filled and
//! emptied without ever being free for somebody else.
//!
//! ```text
//!   reserve     [                placeholder                ]
//!   split       [   placeholder   ][ p ][    placeholder    ]
//!   map         [   placeholder   ][view][   placeholder    ]   one page
//!   unmap       [   placeholder   ][ p ][    placeholder    ]
//! ```
//! Replacing a placeholder is one atomic step, and so is the way back. Windows
//! has them since version 1803 of Windows 10 and Server 2019; the three
//! functions are looked up at run time, so that an older system is told so
//! instead of refusing to load the program.
//!
//! What works on them is safe to call with any address as far as this module is
//! concerned, but takes memory away from whoever uses it: all of it is
//! `unsafe`.

use core::ffi::c_void;
use std::sync::OnceLock;

use windows_sys::Win32::Foundation::HANDLE;
use windows_sys::Win32::System::LibraryLoader::{GetModuleHandleW, GetProcAddress};
use windows_sys::Win32::System::Memory::{
    MEM_ADDRESS_REQUIREMENTS, MEM_COMMIT, MEM_EXTENDED_PARAMETER, MEM_MAPPED,
    MEM_PRESERVE_PLACEHOLDER, MEM_PRIVATE, MEM_RELEASE, MEM_REPLACE_PLACEHOLDER, MEM_RESERVE,
    MEM_RESERVE_PLACEHOLDER, MEMORY_BASIC_INFORMATION, MemExtendedParameterAddressRequirements,
    PAGE_NOACCESS, PAGE_READONLY, PAGE_READWRITE, VirtualAlloc, VirtualFree, VirtualQuery,
};
use windows_sys::Win32::System::Threading::GetCurrentProcess;

use crate::error::{ENOSYS, OsError};
use crate::map::PAGE_SIZE;

type Alloc2 = unsafe extern "system" fn(
    HANDLE,
    *const c_void,
    usize,
    u32,
    u32,
    *mut MEM_EXTENDED_PARAMETER,
    u32,
) -> *mut c_void;
type Map3 = unsafe extern "system" fn(
    HANDLE,
    HANDLE,
    *const c_void,
    u64,
    usize,
    u32,
    u32,
    *mut MEM_EXTENDED_PARAMETER,
    u32,
) -> *mut c_void;
type Unmap2 = unsafe extern "system" fn(HANDLE, *mut c_void, u32) -> i32;

/// The functions that came with placeholders.
struct Api {
    alloc: Alloc2,
    map: Map3,
    unmap: Unmap2,
}

static API: OnceLock<Option<Api>> = OnceLock::new();

fn find_api() -> Option<Api> {
    // SAFETY: a NUL-terminated name of a library that every process has loaded.
    let module = unsafe { GetModuleHandleW(windows_sys::core::w!("kernelbase.dll")) };
    let find = |name: &core::ffi::CStr| {
        // SAFETY: a loaded module (a null one is refused) and a terminated name.
        unsafe { GetProcAddress(module, name.as_ptr().cast()) }
    };
    let alloc = find(c"VirtualAlloc2")?;
    let map = find(c"MapViewOfFile3")?;
    let unmap = find(c"UnmapViewOfFile2")?;
    // SAFETY: the documented signature of VirtualAlloc2.
    let alloc =
        unsafe { core::mem::transmute::<unsafe extern "system" fn() -> isize, Alloc2>(alloc) };
    // SAFETY: the documented signature of MapViewOfFile3.
    let map = unsafe { core::mem::transmute::<unsafe extern "system" fn() -> isize, Map3>(map) };
    // SAFETY: the documented signature of UnmapViewOfFile2.
    let unmap =
        unsafe { core::mem::transmute::<unsafe extern "system" fn() -> isize, Unmap2>(unmap) };
    Some(Api { alloc, map, unmap })
}

fn api() -> Result<&'static Api, OsError> {
    API.get_or_init(find_api).as_ref().ok_or(OsError::new(
        "reserving placeholders (Windows 10 version 1803 or later has them)",
        ENOSYS,
    ))
}

/// Whether this system has placeholders: reserves one and gives it back.
///
/// # Errors
/// `ENOSYS` where it has none; the system's refusal.
pub fn try_out() -> Result<(), OsError> {
    let base = reserve(PAGE_SIZE, 1 << 16)?;
    // SAFETY: just reserved, by us.
    unsafe { clear(base, PAGE_SIZE, false) };
    Ok(())
}

/// Reserves `len` bytes (whole pages) as one placeholder, aligned to `align`
/// (a power of two, at least 64 KiB).
pub(crate) fn reserve(len: usize, align: usize) -> Result<usize, OsError> {
    let mut requirements = MEM_ADDRESS_REQUIREMENTS {
        LowestStartingAddress: core::ptr::null_mut(),
        HighestEndingAddress: core::ptr::null_mut(),
        Alignment: align,
    };
    let mut parameter = MEM_EXTENDED_PARAMETER::default();
    parameter.Anonymous1._bitfield = MemExtendedParameterAddressRequirements as u64;
    parameter.Anonymous2.Pointer = (&raw mut requirements).cast();
    // SAFETY: the parameter and what it points to live for the call; fresh
    // address space touches nothing that exists.
    let got = unsafe {
        (api()?.alloc)(
            core::ptr::null_mut(),
            core::ptr::null(),
            len,
            MEM_RESERVE | MEM_RESERVE_PLACEHOLDER,
            PAGE_NOACCESS,
            &raw mut parameter,
            1,
        )
    };
    if got.is_null() {
        Err(OsError::last("VirtualAlloc2"))
    } else {
        Ok(got as usize)
    }
}

/// Makes a part of a placeholder one of its own; `false` when it is already, or
/// is no part of one.
///
/// # Safety
/// The range must be the caller's address space.
pub(crate) unsafe fn split(address: usize, len: usize) -> bool {
    let flags = MEM_RELEASE | MEM_PRESERVE_PLACEHOLDER;
    // SAFETY: of a placeholder, nothing is released that anybody could use; the
    // range is the caller's.
    unsafe { VirtualFree(address as *mut c_void, len, flags) != 0 }
}

/// Puts zero memory in the place of exactly one placeholder.
///
/// # Safety
/// The range must be the caller's address space.
pub(crate) unsafe fn fill_private(address: usize, len: usize) -> Result<(), OsError> {
    // SAFETY: only a placeholder is replaced; the range is the caller's.
    let got = unsafe {
        (api()?.alloc)(
            core::ptr::null_mut(),
            address as *const c_void,
            len,
            MEM_RESERVE | MEM_COMMIT | MEM_REPLACE_PLACEHOLDER,
            PAGE_READWRITE,
            core::ptr::null_mut(),
            0,
        )
    };
    if got.is_null() {
        Err(OsError::last("VirtualAlloc2"))
    } else {
        Ok(())
    }
}

/// The protection of a page that can be read, or written too.
pub(crate) const fn protection(writable: bool) -> u32 {
    if writable {
        PAGE_READWRITE
    } else {
        PAGE_READONLY
    }
}

/// Maps the first page of `section` in the place of exactly one placeholder of
/// a page.
///
/// # Safety
/// The page must be the caller's address space, and `section` a section.
pub(crate) unsafe fn map(section: HANDLE, address: usize, writable: bool) -> Result<(), OsError> {
    // SAFETY: no preconditions; the handle it returns needs no closing.
    let process = unsafe { GetCurrentProcess() };
    // SAFETY: only a placeholder is replaced; the page is the caller's.
    let got = unsafe {
        (api()?.map)(
            section,
            process,
            address as *const c_void,
            0,
            PAGE_SIZE,
            MEM_REPLACE_PLACEHOLDER,
            protection(writable),
            core::ptr::null_mut(),
            0,
        )
    };
    if got.is_null() {
        Err(OsError::last("MapViewOfFile3"))
    } else {
        Ok(())
    }
}

/// Gives the page of a view of a reserved section memory, zero if the section
/// had none yet. `writable` is what the view was mapped with.
///
/// # Safety
/// The page must be the caller's view.
pub(crate) unsafe fn commit(address: usize, writable: bool) -> Result<(), OsError> {
    let protection = protection(writable);
    // SAFETY: a view of the caller's; bytes that are there stay.
    let got = unsafe { VirtualAlloc(address as *const c_void, PAGE_SIZE, MEM_COMMIT, protection) };
    if got.is_null() {
        Err(OsError::last("VirtualAlloc"))
    } else {
        Ok(())
    }
}

/// Takes a view away; its place is a placeholder again, or, unless `keep`, free.
///
/// # Safety
/// Nobody may need the view.
pub(crate) unsafe fn unmap(address: usize, keep: bool) -> Result<(), OsError> {
    // SAFETY: no preconditions; the handle it returns needs no closing.
    let process = unsafe { GetCurrentProcess() };
    let flags = if keep { MEM_PRESERVE_PLACEHOLDER } else { 0 };
    // SAFETY: the caller's promise.
    if unsafe { (api()?.unmap)(process, address as *mut c_void, flags) } != 0 {
        Ok(())
    } else {
        Err(OsError::last("UnmapViewOfFile2"))
    }
}

/// What lies at an address.
pub(crate) fn query(address: usize) -> Option<MEMORY_BASIC_INFORMATION> {
    let mut found = MEMORY_BASIC_INFORMATION::default();
    let len = size_of::<MEMORY_BASIC_INFORMATION>();
    // SAFETY: the place is writable and of the length given; any address may be
    // asked about.
    let got = unsafe { VirtualQuery(address as *const c_void, &raw mut found, len) };
    (got == len).then_some(found)
}

/// Bytes of a range that are committed.
pub(crate) fn committed(base: usize, len: usize) -> usize {
    let (mut at, end, mut total) = (base, base + len, 0);
    while at < end {
        let Some(found) = query(at) else { break };
        let next = (found.BaseAddress as usize + found.RegionSize).min(end);
        if found.State == MEM_COMMIT {
            total += next - at;
        }
        at = next;
    }
    total
}

/// Takes all views and all memory away from a range that was reserved as a
/// placeholder, and, unless `keep`, the placeholders too.
///
/// # Safety
/// The range must be the caller's, nothing in it in use, and no view or block of
/// memory may lie partly in it.
pub(crate) unsafe fn clear(base: usize, len: usize, keep: bool) {
    let (mut at, end) = (base, base + len);
    while at < end {
        let Some(found) = query(at) else { return };
        let start = found.AllocationBase;
        let next = found.BaseAddress as usize + found.RegionSize;
        match (found.State, found.Type) {
            (_, MEM_MAPPED) => {
                // SAFETY: the caller's promise.
                let _gone = unsafe { unmap(start as usize, keep) };
            }
            (MEM_COMMIT, MEM_PRIVATE) => {
                let (len, flags) = if keep {
                    (found.RegionSize, MEM_RELEASE | MEM_PRESERVE_PLACEHOLDER)
                } else {
                    (0, MEM_RELEASE)
                };
                // SAFETY: the caller's promise.
                unsafe { VirtualFree(start, len, flags) };
            }
            (MEM_RESERVE, _) if !keep => {
                // SAFETY: the caller's promise.
                unsafe { VirtualFree(start, 0, MEM_RELEASE) };
            }
            _ => {}
        }
        at = next;
    }
}
