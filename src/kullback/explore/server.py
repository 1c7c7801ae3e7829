"""A local HTTP server for the explorer: it listens on the loopback address and serves GET requests with a token."""

import hmac
import json
import secrets
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, TypeAlias
from urllib.parse import parse_qsl, urlsplit

from kullback.errors import InputError, KullbackError
from kullback.explore.explorer import explorer_page, range_data, runs_data
from kullback.explore.findings import BackgroundChecks
from kullback.explore.run_logs import RunLog

__all__ = ["LiveRuns", "make_server"]

_HOST = "127.0.0.1"
_Routes: TypeAlias = dict[str, tuple[Callable[[Mapping[str, str]], bytes], str]]


def make_server(
    logs: Mapping[str, RunLog], *, port: int = 0, problems: Sequence[str] = ()
) -> tuple[ThreadingHTTPServer, str]:
    """Create a server for the explorer, without starting it.

    Args:
        logs: Logs of runs by the names under which they are shown. At each request, what was added to them is read.
        port: The port to listen on; 0 selects a free port.
        problems: Sentences about runs that cannot be shown.

    Returns:
        The server and the URL of the page. A run whose files become damaged is shown with its last rows and the damage.
        A client that closes its connection has no effect on the server.

    Raises:
        InputError: The port is not available.
    """
    live = LiveRuns(logs, problems)
    token = secrets.token_urlsafe(24)
    routes: _Routes = {f"/{token}/": (live.page, "text/html; charset=utf-8")}
    if logs:
        routes[f"/{token}/runs.json"] = (live.answer, "application/json")
    try:
        server = _Server((_HOST, port), partial(_Handler, routes))
    except (OSError, OverflowError) as error:
        raise InputError(
            f"--port {port}: expected a port that is free, cannot listen on it ({error}); "
            "choose another port, or 0 for any free port"
        ) from error
    return server, f"http://{_HOST}:{server.server_address[1]}/{token}/"


class LiveRuns:
    """The answers of the server about runs; one request at a time reads the files.

    Args:
        logs: Logs of runs by the names under which they are shown.
        problems: Sentences about runs that cannot be shown.
    """

    def __init__(self, logs: Mapping[str, RunLog], problems: Sequence[str] = ()) -> None:
        self.logs, self.problems = logs, problems
        self.checks = BackgroundChecks()
        self.lock = threading.Lock()

    def page(self, query: Mapping[str, str]) -> bytes:
        """Return the page with the present data of the runs."""
        if query:
            raise LookupError("expected no query")
        with self.lock:
            self._refresh()
            live = bool(self.logs)
            page = explorer_page(self.logs, live=live, problems=self.problems, findings=self._findings())
        return page.encode()

    def answer(self, query: Mapping[str, str]) -> bytes:
        """Return what the page does not have yet, or the rows between `from` and `to` of a run."""
        with self.lock:
            self._refresh()
            if "run" in query:
                low, high = float(query["from"]), float(query["to"])
                content = range_data(self.logs[query["run"]], low, high, query.get("x", "step"))
            else:
                content = runs_data(self.logs, self._findings(), json.loads(query.get("since", "{}")))
        return json.dumps(content, allow_nan=False, separators=(",", ":")).encode()

    def _refresh(self) -> None:
        for log in self.logs.values():
            with suppress(OSError):  # the run keeps its rows, and its age increases
                log.refresh()

    def _findings(self) -> dict[str, Any]:
        return {name: self.checks.latest(log.path, log.metrics.count) for name, log in self.logs.items()}


class _Server(ThreadingHTTPServer):
    """A server that survives the errors of a connection."""

    daemon_threads = True
    request_queue_size = 64

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ARG002
        """Ignore clients that close their connection, and print other errors as one line."""
        error = sys.exception()
        if not isinstance(error, (ConnectionError, TimeoutError)):
            print(f"kullback: a request failed: {type(error).__name__}: {error}", file=sys.stderr)


class _Handler(BaseHTTPRequestHandler):
    """Answers GET requests for the routes when the Host header names the loopback address."""

    protocol_version = "HTTP/1.1"
    timeout = 60  # seconds after which an idle connection is closed
    server_version, sys_version = "kullback", ""

    def __init__(self, routes: _Routes, *arguments: Any) -> None:
        self.routes = routes
        super().__init__(*arguments)

    def do_GET(self) -> None:
        # A page of another site can reach this server only under another host name (DNS rebinding).
        port = self.connection.getsockname()[1]
        if self.headers.get("Host") not in (f"{_HOST}:{port}", f"localhost:{port}"):
            return self._send(403, b"expected the host 127.0.0.1 or localhost\n", "text/plain")
        address = urlsplit(self.path)
        # The comparison takes the same time for every path, so that the token cannot be guessed from delays.
        paths = self.routes.items()
        found = [route for path, route in paths if hmac.compare_digest(path.encode(), address.path.encode())]
        if not found:
            return self._send(404, b"not found\n", "text/plain")
        make, content_type = found[0]
        try:
            body = make(dict(parse_qsl(address.query, keep_blank_values=True)))
        except (LookupError, ValueError, AttributeError, RecursionError):
            return self._send(404, b"not found\n", "text/plain")
        except (KullbackError, OSError) as error:
            return self._send(503, f"{error}\n".encode(), "text/plain; charset=utf-8")
        return self._send(200, body, content_type)

    def _send(self, status: int, body: bytes, content_type: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        for name, value in (
            ("Cache-Control", "no-store"),
            ("Content-Security-Policy", "frame-ancestors 'none'"),
            ("Cross-Origin-Resource-Policy", "same-origin"),
            ("Referrer-Policy", "no-referrer"),
            ("X-Content-Type-Options", "nosniff"),
        ):
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Log nothing, because the page sends a request every two seconds."""
