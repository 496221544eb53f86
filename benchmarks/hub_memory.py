"""Whether the hub's memory stays bounded over hours of messages, played faster than they come.

    python -m benchmarks.hub_memory [--hours 8] [--cameras 8] [--out FILE]

The real hub as the worker uses it: each camera's messages are stored with their ids and removed again once
answered, each answer is stored right behind the one before, and a reader takes both. A camera sends one
message a second; here as many as hours of that are sent as fast as the hub takes them, so message ids are
remembered for many more of them than in real time: the memory is an upper bound. Told are resident memory
after every quarter of an hour of messages, and its slope after the first hour, with its 95 % interval.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

import numpy as np
import psutil
from nats.aio.client import Client
from rich.console import Console
from rich.table import Table

from benchmarks.machine import describe
from benchmarks.soak import slope_per_h
from cloud_inference import streams
from cloud_inference.config import StreamSettings
from cloud_inference.feed import Feed
from cloud_inference.hub import HubOptions, LocalHub
from eyeline import bus, subjects
from eyeline.errors import EyelineError

_TENANT: Final = "default"
_SITE: Final = "site"
_DEVICE: Final = "edge"
# Of a camera in a quarter of an hour: one a second.
_PER_QUARTER: Final = 900
# Bytes of a message of frames and of one of results: about what a street at 5 frames a second makes.
_FRAME_BYTES: Final = 1200
_RESULT_BYTES: Final = 2500
# Messages of a camera after which those that are answered are removed.
_PURGE_EVERY: Final = 5
_MEGA: Final = 1e6


@dataclass(frozen=True, slots=True)
class Measured:
    """What came of it. resident_mb: after each quarter of an hour of messages."""

    cameras: int
    hours: float
    messages: int
    seconds: float
    resident_mb: list[float]
    resident_mb_per_h: float
    resident_mb_per_h_ci95: tuple[float, float]


async def measure(hours: float, cameras: int, state: Path) -> Measured:
    """Play it; raises `EyelineError`."""
    hub = LocalHub({_TENANT: [(_SITE, _DEVICE)]}, state, HubOptions())
    await hub.start()
    try:
        client = await bus.connect(hub.url, name="cloud", creds_file=hub.tenant(_TENANT).cloud, wait=False)
        try:
            return await _play(hub, client, hours, cameras)
        finally:
            await client.close()
    finally:
        await hub.stop()


async def _play(hub: LocalHub, client: Client, hours: float, cameras: int) -> Measured:
    js = client.jetstream(timeout=10)
    await streams.ensure(js, StreamSettings())
    assert hub.server.pid is not None
    process = psutil.Process(hub.server.pid)
    read_from = {
        subjects.FRAMES: subjects.frame_subject("*", "*", "*"),
        subjects.RESULTS: subjects.result_subject("*", "*"),
    }
    taken = dict.fromkeys(read_from, 0)

    async def read(stream: str) -> None:
        feed = Feed(client, js, stream, [read_from[stream]], start_sequence=1)
        while True:
            taken[stream] += len(await feed.take())

    async def camera(name: str, messages: int) -> None:
        frames, results = subjects.frame_subject(_SITE, _DEVICE, name), subjects.result_subject(_SITE, name)
        last = lasts.get(name, 0)
        for _ in range(messages):
            headers = {"Nats-Msg-Id": os.urandom(16).hex()}
            frame = await js.publish(frames, os.urandom(_FRAME_BYTES), headers=headers)
            answer = await js.publish(
                results,
                os.urandom(_RESULT_BYTES),
                headers={"Nats-Expected-Last-Subject-Sequence": str(last)},
            )
            last = answer.seq
            if frame.seq % _PURGE_EVERY == 0:
                await js.purge_stream(subjects.FRAMES, seq=frame.seq, subject=frames)
        lasts[name] = last

    lasts: dict[str, int] = {}
    readers = [asyncio.create_task(read(stream)) for stream in taken]
    resident: list[float] = []
    began, sent = time.monotonic(), 0
    try:
        for _ in range(round(hours * 4)):
            async with asyncio.TaskGroup() as group:
                for number in range(cameras):
                    group.create_task(camera(f"cam{number}", _PER_QUARTER))
            sent += _PER_QUARTER * cameras
            resident.append(round(process.memory_info().rss / _MEGA, 1))
        while taken[subjects.RESULTS] < sent:  # noqa: ASYNC110
            await asyncio.sleep(0.1)
    finally:
        for task in readers:
            task.cancel()
        await asyncio.gather(*readers, return_exceptions=True)
    moments = float(_PER_QUARTER) * np.arange(1, len(resident) + 1)
    slope, half = slope_per_h(moments[4:], np.array(resident[4:]))
    return Measured(
        cameras,
        hours,
        sent,
        round(time.monotonic() - began),
        resident,
        round(slope, 2),
        (round(slope - half, 2), round(slope + half, 2)),
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print a table, write the file."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.hub_memory", description=__doc__.split("\n")[0]
    )
    parser.add_argument("--hours", type=float, default=8.0, help="hours of messages, at least 4 (default 8)")
    parser.add_argument("--cameras", type=int, default=8)
    parser.add_argument("--out", type=Path, help="JSON file")
    options = parser.parse_args(argv)
    if options.hours < 4 or options.cameras < 1:
        parser.error("--hours must be at least 4, and --cameras at least 1")
    if options.out is not None and not options.out.absolute().parent.is_dir():
        parser.error(f"--out {options.out}: its folder does not exist")
    try:
        with tempfile.TemporaryDirectory(prefix="eyeline-hub-") as folder:
            measured = asyncio.run(measure(options.hours, options.cameras, Path(folder)))
        if options.out is not None:
            text = json.dumps({"machine": describe(), **asdict(measured)}, indent=2)
            options.out.write_text(text + "\n", encoding="utf-8")
    except (EyelineError, OSError) as problem:
        print(f"hub_memory: {problem}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("hub_memory: stopped", file=sys.stderr)
        return 130
    table = Table(title=f"The hub's memory, {measured.messages} messages of {measured.cameras} cameras")
    table.add_column("hours of messages", justify="right")
    table.add_column("resident, MB", justify="right")
    for hour, resident_mb in enumerate(measured.resident_mb[3::4], 1):
        table.add_row(str(hour), f"{resident_mb:.1f}")
    console = Console()
    console.print(table)
    low, high = measured.resident_mb_per_h_ci95
    slope = f"{measured.resident_mb_per_h:+.1f} MB an hour of messages ({low:+.1f} to {high:+.1f})"
    console.print(f"after the first hour: {slope}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
