"""Connecting to NATS: wait for it, say so, reconnect for ever."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence

import nats
import nats.errors
import structlog
from nats.aio.client import Client
from nats.js import JetStreamContext
from nats.js.api import KeyValueConfig, StreamConfig
from nats.js.errors import APIError, BadRequestError, BucketNotFoundError, NotFoundError
from nats.js.kv import KeyValue

from eyeline.errors import BusError

_log = structlog.get_logger()

_FIRST_WAIT_S = 0.2
# Whoever restarts the hub expects everybody back within seconds.
_LONGEST_WAIT_S = 1.0


async def connect(
    servers: str | Sequence[str],
    *,
    name: str,
    user: str | None = None,
    password: str | None = None,
    inbox_prefix: str = "_INBOX",
    wait: bool = True,
    on_change: Callable[[bool], Awaitable[None] | None] | None = None,
) -> Client:
    """Connect to NATS and stay connected.

    servers: one URL or several; name: shown by the server; inbox_prefix: private to this user.
    wait: with False, one failed attempt raises `BusError`; otherwise wait until a server comes, logging once
    a state change. on_change: called with False on a lost connection and with True when it is back.
    Wrong credentials raise `BusError` with `retryable=False` in either case.
    """
    urls = [servers] if isinstance(servers, str) else list(servers)
    where = ", ".join(_without_credentials(url) for url in urls)

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

        try:
            client = await nats.connect(
                servers=urls,
                name=name,
                user=user,
                password=password,
                inbox_prefix=inbox_prefix.encode(),
                connect_timeout=3,
                reconnect_time_wait=0.25,
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
        except (TimeoutError, OSError, nats.errors.NoServersError, nats.errors.TimeoutError) as problem:
            reason = refusal[-1] if refusal else str(problem)
            if not wait:
                raise BusError(f"NATS at {where} cannot be reached ({reason}): is it running?") from None
            if not said:
                _log.warning("nats_waiting", client=name, server=where, reason=reason)
                said = True
        except nats.errors.Error as problem:
            reason = str(problem)
            if "authorization" in reason.lower():
                reason = "it does not know this user and password; check them"
            raise BusError(f"NATS at {where} refused {name}: {reason}", retryable=False) from None
        else:
            client.options["max_reconnect_attempts"] = -1
            client.options["allow_reconnect"] = True
            if said:
                _log.info("nats_connected", client=name, server=where)
            return client
        await asyncio.sleep(delay * (1 + random.random() / 4))
        delay = min(delay * 2, _LONGEST_WAIT_S)


async def ensure_stream(js: JetStreamContext, config: StreamConfig) -> None:
    """Create the stream, or bring an existing one to this configuration; raises `BusError`."""
    assert config.name is not None  # noqa: S101  # ours to get right, not the user's
    try:
        try:
            await js.stream_info(config.name)
        except NotFoundError:
            await js.add_stream(config)
        else:
            await js.update_stream(config)
    except BadRequestError as problem:
        raise BusError(f"stream {config.name}: {problem.description}", retryable=False) from None
    except (TimeoutError, APIError, nats.errors.Error) as problem:
        raise BusError(f"stream {config.name}: {problem}") from None


async def ensure_bucket(js: JetStreamContext, config: KeyValueConfig) -> KeyValue:
    """Open the key-value bucket, creating it when it is missing; raises `BusError`."""
    try:
        try:
            return await js.key_value(config.bucket)
        except (BucketNotFoundError, NotFoundError):
            return await js.create_key_value(config)
    except (TimeoutError, APIError, nats.errors.Error) as problem:
        raise BusError(f"bucket {config.bucket}: {problem}") from None


def _without_credentials(url: str) -> str:
    scheme, _, rest = url.rpartition("://")
    return (scheme + "://" if scheme else "") + rest.rpartition("@")[2]
