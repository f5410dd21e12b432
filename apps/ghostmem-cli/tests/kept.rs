//! Memory that somebody else goes on using after the call that named it, under `ghostmem run`.
//!
//! Each program runs by itself first, and says when the machine has nothing of the kind.
#![allow(clippy::unwrap_used)]

use std::process::{Command, Stdio};

use common::{assert_ok, backends, built};

mod common;

/// A way of a program's, natively and on each backend, with a limit far below what it uses
/// and so many seconds for it.
fn ends_well(name: &str, arguments: &[&str], seconds: &str) {
    let way = arguments[0];
    let program = built(name, way);
    let natively = Command::new(&program).args(arguments).output().unwrap();
    if natively.status.code() == Some(77) {
        println!("SKIPPED: this machine has nothing to test {way} with");
        return;
    }
    assert_ok(&natively, &format!("{way} natively"));
    for backend in backends() {
        let mut command = Command::new("timeout");
        command.args(["-s", "KILL", seconds, env!("CARGO_BIN_EXE_ghostmem"), "run"]);
        command.args(["--limit", "4M", "--mmap=64K", "--backend", backend, "--"]);
        command.arg(&program).args(arguments).stdin(Stdio::null());
        assert_ok(&command.output().unwrap(), &format!("{way} on {backend}"));
    }
}

/// Memory that others keep stays what it is.
fn stays(way: &str) {
    ends_well("kept", &[way, "20000000"], "60");
}

/// A network card writes packets to the pages that were named when the socket was made:
/// they are in memory, and stay the same ones.
#[test]
fn memory_for_packets_stays_where_it_is() {
    stays("xdp");
}

/// What is submitted to a ring later goes to buffers that were registered; where a ring can
/// be had, these stay the same pages.
#[test]
fn registered_buffers_of_a_ring_stay_where_they_are() {
    stays("uring");
}

/// A program's own handler of faults brings what is not there, and nothing else: what the
/// program stored before is what it finds.
#[test]
fn a_handler_of_faults_of_the_programs_own_answers_for_its_memory() {
    stays("uffd");
}

/// A virtual machine runs from memory of the program's that was evicted before.
#[test]
fn a_virtual_machine_finds_its_memory() {
    stays("kvm");
}

/// Threads count in memory that becomes ordinary meanwhile.
fn loses_no_store(way: &str, rounds: &str) {
    ends_well("stores", &[way, "8000000", rounds], "300");
}

/// Proves that no store of a thread's or of the kernel's is lost, and none refused, while the
/// memory becomes code; two threads that ask at once, and forks, change nothing.
#[test]
fn no_store_is_lost_while_memory_becomes_code() {
    loses_no_store("code", "40");
}

/// Proves the same where the program's own handler of faults takes the memory over.
#[test]
fn no_store_is_lost_while_a_handler_takes_memory_over() {
    loses_no_store("uffd", "40");
}
