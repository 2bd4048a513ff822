#!/usr/bin/env python3
"""What saving costs a training run: pairs of runs, one that saves every PERIOD seconds and one that never does.

    scripts/save_cost.py LAMPYRIS FOLDER PAIRS STEPS [PERIOD] [--set ...]

Trains recipes/debug_llama.toml, made as large as the --set values say, for STEPS steps per run, alternating which run of a
pair comes first. The time of a run is that from the first to the last line of its metrics.jsonl, so it holds every stall
of a save, and the part of the writing that slows the steps beside it; start and final checkpoint are outside. A PERIOD
shorter than 60 (the default) makes the cost of one save stand out from the noise between runs: the loss at 60 s is that
cost over 60 s. Prints one JSON object.
"""

import json
import pathlib
import shutil
import statistics
import subprocess
import sys
import time


def run(lampyris, folder, name, steps, sets):
    """Speed from the first to the last step, and what the metrics say of the saves between them."""
    path = folder / name
    shutil.rmtree(path, ignore_errors=True)
    recipe = pathlib.Path(__file__).parent.parent / "recipes/debug_llama.toml"
    command = [lampyris, "train", str(recipe), "--run-dir", str(path)]
    for value in sets:
        command += ["--set", value]
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    metrics, lines, first = path / "metrics.jsonl", [], None
    while len(lines) < steps and child.poll() is None:
        time.sleep(0.02)
        if metrics.exists():
            lines = [line for line in metrics.read_text().splitlines() if '"loss"' in line]
            first = first or (time.monotonic() if lines else None)
    last = time.monotonic()
    child.wait()
    if len(lines) < steps:
        sys.exit(f"{name} ended with {child.returncode} after {len(lines)} steps")
    tokens = json.loads(lines[steps - 1])["tokens"] - json.loads(lines[0])["tokens"]
    saved = [json.loads(line)["saved"] for line in metrics.read_text().splitlines() if '"saved"' in line]
    shutil.rmtree(path)
    return {"s": last - first, "tokens_per_s": tokens / (last - first), "saves": saved}


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
        saving, without = runs[True], runs[False]
        if not saving["saves"]:
            sys.exit("the run was too short for a save")
        loss = 1 - saving["tokens_per_s"] / without["tokens_per_s"]
        at_60 = loss * saving["s"] / len(saving["saves"]) / 60
        results.append({"saving": saving, "not_saving": without, "loss": loss, "loss_at_60_s": at_60})
    median = statistics.median(result["loss_at_60_s"] for result in results)
    print(json.dumps({"period_s": period, "pairs": results, "median_loss_at_60_s": median}, indent=1))


main()
