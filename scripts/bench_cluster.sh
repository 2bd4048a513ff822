#!/usr/bin/env bash
# What an idle scheduler and an idle worker cost, and the time from `lampyris submit` to the first step of a tiny job on
# an idle cluster of this machine. Usage: scripts/bench_cluster.sh [idle seconds] [jobs]
set -euo pipefail
cd "$(dirname "$0")/.."
make --silent build

idle_s=${1:-30}
jobs=${2:-10}
lampyris=${CARGO_TARGET_DIR:-${LAMPYRIS_CACHE:-$HOME/.cache/lampyris}/target}/debug/lampyris
dir=$(mktemp -d)
export LAMPYRIS_CACHE=$dir/cache
daemons=()
stop() {
    kill "${daemons[@]}" 2>/dev/null || true
    wait "${daemons[@]}" 2>/dev/null || true
    rm -rf "$dir"
}
trap stop EXIT

"$lampyris" scheduler 2>"$dir/scheduler.log" &
daemons+=($!)
until "$lampyris" nodes >/dev/null 2>&1; do sleep 0.1; done
"$lampyris" worker --name here 2>"$dir/worker.log" &
daemons+=($!)
until "$lampyris" nodes | grep -q online; do sleep 0.1; done

ticks() { awk '{ sub(/.*\) /, ""); print $12 + $13 }' "/proc/$1/stat"; }
names=(scheduler worker)
before=()
for pid in "${daemons[@]}"; do before+=("$(ticks "$pid")"); done
sleep "$idle_s"
for i in 0 1; do
    pid=${daemons[$i]}
    used=$(($(ticks "$pid") - before[i]))
    rss=$(awk '/^VmRSS/ { printf "%.1f", $2 / 1024 }' "/proc/$pid/status")
    cpu=$(awk -v used="$used" -v s="$idle_s" -v hz="$(getconf CLK_TCK)" 'BEGIN { printf "%.2f", 100 * used / hz / s }')
    echo "idle ${names[$i]}: $rss MiB resident, $cpu % of a core over $idle_s s"
done

times=()
for ((job = 0; job <= jobs; job++)); do
    run=$dir/run-$job
    began=$(date +%s%N)
    "$lampyris" submit recipes/debug_llama.toml --run-dir "$run" --set schedule.total_tokens=5120 \
        --set output.sample_tokens=0 >/dev/null 2>&1
    until grep -qs '"loss"' "$run/metrics.jsonl"; do sleep 0.005; done
    took=$((($(date +%s%N) - began) / 1000000))
    # The first prepares the text and warms the page cache.
    if ((job > 0)); then times+=("$took"); fi
    until "$lampyris" show "$((job + 1))" --json | grep -q succeeded; do sleep 0.1; done
done
printf '%s\n' "${times[@]}" | sort -n |
    awk '{ t[NR] = $1 } END { printf "submit to first step: median %d ms, largest %d ms of %d\n", t[int((NR + 1) / 2)], t[NR], NR }'
