"""The `kullback` command."""

import argparse
import sys
from collections.abc import Sequence
from importlib.metadata import version
from typing import NoReturn

from kullback.cli import doctor, explore, fit, measure, train
from kullback.errors import InputError, KullbackError

__all__ = ["main"]

INVALID_INPUT = 2
INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the `kullback` command.

    Args:
        arguments: The words after `kullback`; None: the arguments of the process.

    Returns:
        The exit status: 0 on success; 1 if `kullback doctor` has findings; 2 for invalid input, after one line on
        standard error that describes it; 130 after an interrupt by Ctrl-C.

    Example:
        >>> main(["measure", "0.5,0.5", "0.9,0.1"])
        P            0.5,0.5
        Q            0.9,0.1
        KL(P || Q)   0.5108256238 nats   exact sum
        KL(Q || P)   0.3680642072 nats   exact sum
        H(P)         0.6931471806 nats
        H(P, Q)      1.203972804 nats   = H(P) + KL(P || Q)
        0
    """
    parser = _create_parser()
    try:
        options = parser.parse_args(arguments)
        return options.run(options)
    except KullbackError as error:
        print(f"kullback: {' '.join(str(error).split())}", file=sys.stderr)
        return INVALID_INPUT
    except KeyboardInterrupt:
        print("kullback: interrupted", file=sys.stderr)
        return INTERRUPTED


def _create_parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="kullback",
        description="Measure, minimise and constrain the Kullback-Leibler (KL) divergence.",
        epilog="`kullback COMMAND --help` describes the options of a command.",
    )
    parser.add_argument(
        "--version", action="version", version=f"kullback {version('kullback')}", help="print the version"
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    doctor.add_parser(commands)
    explore.add_parser(commands)
    fit.add_parser(commands)
    measure.add_parser(commands)
    train.add_parser(commands)
    return parser


class _Parser(argparse.ArgumentParser):
    """A parser that raises InputError instead of exiting. argparse gives subparsers the class of their parent."""

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message}; see {self.prog} --help")
