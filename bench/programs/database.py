"""A database in memory: filled, indexed, joined with itself, looked up, changed."""

import random
import sqlite3
import sys

scale = float(sys.argv[1])
count = int(1_250_000 * scale)
random.seed(15)
base = sqlite3.connect(":memory:")
base.execute("create table parcel(id integer primary key, route integer, label text)")
base.executemany(
    "insert into parcel values(?, ?, ?)",
    (
        (
            number,
            number * 6151 % 500_009,
            f"parcel {number} of {number % 97}, handle with care, this side up; from depot {number % 613} to depot {number % 389}, "
            "to be handed over against a signature and not later than noon",
        )
        for number in range(count)
    ),
)
base.execute("create index by_route on parcel(route)")
print(*base.execute("select count(*), sum(length(label)) from parcel where route between 1000 and 200000").fetchone())
found = 0
for _ in range(int(30_000 * scale)):
    row = base.execute("select label from parcel where route = ?", (random.randrange(500_009),)).fetchone()
    found += row is not None and len(row[0])
print(found)
base.execute("update parcel set label = label || '.' where route % 40 = 3")
print(*base.execute("select sum(length(label)), max(label) from parcel").fetchone())
