#!/usr/bin/env python3
"""Tokens per second of the peer on two ranks: the model of bench_step.py under PyTorch's DistributedDataParallel over gloo.

    $(scripts/peers.sh) tests/peers/bench_ddp.py [--ranks 2] [--steps 10]

Every rank has one thread and a batch of 4 x 256 tokens, so that a step has the 8 x 256 tokens of recipes/reference_moe.toml.
Prints one JSON object; `fastest` is the faster of fp32 and bf16.
"""

import argparse
import json
import os
import socket
import statistics
import tempfile
import time

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from bench_step import SEQUENCE, VOCABULARY, WARM_UP, config
from torch.nn.parallel import DistributedDataParallel
from transformers import DeepseekV3ForCausalLM

BATCH = 4


def measure(rank, ranks, port, steps, out):
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=ranks)
    results = []
    for dtype in (torch.float32, torch.bfloat16):
        torch.manual_seed(0)
        model = DeepseekV3ForCausalLM(config("sdpa")).to(dtype).train()
        # An expert may get no token on a rank.
        parallel = DistributedDataParallel(model, find_unused_parameters=True)
        optimizer = torch.optim.AdamW(
            model.parameters(), lr=3e-4, betas=(0.9, 0.95), weight_decay=0.1, fused=True
        )
        torch.manual_seed(1 + rank)
        tokens = torch.randint(VOCABULARY, (BATCH, SEQUENCE))
        times = []
        for _ in range(WARM_UP + steps):
            begun = time.perf_counter()
            parallel(input_ids=tokens, labels=tokens).loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            times.append(time.perf_counter() - begun)
        median = statistics.median(times[WARM_UP:])
        results.append(
            {
                "dtype": str(dtype).removeprefix("torch."),
                "median_step_s": round(median, 4),
                "tokens_per_s": round(ranks * BATCH * SEQUENCE / median, 1),
            }
        )
    dist.destroy_process_group()
    if rank == 0:
        with open(out, "w") as file:
            json.dump(results, file)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--steps", type=int, default=10)
    arguments = parser.parse_args()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        out = os.path.join(folder, "results.json")
        mp.spawn(measure, (arguments.ranks, port, arguments.steps, out), arguments.ranks)
        with open(out) as file:
            results = json.load(file)
    fastest = max(results, key=lambda result: result["tokens_per_s"])
    report = {"peer": "DDP over gloo", "ranks": arguments.ranks, "results": results, "fastest": fastest}
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
