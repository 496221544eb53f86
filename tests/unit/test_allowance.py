"""What a message may take of the wire: the budget of ten seconds, less what the connection carries anyhow."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any, cast

import pytest

from edge_agent.allowance import Allowance, Allowances, wire_bytes
from edge_agent.budget import DEVICE_BYTES_S, START_S
from edge_agent.config import AgentSettings
from edge_agent.link import Link
from edge_agent.wire import WireBytes


class Clock:
    def __init__(self) -> None:
        self.s = 100.0

    def __call__(self) -> float:
        return self.s


class Wire:
    """A link as far as it is measured."""

    def __init__(self) -> None:
        self.session: object | None = None
        self.wire = WireBytes()
        self.planned_bytes = 0.0

    def carry(self, sent: int) -> None:
        self.wire += WireBytes(sent, 0, 0)


def allowances(tmp_path: Path, **encode: Any) -> tuple[Allowances, Wire, Clock]:
    settings = AgentSettings.model_validate(
        {
            "device": "edge",
            "state_dir": tmp_path,
            "cameras": [{"name": name, "source": "pattern:320x240@5"} for name in ("gate", "door")],
            "encode": encode,
        }
    )
    wire, clock = Wire(), Clock()
    return Allowances(settings, cast("Link", wire), clock), wire, clock


async def test_messages_wait_until_the_last_ten_seconds_have_room() -> None:
    clock = Clock()
    one = Allowance(50, lambda: 12_500.0, clock)
    assert one.room(late=False) == pytest.approx(43_750 - 400)
    await one.wait(30_000, late=False)
    waiting = asyncio.create_task(one.wait(25_000, late=False))
    await asyncio.sleep(0.3)
    assert not waiting.done()
    clock.s += 10
    await asyncio.wait_for(waiting, 5)
    assert one.room(late=False) == pytest.approx(43_750 - wire_bytes(25_000) - 400)


async def test_what_is_larger_than_all_goes_alone() -> None:
    clock = Clock()
    one = Allowance(20, lambda: 20_000.0, clock)
    await asyncio.wait_for(one.wait(80_000, late=False), 5)
    assert one.room(late=False) < 0
    clock.s += 10
    await asyncio.wait_for(one.wait(80_000, late=True), 5)


async def test_late_messages_that_never_fit_go_once_in_ten_seconds() -> None:
    """Live ones go on all the time: without this, a large late keyframe would wait for ever."""
    clock = Clock()
    one = Allowance(20, lambda: 10_000.0, clock)
    await one.wait(3_000, late=False)
    waiting = asyncio.create_task(one.wait(9_000, late=True))
    for _ in range(3):
        await asyncio.sleep(0.15)
        assert not waiting.done()
        clock.s += 4
        await one.wait(1_000, late=False)
    await asyncio.wait_for(waiting, 5)


async def test_late_messages_leave_half_to_the_live_picture() -> None:
    one = Allowance(40, lambda: 5_000.0, Clock())
    assert one.room(late=True) == pytest.approx(20_000 - 400)
    await one.wait(10_000, late=False)
    assert one.room(late=True) == pytest.approx(20_000 - 400)
    await one.wait(15_000, late=True)
    assert one.room(late=True) == pytest.approx(20_000 - wire_bytes(15_000) - 400)
    assert one.room(late=False) == pytest.approx(40_000 - wire_bytes(10_000) - wire_bytes(15_000) - 400)


def test_what_goes_beside_pictures_is_measured(tmp_path: Path) -> None:
    chosen, wire, clock = allowances(tmp_path, budget_kbit_s=50)
    assert chosen
    usual = DEVICE_BYTES_S * 10 / 2
    # Connecting is still to come, for all of the two cameras.
    assert chosen.beside_bytes() == pytest.approx(usual + START_S * DEVICE_BYTES_S / 2)
    wire.session = object()
    chosen.look()
    wire.carry(14_000)
    for _ in range(110):
        clock.s += 0.1
        chosen.look()
    # 40 bytes of headers for every started 1,400; the greeting has left the window.
    assert chosen.beside_bytes() == pytest.approx(usual)
    wire.carry(28_000)
    wire.planned_bytes += 14_400
    chosen.look()
    assert chosen.beside_bytes() == pytest.approx((28_800 - 14_400) / 2)
    wire.session = object()
    assert chosen.beside_bytes() > (28_800 - 14_400) / 2 + usual, "another connection is noticed at once"
    wire.session = None
    chosen.look()
    assert chosen.beside_bytes() == pytest.approx((28_800 - 14_400) / 2 + usual + 7 * DEVICE_BYTES_S / 2)


async def test_without_a_budget_nothing_waits(tmp_path: Path) -> None:
    chosen, wire, _ = allowances(tmp_path)
    assert not chosen
    assert chosen.room("gate", late=True) == float("inf")
    for _ in range(50):
        await asyncio.wait_for(chosen.wait("gate", 500_000, late=False), 1)
    assert wire.planned_bytes == pytest.approx(50 * wire_bytes(500_000))
