"""A local HTTP server for the explorer: it listens on the loopback address and serves GET requests with a token."""

import hmac
import json
import secrets
import sys
from collections.abc import Callable, Mapping
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, TypeAlias

from kullback.errors import InputError, KullbackError
from kullback.explore.explorer import explorer_page, readable_runs, runs_data
from kullback.runs.run_directory import RunDirectory

__all__ = ["make_server"]

_HOST = "127.0.0.1"
_Routes: TypeAlias = dict[str, tuple[Callable[[], bytes], str]]


def make_server(runs: Mapping[str, RunDirectory], *, port: int = 0) -> tuple[ThreadingHTTPServer, str]:
    """Create a server for the explorer, without starting it.

    Args:
        runs: Run directories by the names under which they are shown. They are read again at each request.
        port: The port to listen on; 0 selects a free port.

    Returns:
        The server and the URL of the page. Runs that cannot be read are omitted from an answer as long as another run
        can be read. A client that closes its connection has no effect on the server.

    Raises:
        InputError: The port is not available, or a directory does not contain a run.
    """
    page = explorer_page(runs, live=bool(runs)).encode()
    token = secrets.token_urlsafe(24)

    routes: _Routes = {f"/{token}/": (lambda: page, "text/html; charset=utf-8")}
    if runs:
        routes[f"/{token}/runs.json"] = (lambda: _runs_json(runs), "application/json")
    try:
        server = _Server((_HOST, port), partial(_Handler, routes))
    except (OSError, OverflowError) as error:
        raise InputError(
            f"--port {port}: expected a port that is free, cannot listen on it ({error}); "
            "choose another port, or 0 for any free port"
        ) from error
    return server, f"http://{_HOST}:{server.server_address[1]}/{token}/"


def _runs_json(runs: Mapping[str, RunDirectory]) -> bytes:
    try:
        return json.dumps(runs_data(runs), allow_nan=False).encode()
    except (KullbackError, ArithmeticError, AttributeError, LookupError, OSError, TypeError, ValueError):
        return json.dumps(runs_data(readable_runs(runs)[0])).encode()


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
        # The comparison takes the same time for every path, so that the token cannot be guessed from delays.
        found = [route for path, route in self.routes.items() if hmac.compare_digest(path.encode(), self.path.encode())]
        if not found:
            return self._send(404, b"not found\n", "text/plain")
        make, content_type = found[0]
        try:
            body = make()
        except (KullbackError, OSError, ValueError) as error:
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
