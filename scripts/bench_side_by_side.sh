#!/usr/bin/env bash
# Measures what jobs side by side on one machine reach together, beside one job that has the whole machine, in pairs: a job of
# one rank of recipes/debug_moe.toml on `lampyris up --nodes 1`, then three at once on `lampyris up --nodes 3`. Steps are
# counted over a window in which all of them train. Usage: scripts/bench_side_by_side.sh [pairs] [seconds of a window] [--set KEY=VALUE]...
set -euo pipefail
cd "$(dirname "$0")/.."

pairs=${1:-5}
window=${2:-10}
sets=("${@:3}")
lampyris=${CARGO_TARGET_DIR:-${LAMPYRIS_CACHE:-$HOME/.cache/lampyris}/target}/debug/lampyris
export LAMPYRIS_CACHE
LAMPYRIS_CACHE=$(mktemp -d)
unset LAMPYRIS_SCHEDULER
log=$LAMPYRIS_CACHE/up.log
up=
trap 'end_cluster; rm -rf "$LAMPYRIS_CACHE"' EXIT

fail() { printf '%s\n' "$*" >&2; tail -n 20 "$log" >&2; exit 1; }
await() { # what, command...: waits until the command succeeds
    local what=$1
    for ((i = 0; i < 600; i++)); do
        "${@:2}" && return
        sleep 0.2
    done
    fail "waited in vain for $what"
}
end_cluster() {
    [ -n "$up" ] || return 0
    kill -INT "$up" 2>/dev/null || true
    wait "$up" || true
    up=
}
online() { [ "$("$lampyris" nodes --json 2>/dev/null | grep -o '"state":"online"' | wc -l)" = "$1" ]; }
steps() { grep -c '"loss"' "$1/metrics.jsonl" 2>/dev/null || true; }
trains() { [ "$(steps "$1")" -ge 20 ] 2>/dev/null; }

# Tokens per second of $2 jobs together on as many nodes, with run directories named $1.
together() {
    "$lampyris" up --nodes "$2" >>"$log" 2>&1 &
    up=$!
    await "$2 nodes" online "$2"
    local runs=() jobs=() run before=0 after=0 from to
    for ((j = 0; j < $2; j++)); do
        run=$LAMPYRIS_CACHE/$1-$j
        runs+=("$run")
        # Far more steps than anybody waits for: 8 x 64 tokens each.
        jobs+=("$("$lampyris" submit recipes/debug_moe.toml --run-dir "$run" --set schedule.total_tokens=512_000_000 \
            --set eval.every_steps=0 --set output.tensorboard=false "${sets[@]}" --json 2>>"$log" |
            sed -n 's/.*"id":"\([0-9]*\)".*/\1/p' | head -n 1)")
        [ -n "${jobs[-1]}" ] || fail "no job"
    done
    for run in "${runs[@]}"; do await "steps of $run" trains "$run"; done
    from=$(date +%s%N)
    for run in "${runs[@]}"; do before=$((before + $(steps "$run"))); done
    sleep "$window"
    to=$(date +%s%N)
    for run in "${runs[@]}"; do after=$((after + $(steps "$run"))); done
    for run in "${jobs[@]}"; do "$lampyris" stop "$run" >>"$log" 2>&1; done
    await "the end of all jobs" idle
    end_cluster
    speed=$(((after - before) * 512 * 1000000000 / (to - from)))
}
idle() { [ "$("$lampyris" list --json 2>/dev/null)" = "[]" ]; }

ratios=()
for ((pair = 1; pair <= pairs; pair++)); do
    together "alone-$pair" 1
    alone=$speed
    together "three-$pair" 3
    three=$speed
    ratios+=("$(awk -v a="$alone" -v t="$three" 'BEGIN { printf "%.2f", t / a }')")
    echo "pair $pair: alone $alone tokens/s, three together $three tokens/s, ratio ${ratios[-1]}"
done
printf '%s\n' "${ratios[@]}" | sort -n |
    awk '{ r[NR] = $1 } END { m = NR % 2 ? r[(NR + 1) / 2] : (r[NR / 2] + r[NR / 2 + 1]) / 2
        printf "median of the ratio %.2f (%.2f to %.2f) on %d cores\n", m, r[1], r[NR], cores }' cores="$(nproc)"
