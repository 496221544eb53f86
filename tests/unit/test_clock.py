"""The clock estimate: within its uncertainty, whatever the device's clock does."""

from __future__ import annotations

import random
from dataclasses import dataclass

import pytest

from edge_agent.claim import parse_time_ns
from edge_agent.clock import HubClock
from eyeline.v1.frame_pb2 import CaptureTime

SECOND = 1_000_000_000
HUB_START = 1_800_000_000 * SECOND


@dataclass
class World:
    """A device with a skewed clock, and a hub with the right one."""

    skew_ns: int = 0
    monotonic: int = 5 * SECOND

    def wall(self) -> int:
        return HUB_START + self.monotonic + self.skew_ns

    def hub(self) -> int:
        return HUB_START + self.monotonic

    def clock(self) -> HubClock:
        return HubClock(monotonic_ns=lambda: self.monotonic, wall_ns=self.wall)

    def exchange(self, clock: HubClock, there_ns: int, back_ns: int) -> None:
        sent = self.monotonic
        self.monotonic += there_ns
        answered = self.hub()
        self.monotonic += back_ns
        clock.add(sent, answered, self.monotonic)

    def error_ns(self, clock: HubClock) -> int:
        return abs(self.wall() + clock.estimate().offset_ns - self.hub())


def test_unknown_until_asked() -> None:
    estimate = World(30 * SECOND).clock().estimate()
    assert (estimate.offset_ns, estimate.uncertainty_ns) == (0, 0)


@pytest.mark.parametrize("skew_s", [-30, 0, 30])
def test_skew_is_found(skew_s: int) -> None:
    world = World(skew_s * SECOND)
    clock = world.clock()
    for _ in range(6):
        world.exchange(clock, 1_000_000, 1_000_000)
    assert clock.estimate().offset_ns == -skew_s * SECOND
    assert 0 < clock.estimate().uncertainty_ns < 1_100_000


def test_shortest_round_trip_counts_and_bounds_the_error() -> None:
    world, chance = World(7 * SECOND), random.Random(4)
    clock = world.clock()
    for _ in range(200):
        world.exchange(clock, int(chance.expovariate(1 / 5e7)), int(chance.expovariate(1 / 1e6)))
        world.monotonic += SECOND
        assert world.error_ns(clock) <= clock.estimate().uncertainty_ns


def test_an_hours_jump_shows_at_once() -> None:
    world = World()
    clock = world.clock()
    world.exchange(clock, 1_000_000, 3_000_000)
    assert clock.wall_jump_ns() == 0
    world.skew_ns += 3600 * SECOND
    assert world.error_ns(clock) <= clock.estimate().uncertainty_ns
    assert abs(clock.hub_now_ns() - world.hub()) <= clock.estimate().uncertainty_ns
    assert clock.wall_jump_ns() == 3600 * SECOND
    assert clock.wall_jump_ns() == 0


def test_uncertainty_grows_while_nobody_answers() -> None:
    world = World()
    clock = world.clock()
    world.exchange(clock, 1_000_000, 1_000_000)
    before = clock.estimate().uncertainty_ns
    world.monotonic += 3600 * SECOND
    assert clock.estimate().uncertainty_ns >= before + 0.3 * SECOND


def test_another_hub_clock_replaces_the_old_one() -> None:
    world = World()
    clock = world.clock()
    world.exchange(clock, 1_000_000, 1_000_000)
    sent = world.monotonic
    world.monotonic += 2_000_000
    clock.add(sent, world.hub() + 60 * SECOND, world.monotonic)
    assert clock.estimate().offset_ns == pytest.approx(60 * SECOND, abs=2_000_000)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2027-01-15T08:00:00Z", 1_800_000_000 * SECOND),
        ("2027-01-15T08:00:00.5Z", 1_800_000_000 * SECOND + SECOND // 2),
        ("2027-01-15T08:00:00.123456789Z", 1_800_000_000 * SECOND + 123456789),
        ("", 0),
        ("yesterday", 0),
    ],
)
def test_times_of_the_server(text: str, expected: int) -> None:
    assert parse_time_ns(text) == expected


def test_an_earlier_moment_is_corrected_whatever_the_clock_showed_then() -> None:
    """A device that starts without a link, and whose clock is set before it has one."""
    world = World(-3600 * SECOND)
    clock = world.clock()
    assert clock.estimate_at(CaptureTime(monotonic_ns=world.monotonic, wall_ns=world.wall())).offset_ns == 0
    moment = CaptureTime(monotonic_ns=world.monotonic, wall_ns=world.wall())
    world.monotonic += 600 * SECOND
    world.skew_ns = 2 * SECOND
    world.exchange(clock, 1_000_000, 1_000_000)
    then = clock.estimate_at(moment)
    assert moment.wall_ns + then.offset_ns == HUB_START + moment.monotonic_ns
    assert 1_000_000 < then.uncertainty_ns < 100_000_000
