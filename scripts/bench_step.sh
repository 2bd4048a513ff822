#!/usr/bin/env bash
# Times a training step of recipes/reference_moe.toml and of transformers' DeepseekV3ForCausalLM of the same sizes in
# turn, in one sitting, and prints the ratio of their tokens per second. Usage: scripts/bench_step.sh [rounds]
set -euo pipefail
cd "$(dirname "$0")/.."
make --silent build

rounds=${1:-3}
lampyris=${CARGO_TARGET_DIR:-${LAMPYRIS_CACHE:-$HOME/.cache/lampyris}/target}/debug/lampyris
python=$(scripts/peers.sh)
ours=()
peers=()
for ((round = 1; round <= rounds; round++)); do
    ours+=("$("$lampyris" bench step --recipe recipes/reference_moe.toml --set parallel.threads_per_rank=2 --json |
        "$python" -c 'import json, sys; print(json.load(sys.stdin)["tokens_per_s"])')")
    peers+=("$("$python" tests/peers/bench_step.py --threads 2 2>/dev/null |
        "$python" -c 'import json, sys; print(json.load(sys.stdin)["fastest"]["tokens_per_s"])')")
    echo "round $round: lampyris ${ours[-1]} tokens/s, transformers ${peers[-1]} tokens/s"
done
"$python" - "${ours[*]}" "${peers[*]}" <<'PYTHON'
import statistics
import sys

ours, peers = ([float(x) for x in argument.split()] for argument in sys.argv[1:])
ratios = [a / b for a, b in zip(ours, peers)]
print(f"median: lampyris {statistics.median(ours):.0f}, transformers {statistics.median(peers):.0f} tokens/s; "
      f"ratio {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")
PYTHON
