"""One camera, as its owner works it: session after session, and what its devices are told."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import defaultdict
from typing import Final

import nats.errors
import structlog
from nats.js.errors import APIError

from cloud_inference import metrics
from cloud_inference.consume import Source
from cloud_inference.drawings import Drawings
from cloud_inference.feed import StreamMessage
from cloud_inference.session import Session
from cloud_inference.shares import Bus, Shared
from cloud_inference.store import FencedOut, ResultLog
from eyeline import subjects
from eyeline.errors import BadEnvelope, BusError
from eyeline.v1 import device_pb2, frame_pb2

_log = structlog.get_logger()

_KEYFRAME_EVERY_S: Final = 2.0
_RETRY_S: Final = 0.25
_MOST_DEFECTS: Final = 2
_CRASH_WAIT_S: Final = 1.0


class Camera:
    """Answers one camera's frames until cancelled."""

    def __init__(
        self, shared: Shared, bus: Bus, site: str, camera: str, drawings: Drawings | None = None
    ) -> None:
        """drawings: where zones and lines come from; without them, nothing is counted."""
        self._shared, self._bus = shared, bus
        self._site, self._camera = site, camera
        self._drawings = drawings
        self._log = _log.bind(tenant=bus.tenant, site=site, camera=camera)
        self._keyframe_asked_s = 0.0
        # How often answering a message ended in a defect, by its stream sequence.
        self._defects: defaultdict[int, int] = defaultdict(int)

    async def run(self) -> None:
        """Work; start over from the stored checkpoint when a write was refused or the hub was away.

        A message that brings up a defect of ours is set aside once it did so twice: it costs its own camera
        some seconds, and nobody else anything.
        """
        while True:
            session = asyncio.create_task(self._session())
            try:
                await asyncio.wait({session})
            except asyncio.CancelledError:
                # Said until it is heard: a session whose member fails on the way out tells of that alone.
                while not session.done():
                    session.cancel()
                    await asyncio.wait({session}, timeout=1)
                raise
            try:
                session.result()
            except* FencedOut:
                self._log.warning("fenced_out", reason="another worker wrote this camera's results")
            except* BusError as problems:
                self._log.warning("hub_away", reason=str(problems.exceptions[0]))
            except* Exception:  # noqa: BLE001  # a defect of ours; it stops no other camera, nor this one for long
                self._log.exception("camera_crashed")
                await asyncio.sleep(_CRASH_WAIT_S)
            await asyncio.sleep(_RETRY_S)

    async def _session(self) -> None:
        log = ResultLog(
            self._bus.connection,
            self._bus.js,
            self._site,
            self._camera,
            pixels_keep_s=self._bus.pixels_keep_s,
        )
        try:
            stored = await log.load()
        except BusError as problem:
            raise ExceptionGroup("load", [problem]) from None
        session = Session(self, log, stored)
        try:
            async with asyncio.TaskGroup() as group:
                session.group = group
                group.create_task(session.take())
                group.create_task(session.take_late())
                group.create_task(session.answer())
                group.create_task(session.tell_lag())
                # In here, a member's failure ends the wait and leaves no trace in our own count of
                # cancellations; at the group's end Python 3.11 would leave one, and we took it for a stop.
                await asyncio.Event().wait()
        finally:
            if session.blamed:
                self._defects[session.blamed] += 1
            await session.close()

    def check_poison(self, message: StreamMessage) -> None:
        """Raise `BadEnvelope` for a message at which we keep failing."""
        if self._defects[message.sequence] >= _MOST_DEFECTS:
            raise BadEnvelope("poison", f"a defect of ours came up at this message {_MOST_DEFECTS} times")

    def tell(self, event: str, **facts: object) -> None:
        """Log that something about this camera has changed."""
        self._log.info(event, **facts)

    async def ask_keyframe(self, source: Source) -> None:
        """Ask the device for a new chain, now and then."""
        now = time.monotonic()
        if source.lane != frame_pb2.LANE_LIVE or now - self._keyframe_asked_s < _KEYFRAME_EVERY_S:
            return
        self._keyframe_asked_s = now
        metrics.KEYFRAME_REQUESTS.labels(self._bus.tenant).inc()
        device = source.envelope.device
        self._log.info("keyframe_requested", device=device, frame=source.stream_sequence)
        request = device_pb2.ControlRequest(camera=self._camera, keyframe=True)
        with contextlib.suppress(nats.errors.Error):  # the next gap asks again
            await self._bus.connection.publish(
                subjects.control_subject(self._site, device), request.SerializeToString()
            )

    async def tell_lag(self, device: str, lag_ns: int, *, late: bool) -> None:
        """Tell the device that this camera's messages wait for so long, so that it sends less."""
        request = device_pb2.ControlRequest(camera=self._camera)
        if late:
            request.backlog_lag_ns = lag_ns
        else:
            request.lag_ns = lag_ns
        with contextlib.suppress(nats.errors.Error):  # told again soon
            await self._bus.connection.publish(
                subjects.control_subject(self._site, device), request.SerializeToString()
            )

    async def tell_answers(self, device: str, report: device_pb2.AnswerReport) -> None:
        """Tell the device what became of this camera's frames."""
        request = device_pb2.ControlRequest(camera=self._camera, answers=report)
        with contextlib.suppress(nats.errors.Error):  # it only learns a little less
            await self._bus.connection.publish(
                subjects.control_subject(self._site, device), request.SerializeToString()
            )

    async def set_aside(self, message: StreamMessage, problem: BadEnvelope) -> None:
        """Keep an unusable message where a person can look at it."""
        metrics.DEAD_LETTERS.labels(self._bus.tenant, problem.reason).inc()
        self._log.warning(
            "message_set_aside", reason=problem.reason, problem=str(problem), frame=message.sequence
        )
        _, _, _, *address = message.subject.split(".")
        while True:
            try:
                await self._bus.js.publish(
                    subjects.dead_subject(*address),
                    message.data,
                    timeout=2,
                    headers={
                        "Eyeline-Reason": problem.reason,
                        "Nats-Msg-Id": f"{subjects.FRAMES}-{message.sequence}",
                    },
                )
            except APIError as refused:
                self._log.error("message_lost", reason=refused.description)
                return
            except (TimeoutError, nats.errors.Error):
                await asyncio.sleep(_RETRY_S)
            else:
                return

    def drawn(self, device: str) -> device_pb2.DesiredCamera | None:
        """What is drawn on this camera's picture, as captured by that device."""
        return self._drawings.of(self._site, device, self._camera) if self._drawings is not None else None

    @property
    def parts(self) -> tuple[Shared, Bus, str, str]:
        """Shared parts, bus, site and camera."""
        return self._shared, self._bus, self._site, self._camera
