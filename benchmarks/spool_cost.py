"""What keeping frames on the device costs, for each setting of the spool.

    python -m benchmarks.spool_cost [--seconds 20] [--rate 5] [--bytes 1200] [--out FILE]

The agent's own spool (its broker a process of its own) keeps messages at a steady rate, and each is removed
again as the hub would acknowledge it. Told per setting: how long keeping takes, the broker's processor time,
what reaches the storage in a day of this (`write_bytes` of /proc/PID/io), and what a power cut can lose.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import psutil
from rich.console import Console
from rich.table import Table

from edge_agent.config import Fsync, SpoolSettings
from edge_agent.spool import Spool
from eyeline.errors import EyelineError
from eyeline.v1 import frame_pb2 as pb

_DAY_S: Final = 86_400
# Name, settings, and what a power cut can lose of what counted as kept. A crash of agent or broker alone
# loses nothing of a file spool, whatever the setting: the kernel has it.
_SETTINGS: Final[tuple[tuple[str, dict[str, Any], str], ...]] = (
    ("file, fsync always", {"fsync": Fsync.ALWAYS}, "nothing"),
    ("file, fsync 1s (default)", {"fsync": Fsync.SECOND}, "the last second"),
    ("file, fsync 2m", {"fsync": Fsync.RELAXED}, "the last two minutes"),
    ("memory", {"storage": "memory", "max_bytes": 64 << 20}, "all that waits, as in a crash of the broker"),
)


@dataclass(frozen=True, slots=True)
class Cost:
    """Of one setting."""

    setting: str
    keep_p50_ms: float
    keep_p99_ms: float
    broker_cpu_ms_per_message: float
    storage_mb_per_day: float
    payload_mb_per_day: float
    power_cut_loses: str


async def measure(name: str, settings: dict[str, Any], loses: str, options: argparse.Namespace) -> Cost:
    """Run one setting; raises `EyelineError`."""
    with tempfile.TemporaryDirectory(prefix="eyeline-spool-", dir=options.dir) as folder:
        spool = Spool(SpoolSettings(**settings), Path(folder))
        await spool.start()
        try:
            assert spool.pid is not None
            broker = psutil.Process(spool.pid)
            cpu, written = broker.cpu_times(), _written(broker.pid)
            took = []
            count = round(options.seconds * options.rate)
            began = time.monotonic()
            for number in range(1, count + 1):
                await asyncio.sleep(max(0.0, began + number / options.rate - time.monotonic()))
                start = time.perf_counter()
                segment = await spool.put(_envelope(number, options.bytes))
                took.append((time.perf_counter() - start) * 1e3)
                parts = await spool.read("camera", segment)
                spool.acknowledged("camera", segment, parts, number)
            await asyncio.sleep(1.5)
            now, days = broker.cpu_times(), options.seconds / _DAY_S
            return Cost(
                name,
                round(float(np.percentile(took, 50)), 2),
                round(float(np.percentile(took, 99)), 2),
                round((now.user + now.system - cpu.user - cpu.system) * 1e3 / count, 3),
                round((_written(broker.pid) - written) / days / 1e6, 1),
                round(count * options.bytes / days / 1e6, 1),
                loses,
            )
        finally:
            await spool.stop()


def _written(pid: int) -> int:
    """Bytes that a process caused to be sent to the storage."""
    lines = Path(f"/proc/{pid}/io").read_text(encoding="ascii").splitlines()
    return int(dict(line.split(": ") for line in lines)["write_bytes"])


def _envelope(number: int, size: int) -> pb.FrameEnvelope:
    capture = pb.CaptureTime(monotonic_ns=time.monotonic_ns(), wall_ns=time.time_ns())
    unit = pb.AccessUnit(
        sequence=number,
        capture=capture,
        chain_id=1 + (number - 1) // 300,
        chain_index=(number - 1) % 300,
        keyframe=(number - 1) % 300 == 0,
        data=np.random.default_rng(number).bytes(size),
    )
    picture = pb.PictureFormat(
        codec=pb.CODEC_H264,
        coded_width_px=416,
        coded_height_px=312,
        source_width_px=768,
        source_height_px=576,
        scale_x=1.85,
        scale_y=1.85,
    )
    return pb.FrameEnvelope(
        schema_major=1,
        tenant="default",
        site="site",
        device="edge",
        camera="camera",
        epoch=pb.Epoch(counter=1, random_id=b"12345678"),
        format=picture,
        items=[pb.FrameItem(access_unit=unit)],
        published=capture,
        lane=pb.LANE_LIVE,
        previous_sequence=number - 1,
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Measure every setting and print a table."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.spool_cost", description=__doc__.split("\n")[0]
    )
    parser.add_argument("--seconds", type=float, default=20.0, help="how long each setting runs")
    parser.add_argument("--rate", type=float, default=5.0, help="messages a second")
    parser.add_argument("--bytes", type=int, default=1200, help="of pixels in each")
    parser.add_argument("--dir", type=Path, help="a folder on the storage to measure (default: TMPDIR)")
    parser.add_argument("--out", type=Path, help="write the figures here as JSON")
    options = parser.parse_args(argv)
    try:
        costs = [asyncio.run(measure(*setting, options)) for setting in _SETTINGS]
    except EyelineError as problem:
        print(f"spool_cost: {problem}", file=sys.stderr)
        return 2
    if options.out is not None:
        options.out.write_text(json.dumps([asdict(cost) for cost in costs], indent=2) + "\n")
    table = Table(title=f"The spool, {options.rate:g} messages of {options.bytes} bytes a second")
    for name in (
        "setting",
        "keep, p50 ms",
        "p99 ms",
        "broker CPU, ms",
        "storage MB/day",
        "payload MB/day",
        "a power cut loses",
    ):
        table.add_column(name)
    for cost in costs:
        table.add_row(*(str(value) for value in asdict(cost).values()))
    Console(width=None if sys.stdout.isatty() else 140).print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
