//! `ghostmem run`, on small C programs compiled here and on what every machine has.
//!
//! Each program checks itself and prints "ok"; with limits this small, its memory leaves and comes
//! back all the time. Every backend that works here gets every program.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::OnceLock;

use common::{assert_ok, backends, compile, scratch, text};
use ghostmem::doctor;

mod common;

/// Bytes the programs touch to push everything else out: more than the limits below.
const PRESSURE: &str = "6000000";

fn ghostmem() -> Command {
    Command::new(env!("CARGO_BIN_EXE_ghostmem"))
}

/// Compiles one of the programs beside this file, once.
fn program(name: &str) -> PathBuf {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    let folder = BUILT.get_or_init(|| {
        let folder = scratch("programs");
        for source in [
            "family",
            "calls",
            "signals",
            "handlers",
            "threads",
            "lastthread",
            "maps",
            "forks",
            "deepbind",
            "users",
        ] {
            compile(&[], format!("{source}.c"), &folder.join(source), &[]);
        }
        folder
    });
    folder.join(name)
}

fn run(options: &[&str], program: &Path, arguments: &[&str]) -> Output {
    let output = ghostmem()
        .arg("run")
        .args(options)
        .arg("--")
        .arg(program)
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .unwrap();
    assert!(
        output.status.code() != Some(126),
        "the library refused to start: {}",
        text(&output.stderr)
    );
    output
}

#[test]
fn blocks_may_be_freed_by_who_finds_the_c_librarys_own_functions() {
    let plugin = scratch("plugin").join("plugin.so");
    compile(&["-shared", "-fPIC"], "plugin.c", &plugin, &[]);
    let plugin = plugin.to_str().unwrap();
    for backend in backends() {
        let options = ["--limit", "2M", "--backend", backend];
        let output = run(&options, &program("deepbind"), &[plugin, PRESSURE]);
        assert_ok(&output, backend);
    }
}

#[test]
fn every_member_of_the_malloc_family_does_what_the_manual_says() {
    for backend in backends() {
        for small in ["on", "off", "300"] {
            let options = ["--limit", "4M", "--backend", backend, "--small", small];
            let output = run(&options, &program("family"), &[]);
            assert_ok(&output, &format!("{backend}, small {small}"));
        }
    }
}

#[test]
fn system_calls_work_on_buffers_that_are_not_in_memory() {
    for backend in backends() {
        let folder = scratch(&format!("calls-{backend}"));
        let folder = folder.to_str().unwrap();
        let options = ["--limit", "4M", "--backend", backend];
        let output = run(&options, &program("calls"), &[folder, PRESSURE]);
        assert_ok(&output, backend);
    }
}

#[test]
fn a_program_keeps_its_own_fault_handlers_masks_and_stacks() {
    for backend in backends() {
        let options = ["--limit", "4M", "--backend", backend];
        let output = run(&options, &program("signals"), &[PRESSURE]);
        assert_ok(&output, backend);
    }
}

#[test]
fn handlers_that_interrupt_malloc_may_free() {
    for backend in backends() {
        let options = ["--limit=2M", "--backend", backend];
        let output = run(&options, &program("handlers"), &[]);
        assert_ok(&output, backend);
    }
}

#[test]
fn threads_forks_and_cancellation_work() {
    for backend in backends() {
        let options = ["--limit", "4M", "--backend", backend];
        let output = run(&options, &program("threads"), &[]);
        assert_ok(&output, backend);
    }
}

/// libc's signal for all threads comes while they are in a fault, which is taken on another
/// stack; and the engine's threads are given what the program has in ghost memory.
#[test]
fn all_threads_change_their_user_while_they_fault() {
    let program = program("users");
    let list = scratch("users-list").join("group");
    for backend in backends() {
        // A thread that waits for one that hangs.
        let output = Command::new("timeout")
            .args(["-s", "KILL", "120", env!("CARGO_BIN_EXE_ghostmem"), "run"])
            .args(["--limit", "1M", "--backend", backend, "--"])
            .args([&program, &list])
            .output()
            .unwrap();
        assert_ok(&output, backend);
    }
}

/// 40 children, each with a child and a thread of its own.
#[test]
fn forked_children_have_their_memory_before_libc_touches_it() {
    for backend in backends() {
        let options = ["--limit", "2M", "--backend", backend];
        let output = run(&options, &program("forks"), &[]);
        assert_ok(&output, backend);
    }
}

/// What libc does not do for it, the kernel has to see: by monitor, which
/// `auto` takes for a program that is known to need it.
#[test]
fn a_go_program_gets_the_monitor_and_others_the_truth() {
    let folder = scratch("raw");
    let build = |name: &str, define: &str| {
        let program = folder.join(name);
        compile(&[define], "raw.c", &program, &[]);
        program
    };
    let (plain, go) = (build("plain", "-DPLAIN"), build("go", "-DGO"));
    let options = ["--limit", "1M", "--verbose"];
    let report = doctor::probe();
    let output = run(&options, &go, &[]);
    if report.monitor_works {
        assert_eq!(
            text(&output.stdout),
            "read\nas the kernel says\n",
            "{output:?}"
        );
        assert!(
            text(&output.stderr).contains("backend monitor"),
            "{output:?}"
        );
    } else {
        println!("no monitor works here: only the warning is tested");
        assert!(
            text(&output.stderr).contains("it is a Go program"),
            "{output:?}"
        );
    }
    if report.inline_works {
        let output = run(&["--limit", "1M", "--backend", "inline"], &plain, &[]);
        assert_eq!(text(&output.stdout), "read\nno ring\n", "{output:?}");
    }
}

#[test]
fn anonymous_mappings_can_be_ghost_memory_too() {
    for backend in backends() {
        let options = ["--limit", "4M", "--mmap", "--backend", backend];
        let output = run(&options, &program("maps"), &[]);
        assert_ok(&output, backend);
    }
}

#[test]
fn what_is_not_taken_is_counted_and_nothing_is_taken_where_that_is_off() {
    let program = "import mmap; rw = mmap.PROT_READ | mmap.PROT_WRITE; \
        private = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS; \
        code = mmap.mmap(-1, 3 << 20, private, rw | mmap.PROT_EXEC); \
        data = mmap.mmap(-1, 48 << 20, private, rw); data[:] = b'x' * len(data)";
    let path = scratch("ordinary").join("stats.json");
    for (options, ordinary, taken) in [(&[][..], 1, true), (&["--mmap", "off"][..], 0, false)] {
        let output = ghostmem()
            .args(["run", "--limit", "8M"])
            .args(options)
            .arg("--stats-json")
            .arg(&path)
            .args(["--", "python3", "-c", program])
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
        let figures: serde_json::Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        let number = |name: &str| figures[name].as_u64().unwrap();
        assert_eq!(number("ordinary_mappings"), ordinary, "{figures}");
        assert_eq!(
            number("ordinary_mapped_bytes"),
            ordinary * (3 << 20),
            "{figures}"
        );
        // Beside it, the bytes that it is filled with are one block of 48 MiB.
        assert_eq!(
            number("peak_allocated_bytes") > 90 << 20,
            taken,
            "{figures}"
        );
    }
}

#[test]
fn the_last_thread_to_leave_ends_the_process() {
    let output = run(&["--limit", "4M"], &program("lastthread"), &[]);
    assert_ok(&output, "pthread_exit in main");
}

#[test]
fn a_crash_is_still_the_programs_own() {
    use std::os::unix::process::ExitStatusExt;
    for (how, signal) in [("crash", 11), ("abort", 6), ("double", 6)] {
        let output = run(&["--limit", "4M"], &program("signals"), &[PRESSURE, how]);
        assert_eq!(output.status.signal(), Some(signal), "{how}: {output:?}");
    }
}

#[test]
fn exit_code_streams_and_arguments_pass_through() {
    let script = "cat; echo \"$1\"; echo to stderr >&2; exit 42";
    let output = ghostmem()
        .args([
            "run", "--limit", "8M", "--", "sh", "-c", script, "sh", "a b",
        ])
        .stdin(fs::File::open(file_with("from stdin\n")).unwrap())
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(42));
    assert_eq!(text(&output.stdout), "from stdin\na b\n");
    assert_eq!(text(&output.stderr), "to stderr\n");
}

fn file_with(content: &str) -> PathBuf {
    let path = scratch("stdin").join("text");
    fs::write(&path, content).unwrap();
    path
}

/// Figures that programs which read `--stats-json` may count on; the list only grows.
const REPORTED: &str = "allocated_bytes resident_limit_bytes resident_bytes stored_pages \
    store_data_bytes store_held_bytes metadata_bytes file_pages file_data_bytes file_bytes \
    pages_spilled spilled_reads spilled_read_errors spill_write_errors spill_waits \
    same_filled_pages faults refaults write_faults evictions_dirty evictions_clean overdrafts";

#[test]
fn the_limit_holds_and_the_figures_say_so() {
    let folder = scratch("figures");
    let path = folder.join("a; file%.json");
    let options = ["--limit", "4M", "--stats", "--stats-json"];
    let output = ghostmem()
        .arg("run")
        .args(options)
        .arg(&path)
        .arg("--")
        .arg(program("signals"))
        .arg(PRESSURE)
        .output()
        .unwrap();
    assert_ok(&output, "stats");
    let table = text(&output.stderr);
    assert!(table.contains("peak resident memory (kernel)"), "{table}");
    let json: serde_json::Value =
        serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
    let number = |name: &str| json[name].as_u64().unwrap();
    assert_eq!(number("resident_limit_bytes"), 4 << 20);
    assert!(number("resident_bytes") <= (4 << 20) + 68 * 4096, "{json}");
    assert!(number("refaults") > 100, "{json}");
    assert!(number("evictions_dirty") > 100, "{json}");
    assert!(number("peak_allocated_bytes") >= 6_000_000, "{json}");
    assert!(number("peak_rss_bytes") > 4 << 20, "{json}");
    let report = fs::read_to_string(&path).unwrap();
    let promised =
        "program process_id peak_allocated_bytes compression_ratio fault_seconds backend";
    let figures = ghostmem::Stats::default().figures();
    let names = figures.map(|figure| figure.name).chain(promised.split(' '));
    for name in names.chain(REPORTED.split_whitespace()) {
        let key = format!("\"{name}\":");
        assert_eq!(report.matches(&key).count(), 1, "{key} in {report}");
    }
}

/// None is left alone but for those that take no pointer.
#[test]
fn every_system_call_of_the_c_library_is_redirected() {
    let output = run(&["--limit", "8M", "--verbose"], Path::new("true"), &[]);
    let line = text(&output.stderr);
    assert!(line.contains("redirected, 0 left as they are"), "{line}");
}

#[test]
fn children_inherit_unless_told_otherwise() {
    let script = "ulimit -v; env | grep -c GHOSTMEM_RUN";
    let with = run(&["--limit", "8M"], Path::new("sh"), &["-c", script]);
    assert!(text(&with.stdout).ends_with("1\n"), "{with:?}");
    let without = run(
        &["--limit", "8M", "--no-children"],
        Path::new("sh"),
        &["-c", script],
    );
    assert!(text(&without.stdout).ends_with("0\n"), "{without:?}");
}

#[test]
fn a_short_address_space_is_enough() {
    let inner = format!(
        "ulimit -v 2000000; exec {} run --limit 8M -- {} {PRESSURE}",
        env!("CARGO_BIN_EXE_ghostmem"),
        program("signals").display()
    );
    let output = Command::new("sh").args(["-c", &inner]).output().unwrap();
    assert_ok(&output, "2 GB of address space");
}

#[test]
fn a_program_that_closes_and_replaces_descriptors_goes_on() {
    // Shells put files of their own over 3 to 9, daemons close everything.
    let script = "for i in 3 4 5 6 7 8 9; do eval \"exec $i>/dev/null\"; done; \
                  i=10; while [ $i -lt 1100 ]; do eval \"exec $i>&-\"; i=$((i + 1)); done; \
                  x=0; while [ $x -lt 20000 ]; do x=$((x + 1)); done; echo ok";
    let output = run(&["--limit", "1M"], Path::new("bash"), &["-c", script]);
    assert_ok(&output, "descriptors");
}

#[test]
fn the_engines_descriptors_are_not_to_be_seen() {
    let script = "
import os, fcntl
def opens(act):
    numbers = []
    for number in range(1100):
        try:
            act(number)
        except OSError as error:
            continue
        numbers.append(number)
    return numbers
print(sorted(map(int, os.listdir('/proc/self/fd'))), sorted(map(int, os.listdir('/proc/self/fdinfo'))))
print(sorted(map(int, os.listdir('/dev/fd'))), sorted(map(int, os.listdir('/proc/%d/fd' % os.getpid()))))
print(opens(os.fstat), opens(lambda n: os.stat(n)), opens(lambda n: fcntl.fcntl(n, fcntl.F_GETFD)))
print(opens(lambda n: os.close(os.dup(n))), opens(lambda n: os.close(fcntl.fcntl(n, fcntl.F_DUPFD, 3))))
several = [os.open('/dev/null', os.O_RDONLY) for _ in range(200)]
print(len(os.listdir('/proc/self/fd')))
for number in several:
    os.close(number)
print([os.dup2(1, number) for number in range(10, 40)], sorted(map(int, os.listdir('/proc/self/fd'))))
";
    let plain = Command::new("python3").args(["-c", script]).output();
    let plain = plain.expect("python3 is missing: install it");
    for backend in backends() {
        let output = run(
            &["--limit", "2M", "--backend", backend],
            Path::new("python3"),
            &["-c", script],
        );
        assert_eq!(
            text(&output.stdout),
            text(&plain.stdout),
            "{backend}: {output:?}"
        );
    }
}

#[test]
fn python_runs_as_it_does_without() {
    let script = "
import sys, subprocess, multiprocessing, threading, json, signal, faulthandler, mmap, os
faulthandler.enable()
def work(n):
    return sum(len(str(i)) for i in range(n))
words = {str(i): [i] * 10 for i in range(100000)}
with multiprocessing.get_context('fork').Pool(2) as pool:
    print(pool.map(work, [1000, 20000, 30000]))
print(subprocess.run(['sh', '-c', 'echo from a child'], capture_output=True, text=True).stdout)
print(len(json.dumps(words)), sum(v[3] for v in words.values()))
os.write(1, b'written' * 3)
";
    let mut plain = Command::new("python3");
    let Ok(plain) = plain
        .args(["-c", script])
        .env("PYTHONMALLOC", "malloc")
        .output()
    else {
        panic!("python3 is missing: install it");
    };
    assert!(plain.status.success(), "{plain:?}");
    let output = ghostmem()
        .args(["run", "--limit", "4M", "--", "python3", "-c", script])
        .env("PYTHONMALLOC", "malloc")
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    assert_eq!(text(&output.stdout), text(&plain.stdout));
}

/// Runs a program that must be refused; the one line of it.
fn refused(arguments: &[&str]) -> String {
    let output = ghostmem().arg("run").args(arguments).output().unwrap();
    let line = text(&output.stderr);
    assert_eq!(output.status.code(), Some(126), "{line}");
    assert_eq!(line.lines().count(), 1, "{line}");
    line
}

#[test]
fn programs_no_library_can_be_loaded_into_are_refused() {
    let folder = scratch("refused");
    let source = folder.join("main.c");
    fs::write(&source, "int main(void) { return 0; }\n").unwrap();
    let still = folder.join("static");
    compile(&["-static"], &source, &still, &[]);
    assert!(refused(&["--", still.to_str().unwrap()]).contains("statically linked"));

    let checked = folder.join("checked");
    compile(&["-fsanitize=address"], source, &checked, &[]);
    assert!(refused(&["--", checked.to_str().unwrap()]).contains("AddressSanitizer"));

    let script = folder.join("script");
    fs::write(&script, format!("#!{}\n", still.display())).unwrap();
    make_executable(&script);
    assert!(refused(&["--", script.to_str().unwrap()]).contains("statically linked"));

    let short = folder.join("short");
    let mut header = vec![0_u8; 64];
    header[..5].copy_from_slice(b"\x7fELF\x01");
    fs::write(&short, &header).unwrap();
    make_executable(&short);
    assert!(refused(&["--", short.to_str().unwrap()]).contains("32-bit"));

    let neither = folder.join("neither");
    fs::write(&neither, b"nei\0ther\n").unwrap();
    make_executable(&neither);
    assert!(refused(&["--", neither.to_str().unwrap()]).contains("neither a program"));
}

#[test]
fn a_program_that_valgrind_serves_is_refused_in_one_line() {
    let folder = scratch("valgrind");
    let source = folder.join("none.c");
    fs::write(&source, "int ghostmem_test_none;\n").unwrap();
    let library = folder.join("vgpreload_none.so");
    compile(&["-shared"], source, &library, &[]);
    let output = ghostmem()
        .args(["run", "--limit", "8M", "--", "true"])
        .env("LD_PRELOAD", &library)
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(126));
    let said = text(&output.stderr);
    assert!(
        said.contains("valgrind") && said.lines().count() == 1,
        "{said}"
    );
}

fn make_executable(path: &Path) {
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
}
