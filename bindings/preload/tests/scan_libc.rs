//! The files of a C library, looked at and not run: every system call instruction in
//! them is redirected, or makes a call that takes no pointer.
//!
//! These are the files that are installed, unless `GHOSTMEM_SCAN` names a folder with
//! others (`scripts/scan-libc`). The library's own modules find what is redirected;
//! this file reads the instructions again, by itself, and says which are not.
#![allow(
    dead_code,
    unused_imports,
    unreachable_pub,
    clippy::unwrap_used,
    reason = "of the library's files only a part is used"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};

use iced_x86::{Code, Decoder, DecoderOptions, Instruction, Register};

#[path = "../src/objects.rs"]
mod objects;
#[path = "../src/patch.rs"]
mod patch;
#[path = "../src/plan.rs"]
mod plan;
#[path = "../src/raw.rs"]
mod raw;
#[path = "../src/scan.rs"]
mod scan;
#[path = "../src/stub.rs"]
mod stub;
#[path = "../src/window.rs"]
mod window;

/// What `patch.rs` names of the library's calls.
#[path = "../src/calls"]
mod calls {
    pub(crate) mod table;

    pub(crate) fn entry_address() -> usize {
        unreachable!("nothing is patched here")
    }
}

/// What `patch.rs` names of the library's start.
mod start {
    pub(crate) fn next(_: &core::ffi::CStr) -> usize {
        unreachable!("nothing is patched here")
    }
}

use calls::table::{self, Treatment};
use scan::Scan;

/// The libraries of Debian's package libc6. The first two are there in any case.
const FILES: [&str; 18] = [
    "libc.so.6",
    "ld-linux-x86-64.so.2",
    "libBrokenLocale.so.1",
    "libanl.so.1",
    "libc_malloc_debug.so.0",
    "libdl.so.2",
    "libm.so.6",
    "libmvec.so.1",
    "libnsl.so.1",
    "libnss_compat.so.2",
    "libnss_dns.so.2",
    "libnss_files.so.2",
    "libnss_hesiod.so.2",
    "libpthread.so.0",
    "libresolv.so.2",
    "librt.so.1",
    "libthread_db.so.1",
    "libutil.so.1",
];
/// Files without which there is no C library.
const NEEDED: usize = 2;

/// A file's segments as the loader would lay them out.
struct Image {
    bytes: Vec<u8>,
    /// Where in `bytes` the code is.
    code: Vec<Range<usize>>,
    /// Where functions start: addresses in this process. Some files have none.
    functions: Vec<usize>,
}

impl Image {
    /// Lays out an ELF file for x86-64 (elf(5), 64 bits, little endian).
    fn of(file: &[u8]) -> Self {
        const LOAD: usize = 1;
        const EH_FRAME: usize = 0x6474_e550;
        const EXECUTABLE: usize = 1;
        assert_eq!(file[..5], *b"\x7fELF\x02", "no 64-bit ELF file");
        assert_eq!(number(file, 18, 2), 62, "not for x86-64");
        let (first, size) = (number(file, 32, 8), number(file, 54, 2));
        let headers: Vec<_> = (0..number(file, 56, 2))
            .map(|index| {
                let header = &file[first + index * size..][..size];
                let field = |at, bytes| number(header, at, bytes);
                (
                    field(0, 4),
                    field(4, 4),
                    field(8, 8),
                    field(16, 8),
                    field(32, 8),
                )
            })
            .collect();
        let mut image = Self {
            bytes: Vec::new(),
            code: Vec::new(),
            functions: Vec::new(),
        };
        for &(kind, flags, offset, address, bytes) in &headers {
            if kind != LOAD {
                continue;
            }
            let place = address..address + bytes;
            image.bytes.resize(image.bytes.len().max(place.end), 0);
            image.bytes[place.clone()].copy_from_slice(&file[offset..offset + bytes]);
            if flags & EXECUTABLE != 0 {
                image.code.push(place);
            }
        }
        if let Some(table) = headers.iter().find(|header| header.0 == EH_FRAME) {
            image.functions = objects::functions(image.bytes.as_ptr() as usize + table.3);
        }
        image
    }
}

/// A little-endian number of so many bytes.
fn number(bytes: &[u8], at: usize, count: usize) -> usize {
    let bytes = bytes[at..at + count].iter().rev();
    bytes.fold(0, |number, &byte| number << 8 | usize::from(byte))
}

/// What becomes of a file's system call instructions.
#[derive(Debug, Default, PartialEq, Eq)]
struct Counts {
    instructions: usize,
    /// Not redirected: the call takes no pointer.
    alone: usize,
    copied: usize,
    held: usize,
    own: usize,
    /// Redirected, and looked up by number at each call.
    at_each_call: usize,
}

/// Counts a file's instructions. Those that should be redirected and are not, and
/// calls without a treatment, go to `wrong`.
fn look_at(image: &Image, wrong: &mut Vec<String>) -> Counts {
    let mut counts = Counts::default();
    for range in &image.code {
        let code = &image.bytes[range.clone()];
        let base = code.as_ptr() as usize;
        if image.functions.is_empty() && !Scan::for_calls(code, base).calls.is_empty() {
            wrong.push("calls in code that has no table of its functions".to_owned());
        }
        let mut report = patch::Report {
            maps: true,
            ..patch::Report::default()
        };
        let sites = patch::find(code, base, || image.functions.clone(), &mut report);
        if report.left != 0 {
            wrong.push(format!("{} cannot be redirected", report.left));
        }
        // What a thread comes by as it ends is in front of a call.
        let calls = sites
            .iter()
            .filter(|site| site.number != Some(table::LEAVES));
        let redirected: BTreeMap<usize, Option<usize>> =
            calls.map(|site| (site.call, site.number)).collect();
        for site in redirected.values() {
            match site.map(table::treatment) {
                None => counts.at_each_call += 1,
                Some(Some(Treatment::Copied(_))) => counts.copied += 1,
                Some(Some(Treatment::Held(_) | Treatment::HeldDeep(_))) => counts.held += 1,
                Some(Some(Treatment::Own(_) | Treatment::Always)) => counts.own += 1,
                Some(None | Some(Treatment::None)) => {
                    wrong.push(format!("call {} has no treatment", site.unwrap()));
                }
            }
        }
        let (already, alone) = (counts.instructions, counts.alone);
        for (at, what) in instructions(code, base, &image.functions) {
            counts.instructions += 1;
            if redirected.contains_key(&at) {
                continue;
            }
            counts.alone += 1;
            let offset = at - base + range.start;
            match what {
                Some(call) if matches!(table::treatment(call), Some(Treatment::None)) => {}
                None if ends_the_thread(code, at - base) => {}
                _ => wrong.push(format!("at {offset:#x}: {what:?} is left alone")),
            }
        }
        let seen = counts.instructions - already - (counts.alone - alone);
        assert_eq!(seen, redirected.len(), "redirected, and no system call");
    }
    counts
}

/// Whether a system call is how a thread of glibc's ends: exit(2), which takes a number
/// and no pointer, with 0, in a loop. The number stands in edx in front of the loop.
fn ends_the_thread(code: &[u8], at: usize) -> bool {
    const LOOP: [u8; 8] = [0x31, 0xff, 0x89, 0xd0, 0x0f, 0x05, 0xeb, 0xf8];
    const NUMBER: [u8; 5] = [0xba, 60, 0, 0, 0];
    const NEAR: usize = 24;
    let start = at - 4;
    code[start..].starts_with(&LOOP)
        && code[start - NEAR..start]
            .windows(NUMBER.len())
            .any(|bytes| bytes == NUMBER)
}

/// Every system call instruction of the functions, and the number that was put into
/// eax last in front of it, wherever the code branches.
fn instructions(code: &[u8], base: usize, functions: &[usize]) -> Vec<(usize, Option<usize>)> {
    let mut found = Vec::new();
    let bounds: BTreeSet<usize> = functions.iter().copied().collect();
    let mut bounds: Vec<usize> = bounds
        .into_iter()
        .filter(|&start| start >= base && start < base + code.len())
        .collect();
    bounds.push(base + code.len());
    for pair in bounds.windows(2) {
        let mut start = pair[0];
        // glibc's table names the byte before the return from a signal.
        const RETURN: [u8; 8] = [0x90, 0x48, 0xc7, 0xc0, 0x0f, 0, 0, 0];
        let bytes = &code[start - base..pair[1] - base];
        if bytes.starts_with(&RETURN) || bytes.get(1..8) == Some(&RETURN[1..]) {
            start += 1;
        }
        let bytes = &code[start - base..pair[1] - base];
        let mut last = None;
        for instruction in Decoder::with_ip(64, bytes, start as u64, DecoderOptions::NONE) {
            if instruction.code() == Code::Syscall {
                found.push((instruction.ip() as usize, last));
            }
            last = after(&instruction, last);
        }
    }
    found
}

/// What eax holds after an instruction: a number, or something else.
fn after(instruction: &Instruction, before: Option<usize>) -> Option<usize> {
    let is_eax = instruction.op_count() > 0
        && instruction.op0_kind() == iced_x86::OpKind::Register
        && instruction.op0_register().full_register() == Register::RAX;
    match instruction.code() {
        Code::Mov_r32_imm32 if is_eax => Some(instruction.immediate32() as usize),
        Code::Mov_rm64_imm32 if is_eax => Some(instruction.immediate32() as usize),
        Code::Xor_rm32_r32 | Code::Xor_r32_rm32
            if is_eax && instruction.op1_register() == Register::EAX =>
        {
            Some(0)
        }
        // Compared, and not changed.
        Code::Cmp_rm64_imm8
        | Code::Cmp_rm32_imm8
        | Code::Cmp_rm32_imm32
        | Code::Cmp_rm64_imm32
        | Code::Cmp_EAX_imm32
        | Code::Cmp_RAX_imm32
        | Code::Test_rm32_r32
        | Code::Test_rm64_r64 => before,
        _ if is_eax => None,
        _ => before,
    }
}

/// The folder of the C library that this process runs on.
fn installed() -> PathBuf {
    let maps = fs::read_to_string("/proc/self/maps").unwrap();
    let file = maps
        .lines()
        .filter_map(|line| line.split_whitespace().nth(5))
        .find(|path| path.ends_with("/libc.so.6"));
    Path::new(file.expect("libc.so.6")).parent().unwrap().into()
}

#[test]
fn every_call_of_the_c_library_is_redirected_or_takes_no_pointer() {
    let other = std::env::var_os("GHOSTMEM_SCAN");
    let folder = other.map_or_else(installed, PathBuf::from);
    let mut wrong = Vec::new();
    for (index, name) in FILES.iter().enumerate() {
        let Ok(file) = fs::read(folder.join(name)) else {
            assert!(index >= NEEDED, "{}: no {name}", folder.display());
            continue;
        };
        let mut here = Vec::new();
        let counts = look_at(&Image::of(&file), &mut here);
        wrong.extend(here.into_iter().map(|what| format!("{name}: {what}")));
        if index == 0 {
            assert!(counts.instructions > 400, "{counts:?}");
        }
        if counts.instructions > 0 {
            // scripts/scan-libc reads this.
            let Counts {
                instructions,
                alone,
                copied,
                held,
                own,
                at_each_call,
            } = counts;
            println!(
                "scan\t{name}\t{instructions}\t{alone}\t{copied}\t{held}\t{own}\t{at_each_call}"
            );
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
