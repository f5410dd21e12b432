//! `ghostmem run` in a control group that holds less than the program needs: it ends well,
//! and the kernel kills nothing. Wants to make groups, as root can.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::sync::Mutex;
use std::thread;
use std::time::{Duration, Instant};

use ghostmem_os::report::{Reports, Version};

mod common;

const MIB: u64 = 1 << 20;

/// One at a time: each reads what its processes take.
static ALONE: Mutex<()> = Mutex::new(());

/// A memory group of the test's own.
struct Group {
    folder: PathBuf,
    version: Version,
}

impl Group {
    /// `None`, after a line, where this process may make none.
    fn new(name: &str, limit_bytes: u64) -> Option<Self> {
        let reports = Reports::of_this_machine();
        let mount = reports.memory_mount()?;
        let version = mount.version();
        let name = format!("ghostmem-{name}-{}", std::process::id());
        let group = fs::read_to_string("/proc/self/cgroup").unwrap();
        let own = group.lines().find_map(|line| {
            let mut fields = line.splitn(3, ':').skip(1);
            let controllers = fields.next()?;
            let is_it = match version {
                Version::V1 => controllers.split(',').any(|one| one == "memory"),
                Version::V2 => controllers.is_empty(),
            };
            is_it.then(|| fields.next().unwrap_or("/").to_owned())
        });
        let own = mount.folder().join(own?.trim_start_matches('/'));
        for above in [own, mount.folder().to_owned()] {
            let group = Self {
                folder: above.join(&name),
                version,
            };
            if version == Version::V2 {
                let _may_be = fs::write(above.join("cgroup.subtree_control"), "+memory");
            }
            if fs::create_dir(&group.folder).is_ok() && group.set_limit(limit_bytes) {
                return Some(group);
            }
        }
        println!("no memory group can be made here: not tested");
        None
    }

    fn set_limit(&self, bytes: u64) -> bool {
        let set = |file: &str, value: u64| fs::write(self.folder.join(file), value.to_string());
        match self.version {
            Version::V1 => {
                let _first_down = set("memory.limit_in_bytes", bytes);
                let _without_swap = set("memory.memsw.limit_in_bytes", bytes);
                let _without_swap = set("memory.swappiness", 0);
                set("memory.limit_in_bytes", bytes).is_ok()
            }
            Version::V2 => {
                let _without_swap = set("memory.swap.max", 0);
                set("memory.max", bytes).is_ok()
            }
        }
    }

    /// Starts a program in the group.
    fn start(&self, options: &[&str], program: &[&str]) -> Child {
        let script = r#"echo $$ > "$1" && shift && exec "$@""#;
        Command::new("sh")
            .args(["-c", script, "sh"])
            .arg(self.folder.join("cgroup.procs"))
            .arg(env!("CARGO_BIN_EXE_ghostmem"))
            .arg("run")
            .args(options)
            .arg("--")
            .args(program)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap()
    }

    fn stat(&self, names: [&str; 3]) -> u64 {
        let text = fs::read_to_string(self.folder.join("memory.stat")).unwrap();
        let value = |name: &str| {
            let line = text
                .lines()
                .find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
            line.map_or(0, |value| value.trim().parse().unwrap())
        };
        names.map(value).iter().sum()
    }

    /// Anonymous, shared and kernel memory, bytes.
    fn charged(&self) -> u64 {
        match self.version {
            Version::V1 => {
                let kernel = fs::read_to_string(self.folder.join("memory.kmem.usage_in_bytes"));
                let kernel = kernel.map_or(0, |text| text.trim().parse().unwrap());
                self.stat(["total_rss", "total_shmem", "-"]) + kernel
            }
            Version::V2 => self.stat(["anon", "shmem", "kernel"]),
        }
    }

    fn kills(&self) -> u64 {
        let file = match self.version {
            Version::V1 => "memory.oom_control",
            Version::V2 => "memory.events",
        };
        let text = fs::read_to_string(self.folder.join(file)).unwrap();
        let kills = text.lines().find_map(|line| line.strip_prefix("oom_kill "));
        kills.map_or(0, |count| count.trim().parse().unwrap())
    }

    /// Waits for the children; their output, and the most that was charged meanwhile.
    fn wait(&self, children: Vec<Child>) -> (Vec<Output>, u64) {
        let outputs: Vec<_> = children
            .into_iter()
            .map(|child| thread::spawn(|| child.wait_with_output().unwrap()))
            .collect();
        let mut most = 0;
        while outputs.iter().any(|output| !output.is_finished()) {
            most = most.max(self.charged());
            thread::sleep(Duration::from_millis(1));
        }
        let outputs = outputs.into_iter().map(|output| output.join().unwrap());
        (outputs.collect(), most)
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        for _ in 0..100 {
            if fs::remove_dir(&self.folder).is_ok() {
                return;
            }
            thread::sleep(Duration::from_millis(20));
        }
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// 300 MiB of plain Python.
const DICT: [&str; 3] = [
    "python3",
    "-c",
    "d = {i: str(i) * 9 for i in range(1_400_000)}; print(sum(map(len, d.values())))",
];
const RIGHT: &str = "78200010\n";

fn assert_right(output: &Output, expected: &str) {
    let errors = text(&output.stderr);
    assert!(output.status.success(), "{}: {errors}", output.status);
    assert_eq!(text(&output.stdout), expected, "{errors}");
}

#[test]
fn a_program_fits_in_a_group_of_half_of_what_it_needs() {
    let _alone = ALONE.lock();
    let Some(group) = Group::new("half", 150 * MIB) else {
        return;
    };
    let child = group.start(&["--mmap=256K"], &DICT);
    let (outputs, most) = group.wait(vec![child]);
    assert_right(&outputs[0], RIGHT);
    assert_eq!(group.kills(), 0);
    assert!(most <= 150 * MIB * 97 / 100, "{} MiB of 150", most / MIB);
}

#[test]
fn two_programs_share_a_group_of_less_than_both_need() {
    let _alone = ALONE.lock();
    let Some(group) = Group::new("two", 320 * MIB) else {
        return;
    };
    let children = [0; 2].map(|_| group.start(&["--mmap=256K"], &DICT));
    let (outputs, most) = group.wait(children.into());
    for output in &outputs {
        assert_right(output, RIGHT);
    }
    assert_eq!(group.kills(), 0);
    assert!(most <= 320 * MIB * 98 / 100, "{} MiB of 320", most / MIB);
}

/// 280 MiB of it; tells when they are there, and reads them until its input ends.
const HELD: [&str; 3] = [
    "python3",
    "-c",
    "import select, sys\n\
     d = [str(i) * 9 for i in range(2_500_000)]\n\
     print('there', flush=True)\n\
     while not select.select([sys.stdin], [], [], 0)[0]: right = sum(map(len, d))\n\
     print(right)",
];

/// Allocators of their own (jemalloc, mimalloc) map all they hand out without a reservation,
/// and go to brk(2) where that is refused. What did not fit by the forecast stayed ordinary
/// memory, which nothing evicts: a group was full of it within milliseconds.
#[test]
fn memory_without_a_reservation_is_evicted_or_refused_and_nobody_is_killed() {
    let _alone = ALONE.lock();
    let program = common::built("promised", "promised");
    let program = program.to_str().unwrap();
    let run = |program: &[&str]| {
        let group = Group::new("promised", 128 * MIB)?;
        let child = group.start(&[], program);
        let (outputs, _most) = group.wait(vec![child]);
        let errors = text(&outputs[0].stderr);
        assert_eq!(group.kills(), 0, "{program:?}: {errors}");
        Some((text(&outputs[0].stdout), errors))
    };
    for _ in 0..3 {
        // What is beside it compresses to half. By that it does not fit, and it does.
        let Some((said, errors)) = run(&[program, "fits", "192"]) else {
            return;
        };
        assert_eq!(said, "ok\n", "{errors}");
        let (said, errors) = run(&[program, "breaks"]).unwrap();
        assert_eq!(said, "refused\n", "{errors}");
        // Refused when it is mapped, or as a touch of what was promised.
        let (said, errors) = run(&[program, "grows"]).unwrap();
        let touched = errors.contains("no page can leave for the one touched");
        assert!(
            said.starts_with("refused\n") || (said.is_empty() && touched),
            "{said}{errors}"
        );
    }
}

/// The two know nothing of each other but what is left in the group.
#[test]
fn who_comes_later_gets_room_from_one_that_has_all_of_it() {
    let _alone = ALONE.lock();
    let Some(group) = Group::new("later", 260 * MIB) else {
        return;
    };
    let mut first = group.start(&["--mmap=256K"], &HELD);
    let mut there = [0; 6];
    std::io::Read::read_exact(first.stdout.as_mut().unwrap(), &mut there).unwrap();
    let before = group.charged();
    assert!(before > 225 * MIB, "{} MiB", before / MIB);
    let later = group.start(&["--mmap=256K"], &DICT);
    let (outputs, most) = group.wait(vec![later]);
    assert_right(&outputs[0], RIGHT);
    drop(first.stdin.take());
    let (outputs, _) = group.wait(vec![first]);
    assert_right(&outputs[0], "147500010\n");
    assert_eq!(group.kills(), 0);
    assert!(most <= 260 * MIB * 98 / 100, "{} MiB of 260", most / MIB);
}

/// Grows to 60 MiB, tells of it, waits without allocating, and reads all again.
const WAITS: [&str; 3] = [
    "python3",
    "-c",
    "import time\n\
     d = [bytes([i % 251]) * 2000 + b'%d' % i for i in range(30000)]\n\
     print('there', flush=True)\n\
     time.sleep(6)\n\
     print(sum(map(len, d)))",
];

#[test]
fn a_limit_that_is_lowered_while_a_program_does_nothing_is_kept() {
    let _alone = ALONE.lock();
    // The inner group has no limit: that of the outer one counts.
    let Some(outer) = Group::new("lowered", 400 * MIB) else {
        return;
    };
    let inner = Group {
        folder: outer.folder.join("inner"),
        version: outer.version,
    };
    if outer.version == Version::V2 {
        fs::write(outer.folder.join("cgroup.subtree_control"), "+memory").unwrap();
    }
    fs::create_dir(&inner.folder).unwrap();
    let mut child = inner.start(&["--mmap=256K"], &WAITS);
    let mut there = [0; 6];
    std::io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut there).unwrap();
    // The kernel adds a group's figures up when it comes to it, every two seconds at least.
    let mut before = outer.charged();
    for _ in 0..30 {
        if before > 60 * MIB {
            break;
        }
        thread::sleep(Duration::from_millis(100));
        before = outer.charged();
    }
    assert!(before > 60 * MIB, "{} MiB", before / MIB);
    // The kernel cannot take what has no place in swap: the program has to give it back,
    // as often as there is little left.
    let lower = before - 16 * MIB;
    let mut limit = before + 8 * MIB;
    while limit > lower {
        limit = lower.max(limit.min(outer.charged() / 100 * 105));
        assert!(outer.set_limit(limit));
        let fits = || outer.charged() <= limit / 100 * 97;
        let deadline = Instant::now() + Duration::from_secs(20);
        while !fits() {
            let charged = outer.charged() / MIB;
            assert!(
                Instant::now() < deadline,
                "{charged} MiB of {}",
                limit / MIB
            );
            thread::sleep(Duration::from_millis(1));
        }
    }
    let (outputs, most) = outer.wait(vec![child]);
    assert_right(&outputs[0], "60138890\n");
    assert_eq!(outer.kills() + inner.kills(), 0);
    assert!(most <= lower, "{} MiB of {}", most / MIB, lower / MIB);
    drop(inner);
}

/// A group that is never full, to count in: what `run --memory` holds together.
fn counting(name: &str) -> Option<Group> {
    Group::new(name, 2048 * MIB)
}

impl Group {
    /// Anonymous and shared memory, bytes.
    fn pages(&self) -> u64 {
        match self.version {
            Version::V1 => self.stat(["total_rss", "total_shmem", "-"]),
            Version::V2 => self.stat(["anon", "shmem", "-"]),
        }
    }

    /// Waits for a program; what it said, and the most pages that there were meanwhile.
    fn wait_for(&self, child: Child) -> (Output, u64) {
        let output = thread::spawn(|| child.wait_with_output().unwrap());
        let mut most = 0;
        while !output.is_finished() {
            most = most.max(self.pages());
            thread::sleep(Duration::from_millis(1));
        }
        (output.join().unwrap(), most)
    }
}

/// 215 MiB of plain Python each.
#[test]
fn one_number_holds_two_programs_that_grow() {
    let _alone = ALONE.lock();
    let Some(group) = counting("tree") else {
        return;
    };
    let program = "d = {i: str(i) * 9 for i in range(1_000_000)}; print(sum(map(len, d.values())))";
    let script = format!("python3 -c '{program}' & python3 -c '{program}' & wait");
    let options = ["--mmap=256K", "--memory", "240M"];
    let (output, most) = group.wait_for(group.start(&options, &["sh", "-c", &script]));
    assert_right(&output, "53000010\n53000010\n");
    assert!(
        most <= 240 * MIB,
        "{} KiB over 240 MiB",
        (most - 240 * MIB) >> 10
    );
    assert!(most > 160 * MIB, "{} MiB", most / MIB);
}

#[test]
fn one_number_holds_a_program_and_its_fork() {
    let _alone = ALONE.lock();
    let Some(group) = counting("fork") else {
        return;
    };
    let program = "\
import os, sys
d = {i: str(i) * 9 for i in range(500_000)}
right = sum(map(len, d.values()))
child = os.fork()
for i in range(0, 500_000, 2):
    d[i] = str(i + 1) * 9
more = [str(i) * 20 for i in range(200_000)]
sum(map(len, d.values()))
if child == 0:
    os._exit(0 if all(d[i] == str(i) * 9 for i in range(1, 500_000, 2)) else 3)
status = os.waitpid(child, 0)[1]
print(right, len(more), status)
";
    let options = ["--mmap=256K", "--memory", "150M"];
    let (output, most) = group.wait_for(group.start(&options, &["python3", "-c", program]));
    assert_right(&output, "26000010 200000 0\n");
    // Both write what they share, in Python, before anybody looks: a tenth at the most.
    assert!(most <= 165 * MIB, "{} MiB of 150", most / MIB);
}

/// Children write every second page of what they share, as their parent does: without room
/// made before each fork they take half as much again as they may.
#[test]
fn one_number_holds_children_that_write_all_they_share() {
    let _alone = ALONE.lock();
    let Some(group) = counting("forks") else {
        return;
    };
    let built = common::scratch("forks").join("forks");
    let source = "../../../../scripts/proofs/sources/forks.c";
    common::compile(&["-O2"], source, &built, &[]);
    let program = [built.to_str().unwrap(), "60", "6"];
    let (output, most) = group.wait_for(group.start(&["--memory", "80M"], &program));
    assert_right(&output, "ok\n");
    // Three processes of 60 MiB of text. Without room they come to 120 MiB for seconds; what
    // they write between two looks may come on top of the 80 for a moment. And they were
    // seen: more than the text of one is there, or what all write of it.
    assert!(most <= 92 * MIB, "{} KiB of 80 MiB", most >> 10);
    assert!(most > 56 * MIB, "{} KiB", most >> 10);
}

/// The servers of a data base: most do nothing, share a mapping that no engine evicts, and
/// keep little of what they were granted. The one that works gets nearly all that is left.
#[test]
fn who_does_much_gets_what_those_leave_that_do_nothing() {
    let _alone = ALONE.lock();
    let Some(group) = counting("beside") else {
        return;
    };
    let built = common::scratch("beside").join("beside");
    let source = "../../../../scripts/proofs/sources/beside.c";
    common::compile(&["-O2"], source, &built, &[]);
    let program = [built.to_str().unwrap(), "32", "6", "330", "3"];
    let (output, most) = group.wait_for(group.start(&["--memory", "240M"], &program));
    assert_right(&output, "ok\n");
    assert!(
        most <= 240 * MIB,
        "{} KiB over 240 MiB",
        (most - 240 * MIB) >> 10
    );
    assert!(most >= 216 * MIB, "{} KiB of 240 MiB", most >> 10);
}

/// What an ended child had shared becomes the others' without a fault, and they read their
/// part now and then: a program that grows meanwhile gets none of it, and could not give it
/// back.
#[test]
fn what_children_that_end_in_turn_had_shared_is_not_there_to_be_taken() {
    let _alone = ALONE.lock();
    let Some(group) = counting("turns") else {
        return;
    };
    let built = common::scratch("turns").join("turns");
    let source = "../../../../scripts/proofs/sources/turns.c";
    common::compile(&["-O2"], source, &built, &[]);
    let program = [built.to_str().unwrap(), "60", "3"];
    let options = ["--memory", "200M", "--mmap=off"];
    let (output, most) = group.wait_for(group.start(&options, &program));
    assert_right(&output, "ok\n");
    assert!(
        most <= 200 * MIB,
        "{} KiB over 200 MiB",
        (most - 200 * MIB) >> 10
    );
    // It grew as far as it may.
    assert!(most > 160 * MIB, "{} MiB", most / MIB);
}

/// A child that evicts what it shares frees nothing, and stores it.
#[test]
fn a_forked_child_that_grows_in_a_full_group_is_refused_and_nobody_is_killed() {
    let _alone = ALONE.lock();
    let Some(group) = Group::new("full-fork", 200 * MIB) else {
        return;
    };
    let script = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../../scripts/proofs/sources/child_forked.py"
    );
    let child = group.start(&[], &["python3", script, "130"]);
    let (outputs, _most) = group.wait(vec![child]);
    assert_eq!(group.kills(), 0, "{}", text(&outputs[0].stderr));
    let said = text(&outputs[0].stdout);
    let (first, rest) = said.split_once('\n').unwrap_or_default();
    // Refused at malloc, or as a lost page where it was granted before.
    let refused = ["refused", "signal 7", "signal 11"].contains(&first);
    let errors = text(&outputs[0].stderr);
    assert!(refused && rest == "True\n", "{said}{errors}");
}

#[test]
fn a_child_that_grows_beside_a_full_parent_is_refused_and_nobody_is_killed() {
    let _alone = ALONE.lock();
    let Some(group) = counting("full") else {
        return;
    };
    let program = "\
import os, sys, zlib
kept = [os.urandom(1 << 20) for _ in range(90)]
marks = [zlib.crc32(k) for k in kept]
grow = '''
import os
kept = []
try:
    for _ in range(300):
        kept.append(os.urandom(1 << 20))
    print('all of it')
except MemoryError:
    kept.clear()
    print('refused')
'''
sys.stdout.flush()
# No allocation while it runs: what there is, is the child's.
child = os.spawnv(os.P_NOWAIT, sys.executable, [sys.executable, '-c', grow])
status = os.waitpid(child, 0)[1]
if os.WIFSIGNALED(status):
    print('refused')
print(marks == [zlib.crc32(k) for k in kept])
";
    let options = ["--mmap=256K", "--memory", "160M"];
    let (output, most) = group.wait_for(group.start(&options, &["python3", "-c", program]));
    assert_right(&output, "refused\nTrue\n");
    assert_eq!(group.kills(), 0);
    assert!(
        most <= 160 * MIB,
        "{} KiB over 160 MiB",
        (most - 160 * MIB) >> 10
    );
}
