//! What a program is about to execute, and whether this library can be in it.
//!
//! The loader of another C library, or of another architecture, complains about a
//! library that is not for it, and an older glibc's ends the program; ours complains about
//! one that the program's user may not read, or that is not in its root folder. Such
//! programs run without us, and nobody hears of it. This looks at no more than the kernel
//! will: the file's first bytes, and where its loader is named; and into a loader that is
//! not the usual one.
//!
//! It runs between vfork and exec too: system calls and the stack only.

use ghostmem_os::loader::CLibrary;

use crate::guarded::{self, Touch};
use crate::raw::{call, failed};

/// The beginnings of the two variables that make a program ours.
pub(super) const OURS: &[u8] = b"GHOSTMEM_RUN=";
pub(super) const PRELOAD: &[u8] = b"LD_PRELOAD=";
/// This library's file name.
const LIBRARY: &[u8] = b"libghostmem_preload.so";

/// Interpreters of interpreters followed, as the kernel does.
const SCRIPTS_MAX: usize = 5;
/// Room for a path, or the program headers of any program.
const ROOM: usize = 512;

const PT_INTERP: u32 = 3;
const HEADER_BYTES: usize = 56;
const MACHINE_X86_64: u16 = 62;

/// Whether a string begins so.
pub(super) fn begins(text: usize, with: &[u8]) -> Touch<bool> {
    let mut start = [0_u8; 16];
    let bytes = guarded::string_bytes(text, with.len())?;
    guarded::copy(start.as_mut_ptr() as usize, text, bytes)?;
    Ok(start.starts_with(with))
}

/// Takes our library out of a copy of the variable that names it; how long it is
/// then, its NUL included, or 0 when it names nothing else. Names are separated by colons or spaces.
pub(super) fn leave_out(copy: usize, bytes: usize) -> usize {
    // SAFETY: a string that was just copied to memory of ours.
    let text = unsafe { core::slice::from_raw_parts_mut(copy as *mut u8, bytes) };
    let names = PRELOAD.len()..bytes.saturating_sub(1);
    let separates = |byte: &u8| matches!(byte, b':' | b' ');
    let (mut from, mut kept) = (names.start, names.start);
    while from < names.end {
        let length = text[from..names.end].iter().position(separates);
        let end = length.map_or(names.end, |length| from + length);
        if !text[from..end].ends_with(LIBRARY) && from < end {
            if kept > names.start {
                text[kept] = b':';
                kept += 1;
            }
            text.copy_within(from..end, kept);
            kept += end - from;
        }
        from = end + 1;
    }
    if kept == names.start {
        return 0;
    }
    text[kept] = 0;
    kept + 1
}

/// Whether the program at a path, the kernel's way, can have this library in it.
/// `true` where nothing can be told: the call will say why it fails.
pub(super) fn takes_us(folder: usize, path: usize) -> Touch<bool> {
    if !can_read_us() {
        return Ok(false);
    }
    if path == 0 {
        return Ok(true);
    }
    let mut name = [0_u8; ROOM];
    let bytes = guarded::string_bytes(path, ROOM)?;
    if bytes == ROOM || bytes <= 1 {
        return Ok(true);
    }
    guarded::copy(name.as_mut_ptr() as usize, path, bytes)?;
    let mut folder = folder;
    for _ in 0..SCRIPTS_MAX {
        let flags = libc::O_RDONLY | libc::O_CLOEXEC | libc::O_NOCTTY | libc::O_NONBLOCK;
        let file = call!(libc::SYS_openat, folder, name.as_ptr(), flags, 0);
        if failed(file) {
            return Ok(true);
        }
        let kind = look(file as usize, &mut name);
        let _closed = call!(libc::SYS_close, file);
        match kind {
            Kind::Takes => return Ok(true),
            Kind::Refuses => return Ok(false),
            // Its interpreter is in `name` now.
            Kind::Script => folder = libc::AT_FDCWD as usize,
        }
    }
    Ok(true)
}

/// Whether the user that this process is now may read this library, in the root folder that
/// it has now.
fn can_read_us() -> bool {
    let path = crate::objects::our_file();
    // A filter of the program's may have no such call, and end whoever makes it.
    crate::confine::look();
    if path == 0 || ghostmem_os::doorway::is_confined() {
        return true;
    }
    // With the effective user's rights, as the loader will have them.
    let folder = libc::AT_FDCWD;
    let answer = call!(
        libc::SYS_faccessat2,
        folder,
        path,
        libc::R_OK,
        libc::AT_EACCESS
    );
    ![libc::EACCES, libc::ENOENT, libc::ENOTDIR]
        .iter()
        .any(|&errno| answer == -(errno as isize))
}

enum Kind {
    Takes,
    Refuses,
    Script,
}

fn read_at(file: usize, place: &mut [u8], offset: usize) -> usize {
    let bytes = place.len();
    let got = call!(libc::SYS_pread64, file, place.as_mut_ptr(), bytes, offset);
    usize::try_from(got).unwrap_or(0).min(bytes)
}

/// Looks at a file; a script's interpreter is put in `name`.
fn look(file: usize, name: &mut [u8; ROOM]) -> Kind {
    let mut start = [0_u8; 256];
    let got = read_at(file, &mut start, 0);
    if start.starts_with(b"#!") {
        let line = start[2..got].split(|&byte| byte == b'\n').next();
        let word = line.and_then(|line| {
            let blank = |byte: &u8| matches!(byte, b' ' | b'\t');
            line.split(blank).find(|word| !word.is_empty())
        });
        let Some(word) = word else {
            return Kind::Takes;
        };
        name.fill(0);
        name[..word.len()].copy_from_slice(word);
        return Kind::Script;
    }
    if got < 64 || !start.starts_with(b"\x7fELF") {
        return Kind::Takes;
    }
    let half = |at: usize| u16::from_le_bytes([start[at], start[at + 1]]);
    // Class and machine: 64 bits, x86-64.
    if start[4] != 2 || half(18) != MACHINE_X86_64 {
        return Kind::Refuses;
    }
    let mut table = [0_u8; 8];
    table.copy_from_slice(&start[32..40]);
    let table = u64::from_le_bytes(table) as usize;
    for index in 0..usize::from(half(56)).min(64) {
        let mut header = [0_u8; HEADER_BYTES];
        read_at(file, &mut header, table + index * usize::from(half(54)));
        if header[..4] != PT_INTERP.to_le_bytes() {
            continue;
        }
        let mut offset = [0_u8; 8];
        offset.copy_from_slice(&header[8..16]);
        let mut loader = [0_u8; 256];
        read_at(file, &mut loader, u64::from_le_bytes(offset) as usize);
        let [.., last] = &mut loader;
        *last = 0;
        return if can_load_us(&loader) && !has_sanitizer(file, &start) {
            Kind::Takes
        } else {
            Kind::Refuses
        };
    }
    // No loader: nobody who could complain. But valgrind's tools hand us on to a program
    // whose memory they serve; the one that was named says so.
    let is_named = crate::start::settings().is_some_and(crate::report::is_reporter);
    let is_valgrinds = name.windows(VALGRIND.len()).any(|part| part == VALGRIND);
    if is_valgrinds && !is_named {
        Kind::Refuses
    } else {
        Kind::Takes
    }
}

/// A folder of valgrind's tools, which are no dynamic programs.
const VALGRIND: &[u8] = b"/valgrind/";

/// Libraries that serve a program's memory, and end it where another one comes first.
const SANITIZERS: [&[u8]; 4] = [
    b"libasan.so",
    b"libtsan.so",
    b"libhwasan.so",
    b"libclang_rt.",
];

/// Whether a program needs one of those, by its dynamic section. `start` is the file's.
fn has_sanitizer(file: usize, start: &[u8; 256]) -> bool {
    const PT_LOAD: u64 = 1;
    const PT_DYNAMIC: u64 = 2;
    const DT_NEEDED: u64 = 1;
    const DT_STRTAB: u64 = 5;
    const MOST: usize = 64;
    let half = |at: usize| usize::from(u16::from_le_bytes([start[at], start[at + 1]]));
    let table = word_of(start, 32);
    let segment = |index: usize| {
        let mut header = [0_u8; HEADER_BYTES];
        read_at(file, &mut header, table + index * half(54));
        // Kind, offset, address, bytes in the file.
        let kind = word_of(&header, 0) as u64 & 0xffff_ffff;
        [
            kind as usize,
            word_of(&header, 8),
            word_of(&header, 16),
            word_of(&header, 32),
        ]
    };
    let mut segments = (0..half(56).min(MOST)).map(segment);
    let Some([_, dynamic, ..]) = segments.find(|&[kind, ..]| kind as u64 == PT_DYNAMIC) else {
        return false;
    };
    let (mut needed, mut count, mut strings) = ([0_usize; MOST], 0, 0);
    for index in 0..4 * MOST {
        let mut entry = [0_u8; 16];
        read_at(file, &mut entry, dynamic + index * 16);
        match (word_of(&entry, 0) as u64, word_of(&entry, 8)) {
            (0, _) => break,
            (DT_NEEDED, name) if count < MOST => {
                needed[count] = name;
                count += 1;
            }
            (DT_STRTAB, address) => strings = address,
            _ => {}
        }
    }
    // By address; where in the file that is the segments say.
    let holds = |&[kind, _, address, bytes]: &[usize; 4]| {
        kind as u64 == PT_LOAD && strings.wrapping_sub(address) < bytes
    };
    let Some([_, offset, address, _]) = (0..half(56).min(MOST)).map(segment).find(holds) else {
        return false;
    };
    needed[..count].iter().any(|name| {
        let mut text = [0_u8; 16];
        read_at(file, &mut text, strings - address + offset + name);
        SANITIZERS.iter().any(|library| text.starts_with(library))
    })
}

/// The word at a place of a file's bytes.
fn word_of(bytes: &[u8], at: usize) -> usize {
    let mut word = [0_u8; 8];
    word.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(word) as usize
}

/// Whether a loader, by its path and a NUL, can load this library. One that cannot be opened
/// is taken to: the call will say why it fails.
fn can_load_us(loader: &[u8]) -> bool {
    let path = loader.split(|&byte| byte == 0).next().unwrap_or(&[]);
    let library = CLibrary::of_path(path).unwrap_or_else(|| {
        let flags = libc::O_RDONLY | libc::O_CLOEXEC | libc::O_NOCTTY | libc::O_NONBLOCK;
        let folder = libc::AT_FDCWD;
        let file = call!(libc::SYS_openat, folder, loader.as_ptr(), flags, 0);
        if failed(file) {
            return CLibrary::Glibc;
        }
        let library = CLibrary::of_file(|piece, at| read_at(file as usize, piece, at));
        let _closed = call!(libc::SYS_close, file);
        library
    });
    library == CLibrary::Glibc
}
