//! Headers, settings, machine code and the kernel's reports.

use std::collections::HashSet;
use std::fs;

use ghostmem_os::report::{Reports, field_bytes, keyed, pressure};

use iced_x86::Decoder;
use xxhash_rust::xxh3::xxh3_64;

use crate::patch::Site;
use crate::plan::{Key, Plan};
use crate::{patch, plan, scratch};

/// What an executable says of itself.
pub(crate) fn elf(data: &[u8]) {
    let _refused = crate::elf::kind(&mut scratch::holding(data));
}

/// What the command says to the library, by way of an environment that anybody
/// may have written.
pub(crate) fn settings(data: &[u8]) {
    let settings = crate::settings::Settings::parse(data);
    for path in [settings.spill, settings.stats_json, settings.trace] {
        // Escapes only ever make it shorter.
        assert!(path.is_none_or(|path| path.as_os_str().len() <= data.len()));
    }
}

/// Where the machine code of these targets is.
const BASE: usize = 0x7f00_0000_0000;

/// The sites that are found in machine code. The first two bytes say where
/// functions begin.
fn sites(data: &[u8]) -> Option<(&[u8], Vec<Site>)> {
    let [one, two, code @ ..] = data else {
        return None;
    };
    let mut functions = vec![BASE];
    for at in [*one, *two] {
        if usize::from(at) < code.len() {
            functions.push(BASE + usize::from(at));
        }
    }
    functions.sort_unstable();
    functions.dedup();
    let mut report = patch::Report::default();
    let sites = patch::find(code, BASE, || functions, &mut report);
    Some((code, sites))
}

/// Machine code with system calls: what is moved is whole, in one piece, and
/// nobody else's.
pub(crate) fn patch(data: &[u8]) {
    let Some((code, sites)) = sites(data) else {
        return;
    };
    let mut taken = HashSet::new();
    for site in &sites {
        let end = site.end();
        assert!(site.window >= BASE && end <= BASE + code.len());
        assert!(site.window_bytes >= 5, "room for a jump");
        let call = site.call - BASE;
        assert_eq!(code[call..call + 2], [0x0f, 0x05], "a system call");
        assert!(site.call == site.window || site.call == end);
        let window = &code[site.window - BASE..end - BASE];
        let mut decoder = Decoder::with_ip(64, window, site.window as u64, 0);
        let mut distances = Vec::new();
        while decoder.can_decode() {
            let instruction = decoder.decode();
            assert!(!instruction.is_invalid(), "whole instructions");
            if instruction.is_ip_rel_memory_operand() {
                let at = decoder.get_constant_offsets(&instruction);
                let start = instruction.ip() as usize - site.window;
                distances.push(start + at.displacement_offset());
            }
        }
        let found = site.distances.iter().filter(|&&at| at != 0);
        assert!(found.map(|&at| usize::from(at)).eq(distances), "distances");
        for address in site.window..end {
            assert!(taken.insert(address), "two jumps in one place");
        }
    }
    // What is written is read again, and only for this very code.
    let plan = Plan { sites, left: 3 };
    let key = Key::new(&[1, 2, 3], code.len(), false);
    let file = plan::write(&plan, &key, code, BASE).expect("a plan");
    assert_eq!(plan::read(&file, &key, code, BASE).as_ref(), Some(&plan));
    let Some(first) = plan.sites.first() else {
        return;
    };
    let mut other = code.to_vec();
    other[first.window - BASE] ^= 1;
    assert_eq!(plan::read(&file, &key, &other, BASE), None);
}

/// A plan's file that anybody may have written: the sites it names are the code's,
/// apart from each other, and with a call each. Behind the first byte, code; from
/// where that says on, the file, whose hash is made right.
pub(crate) fn plan(data: &[u8]) {
    let [cut, rest @ ..] = data else { return };
    let (code, file) = rest.split_at(usize::from(*cut).min(rest.len()));
    let key = Key::new(&[1, 2, 3], code.len(), false);
    let _as_it_is = plan::read(file, &key, code, BASE);
    let (records, _) = file.as_chunks::<{ plan::RECORD }>();
    let mut file = plan::head(&key, records.len(), 0).to_vec();
    file.extend_from_slice(records.as_flattened());
    file.extend_from_slice(&xxh3_64(&file).to_le_bytes());
    let Some(plan) = plan::read(&file, &key, code, BASE) else {
        return;
    };
    let mut free_from = BASE;
    for site in plan.sites {
        assert!(site.window >= free_from && site.end() <= BASE + code.len());
        free_from = site.end();
        let call = site.call - BASE;
        assert_eq!(code[call..call + 2], [0x0f, 0x05], "a system call");
        let within = |&at: &u8| usize::from(at) + 4 <= site.window_bytes;
        assert!(site.distances.iter().all(within));
    }
}

/// `/proc` and control groups, as the kernel, a container or a file system of
/// somebody's own may show them.
pub(crate) fn reports(data: &[u8]) {
    let _none = (
        field_bytes(data, "MemAvailable"),
        keyed(data, "inactive_file"),
        pressure(data),
    );
    let root = scratch::path("root");
    let proc = root.join("proc/self");
    fs::create_dir_all(&proc).expect("a temporary folder");
    let cut = data.iter().position(|&byte| byte == 0).unwrap_or(0);
    fs::write(proc.join("cgroup"), &data[..cut]).expect("a temporary file");
    fs::write(proc.join("mountinfo"), &data[cut..]).expect("a temporary file");
    let reports = Reports::below(&root);
    if let Some(group) = reports.memory_group() {
        // As deep as its name is long, at most; the last is the mounted top.
        assert!((1..=data.len() + 1).contains(&group.levels().count()));
    }
    if let Some(mount) = reports.memory_mount() {
        assert!(mount.folder().starts_with(&root));
    }
    fs::remove_dir_all(&root).expect("the temporary folder");
}
