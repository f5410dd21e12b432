"""A table of DuckDB in memory: filled, grouped, joined with itself, sorted.

DuckDB keeps four fifths of its group's limit by itself, and puts the rest into files. Here it
keeps all of it in memory: what it needs is what its data take, and no file makes that less."""

import duckdb

base = duckdb.connect(":memory:")
base.execute("set threads = 2")
base.execute("set memory_limit = '8GB'")
base.execute("set temp_directory = ''")
base.execute("""create table visit as select range as number, range * 7919 % 100003 as guest,
    range * 31 % 1009 as shop, 'visit ' || range || ' to shop ' || (range * 31 % 1009) as note from range(4000000)""")
print(base.execute("select shop, count(*), sum(length(note)) from visit group by shop order by shop limit 3").fetchall())
print(base.execute("""select count(*), sum(a.number + b.number) from visit a join visit b
    on a.guest = b.guest and a.number < b.number where a.shop < 40""").fetchall())
print(base.execute("select number, note from visit order by note desc, number limit 2 offset 2000000").fetchall())
base.execute("update visit set note = note || '.' where shop % 10 = 3")
print(base.execute("select sum(length(note)), max(note) from visit").fetchall())
