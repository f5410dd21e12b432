//! Headers, settings, machine code and the kernel's reports.

use std::collections::HashSet;
use std::fs;

use ghostmem_os::report::{Reports, field_bytes, keyed, pressure};

use crate::{patch, scratch};

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

/// Machine code with system calls: what is moved is whole, in one piece, and
/// nobody else's. The first two bytes say where functions begin.
pub(crate) fn patch(data: &[u8]) {
    const BASE: usize = 0x7f00_0000_0000;
    let [one, two, code @ ..] = data else { return };
    let mut functions = vec![BASE];
    for at in [*one, *two] {
        if usize::from(at) < code.len() {
            functions.push(BASE + usize::from(at));
        }
    }
    functions.sort_unstable();
    functions.dedup();

    let mut report = patch::Report::default();
    let places = patch::find(code, BASE, &functions, &mut report);
    let mut taken = HashSet::new();
    for place in &places {
        let end = place.window + place.window_bytes;
        assert!(place.window >= BASE && end <= BASE + code.len());
        assert!(place.window_bytes >= 5, "room for a jump");
        let call = place.call - BASE;
        assert_eq!(code[call..call + 2], [0x0f, 0x05], "a system call");
        assert!(place.call == place.window || place.call == end);
        let mut at = place.window;
        for instruction in &place.moved {
            assert_eq!(instruction.ip() as usize, at, "in one piece");
            at = instruction.next_ip() as usize;
        }
        assert_eq!(at, end, "whole instructions");
        for address in place.window..end {
            assert!(taken.insert(address), "two jumps in one place");
        }
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
