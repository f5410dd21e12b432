//! What an executable's header says: just enough to know whether a library can be loaded into it.
//!
//! Field offsets are those of the ELF-64 object file format (elf(5)), little endian.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::FileExt;

use ghostmem_os::loader::CLibrary;

/// What kind of executable a file is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// 64-bit x86, for the loader named.
    Dynamic {
        /// Whose loader it is.
        library: CLibrary,
        /// Why it is known to make system calls outside the C library.
        raw_system_calls: Option<&'static str>,
        /// The sanitizer it is built with, which has an allocator of its own.
        sanitizer: Option<&'static str>,
    },
    /// No loader: nothing can be loaded into it.
    Static,
    /// 64-bit, another processor.
    OtherMachine,
    /// 32-bit.
    Bits32,
    /// No ELF file.
    NotElf,
}

const PT_INTERP: u32 = 3;
const PT_DYNAMIC: u32 = 2;
const PT_LOAD: u32 = 1;
const PT_NOTE: u32 = 4;
const DT_NEEDED: u64 = 1;
const DT_STRTAB: u64 = 5;
const MACHINE_X86_64: u16 = 62;
/// More program headers than any executable has.
const HEADERS_MAX: u64 = 512;
/// Longer names of loaders or libraries are none.
const NAME_MAX: usize = 256;

/// Libraries that serve malloc with checks, and refuse or fail behind another one.
const SANITIZERS: [(&str, &str); 4] = [
    ("libasan.so", "AddressSanitizer"),
    ("libhwasan.so", "HWAddressSanitizer"),
    ("liblsan.so", "LeakSanitizer"),
    ("libtsan.so", "ThreadSanitizer"),
];

/// One program header.
struct Header {
    kind: u32,
    offset: u64,
    address: u64,
    bytes: u64,
}

/// Reads what kind of executable a file is.
///
/// # Errors
/// When it cannot be read.
pub(crate) fn kind(file: &mut File) -> io::Result<Kind> {
    let headers = match headers(file)? {
        Ok(headers) => headers,
        Err(kind) => return Ok(kind),
    };
    let Some(interpreter) = headers.iter().find(|header| header.kind == PT_INTERP) else {
        return Ok(Kind::Static);
    };
    let loader = text_at(file, interpreter.offset)?;
    let needed = needed(file, &headers)?;
    let uring = needed.iter().any(|name| name.starts_with("liburing"));
    let sanitizer = SANITIZERS
        .iter()
        .find(|(library, _)| needed.iter().any(|name| name.starts_with(library)));
    let raw_system_calls = if is_go(file, &headers)? {
        Some("it is a Go program")
    } else {
        uring.then_some("it uses liburing")
    };
    Ok(Kind::Dynamic {
        library: c_library(&loader),
        raw_system_calls,
        sanitizer: sanitizer.map(|(_, name)| *name),
    })
}

/// The C library whose loader is at a path. One that cannot be opened is taken for usable:
/// starting the program says why it is not.
fn c_library(loader: &str) -> CLibrary {
    CLibrary::of_path(loader.as_bytes()).unwrap_or_else(|| match File::open(loader) {
        Ok(file) => CLibrary::of_file(|piece, at| file.read_at(piece, at as u64).unwrap_or(0)),
        Err(_) => CLibrary::Glibc,
    })
}

/// A file's program headers, or the kind of file that has none to be read.
fn headers(file: &mut File) -> io::Result<Result<Vec<Header>, Kind>> {
    let mut ident = [0; 64];
    let got = read_up_to(file, &mut ident)?;
    if got < 20 || ident[..4] != *b"\x7fELF" {
        return Ok(Err(Kind::NotElf));
    }
    if ident[4] == 1 {
        return Ok(Err(Kind::Bits32));
    }
    if got < 64 || u16_at(&ident, 18) != MACHINE_X86_64 {
        return Ok(Err(Kind::OtherMachine));
    }
    let table = u64_at(&ident, 32);
    let size = u64::from(u16_at(&ident, 54)).max(56);
    let count = u64::from(u16_at(&ident, 56)).min(HEADERS_MAX);
    let mut headers = Vec::new();
    for index in 0..count {
        let mut raw = [0; 56];
        file.seek(SeekFrom::Start(table + index * size))?;
        file.read_exact(&mut raw)?;
        headers.push(Header {
            kind: u32_at(&raw, 0),
            offset: u64_at(&raw, 8),
            address: u64_at(&raw, 16),
            bytes: u64_at(&raw, 32),
        });
    }
    Ok(Ok(headers))
}

/// Whether the loader can load a file as a library: one that it cannot load it leaves out, and
/// starts the program without. Every segment must be there, and none is cut off.
///
/// # Errors
/// When it cannot be read.
pub(crate) fn is_whole_library(file: &mut File) -> io::Result<bool> {
    const DYNAMIC_OBJECT: u16 = 3;
    let bytes = file.metadata()?.len();
    let Ok(headers) = headers(file)? else {
        return Ok(false);
    };
    let mut kind = [0; 2];
    file.seek(SeekFrom::Start(16))?;
    file.read_exact(&mut kind)?;
    let whole = |header: &Header| header.offset.saturating_add(header.bytes) <= bytes;
    let has = |kind| headers.iter().any(|header| header.kind == kind);
    Ok(u16_at(&kind, 0) == DYNAMIC_OBJECT
        && has(PT_LOAD)
        && has(PT_DYNAMIC)
        && headers.iter().all(whole))
}

/// The libraries an executable asks for.
fn needed(file: &mut File, headers: &[Header]) -> io::Result<Vec<String>> {
    let Some(dynamic) = headers.iter().find(|header| header.kind == PT_DYNAMIC) else {
        return Ok(Vec::new());
    };
    let mut raw = vec![0; usize::try_from(dynamic.bytes.min(1 << 16)).unwrap_or(0)];
    file.seek(SeekFrom::Start(dynamic.offset))?;
    let got = read_up_to(file, &mut raw)?;
    let entries: Vec<(u64, u64)> = raw[..got]
        .chunks_exact(16)
        .map(|entry| (u64_at(entry, 0), u64_at(entry, 8)))
        .collect();
    let strings = entries.iter().find(|entry| entry.0 == DT_STRTAB);
    let Some(strings) = strings.and_then(|entry| file_offset(headers, entry.1)) else {
        return Ok(Vec::new());
    };
    entries
        .iter()
        .filter(|entry| entry.0 == DT_NEEDED)
        .map(|entry| text_at(file, strings.saturating_add(entry.1)))
        .collect()
}

/// Whether Go's linker made it: a note named "Go", type 4, holds its build id
/// (cmd/link, `ELF_NOTE_GOBUILDID_TAG`). Go makes its system calls itself, in
/// programs linked with libc too.
fn is_go(file: &mut File, headers: &[Header]) -> io::Result<bool> {
    for header in headers.iter().filter(|header| header.kind == PT_NOTE) {
        let mut notes = vec![0; usize::try_from(header.bytes.min(1 << 16)).unwrap_or(0)];
        file.seek(SeekFrom::Start(header.offset))?;
        let got = read_up_to(file, &mut notes)?;
        let mut rest = &notes[..got];
        // Name's and content's length, type, name, content, each padded to four.
        while rest.len() >= 12 {
            let padded = |at| (u32_at(rest, at) as usize).next_multiple_of(4);
            if u32_at(rest, 8) == 4 && rest[12..].starts_with(b"Go\0\0") {
                return Ok(true);
            }
            rest = rest.get(12 + padded(0) + padded(4)..).unwrap_or(&[]);
        }
    }
    Ok(false)
}

fn file_offset(headers: &[Header], address: u64) -> Option<u64> {
    headers
        .iter()
        .filter(|header| header.kind == PT_LOAD)
        .find_map(|header| {
            let inside = address.checked_sub(header.address)?;
            (inside < header.bytes).then(|| inside.checked_add(header.offset))?
        })
}

fn text_at(file: &mut File, offset: u64) -> io::Result<String> {
    let mut raw = [0; NAME_MAX];
    file.seek(SeekFrom::Start(offset))?;
    let got = read_up_to(file, &mut raw)?;
    let text = raw[..got].split(|&byte| byte == 0).next().unwrap_or(&[]);
    Ok(String::from_utf8_lossy(text).into_owned())
}

fn read_up_to(file: &mut File, buffer: &mut [u8]) -> io::Result<usize> {
    let mut done = 0;
    while done < buffer.len() {
        match file.read(&mut buffer[done..])? {
            0 => break,
            more => done += more,
        }
    }
    Ok(done)
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from(u16_at(bytes, at)) | u32::from(u16_at(bytes, at + 2)) << 16
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) | u64::from(u32_at(bytes, at + 4)) << 32
}
