"""Whether a subscription that goes on has everything: what was removed, or put in its place, meanwhile."""

from __future__ import annotations

import contextlib
import time
from typing import Final

import nats.errors
from grpc import StatusCode
from nats.js.errors import APIError, NotFoundError

from cloud_inference.api.errors import Refusal
from cloud_inference.api.tenants import TenantHub
from cloud_inference.api.tokens import Position
from cloud_inference.feed import StreamMessage
from eyeline import subjects
from eyeline.v1 import result_pb2

# Every result of a message lies before this index.
ALL: Final = 2**32 - 1
# What was stored less than this ago has not aged out, nor has what came before it.
_FRESH_NS: Final = 2_000_000_000


async def behind_everything(hub: TenantHub) -> Position:
    """Behind everything that is stored now."""
    info = await hub.js.stream_info(subjects.RESULTS)
    return Position(info.state.last_seq, ALL, time.time_ns())


async def check_same(hub: TenantHub, stream: bytes) -> Position | None:
    """Behind everything stored, if the hub has the same results after a reconnect; None without an answer.

    Raises `Refusal` when they are others: going on by sequence would skip the new ones in silence.
    """
    connection = hub.reconnects
    try:
        same = await hub.stream_identity() == stream
        newest = await behind_everything(hub)
    except (TimeoutError, nats.errors.Error, APIError):
        return None
    if not same:
        raise Refusal(
            StatusCode.INVALID_ARGUMENT, "the hub lost its results stream; subscribe from a time instead"
        )
    return newest if connection == hub.reconnects else None


async def check_reachable(hub: TenantHub, position: Position) -> None:
    """Raise `Refusal` with OUT_OF_RANGE when results after the position are no longer kept."""
    info = await hub.js.stream_info(subjects.RESULTS)
    first = info.state.first_seq
    if position.sequence > info.state.last_seq:
        raise Refusal(
            StatusCode.INVALID_ARGUMENT,
            "this resume token is ahead of the stream; subscribe from a time instead",
        )
    if position.sequence + 1 >= first:
        return
    oldest_ns = 0
    if info.state.messages:
        with contextlib.suppress(NotFoundError):
            kept = await hub.js.get_msg(subjects.RESULTS, first)
            oldest_ns = int(kept.time.timestamp() * 1e9) if kept.time is not None else 0
    missing = first - position.sequence - 1
    raise Refusal(
        StatusCode.OUT_OF_RANGE,
        f"{missing} stored messages after this resume token are no longer kept; subscribe from a time",
        result_pb2.ResumeGap(
            token_time_ns=position.stored_ns, oldest_time_ns=oldest_ns, missing_messages=missing
        ),
    )


def jumps(known: Position | None, message: StreamMessage) -> bool:
    """Whether others were stored between what a subscription has and its next message.

    A reader close behind the writers loses none of them, and is not looked at.
    """
    is_fresh = time.time_ns() - message.stored_ns < _FRESH_NS
    return known is not None and message.sequence > known.sequence + 1 and not is_fresh


def aged_out(known: Position | None, message: StreamMessage, first: int) -> result_pb2.ResumeGap | None:
    """What was removed before a subscription got to it; None when nothing was.

    known: what the subscription has; first: the oldest message kept, 0 when it does not matter.
    """
    if known is None:
        return None
    missing = min(first, message.sequence) - known.sequence - 1
    if missing <= 0:
        return None
    return result_pb2.ResumeGap(
        token_time_ns=known.stored_ns, oldest_time_ns=message.stored_ns, missing_messages=missing
    )
