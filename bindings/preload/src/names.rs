//! libc's functions by names that a program may have given to functions of its own.
//!
//! The loader looks a name up in the program first, then in the libraries in their order: a C
//! program with a function `read` that takes numbers from its input would have been asked by
//! the engine for a file, and a library in front of libc that maps memory for an allocator
//! (gperftools) for the engine's pages. So the linker sends each of these names to a jump
//! through a table (`--wrap` of ld(1), build.rs). The loader fills it with what it found, as
//! it does for any library; what is not libc's own is looked up there, once, before anything
//! else runs:
//!
//! ```text
//!   read ──► __wrap_read: jmp *table[read] ──► what the loader found, if that is libc's
//!                                        └──► else libc's own
//! ```
//! Allocators define the names that libc keeps for those who replace malloc, too, so these are
//! in the table. Not in it are other names that are libc's to define, the loader's own
//! (dlsym), those whose meaning everybody keeps (memcpy, getenv), and data.

use core::arch::global_asm;
use core::ffi::{CStr, c_char, c_int, c_void};
use core::ops::Range;
use core::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use ghostmem_os::doorway;

use crate::keys;
use crate::raw::{failed, own};

/// `st_info` of a function and of a variable (elf(5)).
const FUNCTION: u8 = 2;
const OBJECT: u8 = 1;

/// Makes the table, a jump for each name, and the list of names.
macro_rules! names {
    ($($name:ident)*) => {
        global_asm!(
            ".pushsection .data.gm_names,\"aw\",@progbits",
            ".balign 8",
            ".globl gm_names",
            ".hidden gm_names",
            ".type gm_names,@object",
            "gm_names:",
            $(
                concat!("gm_name_", stringify!($name), ": .quad __real_", stringify!($name)),
            )*
            ".size gm_names, . - gm_names",
            ".popsection",
            ".pushsection .text.gm_names,\"ax\",@progbits",
            $(
                concat!(".globl __wrap_", stringify!($name)),
                concat!(".hidden __wrap_", stringify!($name)),
                concat!(".type __wrap_", stringify!($name), ",@function"),
                ".balign 16",
                concat!("__wrap_", stringify!($name), ":"),
                concat!("jmp qword ptr [rip + gm_name_", stringify!($name), "]"),
                concat!(".size __wrap_", stringify!($name), ", . - __wrap_", stringify!($name)),
            )*
            ".popsection",
        );
        const NAMES: &[&CStr] = &[$(
            match CStr::from_bytes_with_nul(concat!(stringify!($name), "\0").as_bytes()) {
                Ok(name) => name,
                Err(_) => panic!("a name has no zero"),
            }
        ),*];
    };
}

include!("names.in");

unsafe extern "C" {
    #[link_name = "gm_names"]
    static TABLE: [AtomicUsize; NAMES.len()];
    fn gnu_get_libc_version() -> *const c_char;
}

/// Looks up in libc what the loader found elsewhere, once: as this library is loaded, or when
/// a constructor of another one asks for the first block. That goes back to where it came from.
pub(crate) fn settle() {
    static SETTLED: AtomicBool = AtomicBool::new(false);
    if SETTLED.load(Ordering::Relaxed) || SETTLED.swap(true, Ordering::Relaxed) {
        return;
    }
    let Some(libc) = Libc::find() else { return };
    for (place, name) in table().iter().zip(NAMES) {
        if !libc.code.contains(&place.load(Ordering::Relaxed))
            && let Some(found) = libc.symbol(name, FUNCTION)
        {
            place.store(found, Ordering::Relaxed);
        }
    }
    PRCTL.store(
        replace(c"prctl", prctl as *const () as usize),
        Ordering::Relaxed,
    );
    let _libcs = [
        (c"pthread_key_create", keys::create as *const () as usize),
        (c"pthread_key_delete", keys::delete as *const () as usize),
        (c"pthread_setspecific", keys::set as *const () as usize),
    ]
    .map(|(name, ours)| replace(name, ours));
}

/// Sends this library's calls of a name to a function of its own; where they went. 0: the name
/// is not in the table.
fn replace(name: &CStr, ours: usize) -> usize {
    let place = NAMES.iter().position(|one| *one == name);
    place.map_or(0, |place| table()[place].swap(ours, Ordering::Relaxed))
}

/// Where libc's prctl is.
static PRCTL: AtomicUsize = AtomicUsize::new(0);

/// prctl(2). The small-object allocator gives its memory names, which many kernels refuse, and
/// nobody looks why: errno stays the program's. Where the program has a filter, which may end it
/// for that, none is given.
extern "C" fn prctl(option: c_int, a: usize, b: usize, c: usize, d: usize) -> c_int {
    const PR_SET_VMA: c_int = 0x5356_4d41;
    type Prctl = extern "C" fn(c_int, usize, usize, usize, usize) -> c_int;
    if option == PR_SET_VMA && doorway::is_confined() {
        return -1;
    }
    if option == PR_SET_VMA {
        return -c_int::from(failed(own!(libc::SYS_prctl, option, a, b, c, d)));
    }
    // SAFETY: libc's function, or another's of that name, which take numbers in these registers.
    let prctl = unsafe { core::mem::transmute::<usize, Prctl>(PRCTL.load(Ordering::Relaxed)) };
    prctl(option, a, b, c, d)
}

/// Before all that this library does as it is loaded: in the order of these numbers, the
/// small-object allocator's has 100.
#[used]
#[unsafe(link_section = ".init_array.00045")]
static FIRST: extern "C" fn() = {
    extern "C" fn first() {
        settle();
    }
    first
};

/// Whether libc is of this version, or of a later one.
pub(crate) fn libc_is_at_least(version: [u32; 2]) -> bool {
    // SAFETY: no preconditions.
    let text = unsafe { gnu_get_libc_version() };
    // SAFETY: a string of libc's, which stays.
    let text = unsafe { CStr::from_ptr(text) };
    let mut numbers = text.to_bytes().split(|byte| *byte == b'.').map(|digits| {
        let digits = core::str::from_utf8(digits).ok()?;
        digits.parse::<u32>().ok()
    });
    let found = [numbers.next().flatten(), numbers.next().flatten()];
    found.iter().all(Option::is_some) && found >= version.map(Some)
}

/// Where a function is in libc itself, whoever else has one of that name. Allocates nothing.
pub(crate) fn in_libc(name: &CStr) -> Option<usize> {
    Libc::find()?.symbol(name, FUNCTION)
}

/// The same for a variable.
pub(crate) fn data_in_libc(name: &CStr) -> Option<usize> {
    Libc::find()?.symbol(name, OBJECT)
}

/// libc, as the loader has it.
struct Libc {
    base: usize,
    code: Range<usize>,
    /// Addresses of its tables (elf(5)).
    symbols: usize,
    strings: usize,
    hashes: usize,
    versions: usize,
}

impl Libc {
    fn find() -> Option<Self> {
        let mut found: Option<Self> = None;
        // SAFETY: `visit` has the type asked for, and its argument is what it expects.
        unsafe { libc::dl_iterate_phdr(Some(visit), (&raw mut found).cast()) };
        found
    }

    fn new(info: &libc::dl_phdr_info, headers: &[libc::Elf64_Phdr]) -> Option<Self> {
        const HASHES: u64 = 0x6fff_fef5;
        const VERSIONS: u64 = 0x6fff_fff0;
        let base = info.dlpi_addr as usize;
        let within = gnu_get_libc_version as *const () as usize;
        let mut codes = headers
            .iter()
            .filter(|header| header.p_type == libc::PT_LOAD && header.p_flags & libc::PF_X != 0)
            .map(|header| {
                let start = base + header.p_vaddr as usize;
                start..start + header.p_memsz as usize
            });
        let code = codes.find(|code| code.contains(&within))?;
        let dynamic = headers
            .iter()
            .find(|header| header.p_type == libc::PT_DYNAMIC)?;
        let mut found = Self {
            base,
            code,
            symbols: 0,
            strings: 0,
            hashes: 0,
            versions: 0,
        };
        let mut at = base + dynamic.p_vaddr as usize;
        loop {
            // SAFETY: an entry of libc's dynamic section, which ends with one of kind 0. The
            // loader has put addresses into it.
            let [kind, value] = unsafe { (at as *const [u64; 2]).read() };
            match kind {
                0 => break,
                5 => found.strings = value as usize,
                6 => found.symbols = value as usize,
                HASHES => found.hashes = value as usize,
                VERSIONS => found.versions = value as usize,
                _ => {}
            }
            at += size_of::<[u64; 2]>();
        }
        let tables = [found.symbols, found.strings, found.hashes, found.versions];
        tables.iter().all(|&table| table >= base).then_some(found)
    }

    /// Where a symbol of a kind is, in the version that programs are linked with. By hand, and with
    /// nothing allocated: dlsym(3) may ask for memory.
    fn symbol(&self, name: &CStr, kind: u8) -> Option<usize> {
        /// The version is an older one's, for programs that were linked with it.
        const HIDDEN: u16 = 0x8000;
        let hash = name.to_bytes().iter().fold(5381_u32, |hash, &byte| {
            hash.wrapping_mul(33).wrapping_add(u32::from(byte))
        });
        // SAFETY: the table of hashes: four words, the filter, the buckets, the chains.
        let word = |offset: usize| unsafe { ((self.hashes + offset) as *const u32).read() };
        let [buckets, first, filter] = [0, 4, 8].map(|offset| word(offset) as usize);
        let chains = 16 + filter * 8 + buckets * 4;
        let bucket = 16 + filter * 8 + hash as usize % buckets * 4;
        let mut index = word(bucket) as usize;
        while index >= first {
            let chain = word(chains + (index - first) * 4);
            if chain | 1 == hash | 1 {
                let at = |table: usize, bytes: usize| table + index * bytes;
                let symbol = at(self.symbols, size_of::<libc::Elf64_Sym>());
                // SAFETY: a symbol of the chain's.
                let symbol = unsafe { (symbol as *const libc::Elf64_Sym).read() };
                let version = at(self.versions, size_of::<u16>());
                // SAFETY: its version.
                let version = unsafe { (version as *const u16).read() };
                let text = (self.strings + symbol.st_name as usize) as *const c_char;
                // SAFETY: its name, which ends with a zero.
                let is_it = unsafe { CStr::from_ptr(text) } == name;
                if is_it && version & HIDDEN == 0 && symbol.st_info & 0xf == kind {
                    return Some(self.base + symbol.st_value as usize);
                }
            }
            if chain & 1 != 0 {
                break;
            }
            index += 1;
        }
        None
    }
}

/// Finds libc.
///
/// # Safety
/// As dl_iterate_phdr(3) calls it, with an `Option<Libc>`.
unsafe extern "C" fn visit(
    info: *mut libc::dl_phdr_info,
    _bytes: usize,
    libc: *mut c_void,
) -> c_int {
    // SAFETY: the caller's promise.
    let info = unsafe { &*info };
    // SAFETY: as above.
    let libc = unsafe { &mut *libc.cast::<Option<Libc>>() };
    // SAFETY: the loader's own table of that many headers.
    let headers =
        unsafe { core::slice::from_raw_parts(info.dlpi_phdr, usize::from(info.dlpi_phnum)) };
    *libc = Libc::new(info, headers);
    c_int::from(libc.is_some())
}

/// Where one of the functions of [`NAMES`] is.
pub(crate) fn address(name: &CStr) -> usize {
    let place = NAMES.iter().position(|known| *known == name);
    place.map_or(0, |place| table()[place].load(Ordering::Relaxed))
}

fn table() -> &'static [AtomicUsize; NAMES.len()] {
    // SAFETY: as many words as there are names, defined above; read and written atomically.
    unsafe { &TABLE }
}
