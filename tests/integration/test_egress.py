"""Every way that pixels leave the device is driven, and what is behind a mask is looked for in what left.

`PATHS` holds all of them: today, frames in four codecs and as the camera coded them,
out of a recording and through a real agent and hub. Beside them: calibration samples.
Audits, snapshots and debug dumps do not exist yet; each gets its line when it comes.
That none comes unnoticed is held by `tests/unit/test_redact.py`, which names the one module that may make
bytes of pixels, and by the type that this module takes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from cloud_inference import streams
from cloud_inference.config import StreamSettings
from cloud_inference.decode import ChainDecoder
from cloud_inference.hub import LocalHub
from edge_agent.agent import SystemClock
from edge_agent.batch import CameraIdentity
from edge_agent.capture import Capture
from edge_agent.config import AgentSettings
from edge_agent.frame import Frame
from edge_agent.handoff import Dropped
from edge_agent.pipeline import CameraPipeline
from edge_agent.sample import Sampler, SampleSpec
from eyeline.envelope import item_range
from eyeline.ladder import Rung
from eyeline.subjects import status_subject
from eyeline.v1 import calibration_pb2, device_pb2
from eyeline.v1 import frame_pb2 as pb
from eyeline.values import Epoch
from eyeline_models import catalogue
from eyeline_models.runtime import Detector
from tests.integration.test_agent import Process
from tests.support.deliveries import SITE, frames_of, stored_envelopes
from tests.support.eventually import eventually
from tests.support.servers import cloud_client

pytestmark = pytest.mark.timeout(120)

Sample = calibration_pb2.CalibrationSample

STREET = Path(__file__).parents[2] / "benchmarks" / "clips" / "street.mp4"
# A corner, a triangle in the middle, and a strip along the right border; fractions of width and height.
MASKS = [
    [[0, 0], [0.3, 0], [0.3, 0.3], [0, 0.3]],
    [[0.4, 0.4], [0.7, 0.45], [0.5, 0.8]],
    [[0.85, 0.1], [1, 0.1], [1, 0.9], [0.85, 0.9]],
]
FRAMES = 12
# Frames of a recording come as fast as they are read, so that the plan may skip a few.
LEAST = 4
# Around a mask's border codecs ring, and scaling mixes what is hidden with what is not.
BORDER_PX = 5


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Bright coloured noise that changes all the time, of an odd size: whatever leaks, shows."""
    path = tmp_path_factory.mktemp("clip") / "noise.mkv"
    random = np.random.default_rng(1)
    with av.open(str(path), "w") as file:
        stream: Any = file.add_stream("libx264rgb", rate=10)
        stream.width, stream.height, stream.pix_fmt = 331, 247, "rgb24"
        stream.options = {"qp": "0", "preset": "ultrafast"}
        for _ in range(FRAMES):
            coarse = random.integers(120, 256, (31, 42, 3)).astype(np.uint8)
            large: Any = cv2.resize(coarse, (331, 247), interpolation=cv2.INTER_NEAREST)
            file.mux(stream.encode(av.VideoFrame.from_ndarray(large, format="rgb24")))
        file.mux(stream.encode(None))
    return path


class _Source:
    def __init__(self, capture: Capture) -> None:
        self._capture = capture

    @property
    def ended(self) -> bool:
        return self._capture.is_over

    def read(self, timeout_s: float) -> Frame | Dropped | None:
        return self._capture.read(timeout_s)


class _Sink:
    def __init__(self) -> None:
        self.taken: list[pb.FrameEnvelope] = []

    def ready(self) -> bool:
        return True

    def offer(self, envelope: pb.FrameEnvelope) -> None:
        self.taken.append(envelope)


def sections(clip: Path, redact: dict[str, Any], **encode: Any) -> dict[str, Any]:
    return {
        "cameras": [{"name": "door", "source": str(clip), "realtime": False, "redact": redact}],
        "encode": {"max_fps": 240, "crf": 18, "quality": 95, **encode},
        "gate": {"enabled": False},
    }


def recorded(
    clip: Path, redact: dict[str, Any], frames: int = FRAMES, **encode: Any
) -> list[pb.FrameEnvelope]:
    """What one camera's path hands over to delivery, from capture on."""
    settings = AgentSettings.model_validate({"device": "box1", **sections(clip, redact, **encode)})
    capture, sink = Capture(settings.cameras[0], SystemClock()), _Sink()
    identity = CameraIdentity("acme", SITE, "box1", "door", Epoch(1, bytes(8)))
    pipeline = CameraPipeline(settings, identity, _Source(capture), sink)
    capture.start()
    try:
        while pipeline.counts().captured < frames:
            assert pipeline.step(10)
    finally:
        capture.stop()
        pipeline.close(1)
    return sink.taken


def pictures(envelopes: list[pb.FrameEnvelope]) -> dict[int, NDArray[np.uint8]]:
    """What the cloud sees by sequence, uint8 [H, W, 3] BGR at the coded size."""
    decoder, shown = ChainDecoder(), {}
    for envelope in envelopes:
        for item in envelope.items:
            if item.HasField("access_unit"):
                picture = decoder.decode(item.access_unit, envelope.format)
                assert picture is not None
                shown[item.access_unit.sequence] = picture
    return shown


def masked(shape: tuple[int, int], *, grow: int) -> NDArray[np.bool_]:
    """Pixels behind the masks in a picture of that height and width, the masks grown by so many pixels."""
    canvas = np.zeros(shape, np.uint8)
    for mask in MASKS:
        cv2.fillPoly(canvas, [np.rint(np.array(mask) * shape[::-1]).astype(np.int32)], 1)
    kernel = np.ones((2 * abs(grow) + 1,) * 2, np.uint8)
    # What lies beyond the picture's border is masked for erosion, and not for dilation.
    changed: Any = cv2.dilate(canvas, kernel) if grow > 0 else cv2.erode(canvas, kernel)
    result: NDArray[np.bool_] = changed > 0
    return result


def check_masked(shown: NDArray[np.uint8]) -> None:
    """Black and flat behind the masks, and the scene everywhere else."""
    behind = masked(shown.shape[:2], grow=-BORDER_PX)
    assert behind.sum() > 0.05 * behind.size
    assert shown[behind].max() < 40, "something shows through a mask"
    assert shown[behind].std() < 5
    outside = ~masked(shown.shape[:2], grow=BORDER_PX)
    assert shown[outside].mean() > 120


PATHS: dict[str, Callable[[Path, dict[str, Any]], list[pb.FrameEnvelope]]] = {
    f"frames as {codec} at {width} px": lambda clip, redact, codec=codec, width=width: recorded(  # type: ignore[misc]
        clip, redact, codec=codec, width_px=width
    )
    for codec in ("h264", "hevc", "jpeg", "webp")
    for width in (128, 200, 4096)
} | {"the camera's own packets": lambda clip, redact: recorded(clip, redact, codec="passthrough")}


@pytest.mark.parametrize("path", PATHS)
def test_no_pixel_behind_a_mask_leaves(path: str, clip: Path) -> None:
    envelopes = PATHS[path](clip, {"masks": MASKS})
    assert frames_of(envelopes) == list(range(1, FRAMES + 1))
    shown = pictures(envelopes).values()
    assert len(shown) >= LEAST
    for one in shown:
        check_masked(one)


@pytest.mark.parametrize("path", PATHS)
def test_no_pixel_leaves_without_the_model(path: str, clip: Path) -> None:
    envelopes = PATHS[path](clip, {"blur": ["face"], "face_model": "gone"})
    assert not pictures(envelopes)
    ranges = [item.range for envelope in envelopes for item in envelope.items]
    dropped = [it for it in ranges if it.kind == pb.RANGE_KIND_DROPPED]
    assert {it.reason for it in dropped} == {"redaction_failed"}
    assert sum(it.last_sequence - it.first_sequence + 1 for it in dropped) >= LEAST
    assert frames_of(envelopes) == list(range(1, FRAMES + 1))


def sampled(clip: Path, redact: dict[str, Any], codec: Any, frames: int) -> tuple[Sampler, list[Sample]]:
    """The sampler of one camera's path that was asked for a sample, and what came out of it."""
    given = sections(clip, redact)
    given["cameras"][0]["loop"] = True
    settings = AgentSettings.model_validate({"device": "box1", **given})
    done: list[Sample] = []
    sampler = Sampler("door", SampleSpec(Rung(codec, 200, 18, 95, 240.0), 1 / 24), done.append)
    capture = Capture(settings.cameras[0], SystemClock())
    identity = CameraIdentity("acme", SITE, "box1", "door", Epoch(1, bytes(8)))
    pipeline = CameraPipeline(settings, identity, _Source(capture), _Sink(), sampler=sampler)
    pipeline.ask_sample()
    capture.start()
    try:
        while not done and pipeline.counts().captured < frames:
            assert pipeline.step(10)
    finally:
        capture.stop()
        pipeline.close(1)
    return sampler, done


@pytest.mark.parametrize("codec", ["h264", "hevc"])
def test_no_pixel_behind_a_mask_is_in_a_calibration_sample(codec: str, clip: Path) -> None:
    _, (sample,) = sampled(clip, {"masks": MASKS}, codec, 1000)
    decoder = ChainDecoder()
    assert len(sample.pictures) >= 20
    for index, one in enumerate(sample.pictures):
        unit = pb.AccessUnit(chain_id=1, chain_index=index, keyframe=not index, data=one.data)
        shown = decoder.decode(unit, sample.format)
        assert shown is not None
        check_masked(shown)


def test_no_calibration_sample_is_taken_without_the_model() -> None:
    sampler, done = sampled(STREET, {"blur": ["face"], "face_model": "gone"}, "h264", 40)
    assert not done
    assert sampler.taken == 0


def test_the_check_sees_a_leak(clip: Path) -> None:
    """The same camera without masks fails it."""
    (first, *_) = pictures(recorded(clip, {}, codec="h264", width_px=200)).values()
    with pytest.raises(AssertionError, match="shows through a mask"):
        check_masked(first)


def test_people_are_blurred_in_what_leaves() -> None:
    """Against the same frames without redaction: where people are, little of the detail is left."""
    plain, blurred = (
        pictures(recorded(STREET, redact, 6, width_px=768))
        for redact in ({}, {"blur": ["person"], "timeout_s": 20})
    )
    card = catalogue.load("centernet-mobilenetv3")
    model, seen = Detector(card), 0
    for sequence in plain.keys() & blurred.keys():
        one, two = plain[sequence], blurred[sequence]
        letterbox = card.letterbox(one.shape[1], one.shape[0])
        boxes, count = model.run(letterbox.apply(one)[None])
        found = catalogue.detections(card, boxes[0], int(count[0]), letterbox)
        for box, name in zip(found.boxes.astype(int), found.class_names, strict=True):
            if name != "person":
                continue
            left, top, right, bottom = box.tolist()
            detail = [cv2.Laplacian(it[top:bottom, left:right], cv2.CV_32F).std() for it in (one, two)]
            assert detail[1] < 0.6 * detail[0]
            seen += 1
    assert seen >= 4


@pytest.fixture
async def cloud(hub: LocalHub) -> Any:
    client = await cloud_client(hub)
    await streams.ensure(client.jetstream(), StreamSettings())
    yield client
    await client.close()


async def test_masks_hold_through_agent_spool_and_hub(
    hub: LocalHub, cloud: Any, clip: Path, tmp_path: Path
) -> None:
    agent = Process(hub, tmp_path / "edge", **sections(clip, {"masks": MASKS}, width_px=200))
    await agent.start("--exit-when-done")
    assert agent.process is not None
    assert await asyncio.wait_for(agent.process.wait(), 40) == 0, agent.log
    envelopes = await stored_envelopes(cloud)
    assert frames_of(envelopes) == list(range(1, FRAMES + 1))
    shown = pictures(envelopes).values()
    assert len(shown) >= LEAST
    for one in shown:
        check_masked(one)


async def test_an_agent_that_cannot_redact_says_so_and_sends_no_pixels(
    hub: LocalHub, cloud: Any, tmp_path: Path
) -> None:
    cameras = [
        {"name": "door", "source": "pattern:64x48@10", "redact": {"blur": ["person"], "person_model": "gone"}}
    ]
    agent = Process(hub, tmp_path / "edge", cameras=cameras)
    await agent.start()
    try:

        async def answered() -> bool:
            return len(frames_of(await stored_envelopes(cloud))) >= 10

        async def told() -> bool:
            subject = status_subject(SITE, "box1")
            message = await cloud.jetstream().get_last_msg("STATUS", subject)
            (camera,) = device_pb2.DeviceStatus.FromString(message.data or b"").cameras
            return camera.frames_dropped["redaction_failed"] > 0 and camera.message.startswith(
                "no pixels leave, they cannot be redacted: model: no model is named 'gone'"
            )

        await eventually(answered, within_s=30)
        await eventually(told, within_s=10)
        for envelope in await stored_envelopes(cloud):
            for item in envelope.items:
                assert item.HasField("range"), item_range(item)
                assert item.range.reason in {"", "redaction_failed"}
        (event,) = agent.events("redaction_failed")
        assert event["camera"] == "door"
        metrics = (await agent.get("metrics")).decode()
        assert 'eyeline_edge_redaction_failed_ratio{camera="door"} 1.0' in metrics
        assert 'eyeline_edge_frames_dropped_total{camera="door",reason="redaction_failed"}' in metrics
    finally:
        assert await agent.end() == 0, agent.log
