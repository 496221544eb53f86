"""`/healthz`, `/readyz` and `/metrics`, served by a thread so that they answer while the agent is busy."""

from __future__ import annotations

import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import structlog
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from eyeline.errors import ConfigError

_log = structlog.get_logger()

Check = Callable[[], tuple[bool, str]]


class HealthServer:
    """Serves until `stop`. healthy, ready: whether all is well, and one line that says why not.

    healthy means that a restart would not help; ready, that frames are being captured and kept.
    """

    def __init__(
        self, host: str, port: int, *, healthy: Check, ready: Check, setting: str = "http.port"
    ) -> None:
        """setting: names the port in the error when it is taken, a `ConfigError`."""
        checks = {"/healthz": healthy, "/readyz": ready}

        class Handler(BaseHTTPRequestHandler):
            timeout = 10

            def do_GET(self) -> None:
                path = self.path.partition("?")[0]
                if path == "/metrics":
                    self._answer(200, CONTENT_TYPE_LATEST, generate_latest())
                elif path in checks:
                    good, line = checks[path]()
                    self._answer(200 if good else 503, "text/plain; charset=utf-8", f"{line}\n".encode())
                else:
                    self._answer(404, "text/plain; charset=utf-8", b"try /healthz, /readyz or /metrics\n")

            def _answer(self, status: int, kind: str, body: bytes) -> None:
                self.send_response(status)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: Any) -> None:
                """Requests are no events."""

        try:
            self._server = ThreadingHTTPServer((host, port), Handler)
        except OSError as problem:
            raise ConfigError(
                f"{setting} {port} on {host} cannot be used ({problem.strerror}): choose another, or 0"
            ) from None
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, name="http", daemon=True)

    @property
    def port(self) -> int:
        """The port in use."""
        return int(self._server.server_address[1])

    def start(self) -> None:
        """Begin to serve."""
        self._thread.start()
        _log.info("http_listening", host=self._server.server_address[0], port=self.port)

    def stop(self) -> None:
        """End."""
        self._server.shutdown()
        self._server.server_close()
