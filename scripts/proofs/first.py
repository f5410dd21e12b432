"""The README's dictionary: without an option in a small group, and under one number."""

import statistics

from proofs.groups import Group
from proofs.programs import MIB, Table, mib, run, say

GROUP_BYTES = 300 * MIB
OUTSIDE_BYTES = 260 * MIB
# Of the group's limit, anonymous, shared and kernel memory together.
MOST_PERCENT = 97
RIGHT = "179000010\n"
COLUMNS = ("row", "runs", "right", "kills", "most_MiB", "allowed_MiB", "samples", "over", "hertz", "longest_gap_ms", "median_s")


def _row(table, name, ended, kills, allowed):
    breaches = []
    for number, one in enumerate(ended, 1):
        if one.status != 0 or one.out != RIGHT:
            breaches.append(f"run {number}: {one.last_words()}")
        if one.most > allowed:
            breaches.append(f"run {number}: {mib(one.most)} MiB of {mib(allowed)}")
    if kills:
        breaches.append(f"the kernel killed {kills}")
    table.add(
        breaches, row=name, runs=len(ended), kills=kills,
        right=sum(one.status == 0 and one.out == RIGHT for one in ended),
        most_MiB=mib(max(one.most for one in ended)), allowed_MiB=mib(allowed),
        samples=sum(one.sampler.count for one in ended),
        over=sum(one.sampler.over for one in ended),
        hertz=round(min(one.sampler.hertz for one in ended)),
        longest_gap_ms=round(1000 * max(one.sampler.longest_gap_s for one in ended), 1),
        median_s=round(statistics.median(one.seconds for one in ended), 2))


def _repeat(times, name, one):
    ended = []
    for number in range(1, times + 1):
        ended.append(one())
        say(f"{name} {number} of {times}: {ended[-1].last_words()}, {mib(ended[-1].most)} MiB, {ended[-1].seconds:.1f} s")
    return ended


def first(ghostmem, program, times):
    """In a group of 300 MiB without swap."""
    table = Table(COLUMNS)
    allowed = GROUP_BYTES * MOST_PERCENT // 100
    with Group("first", GROUP_BYTES) as group:
        ended = _repeat(times, "first", lambda: run(
            [ghostmem, "run", "--", *program], group=group, what="charged", bound_bytes=allowed))
        _row(table, "first", ended, group.kills(), allowed)
    return table


def outside(ghostmem, program, times):
    """Under --memory 260M, in no group."""
    table = Table(COLUMNS)
    ended = _repeat(times, "outside", lambda: run(
        [ghostmem, "run", "--memory", "260M", "--", *program], what="process", bound_bytes=OUTSIDE_BYTES))
    killed = sum(one.status == -9 for one in ended)
    _row(table, "outside", ended, killed, OUTSIDE_BYTES)
    return table
