"""A server for the explorer on this machine alone: loopback, a secret in the address, nothing but GET."""

import hmac
import json
import secrets
from collections.abc import Callable, Mapping
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, TypeAlias

from kullback.errors import InputError, KullbackError
from kullback.explore.explorer import explorer_page, runs_data
from kullback.runs.run_directory import RunDirectory

__all__ = ["make_server"]

_HOST = "127.0.0.1"
_Paths: TypeAlias = dict[str, tuple[Callable[[], bytes], str]]


def make_server(runs: Mapping[str, RunDirectory], *, port: int = 0) -> tuple[ThreadingHTTPServer, str]:
    """A server that is not yet running, and the address to open.

    Args:
        runs: Shown in the last room, read anew whenever the page asks.
        port: Where to listen; 0 for any that is free.

    Raises:
        InputError: The port cannot be had, or a directory is no run.
    """
    page = explorer_page(runs, live=bool(runs)).encode()
    token = secrets.token_urlsafe(24)

    paths: _Paths = {f"/{token}/": (lambda: page, "text/html; charset=utf-8")}
    if runs:
        paths[f"/{token}/runs.json"] = (lambda: json.dumps(runs_data(runs)).encode(), "application/json")
    try:
        server = ThreadingHTTPServer((_HOST, port), partial(_Handler, paths))
    except (OSError, OverflowError) as error:
        raise InputError(f"--port {port}: cannot listen there: {error}; name another, or 0 for any") from error
    server.daemon_threads = True
    return server, f"http://{_HOST}:{server.server_address[1]}/{token}/"


class _Handler(BaseHTTPRequestHandler):
    """Answers the addresses that it knows, to a browser that names this machine as the host."""

    protocol_version = "HTTP/1.1"
    server_version, sys_version = "kullback", ""

    def __init__(self, paths: _Paths, *given: Any) -> None:
        self.paths = paths
        super().__init__(*given)

    def do_GET(self) -> None:
        # Another name for this address is how a foreign page would reach it.
        port = self.connection.getsockname()[1]
        if self.headers.get("Host") not in (f"{_HOST}:{port}", f"localhost:{port}"):
            return self._answer(403, b"this server answers to 127.0.0.1 alone\n", "text/plain")
        known = [found for path, found in self.paths.items() if hmac.compare_digest(path.encode(), self.path.encode())]
        if not known:
            return self._answer(404, b"not here\n", "text/plain")
        make, kind = known[0]
        try:
            body = make()
        except (KullbackError, OSError, ValueError) as error:
            return self._answer(503, f"{error}\n".encode(), "text/plain; charset=utf-8")
        return self._answer(200, body, kind)

    def _answer(self, status: int, body: bytes, kind: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
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
        """Nothing: the page asks every two seconds."""
