"""Measure how closely the KL is held, on one process and under FSDP2, in float32 and in bfloat16 mixed precision.

    .venv/bin/python benchmarks/held.py [--steps 300] [--reference DIRECTORY]

The addition task of `kullback train demo` is trained with a budget of 0.05 nats per token. Every 10 steps, the KL of
the policy is measured in float32 on completions of 1024 prompts, which update the controller, as `kullback train grpo`
does every 20 steps. The table has the mean of these measurements and the share of them within 10% of the budget, from
the first measurement on that reaches 95% of the budget. On machines without a GPU, FSDP2 runs by gloo. The row of an
arm is stored when its run has ended; stored rows of other arms are kept if they have the same settings, whose number of
steps may differ.
"""

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import results

ARMS = {
    "float32, one process": ("ddp", 1, False),
    "bfloat16, one process": ("ddp", 1, True),
    "float32, FSDP2 on two processes": ("fsdp2", 2, False),
    "bfloat16, FSDP2 on two processes": ("fsdp2", 2, True),
}
SETTINGS = ["budget", "learning rate", "completions a step"]
MEASURED = ["mean KL", "within 10%", "measurements", "standard error of one", "reward", "learning-rate scale"]
COLUMNS = ["arm", *SETTINGS, "steps", *MEASURED]
_TESTS = Path(__file__).parents[1] / "tests" / "integrations"


def train(options: argparse.Namespace) -> None:
    """Train one arm in this process, and write its measurements."""
    import torch

    if options.backend == "fsdp2" and not torch.cuda.is_available():
        sys.path.insert(0, str(_TESTS))
        from distributed_grpo import use_fsdp2_without_gpu  # pyright: ignore[reportMissingImports]

        use_fsdp2_without_gpu()
    import transformers
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from transformers.trainer_callback import PrinterCallback
    from trl import GRPOConfig

    from kullback import KLBudget
    from kullback.integrations.trl import BudgetGRPOTrainer
    from kullback.train.demo.addition_task import exact_match, grader, prompt_rows, spread_rows
    from kullback.train.demo.run import DEMO_SETTINGS
    from kullback.train.evaluation import Evaluation

    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    use_cpu = options.backend != "fsdp2" and not torch.cuda.is_available()
    settings: dict[str, Any] = {**DEMO_SETTINGS, "save_strategy": "no", "bf16": options.bf16, "use_cpu": use_cpu}
    settings |= {"max_steps": options.steps, "seed": options.seed, "beta": 0.0, "learning_rate": options.rate}
    settings |= {"report_to": "none", "disable_tqdm": True, "logging_steps": 1, "dataloader_pin_memory": False}
    settings |= {"per_device_train_batch_size": options.batch // processes}
    tokenizer = AutoTokenizer.from_pretrained(options.reference, padding_side="left")
    policy, ref_model = (AutoModelForCausalLM.from_pretrained(options.reference) for _ in range(2))
    with tempfile.TemporaryDirectory() as directory:
        trainer = BudgetGRPOTrainer(
            AutoModelForCausalLM.from_pretrained(options.reference),
            grader,
            GRPOConfig(directory, **settings),
            budget=KLBudget(options.budget),
            train_dataset=Dataset.from_list(prompt_rows(4800, options.seed)),
            processing_class=tokenizer,
        )
    trainer.pop_callback(PrinterCallback)
    rows = spread_rows(options.prompts)
    evaluation = Evaluation(
        rows, [grader, exact_match], tokenizer, 12, 1.0, trainer.accelerator.process_index, processes
    )
    measured: list[dict[str, float]] = []

    class UpdateByEvaluation(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
            if state.global_step % options.every:
                return
            present = trainer.accelerator.unwrap_model(trainer.model).named_parameters()
            whole = {name: w.full_tensor() if hasattr(w, "full_tensor") else w for name, w in present}
            policy.load_state_dict({name: w.detach().float().cpu() for name, w in whole.items()}, strict=False)
            row, _ = evaluation.measure(policy, ref_model, step=state.global_step)
            kl, error = row["kl_policy_ref_per_token"], row["kl_policy_ref_per_token_std_error"]
            held: Any = trainer.budget
            trainer.budget = held.update_evaluation(kl, std_error=error)
            measured.append({"step": state.global_step, "kl": kl, "std_error": error, "kl_filtered": held.filtered_kl})
            if trainer.accelerator.is_main_process:
                print(json.dumps(measured[-1]), file=sys.stderr, flush=True)

    trainer.add_callback(UpdateByEvaluation())
    trainer.train()
    if trainer.accelerator.is_main_process:
        late = [row for row in trainer.state.log_history if "reward" in row][-options.steps // 3 :]
        means = {name: fmean(row[name] for row in late) for name in ("reward", "learning_rate_scale")}
        options.output.write_text(json.dumps({"measured": measured, **means}), encoding="utf-8")
    if torch.distributed.is_initialized():
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()
        os._exit(0)


def launch(name: str, options: argparse.Namespace) -> list[str]:
    """Train one arm in processes of its own, and return its row of the table."""
    backend, processes, bf16 = ARMS[name]
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        port = str(bound.getsockname()[1])
    words = ["-m", "torch.distributed.run", "--nproc-per-node", str(processes), "--master-port", port]
    words = [sys.executable, *(words if processes > 1 else []), __file__, "--backend", backend]
    for key in ("reference", "steps", "batch", "budget", "rate", "every", "prompts", "seed"):
        words += [f"--{key}", str(getattr(options, key))]
    with tempfile.TemporaryDirectory() as directory:
        output = Path(directory) / "arm.json"
        subprocess.run([*words, "--output", str(output), *(["--bf16"] if bf16 else [])], check=True)
        arm = json.loads(output.read_text(encoding="utf-8"))
    settings = [f"{value:g}" for value in (options.budget, options.rate, options.batch)]
    return [name, *settings, str(options.steps), *measured_cells(arm, options.budget)]


def measured_cells(arm: dict[str, Any], budget: float) -> list[str]:
    """Return the cells of the table for the measurements of one arm."""
    kls = [row["kl"] for row in arm["measured"]]
    first = next((i for i, kl in enumerate(kls) if kl >= 0.95 * budget), len(kls))
    held = kls[first:]
    share = sum(abs(kl / budget - 1) <= 0.1 for kl in held) / len(held) if held else 0.0
    return [
        f"{fmean(held):.4f}" if held else "not reached",
        f"{share:.0%}",
        str(len(held)),
        f"{fmean(row['std_error'] for row in arm['measured']):.4f}",
        f"{arm['reward']:.3f}",
        results.significant(arm["learning_rate_scale"], 2),
    ]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reference", type=Path, help="the initial model (default: a model trained for 300 steps)")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--batch", type=int, default=128, help="completions per step of all processes")
    parser.add_argument("--budget", type=float, default=0.05, help="nats per token")
    parser.add_argument("--rate", type=float, default=5e-4, help="the learning rate")
    parser.add_argument("--every", type=int, default=10, help="the number of steps between two measurements")
    parser.add_argument("--prompts", type=int, default=1024, help="the number of prompts of a measurement")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS), metavar="ARM")
    for name in ("--backend", "--output"):
        parser.add_argument(name, type=Path if name == "--output" else str, help=argparse.SUPPRESS)
    parser.add_argument("--bf16", action="store_true", help=argparse.SUPPRESS)
    results.add_save_option(parser)
    options = parser.parse_args(arguments)
    if options.backend is not None:
        train(options)
        return
    with tempfile.TemporaryDirectory() as directory:
        if options.reference is None:
            from kullback.train.demo.addition_task import train_reference

            options.reference = Path(directory)
            train_reference(options.reference, steps=300, seed=options.seed, report=lambda *_: None)
        for name in options.arms:
            row = launch(name, options)
            print(results.markdown_row(row), flush=True)
            if not options.no_save:
                store(row)


def store(row: list[str]) -> None:
    """Store the row of one arm; stored rows with another budget, learning rate or batch are removed."""
    path = results.RESULTS / "held.json"
    table = json.loads(path.read_text(encoding="utf-8"))["held"] if path.exists() else {"columns": COLUMNS, "rows": []}
    settings = slice(1, 1 + len(SETTINGS))
    is_same = table["columns"] == COLUMNS
    kept = {former[0]: former for former in table["rows"] if is_same and former[settings] == row[settings]}
    rows = [each for name in ARMS if (each := {**kept, row[0]: row}.get(name))]
    results.save("held", {"held": (COLUMNS, rows)}, packages=("torch", "transformers", "trl", "accelerate"))


if __name__ == "__main__":
    main()
