//! `--peer`: a library with the C++ interface of `GhostMemoryManager` is loaded
//! by its mangled names and through a shim, measured beside GhostMem, run
//! through the access patterns of its own tests, and caught when it returns
//! wrong bytes or dies. The library is the stand-in beside this file, and then
//! GhostMem's own. Nothing here asks how fast anything was.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;

fn scratch(name: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    let _fresh = fs::remove_dir_all(&folder);
    fs::create_dir_all(&folder).unwrap();
    folder
}

fn sources() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/standin")
}

/// Compiles the stand-in.
fn stand_in(folder: &Path, flags: &[&str]) -> PathBuf {
    let library = folder.join("libstandin.so");
    let built = Command::new("c++")
        .args(["-std=c++17", "-O2", "-Wall", "-Wextra", "-Werror"])
        .args(["-shared", "-fPIC", "-pthread"])
        .args(flags)
        .arg("-I")
        .arg(sources())
        .arg(sources().join("GhostMemoryManager.cpp"))
        .arg("-o")
        .arg(&library)
        .arg("-l:liblz4.so.1")
        .status()
        .expect("a C++ compiler named c++");
    assert!(built.success());
    library
}

/// Runs the bench on a small data set.
fn bench(folder: &Path, peer: &Path, more: &[&str]) -> (Output, Value) {
    let json = folder.join("record.json");
    let _old = fs::remove_file(&json);
    let output = Command::new(env!("CARGO_BIN_EXE_ghostmem-bench"))
        .args(["--size", "16M", "--no-warm", "--threads", "1,2"])
        .args(["--repetitions", "2", "--contenders", "inline,peer"])
        .args(["--workload", "seq-read,random-read,random-write"])
        .arg("--json")
        .arg(&json)
        .arg("--peer")
        .arg(peer)
        .args(more)
        .output()
        .unwrap();
    let record = fs::read(&json)
        .ok()
        .and_then(|bytes| serde_json::from_slice(&bytes).ok())
        .unwrap_or(Value::Null);
    (output, record)
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Both contenders have figures for every workload, and both went through the
/// three patterns in both repetitions.
fn assert_whole(output: &Output, record: &Value) {
    let said = format!("{}{}", text(&output.stdout), text(&output.stderr));
    assert!(output.status.success(), "{said}");
    for (contender, repetitions) in [("inline", 2), ("peer", 1)] {
        let runs: Vec<&Value> = record["runs"]
            .as_array()
            .unwrap()
            .iter()
            .filter(|run| run["contender"] == contender)
            .collect();
        assert_eq!(runs.len(), repetitions, "{contender}: {said}");
        // Three workloads with one thread and with two.
        assert_eq!(runs[0]["results"].as_array().unwrap().len(), 6);
    }
    for contender in ["plain", "inline", "peer"] {
        let small = record["small"].as_array().unwrap();
        let mine: Vec<&Value> = small.iter().filter(|row| row[0] == contender).collect();
        assert_eq!(mine.len(), 2);
        for row in mine {
            let ns = row[2]["ns"].as_array().unwrap();
            assert_eq!(ns.len(), 3);
            assert!(ns.iter().all(|ns| ns.as_f64().unwrap() > 0.0));
        }
    }
    assert!(said.contains("16 KiB array, random"), "{said}");
}

#[test]
fn a_library_is_measured_by_its_mangled_names() {
    let folder = scratch("peer-mangled");
    // Without headers the limit is what the library was built with.
    let library = stand_in(&folder, &[]);
    let (output, record) = bench(&folder, &library, &["--scale", "0.02"]);
    assert_whole(&output, &record);
}

#[test]
fn a_library_with_headers_gets_the_limit() {
    let folder = scratch("peer-headers");
    let library = stand_in(&folder, &[]);
    let include = sources();
    let include = ["--peer-include", include.to_str().unwrap()];
    let (output, record) = bench(&folder, &library, &include);
    assert_whole(&output, &record);
    let peer = record["runs"].as_array().unwrap();
    let peer = peer.iter().find(|run| run["contender"] == "peer").unwrap();
    // A quarter of 16 MiB, and what the process needs beside it.
    let resident = peer["end"]["resident"].as_u64().unwrap();
    assert!(resident > 3 << 20, "{resident}: more than five pages");
}

#[test]
fn wrong_bytes_are_noticed() {
    let folder = scratch("peer-corrupts");
    let library = stand_in(&folder, &["-DSTANDIN_CORRUPTS"]);
    let include = sources();
    let include = ["--peer-include", include.to_str().unwrap()];
    let (output, _) = bench(&folder, &library, &include);
    assert_eq!(output.status.code(), Some(1));
    let said = text(&output.stderr);
    assert!(said.contains("peer: "), "{said}");
}

/// A library that ends its process is listed, and the others are measured.
#[test]
fn a_library_that_dies_is_left_out() {
    let folder = scratch("peer-dies");
    let library = stand_in(&folder, &["-DSTANDIN_DIES"]);
    let (output, record) = bench(&folder, &library, &[]);
    let said = format!("{}{}", text(&output.stdout), text(&output.stderr));
    assert!(output.status.success(), "{said}");
    assert!(said.contains("skipped: peer"), "{said}");
    assert_eq!(record["runs"].as_array().unwrap().len(), 2);
    // A second round is added to the first, and the order turned.
    let before = folder.join("before.json");
    fs::rename(folder.join("record.json"), &before).unwrap();
    let go_on = ["--continue", before.to_str().unwrap()];
    let (output, record) = bench(&folder, &library, &go_on);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let runs = record["runs"].as_array().unwrap();
    let repetitions: Vec<_> = runs.iter().map(|run| run["repetition"].as_u64()).collect();
    assert_eq!(repetitions, [Some(0), Some(1), Some(2), Some(3)]);
    // What is about something else is not added to.
    let (output, _) = bench(&folder, &library, &["--continue", "/etc/hostname"]);
    assert_eq!(output.status.code(), Some(1));
}

#[test]
fn what_is_no_such_library_is_refused() {
    let folder = scratch("peer-mistakes");
    let (output, _) = bench(&folder, Path::new("/etc/hostname"), &[]);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("--peer"));
    let source = folder.join("empty.c");
    fs::write(&source, "int nothing;\n").unwrap();
    let empty = folder.join("libempty.so");
    let built = Command::new("cc")
        .args(["-shared", "-fPIC", "-o"])
        .args([&empty, &source])
        .status()
        .unwrap();
    assert!(built.success());
    let (output, _) = bench(&folder, &empty, &[]);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("exports no GhostMemoryManager"));
}
