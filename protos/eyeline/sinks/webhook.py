"""Results to an HTTP address: a POST each, over a connection that is kept."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import http.client
import ssl
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from eyeline.errors import ConfigError
from eyeline.sinks.pump import SinkError
from eyeline.values import Result

# Answers that may be others later; every other refusal stays one.
_LATER: Final = {408, 409, 421, 423, 425, 429}
_MOST_ANSWER_BYTES: Final = 64 << 10


class Webhook:
    """Posts what `render` makes of each result; a 2xx answer means that it was taken.

    headers: sent with each; secret: signs each body (`X-Eyeline-Signature: sha256=HMAC`); ca: trust this
    certificate. `Idempotency-Key` names frame and revision, so that the other side can tell what came twice.
    """

    def __init__(
        self,
        url: str,
        render: Callable[[Result], str],
        *,
        headers: Mapping[str, str],
        content_type: str = "application/json",
        secret: bytes | None = None,
        ca: Path | None = None,
        timeout_s: float = 10.0,
    ) -> None:
        parts = urlsplit(url)
        if parts.scheme not in {"http", "https"} or not parts.hostname:
            raise ConfigError(f"webhook {url[:200]!r} must be an http:// or https:// address")
        if parts.username or parts.password:
            raise ConfigError("a webhook's password does not belong into its address: use --header-file")
        try:
            self._port = parts.port
        except ValueError:
            raise ConfigError(f"webhook {url[:200]!r} has no usable port") from None
        self._host, self._secure = parts.hostname, parts.scheme == "https"
        self._path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        self._shown = f"{parts.scheme}://{parts.netloc}{parts.path}"
        self._render, self._secret, self._timeout_s = render, secret, timeout_s
        self._headers = {"Content-Type": content_type, "User-Agent": "eyeline-sink", **headers}
        self._context = _context(ca) if self._secure else None
        self._connection: http.client.HTTPConnection | None = None

    async def send(self, results: Sequence[Result]) -> None:
        """One after another; raises `SinkError`."""
        for result in results:
            await asyncio.to_thread(self._post, result)

    async def close(self) -> None:
        """Hang up."""
        self._hang_up()

    def _post(self, result: Result) -> None:
        body = self._render(result).encode()
        camera, epoch = f"{result.site}/{result.camera}", result.epoch.random_id.hex()
        headers = {
            **self._headers,
            "Idempotency-Key": f"{camera}/{epoch}/{result.sequence}/{result.revision}",
        }
        if self._secret is not None:
            signature = hmac.new(self._secret, body, hashlib.sha256).hexdigest()
            headers["X-Eyeline-Signature"] = f"sha256={signature}"
        reused = self._connection is not None
        try:
            status, reason = self._exchange(body, headers)
        except (http.client.HTTPException, OSError) as problem:
            self._hang_up()
            if not reused:
                raise self._unreachable(problem) from None
            # The other side closes what is idle for long: once more, over a new connection.
            try:
                status, reason = self._exchange(body, headers)
            except (http.client.HTTPException, OSError) as again:
                self._hang_up()
                raise self._unreachable(again) from None
        if 200 <= status < 300:
            return
        raise SinkError(
            f"{self._shown} answers {status} {reason}"[:200], retryable=status >= 500 or status in _LATER
        )

    def _exchange(self, body: bytes, headers: Mapping[str, str]) -> tuple[int, str]:
        if self._connection is None:
            if self._context is not None:
                self._connection = http.client.HTTPSConnection(
                    self._host, self._port, timeout=self._timeout_s, context=self._context
                )
            else:
                self._connection = http.client.HTTPConnection(self._host, self._port, timeout=self._timeout_s)
        self._connection.request("POST", self._path, body, dict(headers))
        response = self._connection.getresponse()
        response.read(_MOST_ANSWER_BYTES)
        if response.will_close or not response.isclosed():
            self._hang_up()
        return response.status, "".join(c for c in response.reason if c.isprintable())

    def _unreachable(self, problem: Exception) -> SinkError:
        if isinstance(problem, ssl.SSLCertVerificationError):
            why = f"its certificate is not trusted ({problem.verify_message})"
        elif isinstance(problem, TimeoutError):
            why = "it does not answer in time"
        else:
            why = getattr(problem, "strerror", None) or type(problem).__name__
        return SinkError(f"{self._shown} cannot be reached: {why}", retryable=True)

    def _hang_up(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()


def _context(ca: Path | None) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=ca)
    except (OSError, ssl.SSLError) as problem:
        raise ConfigError(f"certificate {ca} cannot be used: {problem.strerror or problem}") from None
