"""Runs inside a kernel that scripts/test-kernel boots: `ghostmem run` in memory groups of
version 2, part by part.

/ghostmem/plan.json says which parts, with how many seconds each, and which test programs.
What was found goes to the second serial port, a line of JSON each:

    {"is": "booted", "kernel": ..., "backend": ..., "auto_from": ...}
    {"is": "begun", "part": ..., "seconds_max": ...}
    {"is": "ended", "part": ..., "passed": ..., "why": ..., "seconds": ..., "figures": {...}}
    {"is": "over"}

A part that needs longer than it may is ended, and has failed.
"""

import json
import os
import pathlib
import platform
import re
import select
import signal
import subprocess
import sys
import termios
import time
import traceback

PLAN = json.loads(pathlib.Path("/ghostmem/plan.json").read_text())
GROUPS = pathlib.Path("/sys/fs/cgroup")
MIB = 1 << 20

# The command of README.md, and what it prints.
WHOLE = "d = {i: str(i) * 9 for i in range(3_000_000)}; print(sum(map(len, d.values())))"
WHOLE_SAYS = "179000010\n"

# The same, and says when so many of it are there.
TELLS = """\
import sys
d = {}
for i in range(3_000_000):
    d[i] = str(i) * 9
    if i == int(sys.argv[1]):
        print('there', flush=True)
print(sum(map(len, d.values())))
"""

# 300 MiB of plain Python, two of which do not fit.
HALF = "d = {i: str(i) * 9 for i in range(1_400_000)}; print(sum(map(len, d.values())))"
HALF_SAYS = "78200010\n"

# Grows to 150 MiB, says so, and reads all of it again when its input ends.
SLEEPS = """\
import sys
d = [bytes([i % 251]) * 2000 + b'%d' % i for i in range(75000)]
print('there', flush=True)
sys.stdin.read()
print(sum(map(len, d)))
"""
SLEEPS_SAYS = f"{sum(2000 + len(str(i)) for i in range(75000))}\n"


class Failed(Exception):
    """What a part found wrong, in one line."""


class Group:
    """A memory group without swap."""

    def __init__(self, name, above=GROUPS, **limits):
        self.folder = above / name
        self.folder.mkdir()
        self.set("memory.swap.max", 0, optional=True)
        for name, value in limits.items():
            self.set(f"memory.{name}", value)

    def set(self, name, value, optional=False):
        file = self.folder / name
        if optional and not file.exists():
            return
        file.write_text(str(value))

    def number(self, name):
        try:
            return int((self.folder / name).read_text())
        except FileNotFoundError:
            return None

    def keyed(self, name):
        lines = (self.folder / name).read_text().splitlines()
        return {key: int(value) for key, value in (line.split() for line in lines)}

    def current(self):
        return self.number("memory.current")

    def charged(self):
        """Anonymous, shared and kernel memory, bytes."""
        stat = self.keyed("memory.stat")
        # Before Linux 5.18 the kernel's own is told in pieces only.
        pieces = ("kernel_stack", "pagetables", "percpu", "sock", "slab")
        kernel = stat.get("kernel", sum(stat.get(piece, 0) for piece in pieces))
        return stat["anon"] + stat["shmem"] + kernel

    def kills(self):
        return self.keyed("memory.events")["oom_kill"]

    def let_below(self):
        self.set("cgroup.subtree_control", "+memory")

    def processes(self):
        return [int(line) for line in (self.folder / "cgroup.procs").read_text().split()]

    def remove(self):
        for pid in self.processes():
            os.kill(pid, signal.SIGKILL)
        for _ in range(200):
            try:
                return self.folder.rmdir()
            except OSError:
                time.sleep(0.05)


class Part:
    """One part: its time, its groups, its programs, and what it found."""

    def __init__(self, name, seconds):
        self.name = name
        self.began = time.monotonic()
        self.ends = self.began + seconds
        self.seconds = seconds
        self.groups = []
        self.programs = []
        self.figures = {}

    def group(self, name, above=GROUPS, **limits):
        group = Group(name, above, **limits)
        self.groups.append(group)
        return group

    def start(self, group, program, *words):
        """Starts Python under `ghostmem run` in the group."""
        number = len(self.programs)
        errors = open(f"/tmp/{self.name}-{number}.errors", "w+", encoding="utf-8", errors="replace")
        join = 'echo $$ > "$1" && shift && exec "$@"'
        ghostmem = [PLAN["ghostmem"], "run", "--", "python3", "-c", program, *words]
        child = subprocess.Popen(
            ["sh", "-c", join, "sh", str(group.folder / "cgroup.procs"), *ghostmem],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        )
        self.programs.append((child, errors))
        return child

    def check_time(self):
        if time.monotonic() > self.ends:
            raise Failed(f"not done after {self.seconds} seconds")

    def until_there(self, child):
        """Waits for a program that says that it is there."""
        while not select.select([child.stdout], [], [], 0.2)[0]:
            self.check_time()
        said = child.stdout.readline()
        if said != "there\n":
            child.wait()
            raise Failed(f"the program ended with {child.returncode} before it was there")

    def until_over(self, group, meanwhile=lambda: None):
        """Waits for the programs to end; the most that the group was charged."""
        charged = current = 0
        told = time.monotonic()
        while any(child.poll() is None for child, _ in self.programs):
            self.check_time()
            meanwhile()
            charged = max(charged, group.charged())
            current = max(current, group.current())
            if time.monotonic() > told + 30:
                told += 30
                after = round(told - self.began)
                print(f"{self.name}: {charged >> 20} MiB at most, after {after} s", flush=True)
            time.sleep(0.1)
        self.figures["charged_max_mib"] = round(charged / MIB, 1)
        peak = group.number("memory.peak")
        name = "current_max_mib" if peak is None else "peak_mib"
        self.figures[name] = round((current if peak is None else peak) / MIB, 1)
        return charged

    def check(self, group, says):
        """Each program said what is right, and the kernel killed nothing."""
        self.figures["oom_kills"] = kills = group.kills()
        self.figures["limit_events"] = group.keyed("memory.events")["max"]
        for child, _ in self.programs:
            said = child.stdout.read()
            if child.returncode != 0 or said != says:
                raise Failed(f"ended with {child.returncode} and said {said[:200]!r}")
        if kills:
            raise Failed(f"the kernel killed {kills} of the group")

    def check_within(self, charged, limit, hundredths):
        if charged > limit * hundredths // 100:
            raise Failed(
                f"charged {charged / MIB:.1f} MiB, more than {hundredths} % of {limit // MIB} MiB"
            )

    def end(self):
        """Ends what is left; what programs said on standard error."""
        said = ""
        for child, errors in self.programs:
            if child.poll() is None:
                child.kill()
            child.wait()
            errors.seek(0)
            said += errors.read()
        for group in reversed(self.groups):
            group.remove()
        return said


def first(part):
    """The first command of README.md in 300 MiB."""
    group = part.group("first", max=300 * MIB)
    part.start(group, WHOLE)
    charged = part.until_over(group)
    part.check(group, WHOLE_SAYS)
    part.check_within(charged, 300 * MIB, 97)


def nested(part):
    """The same, the limit on the level above."""
    above = part.group("nested", max=300 * MIB)
    above.let_below()
    part.start(part.group("inner", above.folder), WHOLE)
    charged = part.until_over(above)
    part.check(above, WHOLE_SAYS)
    part.check_within(charged, 300 * MIB, 97)


def high(part):
    """The same, held by memory.high alone."""
    group = part.group("high", high=300 * MIB)
    part.start(group, WHOLE)
    charged = part.until_over(group)
    part.figures["high_events"] = group.keyed("memory.events")["high"]
    part.check(group, WHOLE_SAYS)
    part.check_within(charged, 300 * MIB, 97)


def lowered(part):
    """The same, the limit lowered from 400 MiB to 250 while it grows."""
    least = 250 * MIB
    group = part.group("lowered")
    part.start(group, WHOLE)
    limits = [1 << 40]

    def lower():
        # A little above what is charged: the kernel kills where it cannot reclaim.
        current = group.current()
        if current > 400 * MIB or len(limits) > 1:
            limit = max(least, min(limits[-1], current * 102 // 100))
            if limit < limits[-1]:
                group.set("memory.max", limit)
                limits.append(limit)

    part.until_over(group, lower)
    part.figures["limits_set"] = len(limits) - 1
    part.figures["limit_last_mib"] = round(limits[-1] / MIB, 1)
    part.check(group, WHOLE_SAYS)
    if limits[-1] != least:
        raise Failed(f"gave back until {limits[-1] / MIB:.1f} MiB only, not {least // MIB}")


def idle(part):
    """The limit lowered five times while the program sleeps: seconds until it gave back."""
    group = part.group("idle")
    child = part.start(group, SLEEPS)
    part.until_there(child)
    time.sleep(2)
    took = []
    for _ in range(5):
        limit = group.current() * 102 // 100
        group.set("memory.max", limit)
        set_at = time.monotonic()
        while group.current() > limit * 97 // 100:
            part.check_time()
            if time.monotonic() > set_at + 20:
                raise Failed(f"gave nothing back in 20 s ({took} before)")
            time.sleep(0.005)
        took.append(round(time.monotonic() - set_at, 2))
        time.sleep(1)
    part.figures["seconds_to_give_back"] = took
    child.stdin.close()
    part.until_over(group)
    part.check(group, SLEEPS_SAYS)
    if max(took) > 5:
        raise Failed(f"took {max(took)} s to give back")


def late(part):
    """The memory controller turned on for the group as the program begins to grow."""
    turn_on(part, 20_000)


def grown(part):
    """The same when it has 100 MiB: they stay charged to the level above."""
    turn_on(part, 500_000)


def turn_on(part, there):
    above = part.group(part.name)
    group = part.group("inner", above.folder)
    if (group.folder / "memory.max").exists():
        raise Failed("the inner group has the memory controller at once")
    child = part.start(group, TELLS, str(there))
    part.until_there(child)
    above.let_below()
    group.set("memory.swap.max", 0, optional=True)
    group.set("memory.max", 250 * MIB)
    charged = part.until_over(group)
    part.check(group, WHOLE_SAYS)
    part.check_within(charged, 250 * MIB, 97)


def two(part):
    """Two programs of 300 MiB each in 320 MiB."""
    group = part.group("two", max=320 * MIB)
    for _ in range(2):
        part.start(group, HALF)
    charged = part.until_over(group)
    part.check(group, HALF_SAYS)
    part.check_within(charged, 320 * MIB, 98)


def tests(part):
    """The project's own tests, as built on the host."""
    (GROUPS / "cgroup.subtree_control").write_text("+memory")
    failed = []
    for name, program in PLAN["tests"].items():
        left = part.ends - time.monotonic()
        try:
            ended = subprocess.run(
                [program, "--test-threads=1", "--show-output"],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                timeout=max(left, 1),
                check=False,
            )
        except subprocess.TimeoutExpired as late_one:
            said = (late_one.stdout or b"").decode(errors="replace")
            raise Failed(f"{name}: not done after {part.seconds} seconds: {said[-600:]}") from None
        result = re.search(r"^test result: \w+\. (\d+) passed; (\d+) failed", ended.stdout, re.M)
        print(ended.stdout, flush=True)
        if result is None:
            raise Failed(f"{name} ended with {ended.returncode}: {ended.stdout[-600:]}")
        part.figures[name] = f"{result[1]} passed, {result[2]} failed"
        failed += [f"{name}::{test}" for test in re.findall(r"^test (\S+) .*FAILED$", ended.stdout, re.M)]
        if result[2] == "0" and ended.returncode != 0:
            failed.append(f"{name} ended with {ended.returncode}")
        if result[1] == "0" and result[2] == "0":
            failed.append(f"{name} has no test")
        # What a test says that could not try anything.
        lines = ended.stdout.splitlines()
        failed += [f"{name}: {line}" for line in lines if line.endswith(": not tested")]
    if failed:
        raise Failed("failed: " + ", ".join(failed))


PARTS = {run.__name__: run for run in (first, nested, high, lowered, idle, late, grown, two, tests)}


class Port:
    """The serial port that results go to."""

    def __init__(self, path):
        self.fd = os.open(path, os.O_WRONLY | os.O_NOCTTY)

    def say(self, **what):
        line = json.dumps(what).encode() + b"\n"
        while line:
            line = line[os.write(self.fd, line) :]
        termios.tcdrain(self.fd)


def doctor():
    """What `ghostmem doctor` found."""
    said = subprocess.run(
        [PLAN["ghostmem"], "doctor", "--json"], stdout=subprocess.PIPE, text=True, check=False
    )
    return json.loads(said.stdout)


def run(name, seconds, port):
    port.say(**{"is": "begun", "part": name, "seconds_max": seconds})
    part = Part(name, seconds)
    why = ""
    try:
        PARTS[name](part)
    except Failed as wrong:
        why = str(wrong)
    except Exception:  # a part that cannot run has failed, and the others still run
        why = traceback.format_exc()[-1500:]
    seconds = round(time.monotonic() - part.began, 1)
    said = part.end()
    print(f"{name}: {why or 'passed'} {part.figures}\n{said}", flush=True)
    port.say(
        **{
            "is": "ended",
            "part": name,
            "passed": not why,
            "why": why,
            "seconds": seconds,
            "figures": part.figures,
            "said": said[-1500:],
        }
    )


def main():
    port = Port("/dev/ttyS1")
    # The root takes it although it has processes.
    (GROUPS / "cgroup.subtree_control").write_text("+memory")
    found = doctor()
    port.say(
        **{
            "is": "booted",
            "kernel": platform.release(),
            "machine": platform.machine(),
            "backend": found["backend"],
            "auto_from": found["auto_from"],
            "memory_mib": found["ram_bytes"] // MIB,
        }
    )
    for name, seconds in PLAN["parts"].items():
        run(name, seconds, port)
    port.say(**{"is": "over"})


if __name__ == "__main__":
    sys.exit(main())
