"""Unary calls, pages, images, deadlines and every status; against scripted services over real gRPC."""

from __future__ import annotations

import asyncio
import io
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import numpy as np
import pytest
from grpc import StatusCode
from PIL import Image

from eyeline import Client, errors
from eyeline._status import ERRORS, from_rpc
from eyeline.v1 import detection_pb2, device_pb2, inference_pb2, result_pb2
from tests.support.fake_api import START_NS, FakeApi, Fault, made_result, running_fake_api


@pytest.fixture
async def api() -> AsyncIterator[FakeApi]:
    async with running_fake_api() as running:
        yield running


@pytest.fixture
async def client(api: FakeApi) -> AsyncIterator[Client]:
    async with Client(api.address) as made:
        yield made


def device(name: str, revision: int = 0) -> device_pb2.Device:
    """A device that has reported."""
    return device_pb2.Device(
        status=device_pb2.DeviceStatus(schema_major=1, site="yard", device=name, agent_version="0.1.0"),
        desired=device_pb2.DesiredConfig(revision=revision),
    )


async def test_latest(api: FakeApi, client: Client) -> None:
    api.store(made_result(1), made_result(2), made_result(5, "door"))
    assert {(r.camera, r.sequence) for r in await client.latest()} == {("gate", 2), ("door", 5)}
    assert [r.sequence for r in await client.latest(("yard/door",))] == [5]
    assert await client.latest("yard/elsewhere") == []


async def test_history_reads_every_page(api: FakeApi, client: Client) -> None:
    api.store(*(made_result(i) for i in range(1, 8)), made_result(3, "door"))
    found = [r.sequence async for r in client.history("yard", "gate")]
    assert found == list(range(1, 8))
    assert len(api.asked("ListResults")) == 4
    second = 1_000_000_000
    part = client.history("yard", "gate", START_NS + 3 * second, START_NS + 5 * second, page_size=1)
    assert [r.sequence async for r in part] == [3, 4]


async def test_detect_takes_bytes_files_and_pixels(api: FakeApi, client: Client, tmp_path: Path) -> None:
    api.answer = inference_pb2.DetectResponse(
        detections=made_result(1).detections,
        model=detection_pb2.ModelRef(name="m", version="2"),
        width_px=5,
        height_px=4,
        infer_ns=7,
    )
    pixels = np.random.default_rng(1).integers(0, 256, (4, 5, 3), np.uint8)
    encoded = io.BytesIO()
    Image.fromarray(pixels[:, :, ::-1]).save(encoded, "PNG")
    (tmp_path / "image.png").write_bytes(encoded.getvalue())
    for image in (encoded.getvalue(), tmp_path / "image.png", pixels):
        answer = await client.detect(image, "m", 0.5)
        assert (answer.model, answer.model_version, answer.image_size, answer.infer_ns) == (
            "m",
            "2",
            (5, 4),
            7,
        )
        assert answer.detections.boxes.shape == (1, 4)
        sent = api.asked("Detect")[-1]
        assert (sent.model, sent.min_score) == ("m", 0.5)
        read = np.asarray(Image.open(io.BytesIO(sent.image)).convert("RGB"))[:, :, ::-1]
        np.testing.assert_array_equal(read, pixels)


@pytest.mark.parametrize(
    ("image", "says"),
    [
        (b"", "empty"),
        (b"x" * (8 << 20 | 1), "8388609 bytes, at most 8388608"),
        (Path("no/such/file.jpg"), "no/such/file.jpg cannot be read: No such file"),
        (np.zeros((4, 4), np.uint8), r"uint8 \[H, W, 3\] BGR, not uint8 \[4, 4\]"),
        (np.zeros((4, 4, 3), np.float32), "not float32"),
        (np.zeros((0, 4, 3), np.uint8), "not uint8"),
        (np.zeros((10_000, 5_001, 3), np.uint8), "50010000 pixels, at most 50000000"),
    ],
)
async def test_impossible_images_are_not_sent(api: FakeApi, client: Client, image: bytes, says: str) -> None:
    with pytest.raises(errors.InvalidRequest, match=says):
        await client.detect(image)
    assert not api.calls


async def test_too_large_a_file_is_not_sent(client: Client, tmp_path: Path) -> None:
    (tmp_path / "large.jpg").write_bytes(b"x" * (9 << 20))
    with pytest.raises(errors.InvalidRequest, match="more than 8388608"):
        await client.detect(tmp_path / "large.jpg")


async def test_devices(api: FakeApi, client: Client) -> None:
    api.devices = {("yard", name): device(name) for name in ("box1", "box2", "box3")}
    assert [found.status.device for found in await client.devices()] == ["box1", "box2", "box3"]
    assert (await client.device("yard", "box2")).status.device == "box2"
    with pytest.raises(errors.NotFound, match="no device yard/box9"):
        await client.device("yard", "box9")


async def test_desired_configuration_and_its_conflict(api: FakeApi, client: Client) -> None:
    api.devices = {("yard", "box1"): device("box1", revision=4)}
    wanted = [device_pb2.DesiredCamera(camera="gate", max_fps=5)]
    stored = await client.set_desired("yard", "box1", wanted, expected_revision=4)
    assert (stored.revision, stored.cameras[0].max_fps) == (5, 5)
    with pytest.raises(errors.Conflict, match="revision 5 is in force; read it again") as caught:
        await client.set_desired("yard", "box1", wanted, expected_revision=4)
    assert caught.value.retryable


async def test_deadlines(api: FakeApi) -> None:
    api.hanging.update({"GetLatest", "GetDevice"})
    async with Client(api.address, timeout_s=0.2) as client:
        with pytest.raises(errors.DeadlineExceeded) as caught:
            await client.latest()
        assert caught.value.retryable
        with pytest.raises(errors.DeadlineExceeded, match="try again"):
            await client.device("yard", "box1", timeout_s=0.1)
        assert await client.devices() == []
    async with Client(api.address) as client:
        await client.devices()
    remaining = api.deadlines_s[-1]
    assert remaining is not None
    assert 9 < remaining < 11


async def test_token_is_sent_and_never_shown(api: FakeApi) -> None:
    api.token = "s3cret"
    async with Client(api.address, "s3cret") as client:
        assert await client.latest() == []
        assert "s3cret" not in repr(client)
    async with Client(api.address, "wrong-one") as client:
        with pytest.raises(errors.Unauthenticated) as caught:
            await client.latest()
    assert str(caught.value) == (
        f"{api.address}: this token is not known; give a token that the server knows"
    )
    assert not caught.value.retryable


@pytest.mark.parametrize("code", [code for code in StatusCode if code is not StatusCode.OK])
async def test_every_status_has_its_error(api: FakeApi, client: Client, code: StatusCode) -> None:
    kind, _ = ERRORS[code]
    api.fail("GetLatest", Fault(code, "what the\nserver \x1b[31msaid"))
    with pytest.raises(errors.ApiError) as caught:
        await client.latest()
    error = caught.value
    assert type(error) is kind
    assert error.status == code.name
    assert error.server_message == "what the server [31msaid"
    assert str(error).startswith(f"{api.address}: what the server [31msaid")
    assert error.retryable is (
        code
        in {
            StatusCode.ABORTED,
            StatusCode.ALREADY_EXISTS,
            StatusCode.CANCELLED,
            StatusCode.DEADLINE_EXCEEDED,
            StatusCode.RESOURCE_EXHAUSTED,
            StatusCode.UNAVAILABLE,
        }
    )


def test_no_status_is_forgotten() -> None:
    assert set(ERRORS) == set(StatusCode) - {StatusCode.OK}
    assert all(issubclass(kind, errors.ApiError) for kind, _ in ERRORS.values())


def test_damaged_details_are_no_gap() -> None:
    metadata = grpc.aio.Metadata(("grpc-status-details-bin", b"\xff\xff\xff"))
    broken = grpc.aio.AioRpcError(StatusCode.OUT_OF_RANGE, grpc.aio.Metadata(), metadata, details="no")
    assert type(from_rpc(broken, "host:1")) is errors.InvalidRequest


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        (
            "failed to connect to all addresses; last error: UNKNOWN: ipv4:1.2.3.4:5: Connection refused",
            "refused",
        ),
        ("DNS resolution failed for nowhere:1", "cannot be reached"),
        ("the hub is away; try again", "host:1: the hub is away; try again"),
    ],
)
def test_unavailable_says_who_is_away(said: str, shown: str) -> None:
    problem = grpc.aio.AioRpcError(
        StatusCode.UNAVAILABLE, grpc.aio.Metadata(), grpc.aio.Metadata(), details=said
    )
    error = from_rpc(problem, "host:1")
    assert shown in str(error)
    assert error.retryable


@pytest.mark.parametrize(
    "address", ["", "host", "host:", ":1", "host:0", "host:70000", "http://host:1", "h:x"]
)
def test_impossible_addresses(address: str) -> None:
    with pytest.raises(errors.ConfigError, match="HOST:PORT"):
        Client(address)


def test_impossible_token_and_certificate(tmp_path: Path) -> None:
    with pytest.raises(errors.ConfigError, match="printable ASCII") as caught:
        Client("host:1", "line\nbreak")
    assert "break" not in str(caught.value)
    with pytest.raises(errors.ConfigError, match="cannot be read"):
        Client("host:1", tls=tmp_path / "missing.pem")


@pytest.mark.parametrize(
    "cameras", ["gate", ["yard/gate", "gate"], ["yard/ga te"], [("yard", "*")], ["yard/"]]
)
async def test_impossible_cameras_are_not_sent(api: FakeApi, client: Client, cameras: list[str]) -> None:
    with pytest.raises((errors.InvalidRequest, errors.InvalidName)):
        client.subscribe(cameras)
    with pytest.raises((errors.InvalidRequest, errors.InvalidName)):
        await client.latest(cameras)
    assert not api.calls


async def test_impossible_subscriptions(client: Client) -> None:
    with pytest.raises(errors.InvalidRequest, match="not both"):
        client.subscribe(since_ns=1, resume="t1")
    with pytest.raises(errors.InvalidRequest, match="on_gap"):
        client.subscribe(on_gap="ignore")  # type: ignore[arg-type]
    with pytest.raises(errors.InvalidRequest, match="no camera is named"):
        client.subscribe([])
    with pytest.raises(errors.InvalidRequest, match="since_ns -1"):
        client.subscribe(since_ns=-1)


async def test_closed_client_says_so(client: Client) -> None:
    await client.close()
    with pytest.raises(errors.InvalidRequest, match="closed"):
        await client.latest()


async def test_cancelled_call_ends_at_the_server(api: FakeApi, client: Client) -> None:
    api.hanging.add("GetLatest")
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(client.latest(), 0.1)


async def test_unknown_provenance_of_a_newer_server_is_no_answer(api: FakeApi, client: Client) -> None:
    newer = made_result(1)
    newer.ParseFromString(newer.SerializeToString() + b"\x28\x63")  # provenance = 99
    assert newer.provenance not in result_pb2.Provenance.values()
    api.store(newer)
    (found,) = await client.latest()
    assert found.provenance.name == "DEGRADED"
