#!/usr/bin/env python3
"""Tokens per second of the peer: transformers' DeepseekV3ForCausalLM with the sizes of recipes/reference_moe.toml.

    $(scripts/peers.sh) tests/peers/bench_step.py [--threads 2] [--steps 10] [--out FILE]

Measures {fp32, bf16} x {sdpa, eager}: one batch of 8 x 256 tokens, whole steps with forward, backward, clip at 1 and
fused AdamW; 3 warm-up steps, then the median. bf16 means weights, gradients and optimizer state in bf16, which is less
work than fp32 master weights. Prints one JSON object; `fastest` is the figure to compare with.
"""

import argparse
import json
import platform
import statistics
import time

import torch
import transformers
from transformers import DeepseekV3Config, DeepseekV3ForCausalLM

BATCH, SEQUENCE, VOCABULARY = 8, 256, 4096
WARM_UP = 3


def config(attention):
    return DeepseekV3Config(
        vocab_size=VOCABULARY,
        hidden_size=256,
        intermediate_size=704,
        moe_intermediate_size=128,
        num_hidden_layers=6,
        first_k_dense_replace=1,
        num_attention_heads=4,
        num_key_value_heads=4,
        qk_nope_head_dim=64,
        qk_rope_head_dim=32,
        v_head_dim=64,
        q_lora_rank=96,
        kv_lora_rank=64,
        n_routed_experts=16,
        num_experts_per_tok=4,
        n_shared_experts=1,
        n_group=4,
        topk_group=2,
        routed_scaling_factor=2.5,
        norm_topk_prob=True,
        max_position_embeddings=SEQUENCE,
        rope_theta=10000.0,
        initializer_range=0.006,
        use_cache=False,
        attn_implementation=attention,
    )


def measure(dtype, attention, steps):
    torch.manual_seed(0)
    model = DeepseekV3ForCausalLM(config(attention)).to(dtype).train()
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=3e-4, betas=(0.9, 0.95), weight_decay=0.1, fused=True
    )
    tokens = torch.randint(VOCABULARY, (BATCH, SEQUENCE))
    times = []
    for _ in range(WARM_UP + steps):
        begun = time.perf_counter()
        loss = model(input_ids=tokens, labels=tokens).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        times.append(time.perf_counter() - begun)
    median = statistics.median(times[WARM_UP:])
    return {
        "dtype": str(dtype).removeprefix("torch."),
        "attention": attention,
        "experts": getattr(model.config, "_experts_implementation", None),
        "parameters": sum(p.numel() for p in model.parameters()),
        "median_step_s": round(median, 4),
        "tokens_per_s": round(BATCH * SEQUENCE / median, 1),
        "last_loss": round(loss.item(), 4),
    }


def cpu_name():
    try:
        with open("/proc/cpuinfo") as file:
            return next(line.split(":")[1].strip() for line in file if "model name" in line)
    except (OSError, StopIteration):
        return platform.processor()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--out", help="also write the JSON object here")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    variants = [
        measure(dtype, attention, arguments.steps)
        for dtype in (torch.float32, torch.bfloat16)
        for attention in ("sdpa", "eager")
    ]
    report = {
        "peer": "transformers DeepseekV3ForCausalLM",
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "cpu": cpu_name(),
        "threads": arguments.threads,
        "batch": [BATCH, SEQUENCE],
        "warm_up_steps": WARM_UP,
        "steps": arguments.steps,
        "variants": variants,
        "fastest": max(variants, key=lambda variant: variant["tokens_per_s"]),
    }
    text = json.dumps(report, indent=2)
    print(text)
    if arguments.out:
        with open(arguments.out, "w") as file:
            file.write(text + "\n")


if __name__ == "__main__":
    main()
