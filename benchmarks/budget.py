"""The byte budget on the wire: a real agent, hub and cloud, and every byte between them in any ten seconds.

    python -m benchmarks.budget [--video FILE] [--budgets 20,50,200] [--seconds 60]
                                [--cut 20] [--cut-budgets 20,50] [--tls] [--out FILE]

The link is a TCP proxy that counts both directions, acknowledgements, status and clock included, plus 40
bytes of headers for every started 1,400 of a piece. The first ten seconds, with connecting, count like any
others. Then the link is cut for `--cut` seconds after a while of playing: what waited has to stay inside the
budget as well. Without TLS the bytes are told apart by what they were.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from rich.console import Console
from rich.table import Table

from benchmarks.demo import CLIP
from benchmarks.faults_proxy import Proxy
from benchmarks.system import Agent, Cloud
from benchmarks.wire_split import Reader, added
from eyeline import Client
from eyeline.errors import EyelineError
from eyeline.v1 import device_pb2

_WINDOW_S = 10.0
_SAMPLE_S = 0.2
_START_S = 3.0
_HEADER_BYTES = 40
# Before a cut, and for a backlog to drain.
_BEFORE_CUT_S = 15.0
_DRAIN_S = 180.0
_AFTER_DRAIN_S = 10.0
_STATUS_S = 2.0


@dataclass(frozen=True, slots=True)
class Outcome:
    """Kilobits a second: peak over any ten seconds, start included, and after the start; and the mean.

    start_bytes: of the first ten seconds, by what they were.
    """

    budget_kbit_s: float
    tls: bool
    peak_kbit_s: float
    peak_after_start_kbit_s: float
    mean_kbit_s: float
    frames: int
    sent: int
    rung: str
    start_bytes: dict[str, int] = field(default_factory=dict)

    @property
    def share(self) -> float:
        """Of the budget, what the fullest ten seconds took."""
        return self.peak_kbit_s / self.budget_kbit_s


@dataclass(frozen=True, slots=True)
class AfterCut:
    """A link that was cut for `cut_s`: kilobits a second in the fullest ten seconds from then on.

    drained_s: from the link's return until the hub had everything; waited: messages that were waiting then.
    """

    budget_kbit_s: float
    tls: bool
    cut_s: float
    waited: int
    drained_s: float
    peak_kbit_s: float
    mean_kbit_s: float

    @property
    def share(self) -> float:
        """Of the budget, what the fullest ten seconds took."""
        return self.peak_kbit_s / self.budget_kbit_s


class Meter:
    """What went over the proxy, at regular times since it was made."""

    def __init__(self, proxy: Proxy, *, readable: bool) -> None:
        self.samples: list[tuple[float, int]] = [(0.0, 0)]
        self.start_bytes: dict[str, int] = {}
        self._proxy, self._readers = proxy, dict[int, Reader]()
        self._began = time.monotonic()
        if readable:
            proxy.tap = self._read

    def _read(self, connection: int, data: bytes, up: bool) -> None:
        self._readers.setdefault(connection, Reader()).feed(data, up=up)

    @property
    def now(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self._began

    async def until(self, done: Callable[[], bool], check: Callable[[], None]) -> None:
        """Go on measuring until then."""
        while not done():
            check()
            headers = _HEADER_BYTES * self._proxy.segments
            self.samples.append((self.now, self._proxy.bytes + headers))
            if self.now < _WINDOW_S and self._readers:
                split = added(self._readers.values())
                self.start_bytes = {**dict(split.most_common()), "TCP/IP headers": headers}
            await asyncio.sleep(_SAMPLE_S)

    def mean(self, since_s: float = 0.0) -> float:
        """Kilobits a second."""
        (start, before), (end, total) = next(it for it in self.samples if it[0] >= since_s), self.samples[-1]
        return (total - before) / 125 / (end - start)


def peak(samples: list[tuple[float, int]], since_s: float) -> float:
    """Kilobits a second in the fullest ten seconds; samples: (seconds, bytes so far), ascending."""
    most, start = 0, 0
    kept = [it for it in samples if it[0] >= since_s]
    for at, count in kept:
        while at - kept[start][0] > _WINDOW_S:
            start += 1
        most = max(most, count - kept[start][1])
    return most / 125 / _WINDOW_S


def _agent(cloud: Cloud, port: int, video: Path, budget: float, state: Path) -> Agent:
    hub = urlsplit(cloud.endpoints["hub"])
    return Agent(
        cloud,
        state,
        {"cam": {"source": str(video.absolute()), "realtime": True, "loop": True}},
        settings={
            "hub": {"url": f"{hub.scheme}://127.0.0.1:{port}", "creds_file": cloud.device()["creds"]},
            "encode": {"budget_kbit_s": budget},
            "detect": {"enabled": False},
        },
    )


def _proxy(cloud: Cloud) -> Proxy:
    hub = urlsplit(cloud.endpoints["hub"])
    assert hub.hostname is not None
    assert hub.port is not None
    return Proxy(hub.hostname, hub.port)


async def measure(cloud: Cloud, video: Path, budget: float, seconds: float, state: Path) -> Outcome:
    """Play the video for so long under a budget."""
    tls = cloud.endpoints["ca"] is not None
    async with _proxy(cloud) as proxy, cloud.client() as client:
        agent = _agent(cloud, proxy.port, video, budget, state)
        async with agent:
            meter = Meter(proxy, readable=not tls)
            await meter.until(lambda: meter.now >= seconds, agent.check)
            status = await agent.finish(client)
    (camera,) = status.cameras
    return Outcome(
        budget_kbit_s=budget,
        tls=tls,
        peak_kbit_s=peak(meter.samples, 0),
        peak_after_start_kbit_s=peak(meter.samples, _START_S),
        mean_kbit_s=meter.mean(),
        frames=camera.frames_captured,
        sent=camera.frames_sent,
        rung=camera.rung,
        start_bytes=meter.start_bytes,
    )


async def cut(cloud: Cloud, video: Path, budget: float, cut_s: float, state: Path) -> AfterCut:
    """Cut the link for so long, and watch what waited leave; raises `EyelineError` when it never does."""
    tls = cloud.endpoints["ca"] is not None
    async with _proxy(cloud) as proxy, cloud.client() as client:
        agent = _agent(cloud, proxy.port, video, budget, state)
        async with agent:
            meter = Meter(proxy, readable=False)
            await meter.until(lambda: meter.now >= _BEFORE_CUT_S, agent.check)
            proxy.cut()
            since = meter.now
            await meter.until(lambda: meter.now >= since + cut_s, agent.check)
            proxy.restore()
            back = meter.now
            said: list[tuple[float, device_pb2.DeviceStatus]] = []
            watching = asyncio.create_task(_watch(agent, client, meter, said))
            try:
                await meter.until(
                    lambda: _drained(said) is not None or meter.now > back + _DRAIN_S, agent.check
                )
                drained = _drained(said)
                if drained is None:
                    raise EyelineError(f"what waited had not left {_DRAIN_S:g} s after the cut")
                await meter.until(lambda: meter.now >= drained + _AFTER_DRAIN_S, agent.check)
            finally:
                watching.cancel()
            await agent.finish(client)
    return AfterCut(
        budget_kbit_s=budget,
        tls=tls,
        cut_s=cut_s,
        waited=max(it.spool.messages for _, it in said),
        drained_s=drained - back,
        peak_kbit_s=peak(meter.samples, since),
        mean_kbit_s=meter.mean(back),
    )


async def _watch(
    agent: Agent, client: Client, meter: Meter, said: list[tuple[float, device_pb2.DeviceStatus]]
) -> None:
    """Note what the device says from now on, over another way than the link; for ever."""
    newest_ns = time.time_ns()
    while True:
        status = await agent.status(client)
        if status is not None and status.reported_ns > newest_ns:
            newest_ns = status.reported_ns
            said.append((meter.now, status))
        await asyncio.sleep(_STATUS_S / 4)


def _drained(said: list[tuple[float, device_pb2.DeviceStatus]]) -> float | None:
    """When the hub had all but what is made anew each second; None before."""
    return next((at for at, it in said if it.spool.messages <= 2), None)


async def run(options: argparse.Namespace) -> tuple[list[Outcome], list[AfterCut]]:
    """One budget after the other, with one cloud; then those with a cut."""
    budgets, cuts = _numbers(options.budgets), _numbers(options.cut_budgets) if options.cut > 0 else []
    with tempfile.TemporaryDirectory(prefix="eyeline-budget-") as name:
        folder = Path(name)
        async with Cloud(folder / "cloud", tls=options.tls) as cloud:
            steady = [
                await measure(cloud, options.video, it, options.seconds, folder / f"edge-{it:g}")
                for it in budgets
            ]
            return steady, [
                await cut(cloud, options.video, it, options.cut, folder / f"edge-cut-{it:g}") for it in cuts
            ]


def _numbers(text: str) -> list[float]:
    return [float(it) for it in text.split(",") if it]


def main(arguments: list[str] | None = None) -> int:
    """The command; 1 when a budget was exceeded by more than a tenth."""
    parser = argparse.ArgumentParser(prog="benchmarks.budget", description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--video", type=Path, default=CLIP)
    parser.add_argument("--budgets", default="20,50,200", help="kilobits a second, with commas between")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--cut", type=float, default=20.0, help="seconds without a link; 0 leaves that out")
    parser.add_argument("--cut-budgets", default="20,50", help="budgets of the runs with a cut")
    parser.add_argument("--tls", action="store_true", help="encrypt the link: its bytes cannot be told apart")
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    options = parser.parse_args(arguments)
    try:
        steady, cuts = asyncio.run(run(options))
    except EyelineError as problem:
        print(f"budget: {problem}", file=sys.stderr)
        return 1
    _show(steady, cuts, Console(width=120))
    if options.out is not None:
        found = {"steady": [asdict(one) for one in steady], "after_cut": [asdict(one) for one in cuts]}
        options.out.write_text(json.dumps(found, indent=1) + "\n", "utf-8")
    return 0 if all(one.share <= 1.1 for one in (*steady, *cuts)) else 1


def _show(steady: list[Outcome], cuts: list[AfterCut], console: Console) -> None:
    shown = Table("budget", "peak of 10 s", "of budget", "after the start", "mean", "frames", "sent", "rung")
    for one in steady:
        shown.add_row(
            f"{one.budget_kbit_s:g} kbit/s",
            f"{one.peak_kbit_s:.1f}",
            f"{one.share:.2f}",
            f"{one.peak_after_start_kbit_s:.1f}",
            f"{one.mean_kbit_s:.1f}",
            str(one.frames),
            str(one.sent),
            one.rung,
        )
    console.print(shown)
    if steady and steady[0].start_bytes:
        split = ", ".join(f"{kind} {size}" for kind, size in steady[0].start_bytes.items())
        console.print(f"first ten seconds at {steady[0].budget_kbit_s:g} kbit/s, bytes: {split}")
    if cuts:
        shown = Table("budget", "link cut for", "messages waited", "gone after", "peak of 10 s", "of budget")
        for cut_one in cuts:
            shown.add_row(
                f"{cut_one.budget_kbit_s:g} kbit/s",
                f"{cut_one.cut_s:g} s",
                str(cut_one.waited),
                f"{cut_one.drained_s:.0f} s",
                f"{cut_one.peak_kbit_s:.1f}",
                f"{cut_one.share:.2f}",
            )
        console.print(shown)


if __name__ == "__main__":
    raise SystemExit(main())
