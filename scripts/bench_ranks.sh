#!/usr/bin/env bash
# Times training steps of recipes/reference_moe.toml on two ranks of one thread, and of the same model under PyTorch's
# DistributedDataParallel over gloo, in turn, in one sitting. Usage: scripts/bench_ranks.sh [rounds]
set -euo pipefail
cd "$(dirname "$0")/.."

rounds=${1:-3}
lampyris=${CARGO_TARGET_DIR:-${LAMPYRIS_CACHE:-$HOME/.cache/lampyris}/target}/debug/lampyris
python=$(scripts/peers.sh)
runs=$(mktemp -d)
trap 'rm -rf "$runs"' EXIT
ours=()
peers=()
for ((round = 1; round <= rounds; round++)); do
    # 23 steps of 8 x 256 tokens; the first three warm up. The learning rate changes nothing about speed.
    "$lampyris" train recipes/reference_moe.toml --run-dir "$runs/$round" --ranks-per-node 2 \
        --set parallel.threads_per_rank=1 --set parallel.zero=1 --set compute=bf16 \
        --set schedule.total_tokens=47_104 --set schedule.warmup_tokens=2_048 \
        --set eval.final_tokens=2_048 --set output.sample_tokens=0 --set checkpoint.at_end=false >"$runs/log" 2>&1 ||
        { cat "$runs/log" >&2; exit 1; }
    ours+=("$("$python" - "$runs/$round/metrics.jsonl" <<'PYTHON'
import json
import statistics
import sys

lines = [json.loads(line) for line in open(sys.argv[1])]
print(round(statistics.median(line["tokens_per_s"] for line in lines if line.get("step", 0) > 3 and "loss" in line), 1))
PYTHON
    )")
    peers+=("$("$python" tests/peers/bench_ddp.py --ranks 2 2>/dev/null |
        "$python" -c 'import json, sys; print(json.load(sys.stdin)["fastest"]["tokens_per_s"])')")
    echo "round $round: lampyris ${ours[-1]} tokens/s, DDP over gloo ${peers[-1]} tokens/s"
done
"$python" - "${ours[*]}" "${peers[*]}" <<'PYTHON'
import statistics
import sys

ours, peers = ([float(x) for x in argument.split()] for argument in sys.argv[1:])
ratios = [a / b for a, b in zip(ours, peers)]
print(f"median: lampyris {statistics.median(ours):.0f}, DDP over gloo {statistics.median(peers):.0f} tokens/s; "
      f"ratio {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")
PYTHON
