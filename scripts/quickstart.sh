#!/usr/bin/env bash
# `make quickstart`: from a bare checkout to a trained model. Set-up (libtorch, build) and training are timed apart; a
# second run finds the set-up warm.
set -euo pipefail
cd "$(dirname "$0")/.."

fail() { printf 'quickstart: %s\n' "$*" >&2; exit 1; }
say() { printf 'quickstart: %s\n' "$*" >&2; }
seconds() { printf '%d.%d s' $(($1 / 1000)) $(($1 % 1000 / 100)); }
now_ms() { date +%s%3N; }

recipe=${1:-recipes/quickstart.toml}
began=$(now_ms)

command -v cargo >/dev/null ||
    fail "cargo is missing; install Rust from https://rustup.rs, then open a new shell or run: . \"\$HOME/.cargo/env\""
needed="g++ make"
# python3 and pip fetch libtorch, unless one is given.
[ -n "${LIBTORCH:-}" ] || needed+=" python3"
missing=()
for program in $needed; do
    command -v "$program" >/dev/null || missing+=("$program")
done
if [[ $needed == *python3 && " ${missing[*]} " != *" python3 "* ]]; then
    python3 -m pip --version >/dev/null 2>&1 || missing+=(python3-pip)
fi
((${#missing[@]} == 0)) || fail "missing: ${missing[*]}; on Debian: apt-get install ${missing[*]}"

# Two statements: the exit code of a command substitution in an export is lost.
LIBTORCH=$(scripts/libtorch.sh)
export LIBTORCH
export LAMPYRIS_CACHE=${LAMPYRIS_CACHE:-$HOME/.cache/lampyris}
export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$LAMPYRIS_CACHE/target}
say "building (the first time takes minutes)"
cargo build --quiet --workspace --bins ||
    fail "the build failed, see above; the compiler is $(cargo --version), Rust 1.95 or later is needed"
set_up=$(($(now_ms) - began))
say "set-up took $(seconds "$set_up")"

began=$(now_ms)
code=0
"$CARGO_TARGET_DIR/debug/lampyris" run "$recipe" --ranks-per-node 2 || code=$?
took=$(($(now_ms) - began))
case $code in
    0) say "set-up took $(seconds "$set_up"), data and training $(seconds "$took")" ;;
    85 | 86) say "stopped after $(seconds "$took"), see above for how to continue" ;;
    *) fail "training ended with code $code after $(seconds "$took")" ;;
esac
exit "$code"
