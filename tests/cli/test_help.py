"""Every argument of every command has a help text, which states the default."""

import argparse
import json
from collections.abc import Iterator

import pytest

from kullback.cli import _create_parser, main


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


@pytest.mark.parametrize("prog", PARSERS)
def test_every_help_has_the_exit_statuses(prog: str) -> None:
    text = PARSERS[prog].format_help()
    assert "exit status:" in text
    for status in ("0 success", "1 `kullback doctor` has findings", "2 invalid input", "130 interrupted"):
        assert status in text


@pytest.mark.parametrize("prog", PARSERS)
def test_a_misspelt_option_is_answered_with_the_nearest_option_and_the_help_of_the_command(prog: str, capsys) -> None:
    parser = PARSERS[prog]
    options = [option for option in parser._option_string_actions if option.startswith("--") and len(option) > 6]
    for option in options:
        # Without its last letter, which argparse would take for an abbreviation, and with two letters exchanged.
        for misspelt in (option[:-1], option[:4] + option[5] + option[4] + option[6:]):
            if misspelt in parser._option_string_actions:
                continue
            assert main([*prog.split()[1:], misspelt]) == 2
            error = capsys.readouterr().err
            assert f"{prog} has no option {misspelt}; did you mean --" in error
            assert error.endswith(f"see {prog} --help\n")
            assert error.count("\n") == 1


def test_help_without_a_command_and_as_a_command(capsys) -> None:
    outputs = []
    for words in ([], ["help"], ["--help"], ["-h"]):
        assert main(words) == 0
        outputs.append(capsys.readouterr().out)
    assert set(outputs) == {outputs[0]}
    for words in (["help", "train", "grpo"], ["train", "grpo", "--help"]):
        assert main(words) == 0
        assert capsys.readouterr().out.startswith("usage: kullback train grpo")
    assert main(["help", "mesure"]) == 2
    assert "did you mean measure?" in capsys.readouterr().err


def test_misspelt_commands_and_recipes(capsys) -> None:
    for words, right in ((["mesure"], "measure"), (["docter", "x"], "doctor"), (["train", "grppo"], "grpo")):
        assert main(words) == 2
        error = capsys.readouterr().err
        assert f"did you mean {right}?" in error
        assert error.count("\n") == 1


def test_the_families_are_listed(capsys) -> None:
    assert main(["measure", "--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "normal(loc, scale)" in lines
    assert main(["measure", "--list", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)["families"]
    assert listed["student_t"] == ["df", "loc", "scale"]
    assert len(listed) == len(lines)
