"""The `kullback` command."""

import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kullback.cli.parser import Parser

__all__ = ["main"]

INVALID_INPUT = 2
INTERRUPTED = 130

DESCRIPTION = "Measure, minimise and constrain the Kullback-Leibler (KL) divergence."
EPILOG = """examples:
  kullback measure 0.4,0.3,0.2,0.1 0.3,0.3,0.3,0.1
  kullback fit 'mixture(0.5*normal(0,2) + 0.5*normal(20,2))' normal --direction reverse
  kullback train demo
  kullback doctor runs/demo
  kullback compare base-model quantised-model --text corpus

`kullback COMMAND --help`, or `kullback help COMMAND`, describes the arguments of a command. Results are written to
standard output; progress, warnings and errors are written to standard error. In the output of --json, the numbers that
JSON does not have are the strings "inf", "-inf" and "nan".
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the `kullback` command.

    Args:
        arguments: The words after `kullback`; None: the arguments of the process, whose standard streams and handler
            of Ctrl-C are then prepared too.

    Returns:
        The exit status: 0 on success; 1 if `kullback doctor` has findings; 2 for invalid input, after one line on
        standard error that describes it; 3 if a KL of `kullback compare` exceeds --fail-above; 130 after an interrupt
        by Ctrl-C.

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
    # The imports are inside of the functions, so that an interrupt during imports is handled.
    try:
        if arguments is not None:
            return _run(arguments)
        from kullback.cli.process import run_as_process

        return run_as_process(_run, sys.argv[1:])
    except KeyboardInterrupt:
        print_error("interrupted")
        if arguments is None:
            # The interpreter ends by SIGINT instead of this status if the interrupt left a call of exec, as in imports.
            os._exit(INTERRUPTED)
        return INTERRUPTED


def _run(words: Sequence[str]) -> int:
    """Run the command, and turn errors of the user's input into one line and the exit status 2."""
    from kullback.errors import KullbackError

    try:
        options = _parse(words)
        return options if isinstance(options, int) else options.run(options)
    except KullbackError as error:
        print_error(str(error))
    except BrokenPipeError:
        return 0  # the reader of the output has all that it needs
    except OSError as error:
        print_error(f"{f'{error.filename}: ' if error.filename else ''}{error.strerror or error}")
    except SystemExit as end:  # code of the user or of a library, which must not set the exit status
        print_error(f"code that the command called ended it by SystemExit: {end.code}")
    except (MemoryError, RuntimeError) as error:
        from kullback.runs.library_errors import NO_MEMORY, is_out_of_memory

        if not is_out_of_memory(error):
            raise
        print_error("the memory is not sufficient for this input" if isinstance(error, MemoryError) else NO_MEMORY)
    return INVALID_INPUT


def _parse(words: Sequence[str]) -> Any:
    """The options, or an exit status if the help or the version was printed."""
    words = list(words)
    if not words:
        words = ["--help"]
    elif words[0] == "help":
        words = [*words[1:], "--help"]
    try:
        return _create_parser().parse_args(words)
    except SystemExit as end:  # --help and --version
        return int(end.code or 0)


def _create_parser() -> "Parser":
    import argparse

    from kullback.cli import compare, doctor, explore, fit, measure, train
    from kullback.cli.output import print_result
    from kullback.cli.parser import Parser

    class Version(argparse.Action):
        """Print the version, which is looked up only if the option is passed."""

        def __call__(self, parser: argparse.ArgumentParser, *values: Any) -> None:  # noqa: ARG002
            from importlib.metadata import version

            from kullback.configuration import kernels

            print_result(f"kullback {version('kullback')} (kernels: {kernels()})")
            parser.exit()

    parser = Parser(
        prog="kullback",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action=Version, nargs=0, help="print the version")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for command in (compare, doctor, explore, fit, measure, train):
        command.add_parser(commands)
    return parser


def print_error(message: str) -> None:
    """Print a message as one line on standard error, without control characters, if the stream is open."""
    from kullback.runs.printable import printable

    line = printable(" ".join(message.split()))
    if len(line) > 2000:
        line = f"{line[:1400]} [...] {line[-500:]}"
    if sys.stderr is None:
        return
    with suppress(OSError, ValueError):  # the reader of standard error has closed it
        print(f"kullback: {line}", file=sys.stderr, flush=True)
