"""What memory has no room for is refused as documented; nothing is killed, nothing hangs."""

import collections

from proofs.groups import Group
from proofs.programs import MIB, SOURCES, Table, mib, ready, run, say

# A program that does not end by itself in that time hangs, seconds.
HANGS_AFTER_S = 120
DENIED = "an allocation is refused"
FULL = "is full and no page can leave"
COLUMNS = ("row", "runs", "as_documented", "kills", "hung", "ways", "bound_MiB", "most_MiB", "samples", "over", "longest_s")


def _refused(one):
    return one.status == 0 and one.out == "refused\n" and one.err.count("\n") == 1 and DENIED in one.err


def _goes_on(one):
    return one.status == 0 and one.out == "all of it\n" and DENIED not in one.err


def _signal(one):
    return one.status in (-7, -11) and one.out == "granted\n" and FULL in one.err


def _child(one):
    """The child is refused, or ended by the signal of its fault; its parent's data is right."""
    words = one.out.split("\n")
    return one.status == 0 and words[0] in ("refused", "signal 7", "signal 11") and words[1:] == ["True", ""]


def rows(work, python):
    """By name: group limit and bound in MiB, options of `run`, program, and what is right."""
    script = lambda name, *words: [python, str(SOURCES / name), *words]
    bound = ["--memory", "160M"]
    return {
        "grows": (None, 160, bound, ["@grow", "0", "2000"], _refused),
        "grows-python": (None, 160, bound, script("grow.py", "2000"), _refused),
        "grows-group": (200, None, [], ["@grow", "0", "2000"], _refused),
        "spill": (None, 160, [*bound, "--spill", str(work)], ["@grow", "0", "600"], _goes_on),
        "granted": (None, 320, ["--memory", "320M"], ["@zeros", "1024"], _signal),
        "child-forked": (None, 160, bound, script("child_forked.py", "90"), _child),
        "child-started": (None, 160, bound, script("child_started.py", "90"), _child),
        "child-group": (200, None, [], script("child_forked.py", "130"), _child),
    }


def _way(one):
    """How it ended, in a word or two."""
    first = one.out.split("\n")[0]
    return first if one.status == 0 and first else one.how()


def refusals(ghostmem, work, python, chosen, times):
    table = Table(COLUMNS)
    for name, (limit, bound, options, program, is_right) in chosen(rows(work, python)).items():
        limit_bytes = limit * MIB if limit else None
        bound_bytes = bound * MIB if bound else limit_bytes
        breaches, ended = [], []
        program = ready(program, work)
        with Group(name, limit_bytes) as group:
            for number in range(1, times + 1):
                one = run([ghostmem, "run", *options, "--", *program], group=group, what="members",
                          bound_bytes=bound_bytes, seconds=HANGS_AFTER_S)
                ended.append(one)
                if not is_right(one):
                    breaches.append(f"run {number}: {one.last_words()}; it said {one.out[:100]!r}")
                say(f"{name} {number} of {times}: {_way(one)}, {mib(one.most)} MiB, {one.seconds:.1f} s")
            kills = group.kills() + sum(one.status == -9 for one in ended)
        if kills:
            breaches.append(f"the kernel killed {kills}")
        ways = collections.Counter(map(_way, ended))
        table.add(
            breaches, row=name, runs=times, kills=kills,
            as_documented=sum(map(is_right, ended)), hung=sum(one.status == "hung" for one in ended),
            ways=", ".join(f"{way} {count}" for way, count in ways.most_common()),
            bound_MiB=mib(bound_bytes), most_MiB=mib(max(one.most for one in ended)),
            samples=sum(one.sampler.count for one in ended), over=sum(one.sampler.over for one in ended),
            longest_s=round(max(one.seconds for one in ended), 1))
    return table
