#!/usr/bin/env bash
# Prints the libtorch folder that the build uses; sets one up first if there is none.
#
# Order: $LIBTORCH as given (a CPU or a CUDA libtorch 2.11.0), else the CPU folder in the cache
# ($LAMPYRIS_CACHE or ~/.cache/lampyris), made once from the torch wheel: headers, libtorch_cpu, libc10, libgomp and
# the two small CUDA runtime libraries that libtorch_cpu.so names. libtorch_cuda.so stays out, so nothing loads CUDA.
set -euo pipefail

version=2.11.0
cache=${LAMPYRIS_CACHE:-$HOME/.cache/lampyris}
target=$cache/libtorch-$version-cpu
downloads=$cache/downloads

fail() { printf 'libtorch set-up: %s\n' "$*" >&2; exit 1; }
say() { printf 'libtorch set-up: %s\n' "$*" >&2; }

if [ -n "${LIBTORCH:-}" ]; then
    [ -e "$LIBTORCH/lib/libtorch_cpu.so" ] || fail "LIBTORCH=$LIBTORCH has no lib/libtorch_cpu.so; unset it to have a CPU libtorch set up, or point it at a libtorch $version folder"
    found=$(cat "$LIBTORCH/build-version" 2>/dev/null || echo unknown)
    case $found in
        "$version"*) ;;
        *) fail "LIBTORCH=$LIBTORCH says version '$found' (file build-version); this release needs $version" ;;
    esac
    printf '%s\n' "$LIBTORCH"
    exit 0
fi

if [ -e "$target/build-version" ]; then
    printf '%s\n' "$target"
    exit 0
fi

[ "$(uname -s)-$(uname -m)" = Linux-x86_64 ] || fail "the ready-made CPU folder exists for Linux x86_64 only; set LIBTORCH to a libtorch $version folder for $(uname -sm)"
for program in python3 g++ sha256sum; do
    command -v "$program" >/dev/null || fail "the program '$program' is missing; on Debian: apt-get install python3 python3-pip g++ coreutils"
done
python3 -m pip --version >/dev/null 2>&1 || fail "python3 has no pip; on Debian: apt-get install python3-pip"

# name, version, wheel (one build each, so that the checksum is fixed), sha256
wheels="torch $version torch-$version-cp311-cp311-manylinux_2_28_x86_64.whl 7aa2f9bbc6d4595ba72138026b2074be1233186150e9292865e04b7a63b8c67a
nvidia-cuda-runtime 13.0.96 nvidia_cuda_runtime-13.0.96-py3-none-manylinux2014_x86_64.manylinux_2_17_x86_64.whl 7f82250d7782aa23b6cfe765ecc7db554bd3c2870c43f3d1821f1d18aebf0548
nvidia-cuda-cupti 13.0.85 nvidia_cuda_cupti-13.0.85-py3-none-manylinux_2_25_x86_64.whl 4eb01c08e859bf924d222250d2e8f8b8ff6d3db4721288cf35d14252a4d933c8"

mkdir -p "$downloads"
# One set-up at a time: a second make waits here and then finds the folder ready.
exec 9>"$cache/libtorch.lock"
flock 9
if [ -e "$target/build-version" ]; then
    printf '%s\n' "$target"
    exit 0
fi
while read -r name release file sum; do
    if ! echo "$sum  $downloads/$file" | sha256sum --check --status 2>/dev/null; then
        rm -f "$downloads/$file"
        say "downloading $file"
        python3 -m pip download --quiet --no-deps --only-binary=:all: --python-version 3.11 --implementation cp --abi cp311 \
            --platform manylinux_2_28_x86_64 --platform manylinux_2_25_x86_64 --platform manylinux_2_17_x86_64 \
            --platform manylinux2014_x86_64 --dest "$downloads" "$name==$release" >&2 ||
            fail "the download of $name $release failed (see pip's message above); check the network or put $file into $downloads"
        [ -e "$downloads/$file" ] || fail "pip fetched no $file for $name $release; put it into $downloads by hand"
        echo "$sum  $downloads/$file" | sha256sum --check --status ||
            fail "$downloads/$file has a wrong checksum (wanted $sum); remove it and try again"
    fi
done <<<"$wheels"

say "unpacking into $target"
rm -rf "$target.tmp"
mkdir -p "$target.tmp"
python3 - "$downloads" "$target.tmp" <<<"import os, shutil, sys, zipfile
downloads, target = sys.argv[1:]
keep_lib = {'libc10.so', 'libtorch_cpu.so', 'libgomp.so.1', 'libcudart.so.13', 'libcupti.so.13'}
keep_include = 'torch/include/'
for file in sorted(os.listdir(downloads)):
    if not file.endswith('.whl'):
        continue
    with zipfile.ZipFile(os.path.join(downloads, file)) as wheel:
        for name in wheel.namelist():
            base = os.path.basename(name)
            if name.startswith(keep_include) and base:
                out = os.path.join(target, name[len('torch/'):])
            elif base in keep_lib and '/lib/' in name:
                out = os.path.join(target, 'lib', base)
            else:
                continue
            os.makedirs(os.path.dirname(out), exist_ok=True)
            with wheel.open(name) as source, open(out, 'wb') as sink:
                shutil.copyfileobj(source, sink, 1 << 20)
" || fail "unpacking failed; is the disk full? ($(df -h "$cache" | tail -1))"
ln -s libtorch_cpu.so "$target.tmp/lib/libtorch.so"
echo "$version" >"$target.tmp/build-version"
rm -rf "$target"
mv "$target.tmp" "$target"
printf '%s\n' "$target"
