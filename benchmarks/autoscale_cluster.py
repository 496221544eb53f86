"""A cluster as a fluid: frames flow through workers, then through Triton, second by second.

Live frames go before the backlog, as workers do it. Workers hand over no more than they may have in flight,
so that a slow Triton makes frames wait in the hub. Agents do not ease off here, though real ones do: the
delays are those of a system that only scales.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.typing import NDArray

from benchmarks.autoscale_hpa import SYNC_S, Autoscaler, Rules

Seconds = NDArray[np.float64]

# How often Prometheus reads and rules are evaluated, in seconds.
SCRAPE_S: Final = 15
# Of the recording rules (deploy/k8s/components/monitoring/rules.yaml); a test compares.
MOST_BACKLOG_WORK: Final = 2400.0
MOST_BACKLOG_BUSY: Final = 1.4
# Workers hand over no more than Triton answers in so long (cloud_inference/inflight.py).
IN_FLIGHT_S: Final = 1.0


@dataclass(frozen=True, slots=True)
class Machine:
    """What a replica does, starts like and costs.

    frames_per_s: of one replica when all is warm; cold_frames_per_s for the first cold_s after it is ready
    (an engine that is still being built); start_s: from the autoscaler's word to ready; price: of one
    replica-hour, in any unit.
    """

    frames_per_s: float
    start_s: float
    price: float
    cold_s: float = 0.0
    cold_frames_per_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Load:
    """One day, per second: frames with pixels that reach the hub in each lane, and what goes wrong.

    no_metrics: True while Prometheus is away. false_age_s: what a device whose clock is behind, or a message
    that is delivered again and again, adds to the age of the oldest frame.
    """

    live: Seconds
    backlog: Seconds
    no_metrics: NDArray[np.bool_]
    false_age_s: Seconds


@dataclass(frozen=True, slots=True)
class Shape:
    """What is the same in every scenario."""

    worker_cpu_s: float = 0.0035
    in_flight: int = 128
    # CPU of a GPU server at full load, as a share of what it requested.
    triton_cpu_at_full: float = 0.5


@dataclass(frozen=True, slots=True)
class Outcome:
    """delays in seconds, one for each second of arrivals, weighted by `frames`."""

    delays: Seconds
    frames: Seconds
    backlog_left: float
    workers: Seconds
    tritons: Seconds
    cost: float


@dataclass(slots=True)
class _Tier:
    """Replicas of one kind."""

    machine: Machine
    scaler: Autoscaler
    # When each replica is, or was, ready.
    ready_at: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.ready_at = [-math.inf] * self.scaler.rules.least

    def ready(self, now: float) -> int:
        return sum(at <= now for at in self.ready_at)

    def capacity(self, now: float) -> float:
        """Frames that the tier can do within the coming second."""
        machine = self.machine
        return sum(
            machine.cold_frames_per_s if now - at < machine.cold_s else machine.frames_per_s
            for at in self.ready_at
            if at <= now
        )

    def scale(self, now: float, readings: Mapping[str, float | None]) -> None:
        count = len(self.ready_at)
        new = self.scaler.step(now, readings, count, self.ready(now))
        self.ready_at = sorted(self.ready_at)[:new]
        self.ready_at += [now + self.machine.start_s] * (new - len(self.ready_at))


class _Readings:
    """What Prometheus and the metrics server would say."""

    def __init__(self, shape: Shape) -> None:
        self._shape = shape
        self._taken: deque[float] = deque(maxlen=60)
        self._live: deque[float] = deque(maxlen=60)
        self._served: deque[float] = deque(maxlen=60)
        self.now: dict[str, float | None] = {}

    def second(self, taken: float, live: float, served: float) -> None:
        self._taken.append(taken)
        self._live.append(live)
        self._served.append(served)

    def scrape(self, now: float, cluster: _Cluster, missing: bool, false_age: float) -> None:
        shape, workers, tritons = self._shape, cluster.workers.ready(now), cluster.tritons.ready(now)
        taken, live, served = (float(np.mean(each)) for each in (self._taken, self._live, self._served))
        share = live / taken if taken > 0 else 1.0
        capacity = max(cluster.tritons.capacity(now), 1e-9)
        each = capacity / max(tritons, 1)
        waiting = float(cluster.inside.sum())
        busy = served / capacity
        backlog_busy = busy * tritons * (1 - share)
        from_prometheus: dict[str, float | None] = {
            "eyeline_worker_live_work_seconds": cluster.hub[0] * shape.worker_cpu_s,
            "eyeline_worker_backlog_work_seconds": min(
                cluster.hub[1] * shape.worker_cpu_s, MOST_BACKLOG_WORK
            ),
            "eyeline_worker_live_busy_ratio": live * shape.worker_cpu_s,
            "eyeline_triton_live_work_seconds": waiting / each * share,
            "eyeline_triton_wanted_ratio": busy * tritons * share + min(backlog_busy, MOST_BACKLOG_BUSY),
            "gpu": busy,
            "triton_queue_seconds": waiting / capacity,
            "hub_queue_seconds": cluster.hub[0] / max(taken, 1.0),
            "oldest_seconds": cluster.oldest(now) + false_age,
        }
        if missing:
            from_prometheus = dict.fromkeys(from_prometheus)
        self.now = from_prometheus | {
            "cpu": taken * shape.worker_cpu_s / max(workers, 1),
            "triton_cpu": busy * shape.triton_cpu_at_full,
        }


class _Cluster:
    def __init__(self, load: Load, workers: _Tier, tritons: _Tier, shape: Shape) -> None:
        self.workers, self.tritons, self.shape = workers, tritons, shape
        # Frames that wait in the hub, and inside Triton: live, backlog.
        self.hub = np.zeros(2)
        self.inside = np.zeros(2)
        self._arrived = np.cumsum(load.live)
        self._taken = 0.0

    def second(self, now: int, live: float, backlog: float) -> tuple[float, float, float, float]:
        """Frames taken, live ones of them, frames served, live ones of them, within one second."""
        self.hub += (live, backlog)
        served_of = self.inside * min(1.0, self.tritons.capacity(now) / max(self.inside.sum(), 1e-9))
        self.inside -= served_of
        most = min(self.workers.ready(now) * self.shape.in_flight, self.tritons.capacity(now) * IN_FLIGHT_S)
        room = most - float(self.inside.sum())
        # What Triton does within this second makes room within it, too.
        room += max(0.0, self.tritons.capacity(now) - float(served_of.sum()))
        left = max(0.0, min(self.workers.capacity(now), room))
        taken = np.zeros(2)
        for lane in range(2):
            taken[lane] = min(left, self.hub[lane])
            left -= taken[lane]
        self.hub -= taken
        self._taken += taken[0]
        spare = max(0.0, self.tritons.capacity(now) - float(served_of.sum()))
        through = taken * min(1.0, spare / max(float(taken.sum()), 1e-9))
        self.inside += taken - through
        served_of = served_of + through
        return float(taken.sum()), float(taken[0]), float(served_of.sum()), float(served_of[0])

    def oldest(self, now: float) -> float:
        """Age of the oldest live frame in the hub, in seconds."""
        if self.hub[0] < 1:
            return 0.0
        return max(0.0, now - float(np.searchsorted(self._arrived, self._taken, side="right")))


def simulate(
    load: Load, rules: Mapping[str, Rules], worker: Machine, triton: Machine, shape: Shape | None = None
) -> Outcome:
    """A day under these rules (`eyeline-worker`, `eyeline-triton`)."""
    shape = shape or Shape()
    workers = _Tier(worker, Autoscaler(rules["eyeline-worker"]))
    tritons = _Tier(triton, Autoscaler(rules["eyeline-triton"]))
    cluster, readings = _Cluster(load, workers, tritons, shape), _Readings(shape)
    length = len(load.live)
    done, counts = np.zeros(length), np.zeros((2, length))
    for now in range(length):
        taken, live, served, done[now] = cluster.second(now, load.live[now], load.backlog[now])
        readings.second(taken, live, served)
        if now % SCRAPE_S == 0:
            readings.scrape(now, cluster, bool(load.no_metrics[now]), load.false_age_s[now])
        if now % SYNC_S == SYNC_S // 2:
            workers.scale(now, readings.now)
            tritons.scale(now, readings.now)
        counts[:, now] = len(workers.ready_at), len(tritons.ready_at)
    cost = float(counts[0].sum() * worker.price + counts[1].sum() * triton.price) / 3600
    return Outcome(_delays(load.live, done), load.live, float(cluster.hub[1]), counts[0], counts[1], cost)


def _delays(arrivals: Seconds, served: Seconds) -> Seconds:
    """Seconds that the last frame of each second of arrivals waits; first in, first out.

    What is not served at the end of the day counts as waiting until then.
    """
    arrived, left = np.cumsum(arrivals), np.cumsum(served)
    when = np.searchsorted(left, arrived - 1e-6 * np.maximum(arrived, 1.0))
    return np.maximum(0.0, np.minimum(when, len(arrivals)) - np.arange(len(arrivals))).astype(np.float64)
