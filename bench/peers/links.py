#!/usr/bin/env python3
"""Our bench beside gloo between emulated hosts with shaped links, in one sitting (needs root).

    bench/peers/compare.sh links [--sizes 16,64] [--hosts 2 --gbit 8] [--rounds 3] [--seconds 3] [--json FILE]

Every host is a network namespace with one rank; links are shaped by TBF with one bucket for all. Each round measures the
table's choice, canonical order, the double tree (from 4 hosts on) and gloo, back to back for some seconds each, and one
raw cubic stream beside each of ours. Printed: the part of the link's bound that each reaches, median over the rounds.
Bound: 2(P-1)/P x bytes / raw stream; for the double tree also 2 x bytes / raw stream.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile

GLOO = r"""
import os, sys, time, torch, torch.distributed as dist
torch.set_num_threads(1)
dist.init_process_group("gloo")
seconds = float(sys.argv[2])
for size in sys.argv[1].split(","):
    data = torch.zeros(int(float(size) * 2**20) // 4)
    start = time.perf_counter()
    for _ in range(2):
        dist.all_reduce(data)
    count = torch.tensor([int(seconds / ((time.perf_counter() - start) / 2)) + 3])
    dist.broadcast(count, 0)
    dist.barrier()
    start = time.perf_counter()
    for _ in range(count.item()):
        dist.all_reduce(data)
    mean = torch.tensor([(time.perf_counter() - start) / count.item()], dtype=torch.float64)
    dist.all_reduce(mean, dist.ReduceOp.MAX)
    if dist.get_rank() == 0:
        print("SECONDS", mean.item(), flush=True)
"""


def ours(arguments, *flags):
    command = [
        arguments.bench, "allreduce", "--ranks", str(arguments.hosts), "--nodes", str(arguments.hosts),
        "--gbit", str(arguments.gbit), "--sizes", arguments.sizes, "--seconds", str(arguments.seconds), "--json", *flags,
    ]
    return json.loads(subprocess.run(command, check=True, capture_output=True).stdout)


def gloo(arguments, preload):
    command = [
        arguments.bench, "hosts", "--nodes", str(arguments.hosts), "--gbit", str(arguments.gbit), "--",
        sys.executable, "-c", GLOO, arguments.sizes, str(arguments.seconds),
    ]
    environment = dict(
        os.environ, LD_PRELOAD=preload, OMP_NUM_THREADS="1", GLOO_SOCKET_IFNAME="eth0", MASTER_PORT="29555",
    )
    output = subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout
    return [float(line.split()[1]) for line in output.splitlines() if line.startswith("SECONDS")]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--bench", required=True, help="the hfreduce-bench program")
    parser.add_argument("--mpi", help="not used here")
    parser.add_argument("--hosts", type=int, default=2)
    parser.add_argument("--gbit", type=float, default=8)
    parser.add_argument("--sizes", default="16,64")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=3)
    parser.add_argument("--json")
    arguments = parser.parse_args()
    hosts = arguments.hosts
    kinds = {"fast": ["--fast"], "canonical": []}
    if hosts >= 4:
        kinds["double-tree"] = ["--fast", "--algorithm", "double-tree"]
    sizes = [float(size) for size in arguments.sizes.split(",")]
    times = {(name, size): [] for name in [*kinds, "gloo"] for size in sizes}
    raws = []
    print(f"{hosts} hosts, {arguments.gbit} Gbit/s, load {os.getloadavg()[0]:.2f}")
    with tempfile.TemporaryDirectory() as folder:
        preload = os.path.join(folder, "cubic.so")
        source = os.path.join(os.path.dirname(os.path.abspath(__file__)), "cubic.c")
        subprocess.run(["cc", "-shared", "-fPIC", "-O2", "-o", preload, source, "-ldl"], check=True)
        for _ in range(arguments.rounds):
            for name, flags in kinds.items():
                report = ours(arguments, *flags)
                raws.append(report["raw_stream"])
                for size, line in zip(sizes, report["lines"]):
                    times[name, size].append(line["mean_s"])
            for size, seconds in zip(sizes, gloo(arguments, preload)):
                times["gloo", size].append(seconds)
    raw = statistics.median(raws)
    print(f"raw stream {raw / 1e9:.4f} GB/s, median of {len(raws)} ({min(raws) / 1e9:.4f} to {max(raws) / 1e9:.4f})")
    results = []
    for (name, size), seconds in times.items():
        median = statistics.median(seconds)
        factor = 2 * (hosts - 1) / hosts
        row = {"hosts": hosts, "gbit": arguments.gbit, "name": name, "mib": size, "seconds": seconds, "raw": raw,
               "share": factor * size * 2**20 / raw / median}
        text = f"{size:>5.0f} MiB  {name:<12} {median * 1e3:9.2f} ms  {row['share']:.3f} of the bound"
        if name == "double-tree":
            row["share_of_own"] = 2 * size * 2**20 / raw / median
            text += f", {row['share_of_own']:.3f} of its own"
        results.append(row)
        print(text, flush=True)
    print(f"load at the end {os.getloadavg()[0]:.2f}")
    if arguments.json:
        with open(arguments.json, "w") as file:
            json.dump(results, file, indent=1)


if __name__ == "__main__":
    main()
