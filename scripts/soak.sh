#!/bin/sh
# Runs the integration tests again and again, and stops at the first failure:
#   scripts/soak.sh [rounds, 100] [test ...]
# Without names all of them; for the races alone, a third of the time:
#   scripts/soak.sh 100 concurrency signals fork fork_handlers syscalls
set -eu
case "${1-}" in
-h | --help)
    sed -n '2,/^[^#]/s/^# \{0,1\}//p' "$0"
    exit
    ;;
esac
cd "$(dirname "$0")/.."
rounds=100
if [ $# -gt 0 ]; then
    rounds=$1
    shift
fi
case $rounds in
'' | *[!0-9]*)
    echo "soak.sh: rounds must be a number, not '$rounds'" >&2
    exit 2
    ;;
esac
tests=--tests
for name in "$@"; do
    [ "$tests" != --tests ] || tests=
    tests="$tests --test $name"
done
# shellcheck disable=SC2086 # several words on purpose
cargo test -q -p ghostmem $tests --no-run
log=$(mktemp)
trap 'rm -f "$log"' EXIT
round=1
while [ "$round" -le "$rounds" ]; do
    # shellcheck disable=SC2086
    if ! cargo test -q -p ghostmem $tests >"$log" 2>&1; then
        cat "$log" >&2
        echo "round $round of $rounds failed" >&2
        exit 1
    fi
    echo "round $round of $rounds passed"
    round=$((round + 1))
done
