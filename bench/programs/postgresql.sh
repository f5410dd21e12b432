#!/usr/bin/env bash
# PostgreSQL: a cluster is started, sorts and joins in memory, and is stopped.
set -eu
if [ "$(id -u)" = 0 ]; then
    chown postgres "$2"
    exec runuser -u postgres -- bash "$0" "$@"
fi
rows=$(awk "BEGIN { printf \"%d\", 800000 * $1 + 1000 }")
folder=$2
bin=$(find /usr/lib/postgresql -path '*/bin/initdb' | sort -V | tail -n 1 | xargs dirname)
export PGHOST=$folder PGPORT=16391 PGDATA=$folder/data PGDATABASE=postgres
if [ "${3-}" = prepare ]; then
    "$bin/initdb" -A trust --no-sync -E UTF8 --locale=C >"$folder/log"
    cat >>"$PGDATA/postgresql.conf" <<CONF
port = $PGPORT
listen_addresses = ''
unix_socket_directories = '$folder'
shared_buffers = 32MB
work_mem = 512MB
maintenance_work_mem = 256MB
max_parallel_workers_per_gather = 0
max_parallel_maintenance_workers = 0
synchronize_seqscans = off
fsync = off
autovacuum = off
jit = off
CONF
fi
"$bin/postgres" >>"$folder/log" 2>&1 &
server=$!
trap 'kill -INT $server; wait $server' EXIT
until "$bin/pg_isready" -q; do
    kill -0 $server
    sleep 0.05
done
if [ "${3-}" = prepare ]; then
    psql -q -X -v ON_ERROR_STOP=1 -At <<SQL
create table visit as select x as id, x::bigint * 7919 % 10007 as shop,
    'visit ' || x || ' to shop ' || (x::bigint * 7919 % 10007) as note,
    (x * 31::bigint % 10007)::numeric / 100 as amount from generate_series(1, $rows) x;
create table shop as select x as id, 'shop number ' || x as name from generate_series(0, 10006) x;
vacuum analyze;
SQL
    exit
fi
psql -q -X -v ON_ERROR_STOP=1 -At <<'SQL'
select md5(string_agg(note, '|' order by note desc)) from visit;
select s.name, count(*), sum(v.amount), min(v.note) from visit v join shop s on s.id = v.shop
    group by s.name order by 3 desc, 1 limit 5;
select count(distinct note), percentile_disc(0.3) within group (order by amount) from visit;
set enable_mergejoin = off;
select sum(length(a.note)) from visit a join visit b on a.note = b.note;
SQL
