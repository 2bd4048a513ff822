#!/usr/bin/env python3
"""How much of its communication a step hides, between two emulated hosts with a shaped link (needs root, ip and tc).

    scripts/bench_overlap.py rows|reduce [--rounds 12] [--mbit RATE] [--json FILE]

`rows`: two ranks share the experts; the link is shaped so that the exchanges of rows alone take as long as the step's
computation. `reduce`: two ranks hold a whole network each; the link is shaped so that reducing all gradient buckets but
the last takes 60 % of the last micro-batch's backward pass. The rate is found from a short run, unless it is given. Then
steps with overlap and without it run in turn, then transfers alone (`trainer/examples/overlap.rs`), and medians over the
rounds are printed: hidden = 1 - exposed / alone, and the step beside the critical path of its program.
"""

import argparse
import json
import os
import statistics
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# 8 micro-batches a rank.
COMMON = [
    "batch.global_batch=32", "batch.leaves=2", "batch.micro_batch=2", "parallel.threads_per_rank=1", "parallel.data=2", "model.first_dense_layers=0",
    "model.vocab_size=512", "tokenizer.vocab_size=512", "compute=bf16",
]
EXPERIMENTS = {
    "rows": ["parallel.expert=2", "parallel.zero=1", "model.layers=4"],
    "reduce": ["parallel.expert=1", "parallel.zero=0", "model.layers=3", "parallel.bucket_bytes=1_000_000"],
}
# TBF needs a bucket as large as the largest segment that the kernel hands down; larger ones would let a whole exchange
# pass unshaped after every pause.
BURST = 128 * 1024


def run(*command):
    subprocess.run(command, check=True)


def build():
    """The program that is one rank, built where the Makefile builds."""
    cache = Path(os.environ.get("LAMPYRIS_CACHE") or Path.home() / ".cache/lampyris")
    target = Path(os.environ.get("CARGO_TARGET_DIR") or cache / "target").absolute()
    libtorch = subprocess.run([ROOT / "scripts/libtorch.sh"], check=True, stdout=subprocess.PIPE, text=True).stdout
    environment = dict(os.environ, CARGO_TARGET_DIR=str(target), LIBTORCH=libtorch.strip())
    command = ["cargo", "build", "--quiet", "--package", "lampyris-trainer", "--example", "overlap"]
    subprocess.run(command, check=True, cwd=ROOT, env=environment)
    return target / "debug/examples/overlap"


class Hosts:
    """Two network namespaces on one pair of devices, each end shaped."""

    def __init__(self, mbit):
        self.names = [f"lampyris-{os.getpid()}-{i}" for i in range(2)]
        for name in self.names:
            run("ip", "netns", "add", name)
        first, second = self.names
        run("ip", "-n", first, "link", "add", "eth0", "type", "veth", "peer", "name", "eth0", "netns", second)
        for i, name in enumerate(self.names):
            run("ip", "-n", name, "address", "add", f"10.78.0.{i + 1}/24", "dev", "eth0")
            run("ip", "-n", name, "link", "set", "eth0", "up")
            run("ip", "-n", name, "link", "set", "lo", "up")
            run("tc", "-n", name, "qdisc", "add", "dev", "eth0", "root", "tbf", "rate", f"{mbit}mbit", "burst",
                str(BURST), "latency", "200ms")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for name in self.names:
            subprocess.run(["ip", "netns", "delete", name], check=False)


def measure(program, experiment, mbit, rounds):
    """The reports of both ranks."""
    sets = [word for value in COMMON + EXPERIMENTS[experiment] for word in ("--set", value)]
    command = [program, "--recipe", ROOT / "recipes/reference_moe.toml", "--rounds", str(rounds), *sets]
    with Hosts(mbit) as hosts:
        ranks = []
        for rank, name in enumerate(hosts.names):
            environment = dict(os.environ, RANK=str(rank), WORLD_SIZE="2", MASTER_ADDR="10.78.0.1")
            place = ["ip", "netns", "exec", name, "taskset", "-c", str(rank % os.cpu_count())]
            ranks.append(subprocess.Popen([*place, *command], env=environment, stdout=subprocess.PIPE, text=True))
        outputs = [rank.communicate()[0] for rank in ranks]
        if any(rank.returncode for rank in ranks):
            raise SystemExit("a rank failed; its words are above")
    return [json.loads(output) for output in outputs]


def of(steps, key):
    return statistics.median(step[key] for step in steps)


def rows_exposed(step):
    return step["exposed"]["dispatch"] + step["exposed"]["combine"]


def rate_for(experiment, reports, mbit):
    """The rate at which the wanted transfers would take the wanted time."""
    report = reports[0]
    if experiment == "rows":
        wanted = statistics.median(s["wall"] - sum(s["exposed"].values()) for s in report["off"])
        found = statistics.median(rows_exposed(s) for s in report["alone"])
    else:
        wanted = 0.6 * of(report["off"], "last_backward")
        found = of(report["alone"], "reduce_under_way")
    return max(10, round(mbit * found / wanted))


def summary(experiment, report):
    on, off, alone = report["on"], report["off"], report["alone"]
    own = statistics.median(s["wall"] - sum(s["exposed"].values()) for s in off)
    out = {
        "rank": report["rank"],
        "same_bits": report["same_bits"],
        "computation_s": own,
        "step_on_s": of(on, "wall"),
        "step_off_s": of(off, "wall"),
        "bound_s": report["bound"]["step_s"],
        "step_over_bound": of(on, "wall") / report["bound"]["step_s"],
        "other_threads_on_s": of(on, "other_threads"),
        "other_threads_off_s": of(off, "other_threads"),
        "other_threads_alone_s": of(alone, "other_threads"),
    }
    if experiment == "rows":
        whole = statistics.median(rows_exposed(s) for s in alone)
        out |= {
            "alone_s": whole,
            "exposed_s": statistics.median(rows_exposed(s) for s in on),
            "hidden_whole": 1 - statistics.median(rows_exposed(s) for s in on) / whole,
            "steady_alone_s": of(alone, "steady_exposed"),
            "steady_exposed_s": of(on, "steady_exposed"),
            "hidden_steady": 1 - of(on, "steady_exposed") / of(alone, "steady_exposed"),
        }
    else:
        out |= {
            "last_backward_s": of(off, "last_backward"),
            "alone_s": of(alone, "reduce_under_way"),
            "exposed_s": of(on, "reduce_exposed"),
            "hidden": 1 - of(on, "reduce_exposed") / of(alone, "reduce_under_way"),
            "exposed_with_final_bucket_s": statistics.median(s["exposed"]["reduce"] for s in on),
        }
    return out


def hidden_from_the_last(reports):
    """Share of the early buckets' reductions that is hidden on the rank whose backward pass ended last in its round: the
    other one also waits for that pass, which no link can hide."""
    waits = [min(pair) for pair in zip(*([step["reduce_exposed"] for step in report["on"]] for report in reports))]
    alone = statistics.median(of(report["alone"], "reduce_under_way") for report in reports)
    return statistics.median(waits), 1 - statistics.median(waits) / alone


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("experiment", choices=EXPERIMENTS)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--mbit", type=int, help="rate of the link; found if not given")
    parser.add_argument("--json", help="also write everything that was measured")
    arguments = parser.parse_args()
    program = build()
    mbit = arguments.mbit
    if mbit is None:
        mbit = 500
        for _ in range(2):
            mbit = rate_for(arguments.experiment, measure(program, arguments.experiment, mbit, 2), mbit)
    reports = measure(program, arguments.experiment, mbit, arguments.rounds)
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(reports))
    print(f"{arguments.experiment}: link of {mbit} Mbit/s, {arguments.rounds} rounds")
    for report in reports:
        for key, value in summary(arguments.experiment, report).items():
            print(f"  {key:<28} {value:.4g}" if isinstance(value, float) else f"  {key:<28} {value}")
    if arguments.experiment == "reduce":
        exposed, hidden = hidden_from_the_last(reports)
        print(f"  on the rank that ended its backward pass last: exposed {exposed:.4g} s, hidden {hidden:.4g}")


if __name__ == "__main__":
    main()
