"""The parser of command lines: errors are exceptions, and an unknown name is answered with the nearest known name."""

import argparse
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from kullback.cli.output import print_result
from kullback.errors import InputError

__all__ = ["Parser", "nearest"]

_EXIT_STATUS = """
exit status:
  0 success; 1 `kullback doctor` has findings; 2 invalid input, which one line on standard error describes;
  3 a KL of `kullback compare` exceeds --fail-above; 130 interrupted by Ctrl-C
"""


def nearest(name: str, known: Iterable[str], *, cutoff: float = 0.6) -> str:
    """A clause that suggests the most similar known name.

    Args:
        name: The unknown name.
        known: The known names.
        cutoff: The smallest similarity of a suggestion, from 0 to 1.

    Returns:
        The clause, such as "; did you mean normal?"; an empty string if no known name is similar.

    Example:
        >>> nearest("norml", ["gamma", "normal"])
        '; did you mean normal?'
    """
    from difflib import get_close_matches

    similar = get_close_matches(name, list(known), n=1, cutoff=cutoff)
    return f"; did you mean {similar[0]}?" if similar else ""


class Parser(argparse.ArgumentParser):
    """A parser that raises InputError instead of exiting. argparse gives subparsers the class of their parent."""

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        # An abbreviation would make a misspelt option valid.
        super().__init__(*arguments, **{"allow_abbrev": False, **settings})
        # Arguments such as -0.5,1.5 are numbers, and -:NAME is an array on standard input; neither is an option.
        self._negative_number_matcher = re.compile(r"-(\.?\d|inf\b|:)")

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message}; see {self.prog} --help")

    def format_help(self) -> str:
        return super().format_help() + _EXIT_STATUS

    def _print_message(self, message: str, file: Any = None) -> None:  # noqa: ARG002
        # The method of argparse ignores errors, such as a full disk.
        print_result(message.rstrip("\n"))

    def parse_known_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:  # type: ignore[override]
        """Parse the arguments. An unknown option is an error of the command that it was passed to.

        argparse passes unknown options on to the first parser, after the check of required arguments.
        """
        if args is not None:
            self._refuse_unknown_options(args)
        options, unknown = super().parse_known_args(args, namespace)
        # argparse takes optional arguments from one group without options between them.
        for action in self._actions:
            is_free = not action.option_strings and action.nargs == "?" and getattr(options, action.dest, None) is None
            if unknown and is_free:
                value = self._get_value(action, unknown.pop(0))
                self._check_value(action, value)
                setattr(options, action.dest, value)
        if unknown:
            self.error(f"expected no further arguments, got {' '.join(unknown)}")
        return options, unknown

    def _refuse_unknown_options(self, arguments: Sequence[str]) -> None:
        known = self._option_string_actions
        if any(argument in ("-h", "--help") for argument in arguments):
            return
        has_commands = self._subparsers is not None
        for argument in arguments:
            is_option = (
                argument.startswith("-") and len(argument) > 1 and not self._negative_number_matcher.match(argument)
            )
            if argument == "--" or (has_commands and not is_option):
                return
            name = argument.partition("=")[0]
            if is_option and name not in known and " " not in argument:
                hint = nearest(name, known, cutoff=0.7)
                if not hint and "--set" in known and name.startswith("--"):
                    hint = f"; if {name[2:].replace('-', '_')} is a setting of the library, pass it by --set"
                self.error(f"{self.prog} has no option {name}{hint}")

    def _get_value(self, action: argparse.Action, arg_string: str) -> Any:
        """The value of an argument. A path is not empty, because Path("") is the working directory."""
        if action.type is Path and not arg_string:
            raise argparse.ArgumentError(action, "expected a path, got an empty argument")
        if action.type in (int, float):
            try:
                return action.type(arg_string)
            except ValueError:
                kind = "a whole number" if action.type is int else "a number"
                raise argparse.ArgumentError(action, f"expected {kind}, got {arg_string!r}") from None
        return super()._get_value(action, arg_string)

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is None or value in action.choices:
            return
        choices = [str(choice) for choice in action.choices]
        hint = nearest(str(value), choices)
        raise argparse.ArgumentError(action, f"expected one of {', '.join(choices)}, got {value!r}{hint}")
