//! Threads, a stream, children and timers at once, every byte looked at: a few rounds of
//! what `scripts/storm` runs by the hundred.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::Path;
use std::process::Command;

use ghostmem::doctor;

#[test]
fn no_byte_is_wrong_in_a_storm() {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("storm");
    fs::create_dir_all(&folder).unwrap();
    let built = folder.join("storm");
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/programs/storm.c");
    let status = Command::new("cc")
        .args(["-O1", "-g", "-pthread", "-o"])
        .args([&built, &source])
        .status()
        .expect("a C compiler named cc");
    assert!(status.success(), "cc storm.c: {status}");
    let report = doctor::probe();
    let works = [
        ("inline", report.inline_works),
        ("monitor", report.monitor_works),
        ("guard", report.guard_works),
    ];
    for (seed, (backend, works)) in works.into_iter().enumerate() {
        if !works {
            println!("the {backend} backend does not work here and is not tested");
            continue;
        }
        let spill = ["--spill", folder.to_str().unwrap(), "--spill-store", "256K"];
        for (limit, spill) in [("1M", &spill[..]), ("8M", &[])] {
            let mut command = Command::new("timeout");
            command.args(["-s", "KILL", "120", env!("CARGO_BIN_EXE_ghostmem"), "run"]);
            command.args(["--backend", backend, "--limit", limit]);
            command.args(spill).arg("--").arg(&built);
            let output = command.args([&seed.to_string(), "40"]).output().unwrap();
            let said = String::from_utf8_lossy(&output.stderr);
            let ended = output.status;
            assert!(
                ended.success() && output.stdout == b"ok\n",
                "{backend} at {limit}: {ended}\n{said}"
            );
        }
    }
}
