"""Listening on the device's own bus: the answers that cameras give while the cloud is away."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Final

from google.protobuf.message import DecodeError
from nats.aio.msg import Msg

from edge_agent.epoch import read_json, write_atomically
from eyeline import bus
from eyeline.errors import BusError, ConfigError
from eyeline.subjects import result_subject
from eyeline.v1 import result_pb2
from eyeline.values import Result

_FILE: Final = "bus.json"


def announce(state_dir: Path, url: str, site: str) -> None:
    """Write down where local consumers listen: address, and subject of all cameras' answers."""
    with contextlib.suppress(OSError):  # a full disk must not stop the cameras
        write_atomically(state_dir / _FILE, {"url": url, "results": result_subject(site, "*")})


def address(state_dir: Path) -> tuple[str, str]:
    """Address and subject of the agent that runs with this folder; raises `ConfigError`."""
    found = read_json(state_dir / _FILE)
    if not isinstance(found, dict) or not {"url", "results"} <= found.keys():
        raise ConfigError(f"no agent has run with state_dir {state_dir}: start it, or name its folder")
    return str(found["url"]), str(found["results"])


async def results(state_dir: Path) -> AsyncGenerator[Result]:
    """Answers as they are given, until cancelled; raises `ConfigError`, `BusError`."""
    url, subject = address(state_dir)
    client = await bus.connect(url, name="edge-agent watch", wait=False)
    queue: asyncio.Queue[Msg] = asyncio.Queue(1000)

    async def take(message: Msg) -> None:
        await queue.put(message)

    try:
        await client.subscribe(subject, cb=take)
        await client.flush()
        while True:
            message = await queue.get()
            try:
                batch = result_pb2.ResultBatch.FromString(message.data)
            except DecodeError:
                raise BusError(f"{message.subject} brought no results: another program's?") from None
            for one in batch.results:
                yield Result.from_proto(one)
    finally:
        await client.close()
