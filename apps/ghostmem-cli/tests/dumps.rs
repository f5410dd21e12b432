//! How long a core file would be: see core(5) and the flags in smaps(5).
#![allow(clippy::unwrap_used)]

use std::process::Command;

use ghostmem::doctor;

/// The bytes that a core file of this process would have, by smaps(5): every mapping
/// that is not left out ("dd" among its flags) in its whole length.
const DUMPED: &str = r#"
import ctypes, re, sys
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
libc.malloc.argtypes = [ctypes.c_size_t]
block = libc.malloc(100 << 20)
ctypes.memset(block, 1, 100 << 20)
small = [libc.malloc(400) for _ in range(200000)]
total, bytes = 0, 0
for line in open("/proc/self/smaps"):
    head = re.match(r"([0-9a-f]+)-([0-9a-f]+) ....", line)
    if head:
        start, end = (int(word, 16) for word in head.groups())
    elif line.startswith("VmFlags:") and "dd" not in line.split():
        total += end - start
        bytes += max(0, min(end, block + (100 << 20)) - max(start, block))
print(total >> 20, bytes >> 20)
"#;

#[test]
fn a_core_file_is_about_as_long_as_the_program_is_large() {
    let report = doctor::probe();
    for (backend, works) in [
        ("inline", report.inline_works),
        ("monitor", report.monitor_works),
        ("guard", report.guard_works),
    ] {
        if !works {
            println!("the {backend} backend does not work here and is not tested");
            continue;
        }
        let output = Command::new(env!("CARGO_BIN_EXE_ghostmem"))
            .args(["run", "--limit", "32M", "--backend", backend, "--"])
            .args(["python3", "-c", DUMPED])
            .output()
            .unwrap();
        let printed = String::from_utf8_lossy(&output.stdout);
        let numbers: Vec<u64> = printed
            .split_whitespace()
            .map(|word| word.parse().unwrap_or_else(|_| panic!("{output:?}")))
            .collect();
        let [all, block] = numbers[..] else {
            panic!("{output:?}");
        };
        assert!(all <= 1024, "{backend}: {all} MiB");
        assert_eq!(block, 100, "{backend}: all of the program's block is in it");
    }
}
