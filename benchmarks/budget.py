"""The byte budget on the wire: a real agent, hub and cloud, and every byte between them in any ten seconds.

    python -m benchmarks.budget [--video FILE] [--budgets 20,50,200] [--seconds 60] [--out FILE]

The link is a TCP proxy that counts both directions, acknowledgements, status and clock included, plus 40
bytes of headers for every started 1,400 of a piece. The first `_START_S` (connecting, subscribing) are told
apart.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from urllib.parse import urlsplit

from rich.console import Console
from rich.table import Table

from benchmarks.demo import CLIP
from benchmarks.faults_proxy import Proxy
from benchmarks.system import Agent, Cloud
from eyeline.errors import EyelineError

_WINDOW_S = 10.0
_SAMPLE_S = 0.2
_START_S = 3.0
_HEADER_BYTES = 40


@dataclass(frozen=True, slots=True)
class Outcome:
    """Kilobits a second: peak over any ten seconds, with and without the start, and the mean."""

    budget_kbit_s: float
    peak_kbit_s: float
    peak_with_start_kbit_s: float
    mean_kbit_s: float
    frames: int
    sent: int
    rung: str

    @property
    def share(self) -> float:
        """Of the budget, what the fullest ten seconds took."""
        return self.peak_kbit_s / self.budget_kbit_s


def peak(samples: list[tuple[float, int]], since_s: float) -> float:
    """Kilobits a second in the fullest ten seconds; samples: (seconds, bytes so far), ascending."""
    most, start = 0, 0
    kept = [it for it in samples if it[0] >= since_s]
    for at, count in kept:
        while at - kept[start][0] > _WINDOW_S:
            start += 1
        most = max(most, count - kept[start][1])
    return most / 125 / _WINDOW_S


async def measure(cloud: Cloud, video: Path, budget: float, seconds: float, state: Path) -> Outcome:
    """Play the video for so long under a budget."""
    hub = urlsplit(cloud.endpoints["hub"])
    assert hub.hostname is not None
    assert hub.port is not None
    async with Proxy(hub.hostname, hub.port) as proxy, cloud.client() as client:
        agent = Agent(
            cloud,
            state,
            {"cam": {"source": str(video.absolute()), "realtime": True, "loop": True}},
            settings={
                "hub": {
                    "url": f"nats://127.0.0.1:{proxy.port}",
                    "creds_file": cloud.device()["creds"],
                },
                "encode": {"budget_kbit_s": budget},
                "detect": {"enabled": False},
            },
        )
        samples: list[tuple[float, int]] = []
        async with agent:
            began = time.monotonic()
            while time.monotonic() - began < seconds:
                agent.check()
                samples.append((time.monotonic() - began, proxy.bytes + _HEADER_BYTES * proxy.segments))
                await asyncio.sleep(_SAMPLE_S)
            status = await agent.finish(client)
    (camera,) = status.cameras
    return Outcome(
        budget_kbit_s=budget,
        peak_kbit_s=peak(samples, _START_S),
        peak_with_start_kbit_s=peak(samples, 0),
        mean_kbit_s=samples[-1][1] / 125 / samples[-1][0],
        frames=camera.frames_captured,
        sent=camera.frames_sent,
        rung=camera.rung,
    )


async def run(video: Path, budgets: list[float], seconds: float) -> list[Outcome]:
    """One budget after the other, with one cloud."""
    with tempfile.TemporaryDirectory(prefix="eyeline-budget-") as folder:
        async with Cloud(Path(folder) / "cloud") as cloud:
            return [
                await measure(cloud, video, budget, seconds, Path(folder) / f"edge-{budget:g}")
                for budget in budgets
            ]


def main(arguments: list[str] | None = None) -> int:
    """The command; 1 when a budget was exceeded by more than a tenth."""
    parser = argparse.ArgumentParser(prog="benchmarks.budget", description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--video", type=Path, default=CLIP)
    parser.add_argument("--budgets", default="20,50,200", help="kilobits a second, with commas between")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    options = parser.parse_args(arguments)
    budgets = [float(it) for it in options.budgets.split(",")]
    try:
        outcomes = asyncio.run(run(options.video, budgets, options.seconds))
    except EyelineError as problem:
        print(f"budget: {problem}", file=sys.stderr)
        return 1
    shown = Table("budget", "peak of 10 s", "of budget", "with the start", "mean", "frames", "sent", "rung")
    for one in outcomes:
        rates = (one.peak_with_start_kbit_s, one.mean_kbit_s)
        shown.add_row(
            f"{one.budget_kbit_s:g} kbit/s",
            f"{one.peak_kbit_s:.1f}",
            f"{one.share:.2f}",
            *(f"{rate:.1f}" for rate in rates),
            str(one.frames),
            str(one.sent),
            one.rung,
        )
    Console(width=110).print(shown)
    if options.out is not None:
        options.out.write_text(json.dumps([asdict(one) for one in outcomes], indent=1) + "\n", "utf-8")
    return 0 if all(one.share <= 1.1 for one in outcomes) else 1


if __name__ == "__main__":
    raise SystemExit(main())
