#!/usr/bin/env python3
"""What saving costs a training run: pairs of runs, one that saves every PERIOD seconds and one that never does.

    scripts/save_cost.py LAMPYRIS FOLDER PAIRS STEPS [PERIOD] [--set ...]

Trains recipes/debug_llama.toml, made as large as the --set values say, for STEPS steps per run, alternating which run of a
pair comes first. The time of a run is that from the first to the last line of its metrics.jsonl, so it holds every stall
of a save, and the part of the writing that slows the steps beside it; start and final checkpoint are outside. Prints one
JSON object. PERIOD is 60 unless given.
"""

import json
import pathlib
import shutil
import statistics
import subprocess
import sys
import time


def run(lampyris, folder, name, steps, sets):
    """Seconds from the first to the last step, tokens in between, checkpoints that were written meanwhile."""
    path = folder / name
    shutil.rmtree(path, ignore_errors=True)
    recipe = pathlib.Path(__file__).parent.parent / "recipes/debug_llama.toml"
    command = [lampyris, "train", str(recipe), "--run-dir", str(path)]
    for value in sets:
        command += ["--set", value]
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    metrics, lines, first, saved = path / "metrics.jsonl", [], None, set()
    while len(lines) < steps and child.poll() is None:
        time.sleep(0.005)
        if metrics.exists():
            lines = [line for line in metrics.read_text().splitlines() if '"loss"' in line]
            first = first or (time.monotonic() if lines else None)
            saved.update(p.name for p in (path / "checkpoints").glob("step-*"))
    last = time.monotonic()
    child.wait()
    if len(lines) < steps:
        sys.exit(f"{name} ended with {child.returncode} after {len(lines)} steps")
    tokens = json.loads(lines[steps - 1])["tokens"] - json.loads(lines[0])["tokens"]
    shutil.rmtree(path)
    return {"s": last - first, "tokens_per_s": tokens / (last - first), "saves": len(saved)}


def main():
    lampyris, folder, pairs, steps = sys.argv[1:5]
    rest = sys.argv[5:]
    period = int(rest.pop(0)) if rest and rest[0].isdigit() else 60
    folder, steps = pathlib.Path(folder), int(steps)
    folder.mkdir(parents=True, exist_ok=True)
    sets = ["eval.every_steps=0", "eval.final_tokens=64", "output.tensorboard=false", "checkpoint.at_end=false"]
    sets += [f"schedule.total_tokens={steps * 512}"] + [word for word in rest if word != "--set"]
    results = []
    for pair in range(int(pairs)):
        runs = {}
        for saves in [True, False] if pair % 2 == 0 else [False, True]:
            every = f"checkpoint.every_s={period if saves else 0}"
            runs[saves] = run(lampyris, folder, "saving" if saves else "not", steps, sets + [every])
        loss = 1 - runs[True]["tokens_per_s"] / runs[False]["tokens_per_s"]
        per_period = loss * runs[True]["s"] / (runs[True]["saves"] * period) if runs[True]["saves"] else None
        results.append({"saving": runs[True], "not_saving": runs[False], "loss": loss, "loss_at_period": per_period})
    losses = [result["loss_at_period"] for result in results if result["loss_at_period"] is not None]
    print(json.dumps({"period_s": period, "pairs": results, "median_loss": statistics.median(losses)}, indent=1))


main()
