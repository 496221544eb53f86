"""An HTTP server that takes what is posted to it, or refuses it as told."""

from __future__ import annotations

import contextlib
import json
import ssl
import threading
from collections import deque
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any


class Hook:
    """`posts` are (path, headers, body) of what it took; the next answers are `statuses`, then 200."""

    def __init__(self, tls: tuple[Path, Path] | None = None) -> None:
        self.posts: list[tuple[str, dict[str, str], Any]] = []
        self.statuses: deque[int] = deque()
        self.connections = 0
        hook = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def setup(self) -> None:
                hook.connections += 1
                super().setup()

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"])).decode()
                status = hook.statuses.popleft() if hook.statuses else 200
                if status == 0:  # hang up without an answer
                    self.close_connection = True
                    return
                if 200 <= status < 300:
                    with contextlib.suppress(ValueError):
                        body = json.loads(body)
                    hook.posts.append((self.path, dict(self.headers), body))
                self.send_response(status)
                self.send_header("Content-Length", "2")
                self.end_headers()
                self.wfile.write(b"ok")

            def log_message(self, *_: Any) -> None: ...

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.scheme = "http"
        if tls is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(*tls)
            self.server.socket = context.wrap_socket(self.server.socket, server_side=True)
            self.scheme = "https"

    @property
    def url(self) -> str:
        return f"{self.scheme}://127.0.0.1:{self.server.server_port}/in?key=1"


@contextlib.contextmanager
def running_hook(**options: Any) -> Iterator[Hook]:
    """A server that listens."""
    hook = Hook(**options)
    thread = threading.Thread(target=hook.server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield hook
    finally:
        hook.server.shutdown()
        hook.server.server_close()
        thread.join()
