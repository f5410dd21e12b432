//! `ghostmem run` as a shell meets it: options, exit codes, lines, paths.
#![allow(clippy::unwrap_used)]

use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use common::{scratch, text};
use serde_json::Value;

mod common;

fn run<S: AsRef<OsStr>>(arguments: &[S]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_ghostmem"))
        .arg("run")
        .args(arguments)
        .output()
        .unwrap()
}

/// The one line with which a run is refused, with this exit code.
fn refused(code: i32, arguments: &[&str]) -> String {
    let output = run(arguments);
    let line = text(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{arguments:?}: {line}");
    assert_eq!(text(&output.stdout), "", "{arguments:?}");
    assert_eq!(line.lines().count(), 1, "{arguments:?}: {line}");
    assert!(line.starts_with("ghostmem: "), "{line}");
    line
}

#[test]
fn a_mistyped_option_is_no_program() {
    let line = refused(125, &["--limt", "256M", "--", "true"]);
    assert!(
        line.contains("--limt") && line.contains("--limit"),
        "{line}"
    );
    assert!(line.contains("ghostmem run --help"), "{line}");
    for option in ["--verbos", "-v", "--stat"] {
        let line = refused(125, &[option, "--", "true"]);
        assert!(
            line.contains(option) && !line.contains("no such program"),
            "{line}"
        );
    }
    assert!(refused(125, &[]).contains("PROGRAM"));
}

#[test]
fn options_behind_the_program_are_its_own() {
    let output = run(&[
        "--limit", "8M", "printf", "%s ", "--mmap", "1M", "-x", "--", "y",
    ]);
    assert_eq!(
        text(&output.stdout),
        "--mmap 1M -x -- y ",
        "{}",
        text(&output.stderr)
    );
}

#[test]
fn a_size_may_follow_its_option_after_a_space() {
    for line in [
        "--mmap 256K -- true",
        "--mmap=256K true",
        "--mmap true",
        "--mmap 1M true",
    ] {
        let words: Vec<&str> = line.split(' ').collect();
        let output = run(&words);
        assert!(output.status.success(), "{line}: {}", text(&output.stderr));
    }
}

#[test]
fn exit_codes_are_those_of_env() {
    let folder = scratch("codes");
    let file = folder.join("file");
    fs::write(&file, "text\n").unwrap();
    let file = file.to_str().unwrap();
    assert!(refused(127, &["--", "no-such-program-anywhere"]).contains("no such program"));
    assert!(refused(127, &["--", "./no/such/file"]).contains("./no/such/file"));
    assert!(refused(126, &["--", "/etc"]).contains("folder"));
    assert!(refused(126, &["--", file]).contains("not executable"));
    assert!(refused(125, &["--limit", "4K", "--", "true"]).contains("too small"));
    assert!(refused(125, &["--small", "sometimes", "--", "true"]).contains("sometimes"));
    assert!(refused(125, &["--spill", file, "--", "true"]).contains("no folder"));
}

#[test]
fn a_wrong_limit_is_told_what_is_accepted() {
    for wrong in ["much", "1e9", "-5", "AUTO", "12Q"] {
        let line = refused(125, &["--limit", wrong, "--", "true"]);
        assert!(
            line.contains("auto") && line.contains('%'),
            "{wrong}: {line}"
        );
    }
}

#[test]
fn a_report_that_cannot_be_written_is_said_before_the_program_starts() {
    let line = refused(
        125,
        &["--stats-json", "/proc/none/report", "--", "echo", "ran"],
    );
    assert!(line.contains("/proc/none/report"), "{line}");
    // Nothing is left where the program does not come to its end.
    let folder = scratch("unwritten");
    let report = folder.join("report-%p");
    let options = [
        "--stats-json",
        report.to_str().unwrap(),
        "--",
        "sh",
        "-c",
        "kill -9 $$",
    ];
    run(&options);
    assert_eq!(fs::read_dir(&folder).unwrap().count(), 0);
}

/// What the program wrote to the same file stays, whether it closes its descriptor before it
/// ends (as sort(1) does), leaves it open, or is ended by a signal.
#[test]
fn a_report_to_a_descriptor_comes_behind_the_programs_output() {
    let folder = scratch("named");
    let (words, file) = (folder.join("words"), folder.join("out"));
    fs::write(&words, "b\na\n").unwrap();
    let command = env!("CARGO_BIN_EXE_ghostmem");
    let run = format!("cd {}; {command} run --stats-json", folder.display());
    for (line, said) in [
        (" /dev/stdout -- sort words > out", "a\nb\n"),
        (" /dev/stdout -- printf 'a\\nb\\n' >> out", "a\nb\na\nb\n"),
        (
            " /proc/self/fd/1 -- sh -c 'echo x; cd /; kill $$' > out",
            "x\n",
        ),
        (
            " /dev/stderr -- sh -c 'echo x >&2; exec 2>&-' 2> out",
            "x\n",
        ),
        (" /dev/fd/7 -- sh -c 'echo x >&7; exec 7>&-' 7> out", "x\n"),
    ] {
        let earlier = fs::read_to_string(&file).unwrap_or_default();
        let earlier = earlier.split('{').next().unwrap_or("").to_owned();
        if line.contains(">>") {
            fs::write(&file, earlier).unwrap();
        }
        let line = run.clone() + line;
        let output = Command::new("sh").args(["-c", &line]).output().unwrap();
        // The shell says what a signal ended.
        let shell = text(&output.stderr);
        assert!(!shell.contains("ghostmem"), "{line}: {shell}");
        let written = fs::read_to_string(&file).unwrap();
        let report = written.strip_prefix(said);
        let report = report.unwrap_or_else(|| panic!("{line}: {written:?}"));
        let report: Value = serde_json::from_str(report).unwrap();
        assert!(report["process_id"].as_u64() > Some(0), "{line}");
    }
    let line = refused(125, &["--stats-json", "/dev/fd/99", "--", "echo", "ran"]);
    assert!(line.contains("/dev/fd/99"), "{line}");
}

/// The program closes its standard error before it ends, as rm(1) does.
#[test]
fn a_report_that_could_not_be_written_in_the_end_is_said() {
    let folder = scratch("gone");
    let inner = folder.join("inner");
    fs::create_dir(&inner).unwrap();
    let report = inner.join("report");
    let mut options = vec![OsStr::new("--stats-json"), report.as_os_str()];
    options.extend(["--", "rm", "-r"].map(OsStr::new));
    options.push(inner.as_os_str());
    let output = run(&options);
    assert!(output.status.success(), "{output:?}");
    let line = text(&output.stderr);
    assert!(
        line.starts_with("ghostmem: cannot write") && line.contains("inner/report"),
        "{line}"
    );
    assert_eq!(line.lines().count(), 1, "{line}");
}

/// Nobody takes the command's look at the start for the end of the report.
#[test]
fn a_report_to_a_named_pipe_reaches_its_reader() {
    let pipe = scratch("reader").join("report");
    let made = Command::new("mkfifo").arg(&pipe).status().unwrap();
    assert!(made.success());
    let mut reader = Command::new("timeout");
    let reader = reader.args(["60", "cat"]).arg(&pipe).stdout(Stdio::piped());
    let reader = reader.spawn().unwrap();
    let mut command = Command::new("timeout");
    command.args(["60", env!("CARGO_BIN_EXE_ghostmem"), "run", "--stats-json"]);
    let output = command.arg(&pipe).args(["--", "true"]).output().unwrap();
    assert!(output.status.success(), "{}", text(&output.stderr));
    let report = reader.wait_with_output().unwrap().stdout;
    let report: Value = serde_json::from_slice(&report).unwrap();
    assert!(report["process_id"].as_u64() > Some(0));
}

/// Nothing is left of the command's look at the start but what was there.
#[test]
fn a_link_that_leads_nowhere_yet_stays_a_link() {
    let folder = scratch("link");
    let (link, target) = (folder.join("latest"), folder.join("today"));
    symlink("today", &link).unwrap();
    let name = link.to_str().unwrap();
    run(&["--stats-json", name, "--", "sh", "-c", "kill -9 $$"]);
    assert_eq!(fs::read_link(&link).unwrap(), Path::new("today"));
    assert!(!target.exists(), "no report was made");
    run(&["--stats-json", name, "--", "true"]);
    assert_eq!(fs::read_link(&link).unwrap(), Path::new("today"));
    let report: Value = serde_json::from_slice(&fs::read(&target).unwrap()).unwrap();
    assert!(report["process_id"].as_u64() > Some(0));
}

/// As execvp(3) looks for a program, and env(1) ends.
#[test]
fn a_file_in_path_that_may_not_run_is_passed_over() {
    let folder = scratch("path");
    let (first, second) = (folder.join("first"), folder.join("second"));
    for place in [&first, &second] {
        fs::create_dir(place).unwrap();
    }
    fs::write(first.join("tool"), "#!/bin/sh\necho no\n").unwrap();
    fs::create_dir(first.join("other")).unwrap();
    let with_path = |name: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_ghostmem"));
        let path = format!("{}:{}:/usr/bin:/bin", first.display(), second.display());
        command.args(["run", "--", name]).env("PATH", path);
        let output = command.output().unwrap();
        let env = Command::new("/usr/bin/env")
            .arg(name)
            .env("PATH", format!("{}:{}", first.display(), second.display()))
            .output()
            .unwrap();
        assert_eq!(output.status.code(), env.status.code(), "{name}");
        (output.status.code(), text(&output.stderr))
    };
    for name in ["tool", "other"] {
        let (code, line) = with_path(name);
        assert_eq!(code, Some(126), "{line}");
        assert!(line.contains("not executable"), "{line}");
    }
    assert_eq!(with_path("neither").0, Some(127));
    for name in ["tool", "other"] {
        let tool = second.join(name);
        fs::write(&tool, "#!/bin/sh\nexit 6\n").unwrap();
        fs::set_permissions(&tool, fs::Permissions::from_mode(0o755)).unwrap();
        assert_eq!(with_path(name).0, Some(6));
    }
}

#[test]
fn a_library_that_cannot_be_loaded_stops_the_run() {
    let folder = scratch("library");
    let library = folder.join("libghostmem_preload.so");
    let started = |content: &[u8]| {
        fs::write(&library, content).unwrap();
        let output = Command::new(env!("CARGO_BIN_EXE_ghostmem"))
            .args(["run", "--limit", "8M", "--", "echo", "ran"])
            .env("GHOSTMEM_PRELOAD", &library)
            .output()
            .unwrap();
        let line = text(&output.stderr);
        assert_eq!(output.status.code(), Some(126), "{line}");
        assert!(
            output.stdout.is_empty() && line.contains("damaged"),
            "{line}"
        );
    };
    started(b"damaged\n");
    // A copy that ended early.
    let maps = run(&["--limit", "8M", "cat", "/proc/self/maps"]);
    let maps = text(&maps.stdout);
    let line = maps
        .lines()
        .find(|line| line.contains("libghostmem_preload"));
    let whole = line.unwrap().split_whitespace().last().unwrap();
    let content = fs::read(whole).unwrap();
    started(&content[..64 << 10]);
}

/// The loader would load any library, and the program run without its limit.
#[test]
fn a_library_of_somebody_elses_is_refused() {
    let folder = scratch("other-library");
    let library = folder.join("libm.so.6");
    fs::copy("/lib/x86_64-linux-gnu/libm.so.6", &library).unwrap();
    for named in [&library, &folder, &folder.join("none")] {
        let output = Command::new(env!("CARGO_BIN_EXE_ghostmem"))
            .args(["run", "--limit", "8M", "--", "echo", "ran"])
            .env("GHOSTMEM_PRELOAD", named)
            .output()
            .unwrap();
        let line = text(&output.stderr);
        assert_eq!(output.status.code(), Some(125), "{line}");
        assert!(
            output.stdout.is_empty() && line.contains(named.to_str().unwrap()),
            "{line}"
        );
        assert_eq!(line.lines().count(), 1, "{line}");
    }
}

/// The loader ignores libraries there as in setuid programs, and says nothing.
#[test]
fn a_program_with_capabilities_of_its_own_is_refused() {
    let folder = PathBuf::from(format!("/tmp/ghostmem-capabilities-{}", std::process::id()));
    fs::create_dir(&folder).unwrap();
    let program = folder.join("echo");
    fs::copy("/bin/echo", &program).unwrap();
    // The kernel's structure of version 2 (capability.h): to use raw sockets, at once.
    let script = format!(
        "import os, struct, sys\n\
         if os.getuid(): sys.exit(77)\n\
         os.setxattr('{0}', 'security.capability', struct.pack('<5I', 0x02000001, 8192, 0, 0, 0))\n\
         os.chmod('{1}', 0o755)\n\
         os.setgroups([]); os.setgid(65534); os.setuid(65534)\n\
         os.execv('{2}', ['ghostmem', 'run', '--limit', '8M', '{0}', 'ran'])\n",
        program.display(),
        folder.display(),
        env!("CARGO_BIN_EXE_ghostmem"),
    );
    let output = Command::new("python3").args(["-c", &script]).output();
    let _gone = fs::remove_dir_all(&folder);
    let output = output.unwrap();
    let line = text(&output.stderr);
    if output.status.code() != Some(126) && (line.is_empty() || !line.starts_with("ghostmem")) {
        // No root, a file system without such attributes, or a command that only root may read.
        println!("SKIPPED: a program with capabilities is not tested: {line}");
        assert!(
            !text(&output.stdout).contains("ran"),
            "it ran without its limit"
        );
        return;
    }
    assert!(line.contains("capabilities"), "{line}");
    assert!(output.stdout.is_empty(), "{output:?}");
}

/// A program for a loader of another name, and one by a user who may not read the library.
#[test]
fn children_that_cannot_have_the_library_run_without_and_say_nothing() {
    let folder = scratch("children");
    let loader = folder.join("ld-other-x86_64.so.1");
    fs::copy("/lib64/ld-linux-x86-64.so.2", &loader).unwrap();
    let source = folder.join("says.c");
    let code = "#include <stdio.h>\n#include <stdlib.h>\nint main(void) { \
        puts(getenv(\"GHOSTMEM_RUN\") ? \"ours\" : \"not ours\"); \
        puts(getenv(\"LD_PRELOAD\") ? getenv(\"LD_PRELOAD\") : \"none\"); return 0; }\n";
    fs::write(&source, code).unwrap();
    for (name, flag) in [
        ("ours", String::from("-O1")),
        (
            "other",
            format!("-Wl,--dynamic-linker={}", loader.display()),
        ),
    ] {
        let mut compiler = Command::new("cc");
        compiler.arg(flag).arg("-o").arg(folder.join(name));
        assert!(compiler.arg(&source).status().unwrap().success());
    }
    let script = folder.join("script");
    fs::write(&script, format!("#!{}\n", folder.join("other").display())).unwrap();
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
    let command = format!("cd {}; ./ours; ./other; ./script; ./ours", folder.display());
    let output = run(&["--limit", "8M", "--", "sh", "-c", &command]);
    let said = text(&output.stdout);
    let words: Vec<&str> = said.lines().collect();
    assert_eq!(text(&output.stderr), "");
    assert_eq!(words.len(), 8, "{said}");
    assert!(
        words[0] == "ours" && words[1].ends_with("libghostmem_preload.so"),
        "{said}"
    );
    assert_eq!(
        words[2..6],
        ["not ours", "none", "not ours", "none"],
        "{said}"
    );
    assert!(words[6] == "ours" && words[7] == words[1], "{said}");

    // Somebody else's: only root can become somebody.
    let library = Path::new(words[1]);
    let home = folder.join("home");
    fs::create_dir(&home).unwrap();
    let copy = home.join(library.file_name().unwrap());
    fs::copy(library, &copy).unwrap();
    fs::set_permissions(&home, fs::Permissions::from_mode(0o700)).unwrap();
    let script = "import os, sys\n\
        if os.getuid(): sys.exit(77)\n\
        os.setgid(65534); os.setuid(65534)\n\
        os.execv('/bin/sh', ['sh', '-c', 'echo ${GHOSTMEM_RUN-not ours} ${LD_PRELOAD-none}'])\n";
    let output = Command::new(env!("CARGO_BIN_EXE_ghostmem"))
        .args(["run", "--limit", "8M", "--", "python3", "-c", script])
        .env("GHOSTMEM_PRELOAD", &copy)
        .output()
        .unwrap();
    if output.status.code() == Some(77) {
        println!("not root: another user's child is not tested");
        return;
    }
    assert_eq!(text(&output.stderr), "");
    assert_eq!(text(&output.stdout), "not ours none\n");
}

/// Proves that children whose memory others serve (a sanitizer's library, valgrind) run without
/// GhostMem, as they do by themselves.
#[test]
fn children_whose_memory_others_serve_run_without_and_say_nothing() {
    let folder = scratch("served");
    let source = folder.join("asks.c");
    let code = "#include <stdio.h>\n#include <stdlib.h>\nint main(void) { \
        char *p = malloc(3000000); p[2999999] = 1; free(p); \
        puts(getenv(\"GHOSTMEM_RUN\") ? \"ours\" : \"not ours\"); return 0; }\n";
    fs::write(&source, code).unwrap();
    for (name, flag) in [
        ("plain", "-O1"),
        ("address", "-fsanitize=address"),
        ("thread", "-fsanitize=thread"),
    ] {
        let built = folder.join(name);
        let mut compiler = Command::new("cc");
        compiler.args(["-w", "-pthread", flag, "-o"]).arg(built);
        assert!(compiler.arg(&source).status().unwrap().success());
    }
    let mut command = format!("cd {}; ./plain; ./address; ./thread", folder.display());
    let mut expected = String::from("ours\nnot ours\nnot ours\n");
    if Command::new("valgrind").arg("--version").output().is_ok() {
        command.push_str("; valgrind -q ./plain");
        expected.push_str("not ours\n");
    } else {
        println!("there is no valgrind, which is not tested");
    }
    let output = run(&["--limit", "8M", "--", "sh", "-c", &command]);
    assert_eq!(text(&output.stderr), "");
    assert_eq!(text(&output.stdout), expected);
}

/// Proves that a program that wants its system calls as signals is refused that, as by a kernel
/// that does not have it, and goes on.
#[test]
fn system_calls_are_not_dispatched_to_the_program() {
    let folder = scratch("dispatch");
    let (source, built) = (folder.join("asks.c"), folder.join("asks"));
    let code = "#include <errno.h>\n#include <stdio.h>\n#include <stdlib.h>\n\
        #include <sys/prctl.h>\nstatic char all;\nint main(void) { \
        char *p = malloc(3000000); p[2999999] = 1; \
        if (prctl(59, 1, 0, 0, &all) != -1 || errno != EINVAL) return 3; \
        if (prctl(59, 0, 0, 0, 0) && errno != EINVAL) return 4; \
        puts(p[2999999] == 1 ? \"ok\" : \"wrong\"); return 0; }\n";
    fs::write(&source, code).unwrap();
    let mut compiler = Command::new("cc");
    compiler.arg("-o").arg(&built).arg(&source);
    assert!(compiler.status().unwrap().success());
    let output = run(&["--limit", "1M", "--", built.to_str().unwrap()]);
    assert_eq!(text(&output.stdout), "ok\n", "{}", text(&output.stderr));
}

/// A loader that says whether it is given a library, and is too old for ours: it knows no
/// version of glibc's functions at all.
const OLD_LOADER: &str = "\
__asm__(\".globl _start\\n_start: mov %rsp, %rdi\\n and $-16, %rsp\\n call begin\\n\");\n\
static long call(long n, long a, long b, long c) {\n\
    long r; __asm__ volatile(\"syscall\" : \"=a\"(r) : \"a\"(n), \"D\"(a), \"S\"(b), \"d\"(c) \\\n\
        : \"rcx\", \"r11\", \"memory\"); return r;\n\
}\n\
void begin(long *stack) {\n\
    char **text = (char **)(stack + 2 + *stack);\n\
    for (; *text; text++) {\n\
        const char *name = \"LD_PRELOAD=\";\n\
        int i = 0;\n\
        while (name[i] && (*text)[i] == name[i]) i++;\n\
        if (!name[i]) { call(1, 1, (long)\"preloaded\\n\", 10); call(231, 0, 0, 0); }\n\
    }\n\
    call(1, 1, (long)\"none\\n\", 5); call(231, 0, 0, 0);\n\
}\n";

/// Proves that a program whose own glibc is older than the library needs runs without it as a
/// child, and is refused in a line as the program itself; and that the newest version that
/// the library needs is the one that is looked for.
#[test]
fn a_program_with_an_older_c_library_runs_without_or_is_refused() {
    let folder = scratch("older");
    let loader = folder.join("ld-linux-x86-64.so.2");
    let compile = |name: &str, code: &str, more: &[&str]| {
        let source = folder.join(name).with_extension("c");
        fs::write(&source, code).unwrap();
        let mut compiler = Command::new("cc");
        compiler.args(more).arg("-o").arg(folder.join(name));
        assert!(compiler.arg(&source).status().unwrap().success());
    };
    let bare = ["-O1", "-static", "-nostdlib", "-fno-stack-protector"];
    compile("ld-linux-x86-64.so.2", OLD_LOADER, &bare);
    let linker = format!("-Wl,--dynamic-linker={}", loader.display());
    compile("old", "int main(void) { return 0; }\n", &[&linker]);
    let old = folder.join("old");
    let old = old.to_str().unwrap();
    let output = run(&[
        "--limit",
        "8M",
        "--",
        "sh",
        "-c",
        &format!("{old}; echo $?"),
    ]);
    assert_eq!(text(&output.stderr), "");
    assert_eq!(text(&output.stdout), "none\n0\n");
    let command = ["--verbose", "--limit", "8M", "--", "sh", "-c", old];
    let said = text(&run(&command).stderr);
    assert_eq!(
        said.matches("a child runs without GhostMem").count(),
        1,
        "{said}"
    );
    let line = refused(126, &["--limit", "8M", "--", old]);
    assert!(line.contains("glibc 2.34"), "{line}");

    let output = run(&["--limit", "8M", "--", "sh", "-c", "echo $LD_PRELOAD"]);
    let library = fs::read(text(&output.stdout).trim_end()).unwrap();
    let names = |minor: u32| {
        let name = format!("GLIBC_2.{minor}\0");
        library
            .windows(name.len())
            .any(|part| part == name.as_bytes())
    };
    assert!(names(34) && !(35..60).any(names));
}

/// Proves that a child in a root folder without the library runs without it, and that nobody
/// says so.
#[test]
fn a_child_in_another_root_runs_without_and_says_nothing() {
    let root = scratch("root");
    let source = root.join("says.c");
    let code = "#include <stdio.h>\n#include <stdlib.h>\nint main(void) { \
        puts(getenv(\"LD_PRELOAD\") ? getenv(\"LD_PRELOAD\") : \"none\"); return 0; }\n";
    fs::write(&source, code).unwrap();
    let mut compiler = Command::new("cc");
    compiler.arg("-o").arg(root.join("says")).arg(&source);
    assert!(compiler.status().unwrap().success());
    for folder in ["lib64", "lib/x86_64-linux-gnu"] {
        fs::create_dir_all(root.join(folder)).unwrap();
    }
    for file in [
        "lib64/ld-linux-x86-64.so.2",
        "lib/x86_64-linux-gnu/libc.so.6",
    ] {
        fs::copy(Path::new("/").join(file), root.join(file)).unwrap();
    }
    let script = format!(
        "import os, sys\n\
         if os.getuid(): sys.exit(77)\n\
         os.chroot('{}'); os.chdir('/')\n\
         os.execv('/says', ['says'])\n",
        root.display()
    );
    let output = run(&["--limit", "8M", "--", "python3", "-c", &script]);
    if output.status.code() == Some(77) {
        println!("SKIPPED: not root, so a child in another root folder is not tested");
        return;
    }
    assert_eq!(text(&output.stderr), "");
    assert_eq!(text(&output.stdout), "none\n");
    // By a program that asks for little, and so has no heap: it asks there for the first time
    // what may be in its way, and finds no /proc.
    let output = run(&["chroot", root.to_str().unwrap(), "/says"]);
    assert_eq!(text(&output.stderr), "");
    assert_eq!(text(&output.stdout), "none\n");
}

/// A daemon closes all descriptors and opens files of its own: the table is in none of them.
#[test]
fn a_report_does_not_go_into_the_programs_files() {
    let folder = scratch("daemon");
    let program = "import os\n\
        os.closerange(2, 1100)\n\
        n = 0\n\
        try:\n    \
            while n < 1100: os.open(f'file{n}', os.O_CREAT | os.O_WRONLY); n += 1\n\
        except OSError: pass\n\
        print(n, flush=True)\n";
    for most in ["900", "150"] {
        let command = format!(
            "ulimit -n {most}; exec {} run --limit 8M --stats -- python3 -c \"$0\"",
            env!("CARGO_BIN_EXE_ghostmem")
        );
        let output = Command::new("sh")
            .args(["-c", &command, program])
            .current_dir(&folder)
            .output()
            .unwrap();
        let opened: usize = text(&output.stdout).trim().parse().unwrap();
        assert!(opened > 50, "{most}: {}", text(&output.stderr));
        for file in fs::read_dir(&folder).unwrap() {
            let file = file.unwrap();
            assert_eq!(
                file.metadata().unwrap().len(),
                0,
                "{most}: {:?}",
                file.path()
            );
        }
    }
}

#[test]
fn a_script_without_an_interpreter_is_the_shells() {
    let script = scratch("script").join("commands");
    // The kernel takes the second's line for none.
    for first in ["", "#! \n"] {
        fs::write(&script, format!("{first}echo \"$1 from $0\"\n")).unwrap();
        fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
        let script = script.to_str().unwrap();
        let output = run(&["--limit", "8M", "--", script, "word"]);
        let said = text(&output.stdout);
        assert_eq!(
            said,
            format!("word from {script}\n"),
            "{}",
            text(&output.stderr)
        );
    }
}

#[test]
fn paths_of_any_bytes_pass_unharmed_and_the_report_names_its_process() {
    let folder = scratch("bytes");
    let mut name = folder.clone().into_os_string().into_vec();
    name.extend_from_slice(b"/re\xffport;%41");
    let report = OsString::from_vec(name.clone());
    let options: Vec<&OsStr> = ["--limit", "8M", "--stats-json"].map(OsStr::new).to_vec();
    let mut options: Vec<OsString> = options.into_iter().map(OsStr::to_owned).collect();
    options.push(report.clone());
    options.extend(["--", "sh", "-c", "echo $$"].map(OsString::from));
    let output = run(&options);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let json: Value = serde_json::from_slice(&fs::read(OsStr::from_bytes(&name)).unwrap()).unwrap();
    let process: u64 = text(&output.stdout).trim().parse().unwrap();
    assert_eq!(json["process_id"], process);
    let program = json["program"].as_str().unwrap();
    assert!(
        program.starts_with('/') && program.contains("sh"),
        "{program}"
    );
}
