"""Make the data of the question "What did a run do?" of the explorer from the demonstration.

    make run
    python benchmarks/explorer_demo.py runs/demo

Both runs of `kullback train demo` are trained again from the reference of a finished demonstration, with an evaluation
and a checkpoint every 5 steps instead of every 20 and 100. The checkpoints complete a few sums. It takes about 10
minutes of processor time, and writes `src/kullback/explore/static/demo_runs.json`.
"""

import argparse
import dataclasses
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from kullback.budget.kl_budget import KLBudget
from kullback.runs.atomic_write import write_atomically
from kullback.runs.run_directory import RunDirectory
from kullback.train.demo.run import demo_plan
from kullback.train.grpo import train_grpo

OUTPUT = Path(__file__).parents[1] / "src" / "kullback" / "explore" / "static" / "demo_runs.json"
TARGET = 0.05
EVERY, STEPS = 5, 200
SHOWN = [*range(0, 60, EVERY), *range(60, STEPS + 1, 20)]
PROMPTS = ("7+8=", "12+50=", "49+97=", "64+88=", "25+31=", "90+76=")


def completions(model_directory: Path, tokenizer_directory: Path) -> list[str]:
    """Return one sampled completion of each prompt, with a fixed seed."""
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_directory)
    model = AutoModelForCausalLM.from_pretrained(model_directory).eval()
    batch = tokenizer(list(PROMPTS), return_tensors="pt", padding=True, padding_side="left")
    torch.manual_seed(0)
    with torch.no_grad():
        found = model.generate(
            input_ids=batch["input_ids"],
            attention_mask=batch["attention_mask"],
            max_new_tokens=12,
            do_sample=True,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
    return tokenizer.batch_decode(found[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)


def arm(name: str, reference: Path, output: Path, budget: KLBudget | None) -> tuple[dict[str, Any], list[list[str]]]:
    """Train one run, and return its evaluations at the steps `SHOWN` and the completions of each prompt."""
    plan = demo_plan(reference, output, budget, steps=STEPS, seed=0, save_steps=EVERY, save_total_limit=STEPS)
    train_grpo(dataclasses.replace(plan, evaluate_every=EVERY))
    rows = {row["step"]: row for row in RunDirectory(output).evaluations()}
    shown = [rows[step] for step in SHOWN]
    columns = {
        "kl": "kl_policy_ref_per_token",
        "proxy": "rewards/grader",
        "true": "rewards/exact_match",
    }
    data = {key: [float(f"{row[column]:.4g}") for row in shown] for key, column in columns.items()}
    texts = [
        completions(output / "checkpoints" / f"checkpoint-{step}" if step else reference, reference) for step in SHOWN
    ]
    return {"name": name, "steps": SHOWN, **data}, [list(column) for column in zip(*texts, strict=True)]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("demo", type=Path, help="the directory that `kullback train demo` wrote")
    parser.add_argument("--runs", type=Path, help="keep the runs in this directory (default: a temporary directory)")
    options = parser.parse_args(arguments)
    reference = options.demo / "reference" / "model"
    with tempfile.TemporaryDirectory() as directory:
        runs = options.runs or Path(directory)
        found = [
            arm("without a budget", reference, runs / "unconstrained", None),
            arm("with a budget", reference, runs / "budget", KLBudget(TARGET, unit="token")),
        ]
    sums = [sum(map(int, prompt.rstrip("=").split("+"))) for prompt in PROMPTS]
    data = {
        "budget": TARGET,
        "arms": [one for one, _ in found],
        "prompts": [
            {"prompt": prompt, "answer": str(answer), "completions": [texts[i] for _, texts in found]}
            for i, (prompt, answer) in enumerate(zip(PROMPTS, sums, strict=True))
        ],
    }
    write_atomically(OUTPUT, json.dumps(data, separators=(",", ":")) + "\n")
    print(OUTPUT)


if __name__ == "__main__":
    main()
