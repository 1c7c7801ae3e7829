"""The `kullback` command."""

import argparse
import sys
from collections.abc import Sequence
from importlib.metadata import version

from kullback.cli import doctor, explore, fit, measure, train
from kullback.errors import KullbackError

__all__ = ["main"]

BAD_INPUT = 2
INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command.

    Its exit status is 0, 2 for bad input (with one line saying why), 130 after Ctrl-C; `doctor` has 1 for findings.
    """
    parser = argparse.ArgumentParser(prog="kullback", description="Measure, minimise and constrain KL divergence.")
    parser.add_argument("--version", action="version", version=f"kullback {version('kullback')}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    doctor.add_parser(commands)
    explore.add_parser(commands)
    fit.add_parser(commands)
    measure.add_parser(commands)
    train.add_parser(commands)
    options = parser.parse_args(arguments)
    try:
        return options.run(options)
    except KullbackError as error:
        print(f"kullback: {' '.join(str(error).split())}", file=sys.stderr)
        return BAD_INPUT
    except KeyboardInterrupt:
        print("kullback: interrupted", file=sys.stderr)
        return INTERRUPTED
