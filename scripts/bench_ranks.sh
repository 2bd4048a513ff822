#!/usr/bin/env bash
# Times training steps of recipes/reference_moe.toml on two ranks of one thread, and of the same model under PyTorch's
# DistributedDataParallel over gloo, in turn, in one sitting. Both are run in fp32 and in bf16, and of each the faster
# type counts: which one that is depends on the processor. Usage: scripts/bench_ranks.sh [rounds]
set -euo pipefail
cd "$(dirname "$0")/.."
make --silent build

rounds=${1:-3}
lampyris=${CARGO_TARGET_DIR:-${LAMPYRIS_CACHE:-$HOME/.cache/lampyris}/target}/debug/lampyris
python=$(scripts/peers.sh)
runs=$(mktemp -d)
trap 'rm -rf "$runs"' EXIT

# Median tokens per second in one compute type: 23 steps of 2 x (4 x 256) tokens, of which the first three warm up. The
# learning rate changes nothing about speed.
ours() {
    local run=$runs/$1-$round
    "$lampyris" train recipes/reference_moe.toml --run-dir "$run" --ranks-per-node 2 \
        --set parallel.threads_per_rank=1 --set parallel.zero=1 --set "compute=$1" \
        --set schedule.total_tokens=47_104 --set schedule.warmup_tokens=2_048 \
        --set eval.final_tokens=2_048 --set output.sample_tokens=0 --set checkpoint.at_end=false >"$runs/log" 2>&1 ||
        { cat "$runs/log" >&2; exit 1; }
    "$python" - "$run/metrics.jsonl" <<'PYTHON'
import json
import statistics
import sys

lines = [json.loads(line) for line in open(sys.argv[1])]
print(round(statistics.median(line["tokens_per_s"] for line in lines if line.get("step", 0) > 3 and "loss" in line), 1))
PYTHON
}

results=()
for ((round = 1; round <= rounds; round++)); do
    fp32=$(ours fp32)
    bf16=$(ours bf16)
    peer=$("$python" tests/peers/bench_ddp.py --ranks 2 2>/dev/null | "$python" -c '
import json, sys
print(*(result["tokens_per_s"] for result in json.load(sys.stdin)["results"]))')
    results+=("$fp32 $bf16 $peer")
    echo "round $round, tokens/s in fp32 and bf16: lampyris $fp32 and $bf16, DDP over gloo ${peer/ / and }"
done
"$python" - "${results[@]}" <<'PYTHON'
import statistics
import sys

rounds = [[float(x) for x in argument.split()] for argument in sys.argv[1:]]
ours, peers = [max(r[:2]) for r in rounds], [max(r[2:]) for r in rounds]
ratios = [a / b for a, b in zip(ours, peers)]
print(f"median of the faster type: lampyris {statistics.median(ours):.0f}, DDP over gloo {statistics.median(peers):.0f} "
      f"tokens/s; ratio {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")
PYTHON
