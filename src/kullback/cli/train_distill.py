"""`kullback train distill`: distillation of a teacher into a student."""

import argparse
from typing import Any

from kullback.cli.run_options import (
    ONLY_AT_ENDS,
    add_lora_option,
    add_run_options,
    check_lora,
    check_run_options,
    column_entries,
)
from kullback.cli.run_summary import train_and_report, transformers_console
from kullback.errors import InputError

__all__ = ["add_distill"]

EXAMPLES = """example:
  kullback train distill --model student --teacher teacher --prompts prompts.jsonl --divergence reverse --steps 500 \\
      --output runs/distilled --set learning_rate=1e-5 --set per_device_train_batch_size=16
"""
# As in kullback.policy.distillation, which imports PyTorch.
_DIVERGENCES = ("forward", "reverse", "js", "skew_forward", "skew_reverse", "generalized_js")


def add_distill(recipes: Any) -> None:
    """Add the recipe `distill`."""
    parser = recipes.add_parser(
        "distill",
        help="train a language model on the divergence from a teacher, by the distillation of TRL",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add(
        "--model",
        required=True,
        metavar="STUDENT",
        help="start from STUDENT, a transformers directory with weights in the safetensors format, or a model of the "
        "Hugging Face hub such as Qwen/Qwen3-0.6B",
    )
    add(
        "--teacher",
        required=True,
        metavar="MODEL",
        help="the teacher, in the formats of --model; its tokenizer has the vocabulary of the student's",
    )
    add(
        "--prompts",
        required=True,
        metavar="FILE",
        help='read prompts from FILE, in JSON Lines (each line is an object with a "prompt", or with "messages"), '
        "JSON, CSV, TSV or Parquet; or from a data set of the Hugging Face hub, NAME[:CONFIGURATION[:SPLIT]]",
    )
    add("--prompt-column", default="prompt", metavar="NAME", help="the column that is the prompt (default: prompt)")
    add(
        "--off-policy",
        action="store_true",
        help='train on completions in the data, the column "completion", and not on completions of the student',
    )
    add(
        "--completion-column",
        default="completion",
        metavar="NAME",
        help="the column that is the completion, with --off-policy (default: completion)",
    )
    add(
        "--divergence",
        choices=_DIVERGENCES,
        default="reverse",
        help="the loss: reverse KL(student || teacher), forward KL(teacher || student), js (Jensen-Shannon), or a "
        "divergence from a mixture (default: reverse)",
    )
    add(
        "--weight",
        type=float,
        metavar="W",
        help="the weight of the mixture of skew_forward, skew_reverse and generalized_js (default: 0.5)",
    )
    add("--steps", type=int, required=True, metavar="N", help="train for N optimizer steps")
    add(
        "--evaluate",
        metavar="FILE",
        help="evaluate on the prompts in FILE, in the formats of --prompts (default: the first 128 prompts of "
        "--prompts)",
    )
    add_lora_option(parser)
    add_run_options(
        parser,
        evaluate_every=20,
        interval=f"optimizer steps; {ONLY_AT_ENDS}",
        settings="the DistillationConfig of TRL",
    )
    parser.set_defaults(run=_distill)


def _distill(options: argparse.Namespace) -> int:
    return train_and_report(options, _train_distill, title="Distillation")


def _train_distill(options: argparse.Namespace) -> bool:
    """Validate the options, and train; return whether the run finished."""
    # Validate the input before importing libraries that take seconds to import.
    from kullback.integrations.hub import find_model
    from kullback.train.prompts import read_examples, read_prompts
    from kullback.train.run_checks import messages_for, require_packages
    from kullback.train.trl_fields import check_settings

    check_run_options(options)
    weighted = ("skew_forward", "skew_reverse", "generalized_js")
    if options.weight is not None and options.divergence not in weighted:
        raise InputError(f"--weight: expected --divergence to be one of {', '.join(weighted)}")
    if options.weight is not None and not 0 < options.weight < 1:
        raise InputError(f"--weight: expected a number between 0 and 1, got {options.weight}")
    columns = {"prompt_column": options.prompt_column, "completion_column": options.completion_column}
    if not options.off_policy and options.completion_column != "completion":
        raise InputError("--completion-column: expected --off-policy as well, which reads completions")
    if len(set(columns.values())) < 2:
        raise InputError(
            f"--prompt-column and --completion-column: expected different columns, got {options.prompt_column!r} twice"
        )
    require_packages(("torch", "transformers", "trl", "datasets", "accelerate", "safetensors"), extra="train")
    check_settings(options.set, "DistillationConfig")
    lora = check_lora(options.lora)
    model = find_model(options.model)
    with messages_for("--teacher"):
        teacher = find_model(options.teacher)

    def read(path: str, option: str) -> list[dict[str, Any]]:
        if options.off_policy:
            return read_examples(path, option, **columns)
        return read_prompts(path, option, column=options.prompt_column)

    rows = read(options.prompts, "--prompts")
    evaluation_rows = read(options.evaluate, "--evaluate") if options.evaluate else []

    from kullback.integrations.trl_distillation import DistillationConfig
    from kullback.train.distill import DistillPlan, train_distill
    from kullback.train.trl_settings import parse_settings

    console = transformers_console(quiet=options.json)
    plan = DistillPlan(
        model=model,
        teacher=teacher,
        rows=rows,
        steps=options.steps,
        output=options.output,
        divergence=options.divergence,
        weight=options.weight,
        off_policy=options.off_policy,
        seed=options.seed,
        settings=parse_settings(options.set, DistillationConfig),
        evaluation_rows=evaluation_rows,
        evaluate_every=options.evaluate_every,
        named={
            "prompts": str(options.prompts),
            **column_entries(prompt=options.prompt_column, completion=options.completion_column),
        },
        lora=lora,
    )
    return train_distill(plan, resume=options.resume, overwrite=options.overwrite, console=console)
