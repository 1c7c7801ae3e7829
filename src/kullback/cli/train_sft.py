"""`kullback train sft`: supervised fine-tuning of a language model."""

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

__all__ = ["add_sft"]

EXAMPLES = """example:
  kullback train sft --model my-model --data examples.jsonl --evaluate held-out.jsonl --steps 500 --output runs/sft \\
      --set learning_rate=1e-5 --set per_device_train_batch_size=16
"""


def add_sft(recipes: Any) -> None:
    """Add the recipe `sft`."""
    parser = recipes.add_parser(
        "sft",
        help="train a language model on examples, by supervised fine-tuning (SFT) of TRL, and log forward KL",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add(
        "--model",
        required=True,
        metavar="MODEL",
        help="start from MODEL, a transformers directory with weights in the safetensors format, or a model of the "
        "Hugging Face hub such as Qwen/Qwen3-0.6B",
    )
    add(
        "--data",
        required=True,
        metavar="FILE",
        help='read training examples from FILE, in JSON Lines (each line is an object with a "prompt" and a '
        '"completion", with "messages" whose last message is the completion, or with a "text"), JSON, CSV, TSV or '
        "Parquet; or from a data set of the Hugging Face hub, NAME[:CONFIGURATION[:SPLIT]], such as openai/gsm8k:main "
        "(default of SPLIT: train)",
    )
    add(
        "--prompt-column",
        default="prompt",
        metavar="NAME",
        help="the column that is the prompt (default: prompt)",
    )
    add(
        "--completion-column",
        default="completion",
        metavar="NAME",
        help="the column that is the completion (default: completion)",
    )
    add(
        "--evaluate",
        metavar="FILE",
        help="evaluate on the held-out examples in FILE too, in the format of --data",
    )
    add("--steps", type=int, required=True, metavar="N", help="train for N optimizer steps")
    add_lora_option(parser)
    add(
        "--max-examples",
        type=int,
        default=1024,
        metavar="N",
        help="evaluate on at most N examples of --data and of --evaluate (default: 1024)",
    )
    add_run_options(
        parser, evaluate_every=50, interval=f"optimizer steps; {ONLY_AT_ENDS}", settings="the SFTConfig of TRL"
    )
    parser.set_defaults(run=_sft)


def _sft(options: argparse.Namespace) -> int:
    return train_and_report(options, _train_sft, title="SFT")


def _train_sft(options: argparse.Namespace) -> bool:
    """Validate the options, and train; return whether the run finished."""
    # Validate the input before importing libraries that take seconds to import.
    from kullback.integrations.hub import find_model
    from kullback.train.prompts import read_examples
    from kullback.train.run_checks import require_at_least, require_packages
    from kullback.train.trl_fields import check_settings

    check_run_options(options)
    require_at_least("--max-examples", options.max_examples, 1)
    if options.prompt_column == options.completion_column:
        raise InputError(
            f"--prompt-column and --completion-column: expected different columns, got {options.prompt_column!r} twice"
        )
    require_packages(("torch", "transformers", "trl", "datasets", "accelerate", "safetensors"), extra="train")
    check_settings(options.set, "SFTConfig")
    lora = check_lora(options.lora)
    model = find_model(options.model)
    columns = {"prompt_column": options.prompt_column, "completion_column": options.completion_column}
    rows = read_examples(options.data, **columns)
    evaluation_rows = read_examples(options.evaluate, "--evaluate", **columns) if options.evaluate else []

    from trl import SFTConfig

    from kullback.train.sft import SFTPlan, train_sft
    from kullback.train.trl_settings import parse_settings

    console = transformers_console(quiet=options.json)
    plan = SFTPlan(
        model=model,
        rows=rows,
        steps=options.steps,
        output=options.output,
        seed=options.seed,
        settings=parse_settings(options.set, SFTConfig),
        evaluation_rows=evaluation_rows,
        evaluate_every=options.evaluate_every,
        max_examples=options.max_examples,
        named={
            "data": options.data,
            **column_entries(prompt=options.prompt_column, completion=options.completion_column),
        },
        lora=lora,
    )
    return train_sft(plan, resume=options.resume, overwrite=options.overwrite, console=console)
