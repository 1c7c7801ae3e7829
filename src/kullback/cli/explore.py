"""`kullback explore`: an interactive page about KL, served on this machine or written to one file."""

import argparse
from pathlib import Path
from typing import Any

from kullback.cli.output import print_result
from kullback.errors import InputError
from kullback.runs.printable import one_line

__all__ = ["add_parser"]

EXAMPLES = """examples:
  kullback explore                                    open the page in the browser
  kullback explore runs/mine                          show a run too, and follow it while it trains
  kullback explore runs                               show every run in a directory of runs
  kullback explore runs/a runs/b --output page.html   write the page as one file that works offline
"""
_MAX_RUNS = 6


def add_parser(commands: Any) -> None:
    """Add the command `explore`."""
    parser = commands.add_parser(
        "explore",
        help="open an interactive page: both directions of KL, a next token, a policy with a KL budget, and your runs",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "runs",
        nargs="*",
        type=Path,
        metavar="RUN",
        help="a run directory of `kullback train`, a log of TensorBoard, Weights & Biases, TRL, transformers or "
        f"stable-baselines3, or a directory of runs; at most {_MAX_RUNS} runs",
    )
    parser.add_argument(
        "--port", type=_parse_port, metavar="N", help="listen on port N; 0 selects a free port (default: 0)"
    )
    parser.add_argument(
        "--no-browser", action="store_true", help="print the address without opening a browser (default: open it)"
    )
    parser.add_argument(
        "--output",
        type=Path,
        metavar="FILE",
        help="write the page to FILE instead of starting a server (default: no file)",
    )
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    from kullback.cli import print_error
    from kullback.explore.explorer import explorer_page, readable_runs
    from kullback.explore.findings import check_run
    from kullback.explore.html import is_page
    from kullback.explore.server import make_server
    from kullback.runs.atomic_write import write_atomically

    output = options.output
    if output is not None and options.port is not None:
        raise InputError("--port: expected no port with --output, which starts no server")
    if output is not None and output.is_dir():
        raise InputError(f"--output {output}: expected the path of a file, got a directory")
    if output is not None and output.is_file() and not is_page(output):
        raise InputError(
            f"--output {output}: expected a new file or an earlier page, got another file; choose another path"
        )
    if output is not None and not output.parent.is_dir():
        raise InputError(
            f"--output {output}: expected the path of a file in an existing directory; create the directory first"
        )
    paths = _runs_in(options.runs)
    if len(paths) > _MAX_RUNS:
        raise InputError(f"expected at most {_MAX_RUNS} runs, got {len(paths)}; pass some of them")
    logs, problems = readable_runs({_label(path, paths): path for path in paths})
    for problem in [*problems, *(problem for log in logs.values() for problem in log.problems)]:
        print_error(problem)
    if options.output is not None:
        findings = {name: check_run(log.path) for name, log in logs.items()}
        page = explorer_page(logs, live=False, problems=problems, findings=findings)
        try:
            write_atomically(options.output, page)
        except BrokenPipeError:
            raise  # the reader of a pipe has all that it needs
        except OSError as error:
            raise InputError(f"--output {options.output}: cannot be written: {error.strerror or error}") from error
        print_result(one_line(str(options.output)))
        return 0
    server, address = make_server(logs, port=options.port or 0, problems=problems)
    print_result(f"{address}   (press Ctrl-C to stop)")
    if not options.no_browser:
        import webbrowser

        webbrowser.open(address)
    try:
        server.serve_forever()
    finally:
        server.server_close()
    return 0


def _parse_port(text: str) -> int:
    try:
        port = int(text)
    except ValueError:
        port = -1
    if not 0 <= port <= 65535:
        raise argparse.ArgumentTypeError(f"expected a number from 0 to 65535, got {text!r}")
    return port


def _runs_in(paths: list[Path]) -> list[Path]:
    """The runs; a directory of runs stands for them."""
    from kullback.explore.run_logs import is_log_file, is_run

    runs = []
    for path in paths:
        if not path.exists():
            raise InputError(f"{path}: expected a run directory, found no such file or directory")
        if not path.is_dir() and not is_log_file(path):
            raise InputError(f"{path}: expected a run directory, got a file")
        within = [] if path.is_file() or is_run(path) else [child for child in sorted(path.glob("*")) if is_run(child)]
        runs += within or [path]
    return list(dict.fromkeys(runs))


def _label(path: Path, paths: list[Path]) -> str:
    """The last part of a path if no other path has the same, else the whole path."""
    name = path.resolve().name
    return name if [other.resolve().name for other in paths].count(name) == 1 else str(path)
