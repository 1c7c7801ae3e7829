"""Every argument of every command has a help text, which states the default."""

import argparse
from collections.abc import Iterator

import pytest

from kullback.cli import _create_parser


def parsers(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    yield parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                yield from parsers(command)


PARSERS = {parser.prog: parser for parser in parsers(_create_parser())}


@pytest.mark.parametrize("prog", PARSERS)
def test_every_command_and_argument_has_a_help_text(prog: str) -> None:
    for action in PARSERS[prog]._actions:
        if isinstance(action, argparse._SubParsersAction):
            assert all(command.help for command in action._choices_actions)
        else:
            assert action.help, action.dest


@pytest.mark.parametrize("prog", PARSERS)
def test_every_default_is_stated(prog: str) -> None:
    for action in PARSERS[prog]._actions:
        takes_value = action.option_strings and action.nargs != 0
        if takes_value and not action.required and action.default not in (None, []):
            assert "(default: " in (action.help or ""), action.dest


@pytest.mark.parametrize("prog", PARSERS)
def test_help_can_be_printed(prog: str) -> None:
    assert PARSERS[prog].format_help().startswith(f"usage: {prog}")
