"""Names and labels cannot change the state of a terminal."""

import io

import pytest
from rich.console import Console

from kullback.cli.run_summary import make_console
from kullback.runs.printable import one_line, printable
from kullback.runs.progress import RunProgress

NAMES = ["[red]a[/red]", "x]", "[/x", ":smile:", "\x1b[31mred", "two\nlines", "tab\there", "\udcff", "bell\a", "é → ±"]


@pytest.mark.parametrize("name", NAMES)
def test_a_name_is_one_line_of_printable_characters(name: str) -> None:
    assert one_line(name).isprintable()
    assert all(line.isprintable() for line in printable(name).split("\n"))
    assert one_line("plain ✓ 名") == "plain ✓ 名"


@pytest.fixture(params=[False, True], ids=["file", "terminal"])
def console(request: pytest.FixtureRequest) -> Console:
    return Console(file=io.StringIO(), force_terminal=request.param, width=200, _environ={"TERM": "xterm"})


@pytest.mark.parametrize("name", NAMES)
def test_progress_shows_a_name_as_it_is(name: str, console: Console) -> None:
    with RunProgress(name, 1, target=None, unit=None, console=console) as progress:
        progress.show({"step": 1, "loss": 0.5})
    assert one_line(name) in console.file.getvalue()  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", NAMES)
def test_consoles_of_commands_do_not_interpret_markup(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    make_console(quiet=False).print(one_line(name), highlight=False)
    printed = capsys.readouterr().out
    assert printed.rstrip("\n") in (one_line(name), one_line(name).encode(errors="replace").decode())
