# Read by scripts/figures, in python3: the tables of real programs beside zram, from the
# record of scripts/record-programs.

import csv
import json
import pathlib
import statistics

ROOT = pathlib.Path(__file__).resolve().parent.parent
PICTURES = ROOT / "docs" / "pictures"


def measured_programs():
    """The newest record of real programs: its notes and rows; without one, nothing."""
    records = sorted((ROOT / "bench" / "record").glob("*-programs.csv"))
    if not records:
        return None, {}, []
    notes, lines = {}, []
    for line in records[-1].read_text().splitlines():
        if line.startswith("# "):
            name, value = line[2:].split(": ", 1)
            notes[name] = json.loads(value)
        else:
            lines.append(line)
    return records[-1].name, notes, list(csv.DictReader(lines))


class Programs:
    """The newest record of real programs at equal total memory, by medians."""

    def __init__(self, record):
        self.name, self.notes, rows = record
        self.runs = {}
        for row in rows:
            key = (row["program"], row["contender"], row["limit_percent"])
            self.runs.setdefault(key, []).append(row)

    def exists(self):
        """Whether there is one: those from before totals were equal say nothing of them."""
        return "not_counted" in self.notes

    def median(self, key, *fields):
        """Median of a field, or of the sum of several."""
        return statistics.median(
            sum(float(row[field]) for field in fields) for row in self.runs[key])

    def mib(self, key):
        return f"{self.median(key, 'total_bytes') / 2**20:.0f}"

    def plain(self, program):
        return program, "plain", ""

    def overhead(self, key):
        """Seconds beyond the plain run."""
        return self.median(key, "seconds") - self.median(self.plain(key[0]), "seconds")

    def processor(self, key):
        return self.median(key, "user_s", "system_s")

    def why_not(self, program, percent):
        """Why a row does not count; None where it does."""
        for row in self.notes["not_counted"]:
            if (row["program"], str(row["limit_percent"])) == (program, percent):
                return row["why"]
        return None

    def pairs(self):
        """Program and share of each row, in the order of the runs, from much to little."""
        programs = list(dict.fromkeys(program for program, _, _ in self.runs))
        percents = {(program, percent) for program, _, percent in self.runs if percent}
        percents |= {(row["program"], str(row["limit_percent"])) for row in self.notes["not_counted"]}
        return sorted(percents, key=lambda pair: (programs.index(pair[0]), -int(pair[1])))

    def both(self, program, percent, figure):
        """A figure of zram and of ours; a dash where one has none."""
        keys = [(program, contender, percent) for contender in ("zram", "ghost")]
        return " / ".join(figure(key) if key in self.runs else "-" for key in keys)

    def gain(self, program, percent):
        """zram's overhead over ours."""
        if self.why_not(program, percent):
            return "not counted"
        ours = self.overhead((program, "ghost", percent))
        if ours <= 0:
            return "ours is none"
        return f"{self.overhead((program, 'zram', percent)) / ours:.2f}"

    def times_zram(self, program, percent, figure):
        """Ours over zram's."""
        if self.why_not(program, percent):
            return "-"
        ours, zram = (figure((program, contender, percent)) for contender in ("ghost", "zram"))
        return f"{ours / zram:.2f}" if zram else "-"

    def counts(self):
        runs = {len(rows) for rows in self.runs.values()}
        return "One run of each" if runs == {1} else f"Medians of {max(runs)} runs"

    def not_counted(self):
        """Lines on what does not count and what is missing."""
        lines = [f"* {row['program']} at {row['limit_percent']} %: {row['why']}."
                 for row in self.notes["not_counted"]]
        missing = [f"* {line}." for line in self.notes["left_out"]]
        parts = []
        for title, part in (("Not counted:", lines), ("Left out:", missing)):
            if part:
                parts += ["", title, ""] + part
        return parts


def totals_in_short(programs):
    """What a reader of the README wants to know of each row."""
    lines = [
        "| real program | plain | total MiB: zram / ours | start to end, s: zram / ours "
        "| overhead, zram's over ours |",
        "|---|---:|---:|---:|---:|",
    ]
    for program, percent in programs.pairs():
        plain = programs.plain(program)
        lines.append(
            f"| {program} | {programs.mib(plain)} MiB, {programs.median(plain, 'seconds'):.1f} s "
            f"| {programs.both(program, percent, programs.mib)} | "
            + programs.both(program, percent, lambda key: f"{programs.median(key, 'seconds'):.1f}")
            + f" | {programs.gain(program, percent)} |"
        )
    return lines + [
        "",
        f"{programs.counts()}, made by `scripts/record-programs`: zram in a control group of a share",
        "of the plain memory, and `ghostmem run --memory` of the total that zram took for it.",
        "*Overhead* is the time beyond the plain run; a row counts where ours held at most 1.02",
        "times as much. [docs/benchmarks.md](docs/benchmarks.md#real-programs) has all figures,",
        "[docs/run.md](docs/run.md) other programs and the cost while everything fits.",
    ]


def measured_table():
    """Each program at each total: what was held, and how long it took."""
    programs = Programs(measured_programs())
    return totals_table(programs) if programs.exists() else measured_at_equal_limits()


def totals_table(programs):
    """zram and ours side by side, a line for each program and share."""
    notes = programs.notes
    lines = [
        f"{notes['cpu']}, {notes['cpus']} processors, Linux {notes['kernel'].split('-')[0]}, "
        f"revision {notes['revision']},",
        f"record [bench/record/{programs.name}](../bench/record/{programs.name}). "
        f"{programs.counts()}. Two figures are zram's and ours.",
        "",
        "| program | plain | limit of zram | total, MiB | start to end, s | overhead, s "
        "| **overhead, zram's over ours** | time, ours over zram's | faults | processor time, s "
        "| ours over zram's | lent |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for program, percent in programs.pairs():
        plain, zram = programs.plain(program), (program, "zram", percent)

        def both(figure):
            return programs.both(program, percent, figure)

        lent = f"{programs.median(zram, 'lent'):.0f}" if zram in programs.runs else "-"
        lines.append(
            f"| {program} | {programs.mib(plain)} MiB, {programs.median(plain, 'seconds'):.2f} s, "
            f"{programs.processor(plain):.2f} s | {percent} % | {both(programs.mib)} "
            f"| {both(lambda key: format(programs.median(key, 'seconds'), '.2f'))} "
            f"| {both(lambda key: format(programs.overhead(key), '.2f'))} "
            f"| **{programs.gain(program, percent)}** "
            f"| {programs.times_zram(program, percent, lambda key: programs.median(key, 'seconds'))} "
            f"| {both(lambda key: format(programs.median(key, 'faults'), '.0f'))} "
            f"| {both(lambda key: format(programs.processor(key), '.2f'))} "
            f"| {programs.times_zram(program, percent, programs.processor)} | {lent} |"
        )
    lines += programs.not_counted()
    pictures = [
        f"![{program}: overhead over total memory](pictures/programs/{program}.svg)"
        for program in dict.fromkeys(program for program, _ in programs.pairs())
        if (PICTURES / "programs" / f"{program}.svg").exists()
    ]
    return lines + ([""] + pictures if pictures else [])


def measured_at_equal_limits():
    """The same from a record of the first form, with one limit for both."""
    name, notes, rows = measured_programs()
    if name is None:
        return ["No record yet: `scripts/record-programs` makes one."]
    runs = {}
    for row in rows:
        key = (row["program"], row["limit_percent"], row["contender"])
        runs.setdefault(key, []).append(row)

    def median(key, field):
        return statistics.median(field(row) for row in runs[key])

    plain_s = {
        (row["program"], row["repetition"]): float(row["seconds"])
        for row in rows if row["contender"] == "plain"
    }
    counts = {len(of_one) for of_one in runs.values()}
    each = "One run of each" if counts == {1} else f"Medians of {min(counts)} runs"
    lines = [
        f"{notes['cpu']}, {notes['cpus']} processors, Linux {notes['kernel'].split('-')[0]}, "
        f"revision {notes['revision']},",
        f"record [bench/record/{name}](../bench/record/{name}), of the first form of this bench: "
        "both had",
        f"the same limit, and *ghost* was `run --limit`. {each}.",
        "",
        "| program | run | limit | total at peak | start to end | times plain | faults "
        "| processor time: user, system | of it engine's threads |",
        "|---|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for program, percent, contender in runs:
        key = (program, percent, contender)
        limit = f"{int(runs[key][0]['limit_bytes']) / 2**20:.0f} MiB" if percent else "-"
        times = median(
            key, lambda row: float(row["seconds"]) / plain_s[row["program"], row["repetition"]])
        engine = f"{median(key, lambda row: float(row['engine_s'])):.2f} s" \
            if contender == "ghost" else "-"
        lines.append(
            f"| {program} | {contender} | {limit} "
            f"| {median(key, lambda row: int(row['total_bytes'])) / 2**20:.0f} MiB "
            f"| {median(key, lambda row: float(row['seconds'])):.2f} s | {times:.2f} "
            f"| {median(key, lambda row: int(row['faults'])):.0f} "
            f"| {median(key, lambda row: float(row['user_s'])):.2f} s, "
            f"{median(key, lambda row: float(row['system_s'])):.2f} s | {engine} |"
        )
    if notes["left_out"]:
        lines += ["", "Left out:", ""] + [f"* {line}" for line in notes["left_out"]]
    return lines + [
        "",
        "The zram row of *database* is none of its limit. The kernel did not take back what it was",
        "lent (`lent` of the record), and the process held 84 MiB at its peak under a limit of 46.",
        "A run of the same program that needed no loan took 701,403 major faults. `bench programs`",
        "repeats such runs now, and leaves them out where that does not help.",
    ]


def self_test():
    """The tables of an invented record, of which every figure is known."""
    columns = "program contender limit_percent seconds user_s system_s total_bytes faults lent"
    columns = columns.split()
    rows = [dict(zip(columns, row)) for row in [
        ("one", "plain", "", "2", "1", "1", str(200 << 20), "0", "0"),
        ("one", "zram", "50", "11", "2", "6", str(150 << 20), "900", "3"),
        ("one", "zram", "50", "12", "2", "6", str(150 << 20), "900", "3"),
        ("one", "zram", "50", "90", "2", "6", str(150 << 20), "900", "3"),
        ("one", "ghost", "50", "7", "4", "8", str(151 << 20), "400", "0"),
        ("one", "zram", "30", "22", "2", "9", str(120 << 20), "1900", "0"),
        ("one", "ghost", "30", "12", "4", "8", str(130 << 20), "1400", "0"),
        ("two", "plain", "", "1", "1", "0", str(90 << 20), "0", "0"),
        ("two", "zram", "50", "3", "1", "1", str(70 << 20), "10", "0"),
    ]]
    not_counted = [
        {"program": "one", "limit_percent": 30, "why": "its total is more"},
        {"program": "two", "limit_percent": 50, "why": "ghost: exit status: 1"},
    ]
    notes = {"not_counted": not_counted, "left_out": ["three: ruby is missing"], "cpu": "a processor",
             "cpus": 2, "kernel": "6.18.1-x", "revision": "abc"}
    programs = Programs(("DATE-programs.csv", notes, rows))
    assert programs.exists() and not Programs(("old", {"left_out": []}, rows)).exists()
    assert programs.pairs() == [("one", "50"), ("one", "30"), ("two", "50")]
    table = totals_table(programs)
    first, second, third = [line for line in table if line.startswith(("| one", "| two"))]
    # (12 - 2) / (7 - 2), 7 / 12 and 12 / 8
    assert first == (
        "| one | 200 MiB, 2.00 s, 2.00 s | 50 % | 150 / 151 | 12.00 / 7.00 | 10.00 / 5.00 "
        "| **2.00** | 0.58 | 900 / 400 | 8.00 / 12.00 | 1.50 | 3 |"), first
    assert "| 120 / 130 |" in second and "| **not counted** | - |" in second, second
    assert "| 70 / - | 3.00 / - | 2.00 / - | **not counted** |" in third, third
    assert "* one at 30 %: its total is more." in table, table
    assert "* three: ruby is missing." in table, table
    short = totals_in_short(programs)
    assert "| one | 200 MiB, 2.0 s | 150 / 151 | 12.0 / 7.0 | 2.00 |" in short, short
    assert any("not counted" in line for line in short), short
