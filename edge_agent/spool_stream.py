"""The spool's stream in its broker: making it, reading it, removing from it. No state of its own."""

from __future__ import annotations

import asyncio
import contextlib
import json
import secrets
import time
from typing import Any, Final

import structlog
from nats.aio.msg import Msg

from edge_agent.config import SpoolSettings
from edge_agent.errors import SpoolError
from edge_agent.link import Refused, Session
from edge_agent.segments import Entry, entry_from_headers
from eyeline.bus import heeding_cancellation
from eyeline.errors import BusError
from eyeline.subjects import SPOOL, spool_subject

_log = structlog.get_logger()

# Where reports of lost frames are kept, beside the frames.
REPORTS: Final = "spool.lost"
_SCAN_BATCH: Final = 512


async def ensure(session: Session, settings: SpoolSettings) -> dict[str, Any]:
    """Create the stream or bring it up to date; its state. Raises `BusError`."""
    config = {
        "name": SPOOL,
        "subjects": [spool_subject("*"), f"{REPORTS}.*"],
        "retention": "limits",
        "storage": settings.storage,
        "discard": "new",
        "max_bytes": settings.max_bytes,
        "num_replicas": 1,
        "duplicate_window": 120_000_000_000,
        "allow_direct": True,
    }
    try:
        await session.api(f"STREAM.INFO.{SPOOL}")
    except Refused as problem:
        if problem.code != 10059:  # no such stream
            raise
        answer = await session.api(f"STREAM.CREATE.{SPOOL}", config)
    else:
        answer = await session.api(f"STREAM.UPDATE.{SPOOL}", config)
    return dict(answer["state"])


async def scan(session: Session, state: dict[str, Any]) -> list[tuple[bool, str, Entry]]:
    """Everything in it, from headers alone: whether it is a report of lost frames, camera and entry.

    Raises `SpoolError` when it cannot be read in whole.
    """
    first, last = int(state["first_seq"]), int(state["last_seq"])
    if not int(state["messages"]):
        return []
    now, wall = time.monotonic(), time.time()
    inbox = session.client.new_inbox()
    subscription = await session.client.subscribe(inbox)
    name = f"scan-{secrets.token_hex(4)}"
    config = {
        "name": name,
        "deliver_policy": "by_start_sequence",
        "opt_start_seq": first,
        "ack_policy": "none",
        "headers_only": True,
        "mem_storage": True,
        "inactive_threshold": 30_000_000_000,
    }
    await session.api(f"CONSUMER.CREATE.{SPOOL}.{name}", {"stream_name": SPOOL, "config": config})
    reached = 0
    found: list[tuple[bool, str, Entry]] = []
    try:
        while reached < last:
            ask = f'{{"batch":{_SCAN_BATCH},"no_wait":true}}'.encode()
            await session.client.publish(f"$JS.API.CONSUMER.MSG.NEXT.{SPOOL}.{name}", ask, reply=inbox)
            for _ in range(_SCAN_BATCH):
                message = await heeding_cancellation(subscription.next_msg(timeout=5))
                headers = message.headers or {}
                if "Status" in headers:
                    if headers["Status"] == "404":
                        reached = last
                    break
                tokens = message.reply.split(".")
                at = 5 if len(tokens) == 9 else 7
                reached, stored = int(tokens[at]), int(tokens[at + 2]) / 1e9
                _, kind, camera = message.subject.split(".")
                size = int(headers.get("Nats-Msg-Size", 0))
                try:
                    entry = entry_from_headers(headers, reached, size, now - max(0.0, wall - stored))
                except ValueError:
                    _log.warning("spool_message_not_ours", sequence=reached)
                    continue
                found.append((kind == "lost", camera, entry))
    except (TimeoutError, ValueError) as problem:
        raise SpoolError(f"the spool's index cannot be read: {problem or 'no answer'}") from None
    finally:
        with contextlib.suppress(Exception):
            await subscription.unsubscribe()
    return found


async def get(session: Session, ask: dict[str, Any]) -> tuple[int, bytes] | None:
    """Sequence and payload of one message; see `get_many`."""
    found = await get_many(session, {**ask, "batch": 1})
    return found[0] if found else None


async def get_many(session: Session, ask: dict[str, Any]) -> list[tuple[int, bytes]]:
    """A direct batch get (NATS ADR-31): sequence and payload of each; raises `BusError`."""
    inbox = session.client.new_inbox()
    found: list[tuple[int, bytes]] = []
    done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def deliver(message: Msg) -> None:
        headers = message.headers or {}
        if "Status" in headers or "Nats-Sequence" not in headers:
            if not done.done():
                done.set_result(None)
            return
        found.append((int(headers["Nats-Sequence"]), message.data))

    subscription = await session.client.subscribe(inbox, cb=deliver)
    lost: asyncio.Future[Any] = asyncio.ensure_future(session.closed.wait())
    waiting: set[asyncio.Future[Any]] = {done, lost}
    try:
        await session.client.publish(f"$JS.API.DIRECT.GET.{SPOOL}", json.dumps(ask).encode(), reply=inbox)
        await asyncio.wait(waiting, timeout=5, return_when=asyncio.FIRST_COMPLETED)
        if not done.done():
            raise BusError("the spool gave no answer")
        return found
    finally:
        lost.cancel()
        with contextlib.suppress(Exception):
            await subscription.unsubscribe()


async def purge(session: Session, camera: str, upto: int) -> None:
    """Remove a camera's messages up to a sequence, included."""
    await session.api(f"STREAM.PURGE.{SPOOL}", {"filter": spool_subject(camera), "seq": upto + 1})


async def delete(session: Session, sequence: int, *, overwrite: bool = False) -> None:
    """Remove one message, if it is there; overwrite: on the disk too, now."""
    try:
        await session.api(f"STREAM.MSG.DELETE.{SPOOL}", {"seq": sequence, "no_erase": not overwrite})
    except Refused as problem:
        if problem.code not in {10037, 10043, 10057}:  # not there any more
            raise
