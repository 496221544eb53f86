"""A camera's place on the frontier that calibration found: where it sits, and where pressure moves it.

Pure: the profile, what the user wants and the time come in, a rung and the reason for it come out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from eyeline.ladder import Rung, from_proto
from eyeline.v1 import calibration_pb2

# Another rung may cost a keyframe: down after so long under pressure, up after so long without.
_DOWN_AFTER_NS: Final = 3_000_000_000
_UP_AFTER_NS: Final = 15_000_000_000
# A richer rung must fit with so much to spare, or the camera would go to and fro.
_SPARE: Final = 0.9
# Where no rung is proved to be good enough, so much less of proof will do.
_NEARLY: Final = 0.015


@dataclass(frozen=True, slots=True)
class Step:
    """A rung of the frontier. bytes_per_s: while something moves; f1: against the cloud's own answers.

    f1_low: what that is at least, as far as the sample could tell; None by a cloud of an earlier version.
    """

    rung: Rung
    bytes_per_s: float
    f1: float
    f1_low: float | None = None

    @property
    def f1_sure(self) -> float:
        """What to choose by."""
        return self.f1 if self.f1_low is None else self.f1_low


@dataclass(frozen=True, slots=True)
class Wish:
    """What the user cares about.

    accuracy: share of the cloud model's own; bytes_per_s and max_delay_s: None for no bound; batch_s: how
    long pictures wait for company.
    """

    accuracy: float
    bytes_per_s: float | None = None
    max_delay_s: float | None = None
    batch_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Home:
    """Where a camera sits without pressure: index into the steps, and why, in one line."""

    index: int
    reason: str


def steps_of(profile: calibration_pb2.Profile) -> tuple[Step, ...]:
    """The frontier, cheapest first; raises ValueError for what no encoder could be set to."""
    return tuple(
        Step(
            from_proto(point.rung),
            point.bytes_per_s,
            point.f1_even,
            point.f1_low if point.HasField("f1_low") else None,
        )
        for point in profile.frontier
    )


def delay_s(rung: Rung, batch_s: float, propagate: str) -> float:
    """How long after its capture a frame is answered at the latest, transport and model apart.

    Skipped frames wait for the next picture, unless they are answered by prediction.
    """
    return batch_s + (1 / rung.max_fps if propagate == "smooth" else 0.0)


def choose(steps: Sequence[Step], wish: Wish, propagate: str) -> Home | None:
    """The cheapest step that meets what is wanted, else the best of those within its bounds.

    None without any steps.
    """
    if not steps:
        return None
    prompt = [
        index
        for index, step in enumerate(steps)
        if wish.max_delay_s is None or delay_s(step.rung, wish.batch_s, propagate) <= wish.max_delay_s
    ]
    within = [it for it in prompt if wish.bytes_per_s is None or steps[it].bytes_per_s <= wish.bytes_per_s]
    bounds = _bounds(wish, delay=len(prompt) < len(steps), budget=len(within) < len(prompt))
    good = [it for it in within if steps[it].f1_sure >= wish.accuracy]
    if good:
        return Home(
            good[0], f"cheapest rung with F1 >= {wish.accuracy:g}{bounds}: {_figures(steps[good[0]])}"
        )
    if within:
        best = max(within, key=lambda it: (steps[it].f1_sure, steps[it].f1, -steps[it].bytes_per_s))
        if steps[best].f1 < wish.accuracy:
            figures = _figures(steps[best])
            return Home(best, f"no rung reaches F1 {wish.accuracy:g}{bounds}; the best: {figures}")
        # What the sample is too small to prove, more bytes do not prove either.
        enough = steps[best].f1_sure - _NEARLY
        least = next(it for it in within if steps[it].f1 >= wish.accuracy and steps[it].f1_sure >= enough)
        said = "the best" if least == best else "nearly the best"
        figures = _figures(steps[least])
        return Home(least, f"no rung surely reaches F1 {wish.accuracy:g}{bounds}; {said}: {figures}")
    # Nothing is cheap or prompt enough: the cheapest there is, and frames are thinned out on top.
    least = prompt[0] if prompt else max(range(len(steps)), key=lambda it: steps[it].rung.max_fps)
    return Home(least, f"no rung keeps to what is set{bounds}; the nearest: {_figures(steps[least])}")


def _bounds(wish: Wish, *, delay: bool, budget: bool) -> str:
    said = []
    if budget and wish.bytes_per_s is not None:
        said.append(f"{wish.bytes_per_s / 125:g} kbit/s")
    if delay and wish.max_delay_s is not None:
        said.append(f"{wish.max_delay_s:g} s")
    return f" within {' and '.join(said)}" if said else ""


def _figures(step: Step) -> str:
    least = f" (at least {step.f1_low:.3f})" if step.f1_low is not None else ""
    return f"{step.rung.name}, F1 {step.f1:.3f}{least} at {step.bytes_per_s / 1000:.2f} KB/s"


class Position:
    """Where a camera is on the frontier, as pressure comes and goes. Not thread-safe."""

    def __init__(self, steps: Sequence[Step], home: Home) -> None:
        self.steps, self.home = tuple(steps), home
        self.index = home.index
        # Which way pressure pushes, and since when.
        self._way = 0
        self._since_ns = 0

    @property
    def step(self) -> Step:
        """The step in force."""
        return self.steps[self.index]

    def follow(self, now_ns: int, *, bytes_share: float, rate_share: float) -> bool:
        """Move along; whether the step changed.

        bytes_share: of home's bytes, what the link takes; rate_share: of home's frame rate, what the cloud
        keeps up with. Both 1 without pressure.
        """
        wanted = self._fitting(bytes_share, rate_share, 1.0)
        if wanted > self.index:
            wanted = max(self.index, self._fitting(bytes_share, rate_share, _SPARE))
        way = (wanted > self.index) - (wanted < self.index)
        if way != self._way:
            self._way, self._since_ns = way, now_ns
        if way == 0 or now_ns - self._since_ns < (_DOWN_AFTER_NS if way < 0 else _UP_AFTER_NS):
            return False
        self.index, self._way = wanted, 0
        return True

    def residual(self, bytes_share: float, rate_share: float) -> float:
        """Share of this step's frame rate that is left under the same pressure: what no step takes up."""
        home, now = self.steps[self.home.index], self.step
        by_bytes = bytes_share * home.bytes_per_s / max(now.bytes_per_s, 1e-9)
        by_rate = rate_share * home.rung.max_fps / now.rung.max_fps
        return min(1.0, by_bytes, by_rate)

    def _fitting(self, bytes_share: float, rate_share: float, spare: float) -> int:
        """The best step up to home that fits, else the cheapest."""
        if bytes_share >= 1 and rate_share >= 1:
            return self.home.index
        home = self.steps[self.home.index]
        most_bytes, most_fps = spare * bytes_share * home.bytes_per_s, spare * rate_share * home.rung.max_fps
        fitting = [
            it
            for it in range(self.home.index + 1)
            if (bytes_share >= 1 or self.steps[it].bytes_per_s <= most_bytes)
            and (rate_share >= 1 or self.steps[it].rung.max_fps <= most_fps)
        ]
        return max(fitting, key=lambda it: self.steps[it].f1, default=0)
