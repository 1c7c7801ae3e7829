"""The `kullback` command."""

import argparse
import sys
from collections.abc import Sequence
from importlib.metadata import version
from typing import NoReturn

from kullback.cli import doctor, explore, fit, measure, train
from kullback.errors import InputError, KullbackError

__all__ = ["main"]

BAD_INPUT = 2
INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command.

    Its exit status is 0, 2 for bad input (with one line saying why), 130 after Ctrl-C; `doctor` has 1 for findings.
    """
    parser = _Parser(prog="kullback", description="Measure, minimise and constrain KL divergence.")
    parser.add_argument("--version", action="version", version=f"kullback {version('kullback')}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    doctor.add_parser(commands)
    explore.add_parser(commands)
    fit.add_parser(commands)
    measure.add_parser(commands)
    train.add_parser(commands)
    try:
        options = parser.parse_args(arguments)
        return options.run(options)
    except KullbackError as error:
        print(f"kullback: {' '.join(str(error).split())}", file=sys.stderr)
        return BAD_INPUT
    except KeyboardInterrupt:
        print("kullback: interrupted", file=sys.stderr)
        return INTERRUPTED


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in the one line that all bad input gets; its subparsers are of its own kind."""

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message}; see {self.prog} --help")
