"""Real programs in groups of a part of what they need.

What a program *needs* is the smallest limit of a group, in steps of 5 % of what it takes at
the most, at which it ends well without GhostMem.
"""

import os
import shlex
import shutil
import subprocess

from proofs.groups import Cannot, Group
from proofs.programs import MIB, SOURCES, Table, mib, run, say

ROOT = SOURCES.parents[2]
PACKAGES = ["g++", "make", "nodejs", "default-jdk-headless", "redis-server", "python3-venv"]
MODULES = ["numpy", "pandas", "duckdb", "polars"]
PERCENT = 60
STEP_PERCENT = 5
COLUMNS = ("row", "needs_MiB", "limit_MiB", "percent", "right", "kills", "most_MiB", "plain_s", "with_s", "times")


def _install(python, home):
    """Debian's packages, and a virtual environment with PyPI's."""
    def is_there(package):
        asked = subprocess.run(["dpkg-query", "-W", "-f", "${Status}", package], capture_output=True, check=False)
        return b"ok installed" in asked.stdout

    missing = [package for package in PACKAGES if not is_there(package)]
    if shutil.which("javac"):
        missing = [package for package in missing if not package.startswith("default-jdk")]
    if missing:
        if os.geteuid() != 0:
            raise Cannot(f"missing Debian packages: {' '.join(missing)}")
        say(f"installing {' '.join(missing)}")
        subprocess.run(["apt-get", "update", "-qq"], check=True)
        subprocess.run(["apt-get", "install", "-y", "-qq", *missing], check=True, stdout=subprocess.DEVNULL,
                       env={**os.environ, "DEBIAN_FRONTEND": "noninteractive"})
    venv = home / "venv"
    inside = venv / "bin/python3"
    has_all = f"import {', '.join(MODULES)}"
    if not inside.exists() or subprocess.run([inside, "-c", has_all], capture_output=True, check=False).returncode:
        say(f"installing {' '.join(MODULES)} under {venv}")
        subprocess.run([python, "-m", "venv", "--clear", venv], check=True)
        subprocess.run([inside, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *MODULES], check=True)


def _makefile(work):
    """A folder in which `make -j2` compiles four files, and says what came of it."""
    folder = work / "make"
    heavy = shlex.quote(str(SOURCES / "heavy.cc"))
    rules = ["all: a.o b.o c.o d.o"]
    for number, name in enumerate("abcd"):
        rules.append(f"{name}.o: {heavy}\n\t@g++ -std=c++17 -O1 -DPART={number} -c {heavy} -o $@")
    script = f"mkdir -p {shlex.quote(str(folder))} && cd {shlex.quote(str(folder))} && rm -f *.o && " \
             'printf "%s" "$0" >Makefile && make -s -j2 && sha256sum *.o'
    return ["bash", "-c", script, "\n".join(rules) + "\n"]


def rows(work, python):
    """Programs by name: the command, the part of its need in percent, how many at once."""
    def inside(name, *words):
        return [python, str(name), *words]

    bench = ROOT / "bench/programs"
    java, node = str(work / "java"), shutil.which("node") or "node"
    compiler = ["bash", "-c", f"g++ -std=c++17 -O2 -c {shlex.quote(str(SOURCES / 'heavy.cc'))} -o \"$0/heavy-$$.o\" "
                "&& sha256sum <\"$0/heavy-$$.o\"", str(work)]
    dicts = inside(bench / "dictionary.py", "1.5")
    base = inside(bench / "database.py", "2")
    return {
        "dicts": (dicts, PERCENT, 1),
        "numpy": (inside(bench / "arrays.py", "1"), PERCENT, 1),
        "pandas": (inside(SOURCES / "frame.py"), PERCENT, 1),
        "sqlite": (base, PERCENT, 1),
        "duckdb": (inside(SOURCES / "columns.py"), PERCENT, 1),
        "polars": (inside(SOURCES / "lazy.py"), PERCENT, 1),
        "g++": (compiler, PERCENT, 1),
        "redis": (inside(SOURCES / "server.py", str(work)), PERCENT, 1),
        "java": (["java", "-Xmx600m", "-cp", java, "Heap"], PERCENT, 1),
        "node": ([node, str(bench / "buffers.js"), "2"], 80, 1),
        "dicts-two": (dicts, PERCENT, 2),
        "sqlite-two": (base, PERCENT, 2),
        "make-j2": (_makefile(work), PERCENT, 1),
    }


def _ends_well(one):
    return one.status == 0 and one.out != ""


def _need(name, command, seconds_most, work):
    """A run with room enough, and what it needs, bytes."""
    with Group(f"{name}-all") as group:
        plain = run(command, group=group, what="charged", bound_bytes=1 << 62, seconds=seconds_most, folder=work)
    if not _ends_well(plain):
        raise Cannot(f"{name} does not end well without GhostMem: {plain.last_words()}")
    step = plain.most * STEP_PERCENT // 100
    steps, ends_well = 100 // STEP_PERCENT, None

    def fits(steps):
        with Group(f"{name}-{steps}", step * steps) as group:
            one = run(command, group=group, seconds=max(60, 10 * plain.seconds), folder=work)
            return _ends_well(one) and one.out == plain.out and not group.kills()

    # Up where all it took is not enough, as the kernel takes some in batches; else down.
    while not fits(steps):
        steps += 1
        if steps > 2 * 100 // STEP_PERCENT:
            raise Cannot(f"{name} does not end well in twice what it takes")
        ends_well = steps
    if ends_well is None:
        while steps > 1 and fits(steps - 1):
            steps -= 1
    return plain, step * steps


def programs(ghostmem, work, home, python, chosen, times):
    table = Table(COLUMNS)
    inside = str(home / "venv/bin/python3")
    selected = chosen(rows(work, inside))
    _install(python, home)
    subprocess.run(["javac", "-d", str(work / "java"), str(SOURCES / "Heap.java")], check=True)
    needs = {}
    for name, (command, percent, count) in selected.items():
        key = tuple(command)
        if key not in needs:
            needs[key] = _need(name.removesuffix("-two"), command, 900, work)
        plain, need = needs[key]
        limit = need * count * percent // 100
        say(f"{name}: takes {mib(plain.most)} MiB, needs {mib(need)} MiB, {plain.seconds:.1f} s")
        for number in range(1, times + 1):
            with Group(name, limit) as group:
                # One ghostmem for each: they know nothing of each other.
                alone = [ghostmem, "run", "--", *command]
                # Several say what they say one after the other, when all have ended.
                script = 'count=$1; shift; for at in $(seq "$count"); do "$@" >"$PROOF_OUT.$at" & done; ' \
                         'code=0; for at in $(seq "$count"); do wait -n || code=$?; done; cat "$PROOF_OUT".*; exit $code'
                started = alone if count == 1 else ["bash", "-c", script, "bash", str(count), *alone]
                one = run(started, group=group, what="charged", bound_bytes=limit,
                          seconds=max(300, 40 * plain.seconds), env={"PROOF_OUT": str(work / f"out-{name}")}, folder=work)
                kills = group.kills()
            breaches = []
            if one.status != 0:
                breaches.append(one.last_words())
            elif one.out != plain.out * count:
                breaches.append("another output")
            if kills:
                breaches.append(f"the kernel killed {kills}")
            table.add(
                breaches, row=name, needs_MiB=mib(need * count), limit_MiB=mib(limit), percent=percent, run=number,
                right="yes" if one.status == 0 and one.out == plain.out * count else "NO", kills=kills,
                most_MiB=mib(one.most), plain_s=round(plain.seconds, 2), with_s=round(one.seconds, 2),
                times=round(one.seconds / plain.seconds, 1))
            say(f"{name} in {mib(limit)} MiB: {one.how()}, {mib(one.most)} MiB, {one.seconds:.1f} s")
    return table
