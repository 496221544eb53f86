"""Cameras whose pictures and answers are known exactly: a bright square, and a box around it."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Sequence
from typing import Any

from eyeline.subjects import result_subject, status_subject
from eyeline.v1 import detection_pb2, device_pb2, frame_pb2, result_pb2
from tests.support.simulated import HEIGHT, WIDTH, Device, publish

SOURCE = 2 * WIDTH, 2 * HEIGHT


def box(sequence: int, origin: tuple[int, int] = (0, 0)) -> tuple[float, float, float, float]:
    """Where the square of that frame is, in source pixels: see `simulated.picture`; origin: of a crop."""
    left, (x, y) = 4 + 2 * (sequence % 40), origin
    return x + 2 * left, y + 60, x + 2 * (left + 24), y + 120


class Scene:
    """Cameras of device `yard/box1` of `acme`, as an agent and a worker would write them.

    quiet: cameras that nothing comes from; idle: those with nothing new; filled: those of which every third
    frame is sent, the answers for the others filled in. origin: where pictures, sent as crops, were cut out.
    reports: whether the device tells its status.
    """

    def __init__(self, js: Any, cameras: Sequence[str], *, fps: float = 5) -> None:
        self._js, self._interval_s = js, 1 / fps
        self.devices = {name: Device(device="box1", camera=name) for name in cameras}
        self.quiet: set[str] = set()
        self.idle: set[str] = set()
        self.filled: set[str] = set()
        self.origin = 0, 0
        self.reports = True
        self.dropped: dict[str, int] = {}

    @contextlib.asynccontextmanager
    async def playing(self) -> AsyncIterator[None]:
        """Until the context ends."""
        playing = asyncio.create_task(self.run())
        try:
            yield
        finally:
            playing.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await playing

    async def run(self) -> None:
        turn = 0
        while True:
            began = time.monotonic()
            for name, device in self.devices.items():
                if name not in self.quiet:
                    await self._frame(device, idle=name in self.idle)
            if self.reports and turn % 5 == 0:
                await self._js.publish(status_subject("yard", "box1"), self._status())
            turn += 1
            await asyncio.sleep(max(0.0, began + self._interval_s - time.monotonic()))

    async def _frame(self, device: Device, *, idle: bool) -> None:
        sent = not idle and (device.camera not in self.filled or device.sequence % 3 == 0)
        if sent:
            made = device.frames(1)
            made[0].format.origin_x_px, made[0].format.origin_y_px = self.origin
            await publish(self._js, made)
        else:
            device.sequence += 1
        captured_ns = time.time_ns() - 120_000_000
        await self._answer(device, device.sequence, (captured_ns, captured_ns), sent=sent, idle=idle)

    async def idle_range(self, name: str, frames: int, seconds: tuple[float, float]) -> int:
        """Answer the next frames as one idle range, captured from and to so long ago: its last sequence."""
        device, now = self.devices[name], time.time_ns()
        first, device.sequence = device.sequence + 1, device.sequence + frames
        captured_ns = now - int(seconds[0] * 1e9), now - int(seconds[1] * 1e9)
        await self._answer(device, first, captured_ns, sent=False, idle=True)
        return device.sequence

    async def _answer(
        self, device: Device, first: int, captured_ns: tuple[int, int], *, sent: bool, idle: bool
    ) -> None:
        x1, y1, x2, y2 = box(device.sequence, self.origin)
        found = detection_pb2.Detection(
            class_name="square",
            score=0.9,
            track_id=7,
            box=detection_pb2.Box(x1_px=x1, y1_px=y1, x2_px=x2, y2_px=y2),
        )
        answer = result_pb2.Result(
            key=result_pb2.FrameKey(
                tenant="acme", site="yard", camera=device.camera, epoch=device.epoch, sequence=first
            ),
            last_sequence=device.sequence,
            revision=1000,
            final=True,
            provenance=result_pb2.PROVENANCE_CLOUD if sent else result_pb2.PROVENANCE_PROPAGATED,
            detections=[found],
            times=result_pb2.StageTimes(captured_ns=captured_ns[0], answered_ns=time.time_ns()),
            last_captured_ns=captured_ns[1],
            source_width_px=SOURCE[0],
            source_height_px=SOURCE[1],
            gate_reason=frame_pb2.GATE_REASON_IDLE if idle else frame_pb2.GATE_REASON_MOTION,
            lane=frame_pb2.LANE_LIVE,
            device="box1",
        )
        batch = result_pb2.ResultBatch(schema_major=1, results=[answer])
        await self._js.publish(result_subject("yard", device.camera), batch.SerializeToString())

    def _status(self) -> bytes:
        cameras = [
            device_pb2.CameraStatus(
                camera=name,
                state=device_pb2.CAMERA_STATE_LIVE,
                frames_captured=device.sequence,
                frames_sent=device.sequence,
                frames_dropped=self.dropped,
                bytes_published=device.sequence * 800,
                capture_fps=1 / self._interval_s,
                width_px=SOURCE[0],
                height_px=SOURCE[1],
                rung="h264 128px crf20 5fps",
                budget_kbit_s=64,
            )
            for name, device in self.devices.items()
        ]
        return device_pb2.DeviceStatus(
            schema_major=1,
            site="yard",
            device="box1",
            agent_version="0.1.0",
            reported_ns=time.time_ns(),
            hub_connected=True,
            cameras=cameras,
            resident_bytes=90 << 20,
        ).SerializeToString()
