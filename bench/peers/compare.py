#!/usr/bin/env python3
"""Our bench beside gloo and OpenMPI, in interleaved rounds of one sitting.

    bench/peers/compare.sh [--ranks 2] [--sizes 16,64,256] [--dtype f32] [--rounds 10] [--json FILE]

Each round measures ours, then gloo, then OpenMPI, a few operations each, so that a change of the machine's mood meets
all of them. Printed: medians over all operations, their ratios, and the load. gloo runs with cubic congestion control
(cubic.c is preloaded), one thread per process, in place; OpenMPI 4.1 with `--mca pml ob1 --mca btl self,vader`.
"""

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile

GLOO = r"""
import os, sys, time, torch, torch.distributed as dist
torch.set_num_threads(1)
dist.init_process_group("gloo")
rank, ranks = dist.get_rank(), dist.get_world_size()
os.sched_setaffinity(0, {rank % os.cpu_count()})
dtypes = {"f32": torch.float32, "bf16": torch.bfloat16}
while True:
    line = [sys.stdin.readline() if rank == 0 else None]
    dist.broadcast_object_list(line)
    if not line[0]:
        break
    operation, size, repetitions, dtype = line[0].split()
    element = torch.tensor([], dtype=dtypes[dtype]).element_size()
    data = torch.zeros(int(size) // element, dtype=dtypes[dtype])
    other = torch.zeros_like(data)
    times = []
    for i in range(-2, int(repetitions)):
        dist.barrier()
        start = time.perf_counter()
        if operation == "allreduce":
            dist.all_reduce(data)
        else:
            dist.all_to_all_single(other, data)
        slowest = torch.tensor([time.perf_counter() - start], dtype=torch.float64)
        dist.all_reduce(slowest, dist.ReduceOp.MAX)
        if i >= 0:
            times.append(slowest.item())
    if rank == 0:
        print(*times, flush=True)
"""


def ours(arguments, operation, size, repetitions):
    command = [
        arguments.bench, operation, "--ranks", str(arguments.ranks), "--sizes", str(size / 2**20),
        "--dtype", arguments.dtype, "--rounds", str(repetitions), "--json",
    ] + (["--private"] if arguments.private else [])
    report = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
    return report["lines"][0]


class Peer:
    """A group of processes that takes one line and answers with one line of seconds."""

    def __init__(self, commands):
        self.processes = [
            subprocess.Popen(c, env=e, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for c, e in commands
        ]

    def run(self, line):
        first = self.processes[0]
        first.stdin.write(line + "\n")
        first.stdin.flush()
        return [float(word) for word in first.stdout.readline().split()]

    def close(self):
        for process in self.processes:
            process.stdin.close()
            process.wait()


def gloo(arguments, folder):
    preload = os.path.join(folder, "cubic.so")
    source = os.path.join(os.path.dirname(os.path.abspath(__file__)), "cubic.c")
    subprocess.run(["cc", "-shared", "-fPIC", "-O2", "-o", preload, source, "-ldl"], check=True)
    commands = []
    for rank in range(arguments.ranks):
        environment = dict(
            os.environ, RANK=str(rank), WORLD_SIZE=str(arguments.ranks), MASTER_ADDR="127.0.0.1", MASTER_PORT="29555",
            LD_PRELOAD=preload, OMP_NUM_THREADS="1", GLOO_SOCKET_IFNAME="lo",
        )
        commands.append(([sys.executable, "-c", GLOO], environment))
    return Peer(commands)


def openmpi(arguments, folder):
    if not arguments.mpi:
        return None
    program = os.path.join(folder, "mpi")
    source = os.path.join(os.path.dirname(os.path.abspath(__file__)), "mpi.c")
    subprocess.run([os.path.join(arguments.mpi, "mpicc"), "-O2", "-o", program, source], check=True)
    command = [
        os.path.join(arguments.mpi, "mpirun"), "--allow-run-as-root", "--oversubscribe", "--bind-to", "none",
        "--mca", "pml", "ob1", "--mca", "btl", "self,vader", "-np", str(arguments.ranks), program,
    ]
    return Peer([(command, os.environ)])


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--bench", required=True, help="the hfreduce-bench program")
    parser.add_argument("--mpi", help="folder of mpicc and mpirun")
    parser.add_argument("--operation", default="allreduce")
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--sizes", default="16,64,256")
    parser.add_argument("--dtype", default="f32")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--private", action="store_true")
    parser.add_argument("--json")
    arguments = parser.parse_args()
    results = []
    with tempfile.TemporaryDirectory() as folder:
        peers = {"gloo": gloo(arguments, folder), "openmpi": openmpi(arguments, folder)}
        peers = {name: peer for name, peer in peers.items() if peer}
        print(f"{arguments.operation}, {arguments.ranks} ranks, {arguments.dtype}, load {os.getloadavg()[0]:.2f}")
        for size in (int(float(mib) * 2**20) for mib in arguments.sizes.split(",")):
            repetitions = max(3, min(20, 2**28 // size))
            times = {"ours": [], "floor": []} | {name: [] for name in peers}
            for _ in range(arguments.rounds):
                line = ours(arguments, arguments.operation, size, repetitions)
                times["ours"].append(line["median_s"])
                if line["floor_s"]:
                    times["floor"].append(line["floor_s"])
                for name, peer in peers.items():
                    dtype = "" if name == "openmpi" else f" {arguments.dtype}"
                    if name == "openmpi" and arguments.dtype != "f32":
                        continue
                    times[name].append(
                        statistics.median(peer.run(f"{arguments.operation} {size} {repetitions}{dtype}"))
                    )
            row = {"bytes": size, "medians_s": {n: statistics.median(t) for n, t in times.items() if t}}
            row["ratios"] = {
                n: statistics.median(t) / row["medians_s"]["ours"] for n, t in times.items() if t and n != "ours"
            }
            results.append(row)
            words = [f"{n} {size / t / 1e9:.2f} GB/s" for n, t in row["medians_s"].items()]
            ratios = [f"ours/{n} {r:.2f}" for n, r in row["ratios"].items()]
            print(f"{size / 2**20:>6.0f} MiB  " + "  ".join(words + ratios), flush=True)
        for name in results[0]["ratios"]:
            mean = math.exp(statistics.mean(math.log(row["ratios"][name]) for row in results if name in row["ratios"]))
            print(f"geometric mean ours/{name}: {mean:.2f}")
        print(f"load at the end {os.getloadavg()[0]:.2f}")
        for peer in peers.values():
            peer.close()
    if arguments.json:
        with open(arguments.json, "w") as file:
            json.dump({"arguments": vars(arguments), "results": results}, file, indent=1)


if __name__ == "__main__":
    main()
