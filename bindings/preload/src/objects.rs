//! Which code is loaded: the objects whose system calls are patched.

use core::ffi::{CStr, c_int, c_void};
use core::sync::atomic::{AtomicUsize, Ordering};

/// Objects that make system calls on a program's behalf, glibc's own.
const NAMES: [&str; 4] = [
    "libc.so.6",
    "ld-linux-x86-64.so.2",
    "libpthread.so.0",
    "librt.so.1",
];

/// One executable segment of a loaded object.
#[derive(Debug, Clone)]
pub(crate) struct Text {
    /// First address.
    pub(crate) start: usize,
    /// Length, bytes.
    pub(crate) bytes: usize,
    /// Where the table of its functions is; 0: it has none.
    table: usize,
    /// The object's build id, if it has one.
    pub(crate) build: Vec<u8>,
    /// It is one of glibc's.
    pub(crate) of_libc: bool,
    /// The kernel put it there (vdso(7)).
    pub(crate) of_kernel: bool,
}

impl Text {
    /// Where its functions start, ascending.
    pub(crate) fn functions(&self) -> Vec<usize> {
        if self.table == 0 {
            return Vec::new();
        }
        functions(self.table)
    }
}

/// The executable segments of what is loaded, but for this library; of what the kernel put
/// there, too: libc's `clock_gettime` leads to system calls of the vDSO's. Needs [`find_ours`].
pub(crate) fn texts() -> Vec<Text> {
    let mut found: Vec<Text> = Vec::new();
    let list: *mut Vec<Text> = &raw mut found;
    // SAFETY: `visit` has the type asked for and gets the vector, which
    // outlives the call.
    unsafe { libc::dl_iterate_phdr(Some(visit), list.cast()) };
    found
}

/// The path of this library's file, as the loader has it: a C string.
static OUR_FILE: AtomicUsize = AtomicUsize::new(0);

/// Where the path of this library's file is; 0: not known.
pub(crate) fn our_file() -> usize {
    OUR_FILE.load(Ordering::Relaxed)
}

/// Where in that file our code lies: what to add to an address of it.
static OUR_FILE_BIAS: AtomicUsize = AtomicUsize::new(0);

/// Where in this library's file an address of its code is; `None`: not known.
pub(crate) fn our_offset(address: usize) -> Option<usize> {
    (is_ours(address) && our_file() != 0)
        .then(|| address.wrapping_add(OUR_FILE_BIAS.load(Ordering::Relaxed)))
}

static OUR_START: AtomicUsize = AtomicUsize::new(0);
static OUR_BYTES: AtomicUsize = AtomicUsize::new(0);

/// What this library has of the address space, bytes.
pub(crate) fn our_bytes() -> usize {
    OUR_IMAGE_BYTES.load(Ordering::Relaxed)
}

static OUR_IMAGE_BYTES: AtomicUsize = AtomicUsize::new(0);

/// Whether an address lies in this library's own code.
pub(crate) fn is_ours(address: usize) -> bool {
    address.wrapping_sub(OUR_START.load(Ordering::Relaxed)) < OUR_BYTES.load(Ordering::Relaxed)
}

/// Where the code of glibc's objects lies: first address and bytes; 0: none.
static LIBC: [[AtomicUsize; 2]; NAMES.len()] =
    [const { [const { AtomicUsize::new(0) }; 2] }; NAMES.len()];

/// Remembers which code is glibc's.
pub(crate) fn know_libc(texts: &[Text]) {
    let of_libc = texts.iter().filter(|text| text.of_libc);
    for ([start, bytes], text) in LIBC.iter().zip(of_libc) {
        start.store(text.start, Ordering::Relaxed);
        bytes.store(text.bytes, Ordering::Relaxed);
    }
}

/// Whether an address lies in code of glibc's.
pub(crate) fn is_libcs(address: usize) -> bool {
    LIBC.iter().any(|[start, bytes]| {
        address.wrapping_sub(start.load(Ordering::Relaxed)) < bytes.load(Ordering::Relaxed)
    })
}

/// Finds this library's own code. Called once, at start.
pub(crate) fn find_ours() {
    // SAFETY: `visit_ours` has the type asked for and takes no argument.
    unsafe { libc::dl_iterate_phdr(Some(visit_ours), core::ptr::null_mut()) };
}

unsafe extern "C" fn visit_ours(
    info: *mut libc::dl_phdr_info,
    _size: usize,
    _nothing: *mut c_void,
) -> c_int {
    // SAFETY: the loader passes a valid structure.
    let info = unsafe { &*info };
    // SAFETY: the loader's array of that many program headers.
    let headers =
        unsafe { core::slice::from_raw_parts(info.dlpi_phdr, usize::from(info.dlpi_phnum)) };
    let within = find_ours as *const () as usize;
    for header in headers {
        let start = info.dlpi_addr as usize + header.p_vaddr as usize;
        let bytes = header.p_memsz as usize;
        if header.p_type == libc::PT_LOAD
            && header.p_flags & libc::PF_X != 0
            && within.wrapping_sub(start) < bytes
        {
            OUR_START.store(start, Ordering::Relaxed);
            OUR_BYTES.store(bytes, Ordering::Relaxed);
            let loaded = headers
                .iter()
                .filter(|header| header.p_type == libc::PT_LOAD);
            let end = loaded.map(|header| header.p_vaddr + header.p_memsz).max();
            OUR_IMAGE_BYTES.store(end.unwrap_or(0) as usize, Ordering::Relaxed);
            OUR_FILE.store(info.dlpi_name as usize, Ordering::Relaxed);
            let bias = (header.p_offset as usize).wrapping_sub(start);
            OUR_FILE_BIAS.store(bias, Ordering::Relaxed);
            return 1;
        }
    }
    0
}

unsafe extern "C" fn visit(
    info: *mut libc::dl_phdr_info,
    _size: usize,
    list: *mut c_void,
) -> c_int {
    // SAFETY: the loader passes a valid structure.
    let info = unsafe { &*info };
    // SAFETY: `texts` passes its vector, which nobody else uses meanwhile.
    let list = unsafe { &mut *list.cast::<Vec<Text>>() };
    if info.dlpi_name.is_null() {
        return 0;
    }
    // SAFETY: a C string of the loader's.
    let name = unsafe { CStr::from_ptr(info.dlpi_name) };
    // SAFETY: the loader's array of that many program headers.
    let headers =
        unsafe { core::slice::from_raw_parts(info.dlpi_phdr, usize::from(info.dlpi_phnum)) };
    add(info.dlpi_addr as usize, name, headers, list);
    0
}

/// Adds the code of an object that the loader has put at `base`, where its file begins.
pub(crate) fn add_loaded(base: usize, name: &CStr, list: &mut Vec<Text>) {
    // The program itself has no name.
    if base == 0 || name.is_empty() || crate::raw::load::<[u8; 4]>(base) != *b"\x7fELF" {
        return;
    }
    let header: libc::Elf64_Ehdr = crate::raw::load(base);
    let headers = (base + header.e_phoff as usize) as *const libc::Elf64_Phdr;
    // SAFETY: the headers lie in the file's first pages, which are mapped, as the loader
    // reads them there.
    let headers = unsafe { core::slice::from_raw_parts(headers, usize::from(header.e_phnum)) };
    add(base, name, headers, list);
}

fn add(base: usize, name: &CStr, headers: &[libc::Elf64_Phdr], list: &mut Vec<Text>) {
    let file = name.to_bytes().rsplit(|&byte| byte == b'/').next();
    let of_libc = NAMES.iter().any(|known| file == Some(known.as_bytes()));
    // SAFETY: no preconditions.
    let kernels = unsafe { libc::getauxval(libc::AT_SYSINFO_EHDR) } as usize;
    let of_kernel = base != 0 && base == kernels;
    let table = headers
        .iter()
        .find(|header| header.p_type == libc::PT_GNU_EH_FRAME)
        .map_or(0, |header| base + header.p_vaddr as usize);
    let build = headers
        .iter()
        .filter(|header| header.p_type == libc::PT_NOTE)
        .find_map(|header| build_id(base + header.p_vaddr as usize, header.p_memsz as usize))
        .unwrap_or_default();
    for header in headers {
        let start = base + header.p_vaddr as usize;
        if header.p_type == libc::PT_LOAD && header.p_flags & libc::PF_X != 0 && !is_ours(start) {
            list.push(Text {
                start,
                bytes: header.p_filesz as usize,
                of_libc,
                of_kernel,
                table,
                build: build.clone(),
            });
        }
    }
}

/// The build id among an object's notes: name's and content's length, type, name,
/// content, the last two padded to four bytes (elf(5); `NT_GNU_BUILD_ID` is 3).
fn build_id(notes: usize, bytes: usize) -> Option<Vec<u8>> {
    const BUILD_ID: u32 = 3;
    let end = notes + bytes;
    let mut at = notes;
    while at + 12 <= end {
        let [name, content, kind]: [u32; 3] = crate::raw::load(at);
        let content_at = at + 12 + (name as usize).next_multiple_of(4);
        let next = content_at + (content as usize).next_multiple_of(4);
        if next > end {
            return None;
        }
        if kind == BUILD_ID && name == 4 && crate::raw::load::<[u8; 4]>(at + 12) == *b"GNU\0" {
            let bytes = content_at..content_at + content as usize;
            return Some(bytes.map(crate::raw::load::<u8>).collect());
        }
        at = next;
    }
    None
}

/// Where functions start, out of the search table that every object has for
/// unwinding (LSB, `.eh_frame_hdr`): version 1, encodings, then pairs of
/// signed 32-bit offsets from the table's own address. Anything else gives
/// nothing.
pub(crate) fn functions(table: usize) -> Vec<usize> {
    let header: [u8; 4] = crate::raw::load(table);
    // DW_EH_PE_udata4 for the count, DW_EH_PE_datarel | sdata4 for the table.
    if header[0] != 1 || header[2] != 0x03 || header[3] != 0x3b {
        return Vec::new();
    }
    let pointer_bytes = match header[1] & 0x0f {
        0x03 | 0x0b => 4,
        0x04 | 0x0c => 8,
        _ => return Vec::new(),
    };
    let count = crate::raw::load::<u32>(table + 4 + pointer_bytes) as usize;
    let first = table + 8 + pointer_bytes;
    (0..count)
        .map(|index| {
            let offset: i32 = crate::raw::load(first + index * 8);
            table.wrapping_add_signed(offset as isize)
        })
        .collect()
}
