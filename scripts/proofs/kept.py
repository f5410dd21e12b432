"""`--memory` kept at every sample of a kilohertz."""

import collections

from proofs.groups import Group
from proofs.programs import MIB, Table, mib, ready, run, say

HANGS_AFTER_S = 900
# Reading may lift the total by this part of the bound: what evictions have in hand.
LIFTS_PART = 100
COLUMNS = ("row", "runs", "bound_MiB", "most_MiB", "samples", "over", "hertz", "longest_gap_ms", "ways", "longest_s")


def _ok(one):
    return one.status == 0 and one.out == "ok\n"


def _demo(one):
    return one.status == 0


def _halfway(one):
    """Refused at the allocation; or by the signal of a touch, of what was granted while the
    data still compressed. The row shows how often."""
    return (one.status == 0 and one.out == "refused\n") or (
        one.status in (-7, -11) and "is full and no page can leave" in one.err)


def rows(work):
    """By name: bound in MiB, what is sampled, words of the command, and what is right."""
    spill = ["--spill", str(work)]
    return {
        "demo": (900, "process", ["demo", "--memory", "900M", "--no-baseline"], _demo),
        "demo-5g": (640, "process", ["demo", "--memory", "640M", "--size", "5G", "--no-baseline", *spill], _demo),
        "allocations": (160, "process", ["run", "--memory", "160M", "--", "@allocations", "8", "400", "20"], _ok),
        "forks": (80, "members", ["run", "--memory", "80M", "--", "@forks", "60", "12"], _ok),
        "turns": (200, "members", ["run", "--memory", "200M", "--mmap=off", "--", "@turns", "60", "3"], _ok),
        "halfway": (160, "process", ["run", "--memory", "160M", "--", "@grow", "200", "2000"], _halfway),
        "reading": (96, "process", ["run", "--memory", "96M", "--", "@reading", "256", "20"], _ok),
    }


def _fineness(work):
    """How much what is sampled is behind what is taken: known blocks are touched one after
    the other, and each has to be seen at once. The largest difference, bytes, of the
    process's own counters and of the group's."""
    blocks, block = 64, 256 << 10
    behind = {}
    with Group("fineness") as group:
        for what in ("process", "members"):
            one = run(ready(["@blocks", str(blocks)], work), group=group, what=what, bound_bytes=1 << 62)
            if one.out != "ok\n":
                raise RuntimeError(f"blocks: {one.last_words()}")
            # The start of the program; nothing touched; then each block, and the pause after it.
            seen = one.sampler.most[1::2]
            # No sample fell into some, where the machine is busy, or into the last ones.
            behind[what] = max(abs(taken - seen[0] - at * block) for at, taken in enumerate(seen) if taken)
    return behind


def kept(ghostmem, work, chosen, times):
    table = Table(COLUMNS)
    selected = chosen(rows(work))
    fineness = _fineness(work)
    say(f"what is sampled is off by {fineness['process'] >> 10} KiB at most for a process, "
        f"{fineness['members'] >> 10} KiB for a group")
    for name, (bound, what, command, is_right) in selected.items():
        command = ready(command, work)
        bound_bytes = bound * MIB
        breaches, ended = [], []
        with Group(name) as group:
            for number in range(1, times + 1):
                one = run([ghostmem, *command], group=group, what=what, bound_bytes=bound_bytes, seconds=HANGS_AFTER_S)
                ended.append(one)
                if not is_right(one):
                    breaches.append(f"run {number}: {one.last_words()}")
                if one.sampler.over:
                    breaches.append(f"run {number}: {(one.most - bound_bytes) >> 10} KiB over, {one.sampler.over} samples of {one.sampler.count}")
                lifted = one.sampler.most[-1] - one.sampler.most[0]
                if name == "reading" and lifted > bound_bytes // LIFTS_PART:
                    breaches.append(f"run {number}: reading lifts the total by {lifted >> 10} KiB")
                say(f"{name} {number} of {times}: {one.how()}, {mib(one.most)} MiB, {one.seconds:.1f} s")
        ways = collections.Counter(one.how() for one in ended)
        table.add(
            breaches, row=name, runs=times, bound_MiB=bound, most_MiB=mib(max(one.most for one in ended)),
            samples=sum(one.sampler.count for one in ended), over=sum(one.sampler.over for one in ended),
            hertz=round(min(one.sampler.hertz for one in ended)),
            longest_gap_ms=round(1000 * max(one.sampler.longest_gap_s for one in ended), 1),
            ways=", ".join(f"{way} {count}" for way, count in ways.most_common()),
            longest_s=round(max(one.seconds for one in ended), 1),
            fineness_KiB=fineness["process" if what == "process" else "members"] >> 10)
    return table
