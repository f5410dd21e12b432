#!/bin/sh
# Runs the integration tests again and again: scripts/soak.sh [rounds, 100],
# and stops at the first failure.
set -eu
cd "$(dirname "$0")/.."
rounds=${1:-100}
cargo test -q -p ghostmem --tests --no-run
log=$(mktemp)
trap 'rm -f "$log"' EXIT
round=1
while [ "$round" -le "$rounds" ]; do
    if ! cargo test -q -p ghostmem --tests >"$log" 2>&1; then
        cat "$log" >&2
        echo "round $round of $rounds failed" >&2
        exit 1
    fi
    echo "round $round of $rounds passed"
    round=$((round + 1))
done

