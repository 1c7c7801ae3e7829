"""The options that all commands `kullback train ...` share."""

import argparse
from pathlib import Path
from typing import Any

from kullback.errors import InputError

__all__ = [
    "ONLY_AT_ENDS",
    "add_lora_option",
    "add_run_options",
    "check_lora",
    "check_run_options",
    "column_entries",
    "require_own_report",
]

ONLY_AT_ENDS = "0 evaluates only before and after training"


def add_run_options(
    parser: argparse.ArgumentParser, *, evaluate_every: int, interval: str, settings: str | None = None
) -> None:
    """Add the options of every training command.

    Args:
        parser: The parser of the command.
        evaluate_every: The default of --evaluate-every.
        interval: The unit of --evaluate-every, such as "optimizer steps".
        settings: The object whose fields --set changes; None: the command has no --set.
    """
    add = parser.add_argument
    add(
        "--output",
        type=Path,
        required=True,
        metavar="RUN",
        help="create the run directory RUN and write all files to it",
    )
    start = parser.add_mutually_exclusive_group()
    start.add_argument(
        "--resume", action="store_true", help="continue the run in RUN from its newest intact checkpoint"
    )
    start.add_argument("--overwrite", action="store_true", help="replace an earlier run in RUN")
    add("--seed", type=int, default=0, metavar="N", help="the seed of all random numbers (default: 0)")
    if settings is not None:
        add(
            "--set",
            action="append",
            default=[],
            metavar="KEY=VALUE",
            help=f"set the field KEY of {settings} to VALUE; may be repeated",
        )
    add(
        "--evaluate-every",
        type=int,
        default=evaluate_every,
        metavar="N",
        help=f"evaluate after every N {interval} (default: %(default)s)",
    )
    add("--json", action="store_true", help="print the outcome as one JSON object and nothing else")


def check_run_options(options: argparse.Namespace, *, least_interval: int = 0) -> None:
    """Check the options that every training command has, before libraries are imported that take seconds.

    Args:
        options: The options of the command.
        least_interval: The smallest valid value of --evaluate-every.

    Raises:
        InputError: A number is out of range, or the run directory cannot be written to or resumed.
    """
    from kullback.runs.run_directory import RunDirectory
    from kullback.train.run_checks import require_at_least, require_budget, require_seed

    require_at_least("--steps", options.steps, 1)
    require_at_least("--evaluate-every", options.evaluate_every, least_interval)
    require_seed(options.seed)
    if getattr(options, "budget", None) is not None:
        require_budget("--budget", options.budget)
    RunDirectory(options.output).check_output(resume=options.resume, overwrite=options.overwrite)


def add_lora_option(parser: argparse.ArgumentParser) -> None:
    """Add the option of the commands that can train an adapter of a language model."""
    parser.add_argument(
        "--lora",
        metavar="KEY=VALUE,...",
        help="train a LoRA adapter of PEFT and not the weights of the model, such as r=16,alpha=32,target=all-linear; "
        "the keys are r (default: 16), alpha (default: twice r), target (default: all-linear; or names of modules, as "
        "q_proj+v_proj), dropout, bias, use_rslora, use_dora, and further fields of LoraConfig",
    )


def check_lora(text: str | None) -> dict[str, Any] | None:
    """The fields of PEFT's LoraConfig that the option --lora gives, or None without the option.

    Args:
        text: The value of the option.

    Raises:
        InputError: The value is invalid.
        MissingDependencyError: PEFT is not installed.
    """
    if text is None:
        return None
    from kullback.train.lora import parse_lora
    from kullback.train.run_checks import require_packages

    fields = parse_lora(text)
    require_packages(("peft",), extra="train")
    return fields


def column_entries(**columns: str) -> dict[str, str | None]:
    """The entries of config.json for --prompt-column and --completion-column; None for the default name.

    Example:
        >>> column_entries(prompt="question", completion="completion")
        {'prompt_column': 'question', 'completion_column': None}
    """
    return {f"{name}_column": None if column == name else column for name, column in columns.items()}


def require_own_report(output: Path) -> None:
    """Check that the report of several runs does not replace a file of another kind.

    Args:
        output: The directory that contains the run directories.

    Raises:
        InputError: The directory has a report.html that is not a page of this package.
    """
    from kullback.explore.html import is_page

    report = output / "report.html"
    if report.exists() and not is_page(report):
        raise InputError(
            f"--output {output}: expected a directory whose report.html may be replaced, got a file of another kind; "
            "choose another directory, or move the file"
        )
