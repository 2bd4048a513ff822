#!/usr/bin/env bash
# Prints the python of an environment with torch 2.11.0 (CPU use) and transformers, against which this project is
# compared; makes it first if there is none. Used by tests/peers, never at run time.
#
# It lives in the cache ($LAMPYRIS_CACHE or ~/.cache/lampyris) under peers/. The torch wheel is the one that
# scripts/libtorch.sh has downloaded already. On Linux it is a CUDA build whose Python part links libtorch_cuda.so, so the
# libraries that one names must be there even though no GPU is used: everything torch asks for is installed except
# triton, cusolver, nvrtc, nvtx and cuda-bindings, which are only loaded on first use on a GPU (about 5 GB on disk).
# With a CPU-only wheel in $LAMPYRIS_PEERS_WHEELS (a folder given to pip with --find-links) none of them is needed.
set -euo pipefail

torch=2.11.0
transformers=5.23.0
cache=${LAMPYRIS_CACHE:-$HOME/.cache/lampyris}
target=$cache/peers
python=$target/bin/python

fail() { printf 'peers set-up: %s\n' "$*" >&2; exit 1; }
say() { printf 'peers set-up: %s\n' "$*" >&2; }

if [ -e "$target/ready-$torch-$transformers" ]; then
    printf '%s\n' "$python"
    exit 0
fi
command -v python3 >/dev/null || fail "python3 is missing; on Debian: apt-get install python3 python3-venv"
mkdir -p "$cache/downloads"
exec 9>"$cache/peers.lock"
flock 9
[ ! -e "$target/ready-$torch-$transformers" ] || { printf '%s\n' "$python"; exit 0; }

rm -rf "$target"
python3 -m venv "$target" || fail "python3 has no venv; on Debian: apt-get install python3-venv"
install() { "$python" -m pip install --quiet --no-warn-conflicts --only-binary=:all: "$@" >&2 || fail "pip install $* failed (its message is above)"; }

wheels=(--find-links "$cache/downloads")
[ -z "${LAMPYRIS_PEERS_WHEELS:-}" ] || wheels=(--no-index --find-links "$LAMPYRIS_PEERS_WHEELS")
say "installing torch $torch"
install --no-deps "${wheels[@]}" "torch==$torch"
install filelock typing-extensions 'setuptools<82' sympy networkx jinja2 fsspec numpy
if [ -e "$("$python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/torch/lib/libtorch_cuda.so" ]; then
    say "installing the libraries that a CUDA build of torch links (about 2 GB to download)"
    install --find-links "$cache/downloads" \
        'cuda-toolkit[cublas,cudart,cufft,cufile,cupti,curand,cusparse,nvjitlink]==13.0.2' \
        nvidia-cudnn-cu13==9.19.0.56 nvidia-cusparselt-cu13==0.8.0 nvidia-nccl-cu13==2.28.9 nvidia-nvshmem-cu13==3.4.5
fi
say "installing transformers $transformers"
install "transformers==$transformers" safetensors
"$python" -c 'import torch, transformers; torch.zeros(1)' || fail "torch does not import (its message is above)"
touch "$target/ready-$torch-$transformers"
printf '%s\n' "$python"
