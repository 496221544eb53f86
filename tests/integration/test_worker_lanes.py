"""The worker's lanes against a real hub: the live picture first, deadlines, and nothing lost for it."""

from __future__ import annotations

from collections.abc import Sequence

from cloud_inference.hub import LocalHub
from eyeline import subjects
from eyeline.v1 import frame_pb2, result_pb2
from tests.integration.test_worker import (
    CLOUD,
    DEGRADED,
    SquareModel,
    answered,
    results_of,
    tenant_bus,
    worker,
)
from tests.support.eventually import eventually
from tests.support.simulated import Device, publish

BACKLOG, LIVE = frame_pb2.LANE_BACKLOG, frame_pb2.LANE_LIVE
KEPT = 80


def late_frames(device: Device, count: int) -> list[frame_pb2.FrameEnvelope]:
    return [device.envelope([device.pixels()], lane=BACKLOG) for _ in range(count)]


def live_frames(device: Device, count: int) -> list[frame_pb2.FrameEnvelope]:
    """A new chain, in a lane where nothing came before."""
    envelopes = device.frames(count, keyframe_first=True)
    envelopes[0].previous_sequence = 0
    return envelopes


def before_the_last_live(results: Sequence[result_pb2.Result]) -> int:
    """How many answers of the backlog were stored before the last live one."""
    lanes = [result.lane for result in results]
    last = len(lanes) - 1 - lanes[::-1].index(LIVE)
    return lanes[:last].count(BACKLOG)


async def test_live_answers_overtake_a_backlog_that_waits_in_the_hub(hub: LocalHub) -> None:
    old, new = Device(counter=1), Device(counter=2)
    model = SquareModel()
    model.takes_s = 0.02
    async with tenant_bus(hub) as bus:
        await publish(bus.js, late_frames(old, KEPT))
        await publish(bus.js, new.frames(10))
        async with worker(bus, model):

            async def all_there() -> list[result_pb2.Result] | None:
                found = await results_of(bus, new)
                return found if len(found) >= KEPT + 10 else None

            results = await eventually(all_there, within_s=20)
    by_lane = {
        lane: [(it.key.epoch.counter, it.key.sequence) for it in results if it.lane == lane]
        for lane in (LIVE, BACKLOG)
    }
    assert by_lane[LIVE] == [(2, number) for number in range(1, 11)]
    assert by_lane[BACKLOG] == [(1, number) for number in range(1, KEPT + 1)]
    assert before_the_last_live(results) < KEPT / 2
    assert {(it.lane, it.late) for it in results} == {(LIVE, False), (BACKLOG, True)}
    assert all(it.provenance == CLOUD for it in results)


async def test_a_device_may_ask_for_no_overtaking(hub: LocalHub) -> None:
    device, model = Device(), SquareModel()
    async with tenant_bus(hub) as bus:
        await publish(bus.js, late_frames(device, 30))
        live = live_frames(device, 3)
        for envelope in live:
            envelope.in_order = True
        await publish(bus.js, live)
        async with worker(bus, model):
            results = await answered(bus, device, 33)
    assert [it.key.sequence for it in results] == list(range(1, 34))


async def test_a_take_over_in_mid_backlog_loses_nothing_and_doubles_nothing(hub: LocalHub) -> None:
    device, model = Device(), SquareModel()
    model.takes_s = 0.02
    async with tenant_bus(hub) as bus:
        await publish(bus.js, late_frames(device, KEPT))
        await publish(bus.js, live_frames(device, 5))
        async with worker(bus, model, "w1"):

            async def live_and_some() -> bool:
                lanes = [it.lane for it in await results_of(bus, device)]
                return lanes.count(LIVE) == 5 and lanes.count(BACKLOG) >= 10

            await eventually(live_and_some, within_s=15)
        assert len(await results_of(bus, device)) < KEPT + 5
        async with worker(bus, model, "w2"):
            results = await answered(bus, device, KEPT + 5)
    assert all(it.provenance == CLOUD for it in results)
    for lane in (LIVE, BACKLOG):
        order = [it.key.sequence for it in results if it.lane == lane]
        assert order == sorted(order)


async def test_a_camera_that_was_fenced_out_goes_on(hub: LocalHub) -> None:
    device, model = Device(), SquareModel()
    async with tenant_bus(hub) as bus, worker(bus, model):
        await publish(bus.js, device.frames(3))
        stored = await answered(bus, device, 3)
        subject = subjects.result_subject(device.site, device.camera)
        for _ in range(2):
            last = await bus.js.get_last_msg(subjects.RESULTS, subject)
            batch = result_pb2.ResultBatch.FromString(last.data or b"")
            del batch.results[:]
            await bus.js.publish(subject, batch.SerializeToString())  # as another worker would
            await publish(bus.js, device.frames(3))
            stored = await answered(bus, device, len(stored) + 3)
    assert all(it.provenance == CLOUD for it in stored)


async def test_a_deadline_gives_a_frame_up_and_frees_its_place(hub: LocalHub) -> None:
    """Counted from capture, while the model does not answer; the chain goes on behind it."""
    device, model = Device(), SquareModel()
    model.gate.clear()
    async with tenant_bus(hub) as bus, worker(bus, model):
        # From when its camera is taken on, there is time enough to ask the model.
        await publish(bus.js, [device.envelope([device.range(1, frame_pb2.RANGE_KIND_IDLE)])])
        await answered(bus, device, 1)
        envelopes = device.frames(20)
        for envelope in envelopes:
            envelope.deadline_ns = 1_000_000_000
        await publish(bus.js, envelopes)
        results = await answered(bus, device, 21)
        assert {(it.provenance, it.reason, it.late) for it in results[1:]} == {(DEGRADED, "deadline", True)}
        assert model.given_up > 0
        assert model.seen == 0
        model.gate.set()
        after = device.frames(1)
        after[0].deadline_ns = 30_000_000_000
        await publish(bus.js, after)
        results = await answered(bus, device, 22)
    assert (results[-1].provenance, results[-1].late) == (CLOUD, False)


async def test_a_backlog_is_answered_in_full_whatever_the_deadline(hub: LocalHub) -> None:
    device, model = Device(), SquareModel()
    async with tenant_bus(hub) as bus, worker(bus, model):
        envelopes = late_frames(device, 5)
        for envelope in envelopes:
            envelope.deadline_ns = 1
        await publish(bus.js, envelopes)
        results = await answered(bus, device, 5)
    assert {(it.provenance, it.late) for it in results} == {(CLOUD, True)}
