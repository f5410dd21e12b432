"""Starting a program and seeing how it ends."""

import os
import pathlib
import signal
import subprocess
import sys
import time

from proofs.groups import Cannot
from proofs.samples import Members, Process, Sampler

MIB = 1 << 20
SOURCES = pathlib.Path(__file__).resolve().parent / "sources"


class Ended:
    """How a program ended: `status` as subprocess has it, "hung" where it was ended."""

    def __init__(self, status, out, err, seconds, sampler):
        self.status = status
        self.out = out.decode(errors="replace")
        self.err = err.decode(errors="replace")
        self.seconds = seconds
        self.sampler = sampler

    @property
    def most(self):
        """The largest sample, bytes."""
        return max(self.sampler.most) if self.sampler else 0

    def how(self):
        """In words."""
        if self.status == "hung":
            return "did not end"
        if self.status < 0:
            return f"ended by {signal.Signals(-self.status).name}"
        return "ended well" if self.status == 0 else f"ended with {self.status}"

    def last_words(self):
        """How, and what it said last."""
        said = (self.err or self.out).strip().splitlines()
        return f"{self.how()}: {said[-1][:200]}" if said else self.how()


def compiled(name, work):
    """The C program `name` of the sources, built once."""
    built = work / name
    command = ["cc", "-O2", "-Wall", "-pthread", "-o", str(built), str(SOURCES / f"{name}.c")]
    try:
        if not built.exists():
            subprocess.run(command, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise Cannot(f"a C compiler named cc is needed: {error}") from None
    return str(built)


def ready(command, work):
    """The words of a command, where `@name` stands for the C program of that name."""
    return [compiled(word[1:], work) if word.startswith("@") else word for word in command]


def run(command, *, group=None, what=None, bound_bytes=0, hertz=1000, seconds=600, env=None, folder=None):
    """Runs a command, in a group and in a folder if they are given. `what` says what is sampled: "process",
    "members" of the group, "charged" to the group, or None for nothing."""
    marks, theirs = os.pipe()
    os.set_blocking(marks, False)
    # What prints a backtrace reads the program's debug information into memory.
    fixed = {"PROOF_MARKS": str(theirs), "RUST_BACKTRACE": "0"}
    environment = {**os.environ, **(env or {}), **fixed}
    begun = time.monotonic()
    child = subprocess.Popen(
        group.entered(command) if group else command,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        pass_fds=(theirs,), env=environment, cwd=folder, start_new_session=True)
    os.close(theirs)
    read = close = None
    if what == "process":
        source = Process(child.pid)
        read, close = source.bytes, source.close
    elif what == "members":
        source = Members(group)
        read, close = source.bytes, source.close
    elif what == "charged":
        read = group.charged
    sampler = Sampler(read, hertz, bound_bytes, marks) if read else None
    try:
        try:
            out, err = child.communicate(timeout=seconds)
            status = child.returncode
        except subprocess.TimeoutExpired:
            status = "hung"
    finally:
        # What it left running goes with it, or all of it where it hangs.
        try:
            os.killpg(child.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
    if status == "hung":
        out, err = child.communicate()
    took = time.monotonic() - begun
    if sampler:
        sampler.stop()
    if close:
        close()
    os.close(marks)
    return Ended(status, out, err, took, sampler)


class Table:
    """Rows of one part, and whether all of them are as they have to be."""

    def __init__(self, columns):
        self.columns = columns
        self.rows = []
        self.breaches = 0

    def add(self, breaches=(), **row):
        """A row, and what in it is not as it has to be."""
        breaches = list(breaches)
        self.breaches += len(breaches)
        self.rows.append({**row, "breaches": breaches})
        for breach in breaches:
            print(f"BREACH {row[self.columns[0]]}: {breach}", file=sys.stderr, flush=True)

    def text(self):
        cells = [[name.replace("_", " ") for name in self.columns]]
        cells += [[shown(row.get(name, "")) for name in self.columns] for row in self.rows]
        widths = [max(len(row[at]) for row in cells) for at in range(len(self.columns))]
        lines = []
        for row in cells:
            first = row[0].ljust(widths[0])
            rest = (cell.rjust(width) for cell, width in zip(row[1:], widths[1:]))
            lines.append("  ".join((first, *rest)).rstrip())
        return "\n".join(lines)


def shown(value):
    return f"{value:.2f}" if isinstance(value, float) else str(value)


def mib(count):
    """Bytes as MiB, to two places."""
    return round(count / MIB, 2)


def say(line):
    print(line, file=sys.stderr, flush=True)
