"""`kullback train sft`: options in, a run directory and its report out."""

import argparse
import json
from pathlib import Path
from typing import Any

from kullback.cli.run_summary import finish, transformers_console

__all__ = ["add_sft"]

EXAMPLE = """example:
  kullback train sft --model my-model --data examples.jsonl --evaluate held-out.jsonl --steps 500 --output runs/sft \\
      --set learning_rate=1e-5 --set per_device_train_batch_size=16
"""


def add_sft(recipes: Any) -> None:
    """Add `sft` to what can be trained."""
    parser = recipes.add_parser(
        "sft",
        help="a language model on examples, by TRL's SFT, with forward KL and its entropy floor",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--model", type=Path, required=True, metavar="DIR", help="a local transformers directory (safetensors)")
    add("--data", type=Path, required=True, metavar="FILE", help='JSON lines, each with a "prompt" and a "completion"')
    add("--evaluate", type=Path, metavar="FILE", help="the same, held out")
    add("--steps", type=int, required=True, metavar="N", help="optimizer steps")
    add("--output", type=Path, required=True, metavar="RUN", help="the run directory to make")
    add("--resume", action="store_true", help="go on from RUN's last checkpoint")
    add("--seed", type=int, default=0)
    add("--set", action="append", default=[], metavar="KEY=VALUE", help="a field of TRL's SFTConfig; repeatable")
    add("--evaluate-every", type=int, default=50, metavar="N", help="steps between judgements, 0: only at the ends")
    add(
        "--max-examples",
        type=int,
        default=1024,
        metavar="N",
        help="evaluate on at most N examples of --data and of --evaluate (default: 1024)",
    )
    add("--json", action="store_true", help="print the outcome as JSON and nothing else")
    parser.set_defaults(run=_sft)


def _sft(options: argparse.Namespace) -> int:
    # Bad input is answered before the libraries that take seconds to import.
    from kullback.integrations.transformers import require_model_directory
    from kullback.train.prompts import read_examples

    require_model_directory(options.model)
    rows = read_examples(options.data)
    held_out = read_examples(options.evaluate, "--evaluate") if options.evaluate else []

    from trl import SFTConfig

    from kullback.runs.run_directory import RunDirectory
    from kullback.train.sft import SFTPlan, train_sft
    from kullback.train.trl_settings import parse_settings

    console = transformers_console(quiet=options.json)
    plan = SFTPlan(
        model=options.model,
        rows=rows,
        steps=options.steps,
        output=options.output,
        seed=options.seed,
        settings=parse_settings(options.set, SFTConfig),
        evaluation_rows=held_out,
        evaluate_every=options.evaluate_every,
        max_examples=options.max_examples,
        named={"data": str(options.data)},
    )
    ended = train_sft(plan, resume=options.resume, console=console)

    from accelerate import PartialState

    run = RunDirectory(options.output)
    if not PartialState().is_main_process:
        return 0
    finish({options.output.name: run}, run.report, title=f"SFT: {options.output.name}", console=console)
    if options.json:
        print(json.dumps({"run": str(run.path), "ended": ended, "last": (run.evaluations() or [None])[-1]}))
    elif not ended:
        console.print(f"stopped; go on with --resume --output {options.output}", highlight=False)
    return 0 if ended else 130
