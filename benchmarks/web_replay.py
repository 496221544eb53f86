"""A street that was filmed, coded and answered once, and is played to the hub as many cameras at once.

What an agent and a worker would have written, on the hub's own streams and in real time, without their cost:
so what is measured and seen is the page and its server. The answers are the cloud model's own, on the coded
pictures, with those between them interpolated.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Final

import av
import numpy as np
from av.video.frame import PictureType

from benchmarks import reference
from cloud_inference.propagate import interpolate
from cloud_inference.track import Tracker
from eyeline.envelope import encode_envelope
from eyeline.subjects import frame_subject, result_subject, status_subject
from eyeline.v1 import detection_pb2, device_pb2, frame_pb2, result_pb2
from eyeline.values import Detections
from eyeline_models.catalogue import ModelCard, detections
from eyeline_models.runtime import Detector

WIDTH_PX: Final = 416
CRF: Final = 30
_STATUS_S: Final = 1.0
# Coded pictures of a chain.
_CHAIN: Final = 25


@dataclass(frozen=True, slots=True)
class Moment:
    """A captured frame: its coded picture, empty where none was sent, and its answer."""

    data: bytes
    keyframe: bool
    answer: Detections


@dataclass(frozen=True, slots=True)
class Recording:
    """Frames at a steady rate, to be played over and over; the first one is a keyframe."""

    moments: tuple[Moment, ...]
    fps: float
    size: tuple[int, int]
    coded: tuple[int, int]
    model: detection_pb2.ModelRef


def record(clip: reference.Clip, card: ModelCard, *, frames: int, every: int) -> Recording:
    """Code every n-th picture of a clip as the agent's default rung does, and ask the model about each."""
    width, height = clip.size
    coded = WIDTH_PX, round(WIDTH_PX * height / width / 2) * 2
    encoder: Any = av.CodecContext.create("libx264", "w")
    encoder.width, encoder.height, encoder.pix_fmt = *coded, "yuv420p"
    encoder.time_base, encoder.framerate = Fraction(1, 25), Fraction(25)
    encoder.thread_count, encoder.gop_size = 1, 1_000_000
    encoder.options = {
        "preset": "veryfast",
        "tune": "zerolatency",
        "crf": str(CRF),
        "sc_threshold": "0",
        "forced-idr": "1",
    }
    decoder: Any = av.CodecContext.create("h264", "r")
    detector, tracker = Detector(card, threads=2), Tracker(itertools.count(1).__next__)
    moments: list[Moment] = []
    before: Detections | None = None
    for index, image in enumerate(reference.pictures(clip, frames)):
        if index % every:
            continue
        picture = av.VideoFrame.from_ndarray(image, format="bgr24").reformat(*coded, format="yuv420p")
        picture.pts = index
        # Now and then, as a new chain would: a camera that starts in the middle of the clip waits for one.
        first = len(moments) % (_CHAIN * every) < every
        picture.pict_type = PictureType.I if first else PictureType.NONE
        (packet,) = encoder.encode(picture)
        (shown,) = decoder.decode(av.Packet(bytes(packet)))
        letterbox = card.letterbox(*coded)
        boxes, counts = detector.run(letterbox.apply(shown.to_ndarray(format="bgr24"))[None])
        found = detections(card, boxes[0], int(counts[0]), letterbox)
        scale = np.array([width / coded[0], height / coded[1]] * 2, np.float32)
        in_source = Detections.build(found.boxes * scale, found.scores, found.class_ids, found.class_names)
        answer = tracker.update(in_source, index + 1)
        if before is not None:
            moments += [
                Moment(b"", False, interpolate(before, answer, step / every)) for step in range(1, every)
            ]
        moments.append(Moment(bytes(packet), packet.is_keyframe, answer))
        before = answer
    model = detection_pb2.ModelRef(name=card.name, version=str(card.version), sha256=card.sha256)
    return Recording(tuple(moments), clip.fps, clip.size, coded, model)


class Replay:
    """Plays a recording as the cameras of one device. js: the tenant's, of the cloud's user."""

    def __init__(
        self,
        connection: Any,
        recording: Recording,
        cameras: Sequence[str],
        *,
        tenant: str = "default",
        site: str = "local",
        device: str = "edge",
        counter: int = 1,
    ) -> None:
        self._connection, self._js = connection, connection.jetstream(timeout=5)
        self._recording, self.cameras = recording, list(cameras)
        self._tenant, self._site, self._device = tenant, site, device
        self._epoch = frame_pb2.Epoch(counter=counter, random_id=b"%08d" % counter)
        self.sequence = 0
        self._chain = 0
        self._previous: dict[str, int] = dict.fromkeys(cameras, 0)
        self._sent = 0
        self._bytes: dict[str, int] = dict.fromkeys(cameras, 0)
        # Results stored so far, of all cameras.
        self.stored = 0
        # From here on, cameras named here are idle, or answered without trust: by name.
        self.idle: set[str] = set()
        self.degraded: dict[str, str] = {}
        self.silent: set[str] = set()
        self.state: dict[str, tuple[device_pb2.CameraState.ValueType, str]] = {}
        self.budget_kbit_s: float | None = None
        self._offset = {name: index * 7 for index, name in enumerate(cameras)}
        self._chains: dict[str, tuple[int, int]] = {}

    async def run(self) -> None:
        """Play until cancelled."""
        begin, reported = time.monotonic(), 0.0
        for index in itertools.count():
            now = time.monotonic()
            await asyncio.sleep(max(0.0, begin + index / self._recording.fps - now))
            self.sequence += 1
            await asyncio.gather(
                *(self._frame(name, index) for name in self.cameras if name not in self.silent)
            )
            if time.monotonic() - reported > _STATUS_S:
                reported = time.monotonic()
                await self._report()

    async def _frame(self, camera: str, index: int) -> None:
        moments = self._recording.moments
        at = (index + self._offset[camera]) % len(moments)
        moment = moments[at]
        if camera in self.idle:
            if index % round(self._recording.fps) == 0:
                await self._store(camera, moment, idle=True)
            return
        captured = time.time_ns()
        if moment.keyframe:
            self._chain += 1
            self._chains[camera] = (self._chain, 0)
        if moment.data and camera in self._chains:
            await self._publish(camera, moment, captured)
        await self._store(camera, moment)

    async def _publish(self, camera: str, moment: Moment, captured: int) -> None:
        recording = self._recording
        chain, number = self._chains[camera]
        self._chains[camera] = (chain, number + 1)
        when = frame_pb2.CaptureTime(monotonic_ns=time.monotonic_ns(), wall_ns=captured)
        unit = frame_pb2.AccessUnit(
            sequence=self.sequence,
            capture=when,
            chain_id=chain,
            chain_index=number,
            keyframe=moment.keyframe,
            gate_reason=frame_pb2.GATE_REASON_MOTION,
            data=moment.data,
        )
        envelope = frame_pb2.FrameEnvelope(
            schema_major=1,
            tenant=self._tenant,
            site=self._site,
            device=self._device,
            camera=camera,
            epoch=self._epoch,
            format=frame_pb2.PictureFormat(
                codec=frame_pb2.CODEC_H264,
                color_matrix=frame_pb2.COLOR_MATRIX_BT601,
                color_range=frame_pb2.COLOR_RANGE_LIMITED,
                coded_width_px=recording.coded[0],
                coded_height_px=recording.coded[1],
                source_width_px=recording.size[0],
                source_height_px=recording.size[1],
                scale_x=recording.size[0] / recording.coded[0],
                scale_y=recording.size[1] / recording.coded[1],
            ),
            items=[frame_pb2.FrameItem(access_unit=unit)],
            published=when,
            lane=frame_pb2.LANE_LIVE,
            previous_sequence=self._previous[camera],
        )
        self._previous[camera] = self.sequence
        data = encode_envelope(envelope)
        self._bytes[camera] += len(data)
        await self._js.publish(frame_subject(self._site, self._device, camera), data)

    async def _store(self, camera: str, moment: Moment, *, idle: bool = False) -> None:
        now = time.time_ns()
        reason = self.degraded.get(camera, "")
        provenance = (
            result_pb2.PROVENANCE_CLOUD if moment.data and not idle else result_pb2.PROVENANCE_PROPAGATED
        )
        span = round(self._recording.fps) if idle else 1
        result = result_pb2.Result(
            key=result_pb2.FrameKey(
                tenant=self._tenant,
                site=self._site,
                camera=camera,
                epoch=self._epoch,
                sequence=self.sequence - span + 1,
            ),
            last_sequence=self.sequence,
            revision=1000,
            final=True,
            provenance=result_pb2.PROVENANCE_DEGRADED if reason else provenance,
            reason=reason,
            model=self._recording.model,
            detections=[] if reason else moment.answer.to_proto(),
            times=result_pb2.StageTimes(
                captured_ns=now - 180_000_000, published_ns=now - 150_000_000, answered_ns=now
            ),
            last_captured_ns=now - 180_000_000,
            source_width_px=self._recording.size[0],
            source_height_px=self._recording.size[1],
            gate_reason=frame_pb2.GATE_REASON_IDLE if idle else frame_pb2.GATE_REASON_MOTION,
            lane=frame_pb2.LANE_LIVE,
            device=self._device,
            coded_bytes=len(moment.data),
        )
        batch = result_pb2.ResultBatch(schema_major=1, results=[result])
        await self._js.publish(result_subject(self._site, camera), batch.SerializeToString())
        self.stored += 1

    async def _report(self) -> None:
        """The device's status, as an agent reports it."""
        recording = self._recording
        sent = sum(1 for moment in recording.moments if moment.data) / len(recording.moments)
        cameras = []
        for name in self.cameras:
            state, message = self.state.get(name, (device_pb2.CAMERA_STATE_LIVE, ""))
            cameras.append(
                device_pb2.CameraStatus(
                    camera=name,
                    state=state,
                    message=message,
                    frames_captured=self.sequence,
                    frames_sent=round(self.sequence * sent),
                    frames_skipped=self.sequence - round(self.sequence * sent),
                    frames_dropped={self.degraded[name]: 12} if name in self.degraded else {},
                    bytes_published=self._bytes[name],
                    capture_fps=recording.fps,
                    width_px=recording.size[0],
                    height_px=recording.size[1],
                    rung=f"h264 {WIDTH_PX}px crf{CRF} {recording.fps * sent:.2g}fps",
                    last_sequence=self.sequence,
                    budget_kbit_s=self.budget_kbit_s,
                )
            )
        status = device_pb2.DeviceStatus(
            schema_major=1,
            site=self._site,
            device=self._device,
            epoch=self._epoch,
            agent_version="0.1.0",
            reported_ns=time.time_ns(),
            clock=frame_pb2.ClockEstimate(offset_ns=1_400_000, uncertainty_ns=600_000),
            hub_connected=True,
            cameras=cameras,
            spool=device_pb2.SpoolStatus(limit_bytes=1 << 30),
            resident_bytes=118 << 20,
            cpu_seconds=time.process_time(),
            hub_bytes_sent=sum(self._bytes.values()),
        )
        await self._connection.publish(status_subject(self._site, self._device), status.SerializeToString())
