"""The worker's cameras against a real hub; the model is a stand-in that finds the bright square."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import pytest
from nats.js.errors import KeyNotFoundError, NoKeysError
from numpy.typing import NDArray
from prometheus_client import REGISTRY

from cloud_inference import streams
from cloud_inference.camera import Camera
from cloud_inference.config import StreamSettings
from cloud_inference.hub import LocalHub
from cloud_inference.infer import Inference
from cloud_inference.ownership import Ownership
from cloud_inference.shares import Bus, Shared
from cloud_inference.track import Tracks
from eyeline import subjects
from eyeline.errors import BusError
from eyeline.v1 import device_pb2, frame_pb2, result_pb2
from tests.support.cards import square_card
from tests.support.eventually import eventually
from tests.support.servers import cloud_client
from tests.support.simulated import Device, picture, publish

CLOUD, DEGRADED = result_pb2.PROVENANCE_CLOUD, result_pb2.PROVENANCE_DEGRADED
PROPAGATED = result_pb2.PROVENANCE_PROPAGATED
LEASE_S = 1.0


@dataclass
class _Rows:
    boxes: NDArray[np.float32]
    count: NDArray[np.int32]


class SquareModel:
    """Finds what is bright; can be away, and counts how many pictures it saw."""

    def __init__(self) -> None:
        self.seen = self.waiting = self.refused = self.given_up = 0
        self.takes_s = 0.0
        self.away = False
        self.gate = asyncio.Event()
        self.gate.set()

    async def infer(self, images: NDArray[np.uint8], *, within_s: float | None = None) -> _Rows:
        self.waiting += 1
        try:
            async with asyncio.timeout(within_s):
                await self.gate.wait()
                await asyncio.sleep(self.takes_s)
        except TimeoutError:
            self.given_up += 1
            raise BusError("stand-in did not answer in time") from None
        finally:
            self.waiting -= 1
        if self.away:
            self.refused += 1
            raise BusError("stand-in is away")
        self.seen += len(images)
        rows = np.zeros((len(images), 10, 6), np.float32)
        counts = np.zeros(len(images), np.int32)
        for index, image in enumerate(images):
            ys, xs = np.nonzero(image[:, :, 1] > 150)
            if len(xs):
                rows[index, 0] = xs.min(), ys.min(), xs.max() + 1, ys.max() + 1, 0.9, 0
                counts[index] = 1
        return _Rows(rows, counts)


@contextlib.asynccontextmanager
async def tenant_bus(hub: LocalHub, tenant: str = "acme") -> AsyncIterator[Bus]:
    connection = await cloud_client(hub, tenant)
    try:
        bus = Bus(tenant, connection, connection.jetstream(timeout=2))
        await streams.ensure(bus.js, StreamSettings())
        yield bus
    finally:
        await connection.close()


@contextlib.contextmanager
def shared(model: SquareModel, name: str = "w1", *, at_a_time: int = 32) -> object:
    with ThreadPoolExecutor(2) as executor:
        yield Shared(
            worker=name,
            inference=Inference(model, most=at_a_time),
            card=square_card(),
            tracks=Tracks(),
            executor=executor,
            max_in_flight=8,
            propagate="smooth",
        )


@contextlib.asynccontextmanager
async def worker(
    bus: Bus, model: SquareModel, name: str = "w1", *, at_a_time: int = 32, lease_s: float = LEASE_S
) -> AsyncIterator[asyncio.Task[None]]:
    """A worker with the real ownership and cameras."""
    with shared(model, name, at_a_time=at_a_time) as parts:
        ownership = Ownership(
            bus, name, lease_s=lease_s, work=lambda site, camera: Camera(parts, bus, site, camera).run()
        )
        task = asyncio.create_task(ownership.run())
        try:
            yield task
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task


def metric(name: str) -> float | None:
    return REGISTRY.get_sample_value(name, {"tenant": "acme"})


async def results_of(bus: Bus, device: Device) -> list[result_pb2.Result]:
    """Every stored result of a camera, in order."""
    info = await bus.js.stream_info(subjects.RESULTS)
    found: list[result_pb2.Result] = []
    subject = subjects.result_subject(device.site, device.camera)
    for sequence in range(max(1, info.state.first_seq), info.state.last_seq + 1):
        message = await bus.js.get_msg(subjects.RESULTS, sequence)
        if message.subject == subject:
            found += result_pb2.ResultBatch.FromString(message.data or b"").results
    return found


async def answered(
    bus: Bus, device: Device, frames: int, *, within_s: float = 15.0
) -> list[result_pb2.Result]:
    """Wait for answers to the first `frames` frames; each must have exactly one final answer."""

    async def all_there() -> list[result_pb2.Result] | None:
        results = await results_of(bus, device)
        got = sum(r.last_sequence - r.key.sequence + 1 for r in results)
        return results if got >= frames else None

    results: list[result_pb2.Result] = await eventually(
        all_there, within_s=within_s, what=f"{frames} answers"
    )
    sequences = [s for r in results for s in range(r.key.sequence, r.last_sequence + 1)]
    assert sorted(sequences) == list(range(1, frames + 1)), "each frame exactly once"
    assert all(r.final for r in results)
    return results


async def test_every_frame_is_answered_once_in_order_and_in_source_pixels(hub: LocalHub) -> None:
    device, model = Device(), SquareModel()
    async with tenant_bus(hub) as bus, worker(bus, model):
        await publish(bus.js, device.frames(10))
        await publish(bus.js, [device.envelope([device.range(20, frame_pb2.RANGE_KIND_IDLE)])])
        await publish(
            bus.js, [device.envelope([device.range(2, frame_pb2.RANGE_KIND_SKIPPED), device.pixels()])]
        )
        results = await answered(bus, device, 33)
    assert [r.key.sequence for r in results] == [*range(1, 12), 31, 32, 33]
    assert model.seen == 11
    for result in results[:10]:
        assert result.provenance == CLOUD
        box = result.detections[0].box
        ys, xs = np.nonzero(picture(result.key.sequence)[:, :, 1] > 150)
        truth = [2 * xs.min(), 2 * ys.min(), 2 * (xs.max() + 1), 2 * (ys.max() + 1)]
        np.testing.assert_allclose([box.x1_px, box.y1_px, box.x2_px, box.y2_px], truth, atol=5)
    assert {r.detections[0].track_id for r in results[:10]} == {1}
    times = results[0].times
    assert times.captured_ns
    assert times.hub_stored_ns <= times.consumed_ns <= times.decoded_ns
    assert times.decoded_ns <= times.infer_start_ns <= times.infer_end_ns <= times.answered_ns


async def test_duplicates_however_late_change_nothing(hub: LocalHub) -> None:
    device, model = Device(), SquareModel()
    envelopes = device.frames(6)
    async with tenant_bus(hub) as bus, worker(bus, model):
        await publish(bus.js, envelopes)
        await answered(bus, device, 6)
        for envelope in envelopes:  # without the message id, as after its window has passed
            await bus.js.publish(device.subject, envelope.SerializeToString())
        await publish(bus.js, device.frames(2))
        await answered(bus, device, 8)


async def test_a_deleted_packet_degrades_to_the_next_keyframe(hub: LocalHub) -> None:
    device, model = Device(), SquareModel()
    asked: list[bytes] = []
    async with tenant_bus(hub) as bus:

        async def note(message: object) -> None:
            asked.append(message.data)  # type: ignore[attr-defined]

        await bus.connection.subscribe(subjects.control_subject(device.site, device.device), cb=note)
        stored = await publish(bus.js, [*device.frames(8), *device.frames(3, keyframe_first=True)])
        await bus.js.delete_msg(subjects.FRAMES, stored[3])
        async with worker(bus, model):
            results = await answered(bus, device, 11)
    assert [(r.provenance, r.reason) for r in results] == [
        *[(CLOUD, "")] * 3,
        (DEGRADED, "lost"),
        *[(DEGRADED, "chain_gap")] * 4,
        *[(CLOUD, "")] * 3,
    ]
    assert asked, "the device was asked for a keyframe"


async def test_a_device_is_told_that_its_messages_wait(hub: LocalHub) -> None:
    """While the model is slow; not before, and not after."""
    device, model = Device(), SquareModel()
    lags_s: list[float] = []
    async with tenant_bus(hub) as bus:

        async def note(message: object) -> None:
            request = device_pb2.ControlRequest.FromString(message.data)  # type: ignore[attr-defined]
            assert request.camera == device.camera
            if request.lag_ns:  # else it tells of answers
                lags_s.append(request.lag_ns / 1e9)

        await bus.connection.subscribe(subjects.control_subject(device.site, device.device), cb=note)
        await publish(bus.js, device.frames(5))
        async with worker(bus, model):
            await answered(bus, device, 5)
            assert lags_s == []
            model.gate.clear()
            await publish(bus.js, device.frames(40))
            await eventually(lambda: len(lags_s) >= 4, within_s=10, what="complaints")
            assert 0.5 < lags_s[0] < lags_s[-1]
            model.gate.set()
            await answered(bus, device, 45)


async def test_a_take_over_goes_on_where_the_answers_end(hub: LocalHub) -> None:
    """Killed in the middle of a chain: nothing is answered twice, and tracks keep their ids."""
    device, first, second = Device(), SquareModel(), SquareModel()
    async with tenant_bus(hub) as bus:
        async with worker(bus, first, "w1"):
            await publish(bus.js, device.frames(12))
            await answered(bus, device, 12)
        await publish(bus.js, device.frames(5))
        async with worker(bus, second, "w2"):
            results = await answered(bus, device, 17, within_s=5)
    assert second.seen == 5, "decoded from the keyframe, but inferred only what had no answer"
    assert {r.provenance for r in results} == {CLOUD}
    assert {r.detections[0].track_id for r in results} == {1}


async def test_a_silent_worker_loses_its_camera_within_five_seconds(hub: LocalHub) -> None:
    device, model, heir = Device(), SquareModel(), SquareModel()
    async with tenant_bus(hub) as bus, tenant_bus(hub) as other, worker(bus, model, "w1"):
        await publish(other.js, device.frames(3))
        await answered(other, device, 3)
        await bus.connection.close()  # as a killed process looks from outside
        await publish(other.js, device.frames(3))
        async with worker(other, heir, "w2"):
            await answered(other, device, 6, within_s=5)


async def test_a_paused_owner_cannot_write(hub: LocalHub) -> None:
    """Fencing: a write that was under way when another worker took over is refused."""
    device, model = Device(), SquareModel()
    async with tenant_bus(hub) as bus, tenant_bus(hub) as other:
        with shared(model, "w1") as one, shared(SquareModel(), "w2") as two:
            await publish(bus.js, device.frames(2))
            paused = asyncio.create_task(Camera(one, bus, device.site, device.camera).run())
            await answered(bus, device, 2)
            model.gate.clear()
            await publish(bus.js, device.frames(4))
            await eventually(lambda: model.waiting == 4, what="four pictures under way")
            heir = asyncio.create_task(Camera(two, other, device.site, device.camera).run())
            await answered(other, device, 6)
            model.gate.set()  # the paused one wakes up with four answers in hand
            await publish(bus.js, device.frames(3))
            await answered(bus, device, 9)
            for task in (paused, heir):
                task.cancel()
            await asyncio.gather(paused, heir, return_exceptions=True)


async def test_a_worker_that_joins_takes_its_share(hub: LocalHub) -> None:
    devices = [Device(camera=f"cam{number}") for number in range(8)]
    one, two = SquareModel(), SquareModel()
    async with tenant_bus(hub) as bus, tenant_bus(hub) as other, worker(bus, one, "w1"):
        for device in devices:
            await publish(bus.js, device.frames(2))
        for device in devices:
            await answered(bus, device, 2)
        async with worker(other, two, "w2"):

            async def shared_out() -> bool:
                leases = await bus.js.key_value(subjects.LEASES)
                try:
                    holders = [(await leases.get(key)).value for key in await leases.keys()]
                except KeyNotFoundError:
                    return False  # on its way from one to the other
                return len(holders) == 8 and set(holders) == {b"w1", b"w2"}

            await eventually(shared_out, within_s=5)
            for device in devices:
                await publish(bus.js, device.frames(2))
            for device in devices:
                await answered(bus, device, 4)
    assert one.seen + two.seen == 32
    assert two.seen > 0


async def test_a_worker_that_stops_ends_all_cameras_together(hub: LocalHub) -> None:
    """However long each takes, so that any number of them fits into the time there is."""
    all_told = asyncio.Barrier(8)
    ended = []

    async def work(_: str, camera: str) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await all_told.wait()
            ended.append(camera)

    async with tenant_bus(hub) as bus:
        for number in range(8):
            await publish(bus.js, Device(camera=f"cam{number}").frames(1))
        ownership = Ownership(bus, "w1", lease_s=LEASE_S, work=work)
        task = asyncio.create_task(ownership.run())
        await eventually(lambda: ownership.cameras == 8)
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        assert len(ended) == 8
        leases = await bus.js.key_value(subjects.LEASES)
        with pytest.raises(NoKeysError):
            await leases.keys()


async def test_frames_wait_while_the_inference_server_is_away(hub: LocalHub) -> None:
    device, model = Device(), SquareModel()
    model.away = True
    async with tenant_bus(hub) as bus, worker(bus, model):
        await publish(bus.js, device.frames(30))
        await eventually(lambda: model.refused > 5)
        assert await results_of(bus, device) == []
        model.away = False
        results = await answered(bus, device, 30)
    assert {r.provenance for r in results} == {CLOUD}


async def overloaded(
    bus: Bus, device: Device, sent: int, *, in_order: bool, within_s: float
) -> list[result_pb2.Result]:
    """Answers of a camera that sends four times what the model takes, so soon after it stopped."""
    model = SquareModel()
    model.takes_s = 0.4
    async with worker(bus, model, at_a_time=2):
        for _ in range(sent):
            (envelope,) = device.frames(1)
            envelope.in_order = in_order
            await publish(bus.js, [envelope])
            await asyncio.sleep(0.05)
        return await answered(bus, device, sent, within_s=within_s)


async def test_pictures_that_the_model_cannot_take_are_filled_in(hub: LocalHub) -> None:
    before = metric("eyeline_cloud_thinned_pictures_total") or 0
    async with tenant_bus(hub) as bus:
        results = await overloaded(bus, Device(), 160, in_order=False, within_s=4)
    filled = [it for it in results if it.provenance == PROPAGATED]
    seen = [it for it in results if it.provenance == CLOUD]
    assert len(filled) + len(seen) == 160
    assert metric("eyeline_cloud_thinned_pictures_total") == before + len(filled)
    # Not all at once: pictures that were seen lie between them to the end.
    numbers = [it.key.sequence for it in seen]
    assert max(after - number for number, after in itertools.pairwise(numbers)) < 40
    assert len(seen) > 35
    # The square moves on in the frames that nobody looked at.
    middle = [it for it in filled if 100 < it.key.sequence < 110]
    lefts = [it.detections[0].box.x1_px for it in middle]
    assert lefts == sorted(lefts)


async def test_the_first_picture_of_a_device_that_was_started_again_is_looked_at(hub: LocalHub) -> None:
    """In an overload too: there is nothing before it that its frame could be filled in from."""
    model = SquareModel()
    model.takes_s = 0.4
    async with tenant_bus(hub) as bus, worker(bus, model, at_a_time=2):
        before = metric("eyeline_cloud_thinned_pictures_total") or 0
        for counter in range(1, 5):
            device = Device(counter=counter)
            for _ in range(40):
                await publish(bus.js, device.frames(1))
                await asyncio.sleep(0.05)

        async def all_there() -> list[result_pb2.Result] | None:
            found = await results_of(bus, device)
            return found if len(found) >= 160 else None

        results = await eventually(all_there, within_s=6)
        assert (metric("eyeline_cloud_thinned_pictures_total") or 0) > before + 80
    assert [it.provenance for it in results if it.key.sequence == 1] == [CLOUD] * 4
    assert not [(it.key.sequence, it.reason) for it in results if it.provenance == DEGRADED]


async def test_pictures_that_only_others_need_are_no_overload(hub: LocalHub) -> None:
    """As of a camera whose own coded pictures go on: most are there for those that depend on them."""
    device, model = Device(), SquareModel()
    model.takes_s = 0.07
    async with tenant_bus(hub) as bus, worker(bus, model, at_a_time=1):
        before = metric("eyeline_cloud_thinned_pictures_total") or 0
        for _ in range(10):
            items = [device.pixels() for _ in range(40)]
            for item in items[3:]:
                item.access_unit.reference_only = True
            await publish(bus.js, [device.envelope(items)])
            await asyncio.sleep(0.6)
        results = await answered(bus, device, 400)
        assert (metric("eyeline_cloud_thinned_pictures_total") or 0) == before
    assert len([it for it in results if it.provenance == CLOUD]) == 30


async def test_who_wants_all_in_order_gets_every_picture_looked_at(hub: LocalHub) -> None:
    async with tenant_bus(hub) as bus:
        results = await overloaded(bus, Device(), 60, in_order=True, within_s=30)
    assert {it.provenance for it in results} == {CLOUD}


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda _: b"garbage \xff\xfe" * 9, "corrupt"),
        (lambda data: data[: len(data) // 2], "corrupt"),
        (lambda _: frame_pb2.FrameEnvelope(schema_major=9).SerializeToString(), "newer_schema"),
        (lambda data: data + b"\0" * 950_000, "too_large"),
        (lambda data: data.replace(b"acme", b"evil"), "wrong_subject"),
    ],
)
async def test_an_unusable_message_is_set_aside_and_the_rest_goes_on(
    hub: LocalHub, spoil: object, reason: str
) -> None:
    device, model = Device(), SquareModel()
    async with tenant_bus(hub) as bus, worker(bus, model):
        good = device.frames(1)
        spoilt = spoil(device.frames(1)[0].SerializeToString())  # type: ignore[operator]
        await publish(bus.js, good)
        await bus.js.publish(device.subject, spoilt)
        await publish(bus.js, device.frames(2, keyframe_first=True))
        results = await answered(bus, device, 4)
        aside = await bus.js.get_last_msg(
            subjects.DEAD, subjects.dead_subject(device.site, device.device, device.camera)
        )
    assert [(r.provenance, r.reason) for r in results] == [
        (CLOUD, ""),
        (DEGRADED, "lost"),
        (CLOUD, ""),
        (CLOUD, ""),
    ]
    assert aside.data == spoilt
    assert (aside.headers or {})["Eyeline-Reason"] == reason


async def test_pixels_are_removed_once_no_chain_needs_them(
    hub: LocalHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cloud_inference.store._PURGE_EVERY_S", 0.0)
    device, model = Device(), SquareModel()
    async with tenant_bus(hub) as bus, worker(bus, model):
        await publish(bus.js, device.frames(10))
        stored = await publish(bus.js, device.frames(3, keyframe_first=True))
        await answered(bus, device, 13)

        async def purged() -> bool:
            return (await bus.js.stream_info(subjects.FRAMES)).state.first_seq == stored[0]

        await eventually(purged)


async def test_a_hub_that_is_killed_and_comes_back_loses_nothing(hub: LocalHub) -> None:
    device, model = Device(), SquareModel()
    async with tenant_bus(hub) as bus, worker(bus, model):
        await publish(bus.js, device.frames(5))
        await answered(bus, device, 5)
        await eventually(lambda: metric("eyeline_cloud_hub_answers_ratio") == 1)
        assert 0 < metric("eyeline_cloud_frames_stored_ratio") < 0.001
        await hub.stop(0)
        await eventually(lambda: metric("eyeline_cloud_hub_answers_ratio") == 0)
        await hub.start()

        async def sent() -> bool:
            try:
                await publish(bus.js, rest[:1])
            except Exception:  # noqa: BLE001  # the hub is coming up
                return False
            rest.pop(0)
            return not rest

        rest = device.frames(5)
        await eventually(sent)
        await answered(bus, device, 10, within_s=10)
        await eventually(lambda: metric("eyeline_cloud_hub_answers_ratio") == 1)
