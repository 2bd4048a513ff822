#!/usr/bin/env python3
"""Loads an exported folder with transformers and fails unless every key fits; compares logits where given.

    $(scripts/peers.sh) tests/peers/export_transformers.py FOLDER [--logits FILE] [--with-mtp] [--tolerance 1e-4]
    $(scripts/peers.sh) tests/peers/export_transformers.py FOLDER --tokens FILE

FILE holds our `input_ids` [batch, sequence] and `logits` [batch, sequence, vocabulary]: a .safetensors file (the golden
files of the parity cases have this form) or a .json file. Prints one JSON object; exit 0 if all is well, 1 if not.
With --with-mtp the tensors of the MTP layer are expected to be the only unexpected ones.

With --tokens the folder's tokenizer is compared instead, for which torch is not needed: FILE is a JSON object of
`vocabulary` (how many tokens), `end_of_document` (a token) and `texts`, pairs of a text and the tokens that we give it.
"""

import argparse
import json
import sys


def token_problems(folder, path):
    """What AutoTokenizer does otherwise than we do, as lines."""
    from transformers import AutoTokenizer, GenerationConfig

    tokenizer = AutoTokenizer.from_pretrained(folder)
    with open(path) as file:
        expected = json.load(file)
    problems = []
    for text, ours in expected["texts"]:
        theirs = tokenizer(text)["input_ids"]
        if theirs != ours:
            problems.append(f"tokens of {text!r}: {theirs}, ours {ours}")
        back = tokenizer.decode(ours)
        if back != text:
            problems.append(f"text of {ours}: {back!r} instead of {text!r}")
    end = expected["end_of_document"]
    if tokenizer.eos_token_id != end:
        problems.append(f"eos_token_id is {tokenizer.eos_token_id} instead of {end}")
    if tokenizer.bos_token_id is not None:
        problems.append(f"bos_token_id is {tokenizer.bos_token_id} instead of none")
    if len(tokenizer) != expected["vocabulary"]:
        problems.append(f"{len(tokenizer)} tokens instead of {expected['vocabulary']}")
    if GenerationConfig.from_pretrained(folder).eos_token_id != end:
        problems.append("generation_config.json has another end of document")
    return type(tokenizer).__name__, problems


def read_logits(path):
    import torch
    from safetensors import safe_open

    if path.endswith(".json"):
        with open(path) as file:
            content = json.load(file)
        return torch.tensor(content["input_ids"]), torch.tensor(content["logits"])
    with safe_open(path, framework="pt") as file:
        return file.get_tensor("input_ids"), file.get_tensor("logits")


def load(folder):
    import torch
    from transformers import AutoModelForCausalLM

    # The stored type would be taken otherwise, and our logits are fp32.
    return AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", output_loading_info=True
    )


def key_problems(folder, info, with_mtp):
    from transformers import AutoConfig

    problems = [f"missing key {key}" for key in sorted(info["missing_keys"])]
    problems += [f"mismatched key {key}" for key in sorted(map(str, info["mismatched_keys"]))]
    mtp = f"model.layers.{AutoConfig.from_pretrained(folder).num_hidden_layers}."
    unexpected = sorted(info["unexpected_keys"])
    if with_mtp and not any(key.startswith(mtp) for key in unexpected):
        problems.append(f"no key of an MTP layer ({mtp}*)")
    problems += [
        f"unexpected key {key}" for key in unexpected if not (with_mtp and key.startswith(mtp))
    ]
    return problems


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder")
    parser.add_argument("--logits")
    parser.add_argument("--tokens")
    parser.add_argument("--with-mtp", action="store_true")
    parser.add_argument("--tolerance", type=float, default=1e-4, help="max|a-b| / max|b|")
    arguments = parser.parse_args()

    if arguments.tokens:
        name, problems = token_problems(arguments.folder, arguments.tokens)
        print(json.dumps({"class": name, "problems": problems}, indent=2))
        return 1 if problems else 0

    import torch

    model, info = load(arguments.folder)
    model.eval()
    report = {
        "class": type(model).__name__,
        "parameters": sum(p.numel() for p in model.parameters()),
        "problems": key_problems(arguments.folder, info, arguments.with_mtp),
    }
    if arguments.logits:
        input_ids, ours = read_logits(arguments.logits)
        with torch.no_grad():
            theirs = model(input_ids).logits
        difference = (ours.double() - theirs.double()).abs().max().item()
        report["max_difference"] = difference
        report["max_logit"] = theirs.abs().max().item()
        report["ratio"] = difference / report["max_logit"]
        # Written so that a NaN fails.
        if not report["ratio"] <= arguments.tolerance:
            report["problems"].append(f"logits differ by {report['ratio']:.2e}")
    print(json.dumps(report, indent=2))
    return 1 if report["problems"] else 0


if __name__ == "__main__":
    sys.exit(main())
