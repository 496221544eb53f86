"""The gRPC API against a real hub."""

from __future__ import annotations

import asyncio
import io
import sysconfig
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.rpc import status_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from PIL import Image

from cloud_inference.api.server import Serving
from cloud_inference.errors import TritonUnavailable
from cloud_inference.hub import LocalHub
from eyeline import subjects
from eyeline.v1 import (
    device_pb2,
    device_pb2_grpc,
    frame_pb2,
    inference_pb2,
    inference_pb2_grpc,
    result_pb2,
    result_pb2_grpc,
)
from tests.support.api import EPOCH, BrightModel, bearer, channel, result, running_api, store
from tests.support.eventually import eventually

SECOND_NS = 1_000_000_000
START_NS = 1_800_000_000 * SECOND_NS


def js_of(serving: Serving, tenant: str = "acme") -> Any:
    return serving.tenants.hubs[tenant].js


class Subscription:
    """Reads a subscription; the first response says that it stands."""

    def __init__(self, opened: grpc.aio.Channel, token: str = "for-acme", **request: Any) -> None:
        stub = result_pb2_grpc.ResultsStub(opened)
        self.call = stub.Subscribe(result_pb2.SubscribeRequest(**request), metadata=bearer(token))
        self._responses = self.call.__aiter__()
        self._results = self._read()

    async def _read(self) -> AsyncIterator[result_pb2.Result]:
        async for response in self._responses:
            for one in response.results:
                yield one

    async def stand(self) -> Subscription:
        first = await anext(self._responses)
        assert not first.results
        self.token = first.resume_token
        return self

    async def take(self, count: int) -> list[result_pb2.Result]:
        async with asyncio.timeout(10):
            return [await anext(self._results) for _ in range(count)]


def sequences(results: Any) -> list[int]:
    return [one.key.sequence for one in results]


async def refused(awaitable: Any) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await awaitable
    assert "\n" not in (caught.value.details() or "")
    return caught.value


async def test_subscribing_from_now_a_time_and_a_token(hub: LocalHub) -> None:
    async with running_api(hub) as serving, channel(serving) as opened:
        js = js_of(serving)
        await store(js, [result(1), result(2)])
        now = await Subscription(opened).stand()
        await store(js, [result(3), result(4), result(5)])
        live = await now.take(3)
        assert sequences(live) == [3, 4, 5]
        everything = await Subscription(opened, from_time_ns=1).stand()
        assert sequences(await everything.take(5)) == [1, 2, 3, 4, 5]
        # In the middle of a stored batch.
        resumed = await Subscription(opened, resume_token=live[0].resume_token).stand()
        assert sequences(await resumed.take(2)) == [4, 5]
        await store(js, [result(6)])
        assert sequences(await resumed.take(1)) == [6]
        assert sequences(await now.take(1)) == [6]


async def test_the_first_token_needs_no_result(hub: LocalHub) -> None:
    async with running_api(hub) as serving, channel(serving) as opened:
        js = js_of(serving)
        empty = await Subscription(opened).stand()
        await store(js, [result(1)])
        assert sequences(await empty.take(1)) == [1]
        later = await Subscription(opened, resume_token=empty.token).stand()
        assert sequences(await later.take(1)) == [1]
        behind = await Subscription(opened).stand()
        await store(js, [result(2)])
        resumed = await Subscription(opened, resume_token=behind.token).stand()
        assert sequences(await resumed.take(1)) == [2]


async def test_a_quiet_subscription_gets_fresh_tokens(hub: LocalHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cloud_inference.api.results._QUIET_S", 0.05)
    async with running_api(hub) as serving, channel(serving) as opened:
        js = js_of(serving)
        camera = result_pb2.CameraRef(site="yard", camera="quiet")
        quiet = await Subscription(opened, cameras=[camera]).stand()
        for sequence in range(1, 6):
            await store(js, [result(sequence)])
        for _ in range(3):
            fresh = await anext(quiet._responses)
        await js.purge_stream(subjects.RESULTS, seq=5)
        resumed = await Subscription(opened, resume_token=fresh.resume_token).stand()
        await store(js, [result(9)])
        assert sequences(await resumed.take(1)) == [9]


async def test_only_the_cameras_asked_for_and_only_final_ones(hub: LocalHub) -> None:
    async with running_api(hub) as serving, channel(serving) as opened:
        js = js_of(serving)
        cameras = [result_pb2.CameraRef(site="yard", camera=name) for name in ("gate", "door")]
        some = await Subscription(opened, cameras=cameras, final_only=True).stand()
        await store(js, [result(1, camera="roof")])
        await store(js, [result(2, final=False)])
        await store(js, [result(2)])
        await store(js, [result(3, camera="door")])
        found = await some.take(2)
        assert [(one.key.camera, one.key.sequence, one.final) for one in found] == [
            ("gate", 2, True),
            ("door", 3, True),
        ]


async def test_a_token_outlives_restarts_of_api_and_hub(hub: LocalHub) -> None:
    async with running_api(hub) as serving:
        # A client's channel outlives the server.
        opened = grpc.aio.insecure_channel(serving.address)
        standing = await Subscription(opened).stand()
        await store(js_of(serving), [result(1), result(2)])
        token = (await standing.take(2))[0].resume_token
    assert await standing.call.code() == grpc.StatusCode.UNAVAILABLE
    await opened.close()
    await hub.stop(0)
    await hub.start()
    async with running_api(hub) as serving, channel(serving) as opened:
        await store(js_of(serving), [result(3)])
        resumed = await Subscription(opened, resume_token=token).stand()
        assert sequences(await resumed.take(2)) == [2, 3]


async def test_a_subscription_goes_on_by_itself_when_the_hub_was_killed(hub: LocalHub) -> None:
    async with running_api(hub) as serving, channel(serving) as opened:
        js = js_of(serving)
        standing = await Subscription(opened).stand()
        await store(js, [result(1)])
        assert sequences(await standing.take(1)) == [1]
        await hub.stop(0)
        await hub.start()

        async def stored() -> bool:
            try:
                await store(js, [result(2)])
            except Exception:  # noqa: BLE001  # the hub is coming up
                return False
            return True

        await eventually(stored)
        assert sequences(await standing.take(1)) == [2]


async def test_an_expired_token_names_the_gap(hub: LocalHub) -> None:
    async with running_api(hub) as serving, channel(serving) as opened:
        js = js_of(serving)
        standing = await Subscription(opened).stand()
        for sequence in range(1, 6):
            await store(js, [result(sequence)])
        token = (await standing.take(1))[0].resume_token
        await js.purge_stream(subjects.RESULTS, seq=5)
        error = await refused(Subscription(opened, resume_token=token).stand())
        assert error.code() == grpc.StatusCode.OUT_OF_RANGE
        details = dict(error.trailing_metadata() or ())["grpc-status-details-bin"]
        gap = result_pb2.ResumeGap()
        assert status_pb2.Status.FromString(details).details[0].Unpack(gap)
        assert gap.missing_messages == 3
        assert 0 < gap.token_time_ns < gap.oldest_time_ns


async def test_the_last_result_may_expire_without_a_gap(hub: LocalHub) -> None:
    async with running_api(hub) as serving, channel(serving) as opened:
        js = js_of(serving)
        standing = await Subscription(opened).stand()
        await store(js, [result(1)])
        token = (await standing.take(1))[0].resume_token
        await js.purge_stream(subjects.RESULTS)
        resumed = await Subscription(opened, resume_token=token).stand()
        await store(js, [result(2)])
        assert sequences(await resumed.take(1)) == [2]


@pytest.mark.parametrize(
    "token", ["x", "AAAA", "é", "A" * 200, "AQEAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"]
)
async def test_a_made_up_token_is_refused(hub: LocalHub, token: str) -> None:
    async with running_api(hub) as serving, channel(serving) as opened:
        error = await refused(Subscription(opened, resume_token=token).stand())
        assert error.code() == grpc.StatusCode.INVALID_ARGUMENT


async def test_a_cancelled_subscription_leaves_no_consumer(hub: LocalHub) -> None:
    async with running_api(hub) as serving, channel(serving) as opened:
        js = js_of(serving)
        standing = await Subscription(opened).stand()
        assert (await js.stream_info(subjects.RESULTS)).state.consumer_count == 1
        standing.call.cancel()

        async def gone() -> bool:
            return (await js.stream_info(subjects.RESULTS)).state.consumer_count == 0

        await eventually(gone)


async def test_too_many_subscriptions_are_refused(hub: LocalHub) -> None:
    async with running_api(hub, max_streams=4) as serving, channel(serving) as opened:
        one, two = await Subscription(opened).stand(), await Subscription(opened).stand()
        error = await refused(Subscription(opened).stand())
        assert error.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        assert error.details() == "2 subscriptions are open, at most 2 are served"
        # Half of the places are the other tenant's, whatever this one asks for.
        theirs = await Subscription(opened, token="for-globex").stand()
        theirs.call.cancel()
        one.call.cancel()
        two.call.cancel()


async def test_latest(hub: LocalHub) -> None:
    async with running_api(hub) as serving, channel(serving) as opened:
        js, stub = js_of(serving), result_pb2_grpc.ResultsStub(opened)
        await store(js, [result(1), result(2, last=9)])
        await store(js, [result(1, camera="door")])
        every = await stub.GetLatest(result_pb2.GetLatestRequest(), metadata=bearer())
        assert [(one.key.camera, one.last_sequence) for one in every.results] == [("door", 1), ("gate", 9)]
        cameras = [result_pb2.CameraRef(site="yard", camera=name) for name in ("gate", "nowhere")]
        some = await stub.GetLatest(result_pb2.GetLatestRequest(cameras=cameras), metadata=bearer())
        assert [one.key.camera for one in some.results] == ["gate"]


@pytest.mark.parametrize("lane", [frame_pb2.LANE_BACKLOG, frame_pb2.LANE_OVERTAKEN])
async def test_a_late_result_is_not_the_latest(
    hub: LocalHub, lane: frame_pb2.Lane.ValueType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many came since the newest live one, and however far back that lies."""
    monkeypatch.setattr("cloud_inference.api.results._LOOK_BACK_S", (0.0, 60.0))
    live = result_pb2.LaneCheckpoint(lane=frame_pb2.LANE_LIVE, epoch=EPOCH, last_sequence=42)
    before = result_pb2.Checkpoint(lanes=[live])
    async with running_api(hub) as serving, channel(serving) as opened:
        js, stub = js_of(serving), result_pb2_grpc.ResultsStub(opened)

        async def latest() -> int:
            got = await stub.GetLatest(result_pb2.GetLatestRequest(), metadata=bearer())
            (one,) = got.results
            return one.last_sequence

        def captured(sequence: int) -> dict[str, Any]:
            return {"captured_ns": START_NS + sequence * SECOND_NS}

        # With nothing live, the newest of what there is.
        await store(js, [result(1, lane=lane, **captured(1))])
        assert await latest() == 1
        await store(js, [result(n, lane=frame_pb2.LANE_LIVE, **captured(n)) for n in (41, 42)], before)
        assert await latest() == 42
        for sequence in range(2, 30):
            await store(js, [result(sequence, lane=lane, **captured(sequence))], before)
        assert await latest() == 42
        # One message with both.
        both = [result(43, **captured(43)), result(30, lane=lane, **captured(30))]
        live.last_sequence = 43
        await store(js, both, result_pb2.Checkpoint(lanes=[live]))
        assert await latest() == 43


async def test_listing_pages_through_a_time_range(hub: LocalHub) -> None:
    async with running_api(hub) as serving, channel(serving) as opened:
        js, stub = js_of(serving), result_pb2_grpc.ResultsStub(opened)
        for first in range(1, 40, 4):
            await store(
                js, [result(s, captured_ns=START_NS + s * SECOND_NS) for s in range(first, first + 4)]
            )
        request = result_pb2.ListResultsRequest(
            camera=result_pb2.CameraRef(site="yard", camera="gate"),
            from_time_ns=START_NS + 5 * SECOND_NS,
            to_time_ns=START_NS + 31 * SECOND_NS,
            page_size=10,
        )
        # Stored now, captured in a future: a page starts at the capture time less the clocks' slack.
        request.from_time_ns, low = 0, 1
        found: list[int] = []
        pages = 0
        while True:
            page = await stub.ListResults(request, metadata=bearer())
            found += sequences(page.results)
            pages += 1
            if not page.next_page_token:
                break
            assert len(page.results) == 10
            request.page_token = page.next_page_token
        assert found == list(range(low, 31))
        assert pages == 4
        other = result_pb2.ListResultsRequest(camera=request.camera, page_token=request.page_token)
        error = await refused(stub.ListResults(other, metadata=bearer()))
        assert error.code() == grpc.StatusCode.INVALID_ARGUMENT


async def test_listing_gives_the_highest_revision(hub: LocalHub) -> None:
    async with running_api(hub) as serving, channel(serving) as opened:
        js, stub = js_of(serving), result_pb2_grpc.ResultsStub(opened)
        await store(js, [result(1, final=False), result(2, final=False)])
        await store(js, [result(3)])
        await store(js, [result(1)])
        camera = result_pb2.CameraRef(site="yard", camera="gate")
        whole = await stub.ListResults(result_pb2.ListResultsRequest(camera=camera), metadata=bearer())
        assert [(one.key.sequence, one.final) for one in whole.results] == [(2, False), (3, True), (1, True)]
        # The final one lies beyond the page: the provisional one is left out all the same.
        page = await stub.ListResults(
            result_pb2.ListResultsRequest(camera=camera, page_size=2), metadata=bearer()
        )
        assert [(one.key.sequence, one.final) for one in page.results] == [(2, False)]


async def test_tenants_do_not_see_each_other(hub: LocalHub) -> None:
    async with running_api(hub) as serving, channel(serving) as opened:
        stub = result_pb2_grpc.ResultsStub(opened)
        theirs = await Subscription(opened, "for-globex").stand()
        ours = await Subscription(opened).stand()
        await store(js_of(serving), [result(1)])
        token = (await ours.take(1))[0].resume_token
        camera = result_pb2.CameraRef(site="yard", camera="gate")
        latest = await stub.GetLatest(result_pb2.GetLatestRequest(), metadata=bearer("for-globex"))
        listed = await stub.ListResults(
            result_pb2.ListResultsRequest(camera=camera), metadata=bearer("for-globex")
        )
        assert not latest.results
        assert not listed.results
        error = await refused(Subscription(opened, "for-globex", resume_token=token).stand())
        assert error.code() == grpc.StatusCode.INVALID_ARGUMENT
        await store(js_of(serving, "globex"), [result(7)])
        assert sequences(await theirs.take(1)) == [7]


@pytest.mark.parametrize("metadata", [(), bearer("wrong"), (("authorization", "Basic for-acme"),)])
async def test_without_a_known_token_nothing_is_answered(hub: LocalHub, metadata: Any) -> None:
    async with running_api(hub) as serving, channel(serving) as opened:
        results, devices = result_pb2_grpc.ResultsStub(opened), device_pb2_grpc.DevicesStub(opened)
        inference = inference_pb2_grpc.InferenceStub(opened)
        for call in (
            results.GetLatest(result_pb2.GetLatestRequest(), metadata=metadata),
            results.ListResults(result_pb2.ListResultsRequest(), metadata=metadata),
            devices.ListDevices(device_pb2.ListDevicesRequest(), metadata=metadata),
            devices.GetDevice(device_pb2.GetDeviceRequest(), metadata=metadata),
            devices.SetDesiredConfig(device_pb2.SetDesiredConfigRequest(), metadata=metadata),
            inference.Detect(inference_pb2.DetectRequest(), metadata=metadata),
            results.Subscribe(result_pb2.SubscribeRequest(), metadata=metadata).read(),
        ):
            assert (await refused(call)).code() == grpc.StatusCode.UNAUTHENTICATED


async def test_devices_and_what_is_wanted_of_them(hub: LocalHub) -> None:
    async with running_api(hub) as serving, channel(serving) as opened:
        js, stub = js_of(serving), device_pb2_grpc.DevicesStub(opened)
        for name in ("box1", "box2", "box3"):
            status = device_pb2.DeviceStatus(schema_major=1, site="yard", device=name, agent_version="1.2")
            await js.publish(subjects.status_subject("yard", name), status.SerializeToString())
        first = await stub.ListDevices(device_pb2.ListDevicesRequest(page_size=2), metadata=bearer())
        rest = await stub.ListDevices(
            device_pb2.ListDevicesRequest(page_size=2, page_token=first.next_page_token), metadata=bearer()
        )
        names = [device.status.device for device in [*first.devices, *rest.devices]]
        assert names == ["box1", "box2", "box3"]
        assert not rest.next_page_token
        wanted = device_pb2.DesiredConfig(cameras=[device_pb2.DesiredCamera(camera="gate", max_fps=2)])
        request = device_pb2.SetDesiredConfigRequest(site="yard", device="box1", desired=wanted)
        revision = (await stub.SetDesiredConfig(request, metadata=bearer())).desired.revision
        device = (
            await stub.GetDevice(device_pb2.GetDeviceRequest(site="yard", device="box1"), metadata=bearer())
        ).device
        assert (device.desired.revision, device.desired.cameras) == (revision, wanted.cameras)
        assert device.status.stored_ns > 0
        request.expected_revision = revision + 7
        assert (await refused(stub.SetDesiredConfig(request, metadata=bearer()))).code() == (
            grpc.StatusCode.ABORTED
        )
        request.desired.cameras[0].crf = 99
        assert (await refused(stub.SetDesiredConfig(request, metadata=bearer()))).code() == (
            grpc.StatusCode.INVALID_ARGUMENT
        )
        missing = device_pb2.GetDeviceRequest(site="yard", device="nobody")
        assert (await refused(stub.GetDevice(missing, metadata=bearer()))).code() == grpc.StatusCode.NOT_FOUND


def image_bytes(
    width: int = 64, height: int = 32, kind: str = "PNG", orientation: int | None = None
) -> bytes:
    buffer = io.BytesIO()
    exif = Image.Exif()
    if orientation:
        exif[0x0112] = orientation
    Image.new("RGB", (width, height), "white").save(buffer, kind, exif=exif)
    return buffer.getvalue()


async def test_detect(hub: LocalHub) -> None:
    model = BrightModel()
    async with running_api(hub, model) as serving, channel(serving) as opened:
        stub = inference_pb2_grpc.InferenceStub(opened)
        for kind in ("PNG", "JPEG", "WEBP"):
            answer = await stub.Detect(
                inference_pb2.DetectRequest(image=image_bytes(kind=kind)), metadata=bearer()
            )
            assert (answer.width_px, answer.height_px) == (64, 32)
            assert [found.class_name for found in answer.detections] == ["square"]
            assert answer.detections[0].box.x2_px == 32
        turned = await stub.Detect(
            inference_pb2.DetectRequest(image=image_bytes(kind="JPEG", orientation=6), min_score=0.1),
            metadata=bearer(),
        )
        assert (turned.width_px, turned.height_px, len(turned.detections)) == (32, 64, 2)
        model.problem = TritonUnavailable("Triton is away")
        error = await refused(
            stub.Detect(inference_pb2.DetectRequest(image=image_bytes()), metadata=bearer())
        )
        assert error.code() == grpc.StatusCode.UNAVAILABLE


@pytest.mark.parametrize(
    ("request_", "code", "words"),
    [
        (inference_pb2.DetectRequest(), grpc.StatusCode.INVALID_ARGUMENT, "no image"),
        (
            inference_pb2.DetectRequest(image=b"GIF89a" + b"\0" * 50),
            grpc.StatusCode.INVALID_ARGUMENT,
            "neither",
        ),
        (inference_pb2.DetectRequest(image=image_bytes()[:60]), grpc.StatusCode.INVALID_ARGUMENT, "damaged"),
        (
            inference_pb2.DetectRequest(image=image_bytes(9000, 9000)),
            grpc.StatusCode.INVALID_ARGUMENT,
            "million",
        ),
        (inference_pb2.DetectRequest(image=b"\0" * 9_000_000), grpc.StatusCode.RESOURCE_EXHAUSTED, ""),
        (inference_pb2.DetectRequest(image=b"x", model="other"), grpc.StatusCode.NOT_FOUND, "square"),
        (inference_pb2.DetectRequest(image=b"x", min_score=2), grpc.StatusCode.INVALID_ARGUMENT, "min_score"),
    ],
)
async def test_an_image_that_cannot_be_answered(hub: LocalHub, request_: Any, code: Any, words: str) -> None:
    async with running_api(hub) as serving, channel(serving) as opened:
        stub = inference_pb2_grpc.InferenceStub(opened)
        error = await refused(stub.Detect(request_, metadata=bearer()))
        assert error.code() == code
        assert words in (error.details() or "")


async def test_health_and_reflection(hub: LocalHub) -> None:
    async with running_api(hub) as serving, channel(serving) as opened:
        health = health_pb2_grpc.HealthStub(opened)

        async def serving_all() -> bool:
            answers = [
                await health.Check(health_pb2.HealthCheckRequest(service=name))
                for name in ("", "eyeline.v1.Results", "eyeline.v1.Inference", "eyeline.v1.Devices")
            ]
            return {answer.status for answer in answers} == {health_pb2.HealthCheckResponse.SERVING}

        await eventually(serving_all)
        buf = await asyncio.create_subprocess_exec(
            str(Path(sysconfig.get_path("scripts"), "buf")),
            "curl", "--protocol", "grpc", "--http2-prior-knowledge",
            "--header", "authorization: Bearer for-acme",
            f"http://{serving.address}/eyeline.v1.Results/GetLatest",
            stdout=asyncio.subprocess.PIPE,
        )  # fmt: skip
        output, _ = await buf.communicate()
        assert (buf.returncode, output.strip()) == (0, b"{}")
