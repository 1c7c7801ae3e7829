"""`kullback explore`: a page to see KL on, from a server on this machine or as one file."""

import argparse
from pathlib import Path
from typing import Any

from kullback.errors import InputError

__all__ = ["add_parser"]

EXAMPLES = """examples:
  kullback explore                                  opens a page in the browser
  kullback explore runs/mine                        and follows a run while it trains
  kullback explore runs/a runs/b --output page.html the same page as one file that works offline
"""
_MOST = 6


def add_parser(commands: Any) -> None:
    """Add `explore`."""
    parser = commands.add_parser(
        "explore",
        help="a page to see KL on: both directions, a next token, a policy on a budget, your runs",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("runs", nargs="*", type=Path, metavar="RUN", help="run directories to show")
    parser.add_argument("--port", type=int, default=0, metavar="N", help="where to listen (default: any free port)")
    parser.add_argument("--no-browser", action="store_true", help="print the address and open nothing")
    parser.add_argument("--output", type=Path, metavar="FILE", help="write the page to a file, and serve nothing")
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    from kullback.explore.explorer import explorer_page
    from kullback.explore.server import make_server
    from kullback.runs.atomic_write import write_whole
    from kullback.runs.run_directory import RunDirectory

    if not 0 <= options.port <= 65535:
        raise InputError(f"--port: expected a number from 0 to 65535, got {options.port}")
    if len(options.runs) > _MOST:
        raise InputError(f"expected at most {_MOST} runs side by side, got {len(options.runs)}")
    runs = {_name(path, options.runs): RunDirectory(path) for path in options.runs}
    if options.output is not None:
        if not options.output.parent.is_dir() or options.output.is_dir():
            raise InputError(f"--output {options.output}: expected a file in a directory that is there")
        write_whole(options.output, explorer_page(runs, live=False))
        print(options.output)
        return 0
    server, address = make_server(runs, port=options.port)
    print(f"{address}   (Ctrl-C ends it)", flush=True)
    if not options.no_browser:
        import webbrowser

        webbrowser.open(address)
    try:
        server.serve_forever()
    finally:
        server.server_close()
    return 0


def _name(path: Path, paths: list[Path]) -> str:
    """The last part of its path, where that tells it apart."""
    alike = [other for other in paths if other.resolve().name == path.resolve().name]
    return path.resolve().name if len(alike) == 1 else str(path)
