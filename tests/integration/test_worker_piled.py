"""A worker that comes back to a pile: the live picture first, the pile behind it, each in its order."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
from collections.abc import AsyncIterator
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from cloud_inference import piled, store
from cloud_inference.hub import LocalHub
from cloud_inference.shares import Bus
from eyeline import subjects
from eyeline.v1 import device_pb2, frame_pb2, result_pb2
from tests.integration.test_worker import CLOUD, DEGRADED, SquareModel, results_of, tenant_bus, worker
from tests.support.eventually import eventually
from tests.support.simulated import Device, left_of, publish

BACKLOG, LIVE, OVERTAKEN = frame_pb2.LANE_BACKLOG, frame_pb2.LANE_LIVE, frame_pb2.LANE_OVERTAKEN
SKIPPED = frame_pb2.RANGE_KIND_SKIPPED
EVERY_S = 0.05
PILE = 60


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(piled, "PILED_S", 2.5)
    monkeypatch.setattr(piled, "FRESH_S", 2.0)


class LiveCamera:
    """A device whose camera goes on and on, and which begins a new chain when it is asked to."""

    def __init__(self, bus: Bus, device: Device, *, hears: bool = True) -> None:
        self._bus, self.device, self._hears = bus, device, hears
        self.asked = 0
        self._keyframe = False

    async def _note(self, message: Any) -> None:
        if device_pb2.ControlRequest.FromString(message.data).keyframe:
            self.asked += 1
            self._keyframe = self._hears

    @contextlib.asynccontextmanager
    async def going_on(self) -> AsyncIterator[None]:
        subject = subjects.control_subject(self.device.site, self.device.device)
        subscription = await self._bus.connection.subscribe(subject, cb=self._note)
        task = asyncio.create_task(self._run())
        try:
            yield
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
            await subscription.unsubscribe()

    async def _run(self) -> None:
        device = self.device
        while True:
            keyframe, self._keyframe = self._keyframe, False
            # Two frames that were skipped travel with the picture behind them.
            items = [device.range(2, SKIPPED), device.pixels(keyframe=keyframe)]
            await publish(self._bus.js, [device.envelope(items)])
            await asyncio.sleep(EVERY_S)


async def aged() -> None:
    """Until everything that was published waits for long."""
    end = time.monotonic() + piled.PILED_S + 0.3
    await eventually(lambda: time.monotonic() > end)


async def settled(bus: Bus, device: Device) -> list[result_pb2.Result]:
    """Every result, once all frames until now have one."""
    here = device.sequence
    results: list[result_pb2.Result] = await eventually(lambda: answered_to(bus, device, here), within_s=30)
    return [it for it in results if it.key.sequence <= here]


def checked(results: list[result_pb2.Result]) -> dict[int, list[int]]:
    """The frames of each lane; each frame once, each lane in order."""
    lanes: dict[int, list[int]] = {LIVE: [], OVERTAKEN: [], BACKLOG: []}
    for it in results:
        lanes[it.lane] += range(it.key.sequence, it.last_sequence + 1)
    everything = sorted(itertools.chain(*lanes.values()))
    assert everything == list(range(1, len(everything) + 1))
    for frames in lanes.values():
        assert frames == sorted(frames)
    assert all(it.late == (it.lane != LIVE) for it in results)
    return lanes


def jumps(frames: list[int]) -> list[int]:
    """The frames before which others are left out."""
    return [after for before, after in itertools.pairwise(frames) if after != before + 1]


async def pile(bus: Bus, device: Device, *, first: int = 10) -> None:
    """Some frames that are answered, then many more of the same chain without a worker."""
    async with worker(bus, SquareModel(), "w1"):
        await publish(bus.js, device.frames(first))
        await eventually(lambda: answered_to(bus, device, first))
    await publish(bus.js, device.frames(PILE))
    await aged()


async def answered_to(bus: Bus, device: Device, frame: int) -> list[result_pb2.Result] | None:
    """Every result, once each frame up to that one has one."""
    results = await results_of(bus, device)
    frames = {number for it in results for number in range(it.key.sequence, it.last_sequence + 1)}
    return results if frames >= set(range(1, frame + 1)) else None


async def live_again(bus: Bus, device: Device, after: int) -> list[result_pb2.Result] | None:
    """Every result, once a live one is behind that frame."""
    results = await results_of(bus, device)
    return results if any(it.lane == LIVE and it.key.sequence > after for it in results) else None


async def test_the_live_picture_comes_first_and_the_pile_behind_it(hub: LocalHub) -> None:
    device, model = Device(), SquareModel()
    model.takes_s = 0.2
    async with tenant_bus(hub) as bus:
        camera = LiveCamera(bus, device)
        await pile(bus, device)
        async with worker(bus, model, "w2"), camera.going_on():
            results = await eventually(lambda: live_again(bus, device, 10 + PILE), within_s=20)
            # The model could not have seen half of the pile by then.
            assert sum(it.lane == OVERTAKEN for it in results) < PILE / 2
            results = await settled(bus, device)
    lanes = checked(results)
    assert {it.provenance for it in results if it.key.sequence <= 10 + PILE} == {CLOUD}
    assert not [it for it in results if it.provenance == DEGRADED]
    (again,) = jumps(lanes[LIVE])
    assert again > 10 + PILE
    assert lanes[OVERTAKEN][0] == 11
    assert camera.asked > 0


async def test_a_take_over_amid_the_pile_loses_nothing_and_doubles_nothing(hub: LocalHub) -> None:
    device, slow, quick = Device(), SquareModel(), SquareModel()
    slow.takes_s = 0.3
    async with tenant_bus(hub) as bus:
        camera = LiveCamera(bus, device)
        await pile(bus, device)
        async with camera.going_on():
            async with worker(bus, slow, "w2"):

                async def amid() -> bool:
                    results = await results_of(bus, device)
                    late = sum(it.lane == OVERTAKEN for it in results)
                    return late > 5 and any(it.key.sequence > 10 + PILE for it in results)

                await eventually(amid, within_s=20)
            assert await answered_to(bus, device, 10 + PILE) is None
            async with worker(bus, quick, "w3"):
                results = await settled(bus, device)
    lanes = checked(results)
    assert not [it for it in results if it.provenance == DEGRADED]
    assert set(range(11, 11 + PILE)) <= set(lanes[OVERTAKEN])


class StuckAt(SquareModel):
    """Never answers for the first picture of that number."""

    def __init__(self, frame: int) -> None:
        super().__init__()
        self._left = left_of(frame)
        self.is_stuck = False

    async def infer(self, images: NDArray[np.uint8], *, within_s: float | None = None) -> Any:
        _, xs = np.nonzero(images[0, :, :, 1] > 150)
        if not self.is_stuck and abs(xs.min() - self._left) < 1:
            self.is_stuck = True
            await asyncio.Event().wait()
        return await super().infer(images, within_s=within_s)


@pytest.mark.parametrize(("before", "heirs"), [(10, 1), (100, 2)])
async def test_what_stood_before_the_pile_is_known_to_the_next_owners(
    hub: LocalHub, monkeypatch: pytest.MonkeyPatch, before: int, heirs: int
) -> None:
    """However long ago it was stored: skipped frames at the head of the pile are filled in from it."""
    monkeypatch.setattr(store, "_TAIL_S", 0.5)
    device = Device()
    async with tenant_bus(hub) as bus:
        camera = LiveCamera(bus, device)
        async with worker(bus, SquareModel(), "w1"):
            await publish(bus.js, device.frames(before))
            await eventually(lambda: answered_to(bus, device, before))
        await publish(bus.js, [device.envelope([device.range(2, SKIPPED), device.pixels()])])
        await publish(bus.js, device.frames(PILE))
        await aged()
        piled_to = device.sequence
        async with camera.going_on():
            for heir in range(heirs):
                stuck = StuckAt(before + 3)
                async with worker(bus, stuck, f"stuck{heir}"):
                    await eventually(lambda: live_again(bus, device, piled_to), within_s=20)
                    # Until the last answers before the pile are older than what a new owner looks at.
                    later = device.sequence + 60
                    results = await eventually(
                        lambda after=later: live_again(bus, device, after), within_s=20
                    )
                    assert stuck.is_stuck
                    assert not [it for it in results if it.lane == OVERTAKEN]
            async with worker(bus, SquareModel(), "last"):
                results = await settled(bus, device)
    lanes = checked(results)
    assert lanes[OVERTAKEN][:3] == [before + 1, before + 2, before + 3]
    assert not [(it.key.sequence, it.reason) for it in results if it.provenance == DEGRADED]


async def test_a_camera_that_gives_no_keyframe_is_live_again_once_the_pile_is_answered(hub: LocalHub) -> None:
    device, model = Device(), SquareModel()
    async with tenant_bus(hub) as bus:
        camera = LiveCamera(bus, device, hears=False)
        await pile(bus, device)
        async with worker(bus, model, "w2"), camera.going_on():
            await eventually(lambda: live_again(bus, device, 10 + PILE), within_s=20)
            results = await settled(bus, device)
    lanes = checked(results)
    assert not [it for it in results if it.provenance == DEGRADED]
    assert lanes[OVERTAKEN][: PILE - 1] == list(range(11, 10 + PILE))
    assert len(jumps(lanes[LIVE])) == 1


async def test_a_pile_with_a_devices_backlog_amid_it(hub: LocalHub) -> None:
    """Chains of both lanes lie between each other in the hub; none of them breaks."""
    device, model = Device(), SquareModel()
    model.takes_s = 0.05
    async with tenant_bus(hub) as bus:
        camera = LiveCamera(bus, device)
        kept = [device.envelope([device.pixels()], lane=BACKLOG) for _ in range(20)]
        live = device.frames(20, keyframe_first=True)
        live[0].previous_sequence = 0
        mixed = itertools.chain.from_iterable(zip(live, kept, strict=True))
        await publish(bus.js, mixed)
        await aged()
        async with worker(bus, model, "w1"), camera.going_on():
            await eventually(lambda: live_again(bus, device, 40), within_s=20)
            results = await settled(bus, device)
    lanes = checked(results)
    assert not [it for it in results if it.provenance == DEGRADED]
    assert lanes[BACKLOG] == list(range(1, 21))
    assert lanes[OVERTAKEN][:20] == list(range(21, 41))


async def test_what_is_lost_in_a_pile_is_told_in_its_order(hub: LocalHub) -> None:
    device, model = Device(), SquareModel()
    async with tenant_bus(hub) as bus:
        camera = LiveCamera(bus, device)
        stored = await publish(bus.js, [*device.frames(20), *device.frames(10, keyframe_first=True)])
        await bus.js.delete_msg(subjects.FRAMES, stored[14])
        await aged()
        async with worker(bus, model, "w1"), camera.going_on():
            await eventually(lambda: live_again(bus, device, 30), within_s=20)
            results = await settled(bus, device)
    checked(results)
    degraded = {it.key.sequence: it.reason for it in results if it.provenance == DEGRADED}
    assert degraded == {15: "lost", **dict.fromkeys(range(16, 21), "chain_gap")}
