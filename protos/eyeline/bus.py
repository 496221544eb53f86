"""Connecting to NATS: wait for it, say so, reconnect for ever."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import random
import ssl
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

import nats.errors
import structlog
from nats.aio.client import DEFAULT_FLUSH_TIMEOUT, Client
from nats.aio.msg import Msg
from nats.aio.transport import WebSocketTransport
from nats.js import JetStreamContext
from nats.js.api import KeyValueConfig, ObjectStoreConfig, StreamConfig
from nats.js.errors import APIError, BadRequestError, BucketNotFoundError, NotFoundError
from nats.js.kv import KeyValue

from eyeline.errors import BusError, ConfigError

_log = structlog.get_logger()

_FIRST_WAIT_S = 0.2
# Whoever restarts the hub expects everybody back within seconds.
_LONGEST_WAIT_S = 1.0

T = TypeVar("T")


class _Client(Client):
    """Talks to the servers it was given, and to no others; and whoever waits for it can be cancelled."""

    async def connect(self, *args: Any, **options: Any) -> None:
        await heeding_cancellation(super().connect(*args, **options))

    async def request(
        self,
        subject: str,
        payload: bytes = b"",
        timeout: float = 0.5,
        old_style: bool = False,
        headers: dict[str, Any] | None = None,
    ) -> Msg:
        return await heeding_cancellation(super().request(subject, payload, timeout, old_style, headers))

    async def flush(self, timeout: int = DEFAULT_FLUSH_TIMEOUT) -> None:
        await heeding_cancellation(super().flush(timeout))

    async def _flush_pending(self, force_flush: bool = False) -> Any:
        # Where publishing waits for a connection that takes no more, the library drops each cancellation.
        return await heeding_cancellation(super()._flush_pending(force_flush))

    async def _process_info(self, info: dict[str, Any], initial_connection: bool = False) -> None:
        # A server also tells the addresses that it and its neighbours have among themselves: in front of a
        # gateway or a NAT they lead nowhere, or to somebody else, and the library would talk to those of a
        # WebSocket without TLS.
        known = {key: value for key, value in info.items() if key != "connect_urls"}
        await super()._process_info(known, initial_connection)

    async def give_up(self) -> None:
        """Free what an attempt to connect by WebSocket left, or each one logs that nobody did."""
        transport = self._transport
        if isinstance(transport, WebSocketTransport):
            transport.close()  # type: ignore[no-untyped-call]
            with contextlib.suppress(TimeoutError, OSError):
                async with asyncio.timeout(1):
                    await transport.wait_closed()  # type: ignore[no-untyped-call]


async def heeding_cancellation(waited: Awaitable[T]) -> T:
    """Wait for what may drop a cancellation, and be cancelled all the same.

    Of one in the same turn of the loop as the answer, `asyncio.wait_for` of Python 3.11 makes nothing and
    returns the answer (python/cpython#86296, mended in 3.12): whoever goes on in a loop then never ends.
    """
    task = asyncio.current_task()
    assert task is not None  # noqa: S101  # we are in one
    before = task.cancelling()
    try:
        return await waited
    finally:
        if task.cancelling() > before:
            raise asyncio.CancelledError


async def connect(
    servers: str | Sequence[str],
    *,
    name: str,
    user: str | None = None,
    password: str | None = None,
    creds_file: Path | None = None,
    ca_file: Path | None = None,
    inbox_prefix: str = "_INBOX",
    wait: bool = True,
    on_change: Callable[[bool], Awaitable[None] | None] | None = None,
) -> Client:
    """Connect to NATS and stay connected.

    servers: one URL or several, `nats://`, `tls://`, `ws://` or `wss://`; name: shown by the server;
    inbox_prefix: private to this user. creds_file: read again for each connection, so that new credentials
    need no restart. ca_file: talk TLS, and trust this authority (PEM) rather than the usual ones; an
    authority in the credentials file serves as well. Who asks for TLS never talks without it.
    wait: with False, one failed attempt raises `BusError`; otherwise wait until a server comes, logging once
    a state change. on_change: called with False on a lost connection and with True when it is back.
    Wrong credentials raise `BusError` with `retryable=False` in either case; files that cannot be used raise
    `ConfigError`.
    """
    urls = [servers] if isinstance(servers, str) else list(servers)
    where = ", ".join(_without_credentials(url) for url in urls)
    secured = {
        **_login(user, password, creds_file),
        **_security(urls, creds_file, ca_file),
        # Its type says whole seconds.
        "reconnect_time_wait": 0.25,
    }

    async def changed(connected: bool) -> None:
        if on_change is not None:
            outcome = on_change(connected)
            if outcome is not None:
                await outcome

    async def disconnected() -> None:
        _log.warning("nats_disconnected", client=name, server=where)
        await changed(False)

    async def reconnected() -> None:
        _log.info("nats_reconnected", client=name, server=where)
        await changed(True)

    async def error(problem: Exception) -> None:
        # Refused subjects arrive here as text; everything else has an event of its own.
        if "permissions violation" in str(problem).lower():
            _log.error("nats_refused", client=name, server=where, reason=str(problem))

    delay = _FIRST_WAIT_S
    said = False
    while True:
        refusal: list[str] = []

        async def first_error(problem: Exception, refusal: list[str] = refusal) -> None:
            refusal.append(str(problem))
            await error(problem)

        client = _Client()
        try:
            await client.connect(
                servers=urls,
                name=name,
                **secured,
                inbox_prefix=inbox_prefix.encode(),
                connect_timeout=3,
                # Otherwise the first connection is retried silently, for ever and with wrong credentials too.
                max_reconnect_attempts=1,
                allow_reconnect=False,
                ping_interval=5,
                max_outstanding_pings=2,
                pending_size=8 * 1024 * 1024,
                error_cb=first_error,
                disconnected_cb=disconnected,
                reconnected_cb=reconnected,
            )
        except ImportError:
            raise ConfigError(f"NATS at {where}: WebSocket needs pip install 'eyeline[websocket]'") from None
        except (TimeoutError, OSError, nats.errors.Error) as problem:
            await client.give_up()
            if _is_away(problem):
                reason = refusal[-1] if refusal else str(problem)
                if not wait:
                    raise BusError(f"NATS at {where} cannot be reached ({reason}): is it running?") from None
                if not said:
                    _log.warning("nats_waiting", client=name, server=where, reason=reason)
                    said = True
                await asyncio.sleep(delay * (1 + random.random() / 4))
                delay = min(delay * 2, _LONGEST_WAIT_S)
                continue
            reason = str(problem)
            if "authorization" in reason.lower() or "authentication" in reason.lower():
                reason = "it does not know this user and password; check them"
                if creds_file is not None:
                    reason = (
                        f"credentials {creds_file} are not, or no longer, valid there: enroll again, or, "
                        "if it was away when they were made, cloud-inference tell"
                    )
            raise BusError(f"NATS at {where} refused {name}: {reason}", retryable=False) from None
        else:
            client.options["max_reconnect_attempts"] = -1
            client.options["allow_reconnect"] = True
            if said:
                _log.info("nats_connected", client=name, server=where)
            return client


def _is_away(problem: Exception) -> bool:
    """Whether a server may come: nobody answered, or a proxy did that has no server behind it yet."""
    if isinstance(problem, nats.errors.NoServersError | nats.errors.TimeoutError):
        return True
    return not isinstance(problem, nats.errors.Error) or "empty response" in str(problem)


async def ensure_stream(js: JetStreamContext, config: StreamConfig, *, change: bool = True) -> None:
    """Create the stream, or bring an existing one to this configuration; raises `BusError`.

    change: with False, an existing one stays as it is.
    """
    assert config.name is not None  # noqa: S101  # ours to get right, not the user's
    try:
        try:
            await js.stream_info(config.name)
        except NotFoundError:
            await js.add_stream(config)
        else:
            if change:
                await js.update_stream(config)
    except BadRequestError as problem:
        raise BusError(f"stream {config.name}: {problem.description}", retryable=False) from None
    except (TimeoutError, APIError, nats.errors.Error) as problem:
        raise BusError(f"stream {config.name}: {problem}") from problem


async def ensure_bucket(js: JetStreamContext, config: KeyValueConfig) -> KeyValue:
    """Open the key-value bucket, creating it when it is missing; raises `BusError`."""
    try:
        try:
            return await js.key_value(config.bucket)
        except (BucketNotFoundError, NotFoundError):
            return await js.create_key_value(config)
    except (TimeoutError, APIError, nats.errors.Error) as problem:
        raise BusError(f"bucket {config.bucket}: {problem}") from None


async def ensure_objects(js: JetStreamContext, config: ObjectStoreConfig) -> None:
    """Create the object store unless it is there; raises `BusError`."""
    assert config.bucket is not None  # noqa: S101  # ours to get right, not the user's
    try:
        try:
            await js.object_store(config.bucket)
        except (BucketNotFoundError, NotFoundError):
            await js.create_object_store(config.bucket, config)
    except (TimeoutError, APIError, nats.errors.Error) as problem:
        raise BusError(f"object store {config.bucket}: {problem}") from None


def _login(user: str | None, password: str | None, creds_file: Path | None) -> dict[str, Any]:
    """How to show the server who we are; raises `ConfigError`."""
    if creds_file is None:
        return {"user": user, "password": password}
    from eyeline import creds  # noqa: PLC0415  # cryptography takes memory, which not every device has

    found = creds.read(creds_file)

    def sign(nonce: str) -> bytes:
        nonlocal found
        found = creds.read(creds_file)
        return base64.b64encode(found.key.sign(nonce.encode()))

    # The client asks for the signature first.
    return {"signature_cb": sign, "user_jwt_cb": lambda: found.jwt.encode()}  # noqa: PLW0108  # late


def _security(urls: Sequence[str], creds_file: Path | None, ca_file: Path | None) -> dict[str, Any]:
    """TLS, when an address or an authority asks for it; raises `ConfigError`."""
    schemes = {urlsplit(url).scheme for url in urls}
    if ca_file is None and not schemes & {"tls", "wss"}:
        return {}
    if "ws" in schemes:
        raise ConfigError("hub.ca_file needs wss:// or tls:// addresses, not ws://")
    authority = None
    if ca_file is not None:
        try:
            authority = ca_file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as problem:
            raise ConfigError(f"hub.ca_file {ca_file} cannot be read: {problem}") from None
        if "BEGIN CERTIFICATE" not in authority:
            raise ConfigError(f"hub.ca_file {ca_file} holds no certificate in PEM")
    elif creds_file is not None:
        from eyeline import creds  # noqa: PLC0415  # as above

        authority = creds.read(creds_file).ca or None
    try:
        context = ssl.create_default_context(cadata=authority)
    except (ssl.SSLError, ValueError):
        raise ConfigError(f"{ca_file or creds_file} holds no certificate that can be read") from None
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    # Encrypted from the first byte, as WebSocket is anyway: nobody in between can ask for less.
    return {"tls": context, "tls_handshake_first": not schemes & {"wss"}}


def _without_credentials(url: str) -> str:
    scheme, _, rest = url.rpartition("://")
    return (scheme + "://" if scheme else "") + rest.rpartition("@")[2]
