"""Calibration on the device: when a camera takes a sample, how that gets to the cloud, and what comes back.

A sample is on the disk before its first byte leaves and until its profile is here, and a profile is on the
disk as long as the camera is: a restart, of this agent or of the hub, costs nothing but time. What is sent
keeps to a share of the byte budget, and waits while live pictures do.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable
from typing import Final

import structlog
from google.protobuf.message import DecodeError

from edge_agent.allowance import wire_bytes
from edge_agent.calibrated import Calibrated, Pipeline
from edge_agent.config import AgentSettings
from edge_agent.link import Link, Refused, Session, TooLarge
from edge_agent.plan import LinkState
from eyeline import ladder
from eyeline.envelope import SCHEMA_MAJOR
from eyeline.errors import BusError
from eyeline.overhead import MESSAGE_BYTES
from eyeline.subjects import PROFILES, SAMPLES, profile_key, sample_subject
from eyeline.v1 import calibration_pb2, detection_pb2

_log = structlog.get_logger()

_LOOK_EVERY_S: Final = 1.0
# The hub is asked for a profile so often: while one is due, and otherwise.
_DUE_EVERY_S: Final = 10.0
_ASK_EVERY_S: Final = 300.0
_TIMEOUT_S: Final = 5.0
_RETRY_S: Final = 1.0
# One part takes so long of the pace, within these bounds.
_PART_S: Final = 2.0
_PART_BYTES: Final = (1_000, 48_000)
# Live pictures that wait for longer hold a sample back.
_LIVE_WAITS_S: Final = 0.5


class Calibrations:
    """All cameras' calibration. `taken` may be called from any thread, all else belongs to the event loop.

    now: seconds since the Unix epoch, of the device's clock.
    """

    def __init__(
        self,
        settings: AgentSettings,
        hub: Link,
        *,
        link_state: Callable[[str], LinkState],
        edge_model: detection_pb2.ModelRef | None,
        changed: Callable[[], None] = lambda: None,
        now: Callable[[], float] = time.time,
        every_s: float = _LOOK_EVERY_S,
    ) -> None:
        self._settings, self._hub, self._link_state = settings, hub, link_state
        self._edge_model, self._changed, self._now, self._every_s = edge_model, changed, now, every_s
        self._loop = asyncio.get_running_loop()
        self._cameras = {it.name: Calibrated(settings, it, edge_model) for it in settings.cameras}
        self._news = asyncio.Event()

    def attach(self, camera: str, pipeline: Pipeline, size: Callable[[], tuple[int, int]]) -> None:
        """Work with a camera's path from now on, starting with the profile that is on the disk."""
        state = self._cameras[camera]
        state.pipeline, state.size = pipeline, size
        state.settle()

    def taken(self, camera: str, sample: calibration_pb2.CalibrationSample) -> None:
        """A camera's path has taken a sample."""
        with contextlib.suppress(RuntimeError):  # the agent ends
            self._loop.call_soon_threadsafe(self._keep, camera, sample)

    def told(self, camera: str) -> None:
        """The cloud says that there is news of a camera's profile."""
        if camera in self._cameras:
            self._cameras[camera].asked_hub_s = 0.0
            self._news.set()

    def line(self, camera: str) -> str:
        """What calibration does, in one line; empty when it is off and was never asked for."""
        return self._cameras[camera].line(self._now())

    def sent_bytes(self, camera: str) -> int:
        """Bytes of samples that the hub took since start."""
        return self._cameras[camera].sent_bytes

    async def run(self) -> None:
        """Look after samples and profiles, for ever."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._tend())
            group.create_task(self._send())
            group.create_task(self._fetch())

    def _keep(self, camera: str, sample: calibration_pb2.CalibrationSample) -> None:
        state = self._cameras[camera]
        sample.ladder.extend(ladder.to_proto(it) for it in state.ladder)
        sample.batch_ns = int(self._settings.encode.batch_ms * 1e6)
        scene = state.pipeline.fingerprint() if state.pipeline is not None else None
        if scene is not None:
            sample.scene.CopyFrom(scene)
        if self._edge_model is not None:
            sample.edge_model.CopyFrom(self._edge_model)
        state.keep(sample, self._now())
        self._news.set()
        self._changed()

    async def _tend(self) -> None:
        """Ask for samples where they are due."""
        while True:
            for state in self._cameras.values():
                before = state.said
                state.tend(self._now())
                state.said = state.line(self._now())
                if state.said != before:
                    state.store.say(state.said)
                    self._changed()
            await asyncio.sleep(self._every_s)

    # To the hub

    async def _send(self) -> None:
        while True:
            state = next((it for it in self._cameras.values() if it.unsent), None)
            if state is None:
                self._news.clear()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_RETRY_S):
                        await self._news.wait()
                continue
            session = await self._hub.ready()
            try:
                await self._send_sample(session, state)
            except TooLarge as problem:
                _log.error("sample_refused", camera=state.name, reason=str(problem))
                state.forget_sample(str(problem))
            except BusError as problem:
                _log.debug("sample_waits", camera=state.name, reason=str(problem))
                await asyncio.sleep(_RETRY_S)
            finally:
                state.lend(0.0)

    async def _send_sample(self, session: Session, state: Calibrated) -> None:
        """Parts of one sample, in order, each stored before the next; raises `BusError`."""
        pace = state.pace_bytes_s
        size = min(max(int(pace * _PART_S) - MESSAGE_BYTES, _PART_BYTES[0]), _PART_BYTES[1])
        # In any window the pace can be passed by one part.
        state.lend(pace + (size + MESSAGE_BYTES) / 10)
        parts = -(-len(state.sample) // size)
        state.start_sending(size, parts)
        subject = sample_subject(self._settings.site, self._settings.device, state.name)
        while state.unsent:
            while self._link_state(state.name).backlog_s > _LIVE_WAITS_S:  # noqa: ASYNC110  # a thread's
                await asyncio.sleep(0.1)
            part = calibration_pb2.SamplePart(
                schema_major=SCHEMA_MAJOR,
                tenant=self._settings.tenant,
                site=self._settings.site,
                device=self._settings.device,
                camera=state.name,
                sample_id=state.sample_id,
                part=state.sent,
                parts=parts,
                data=state.sample[state.sent * size : (state.sent + 1) * size],
            )
            began = time.monotonic()
            await session.store(
                subject,
                part.SerializeToString(),
                headers={
                    "Nats-Msg-Id": f"{state.sample_id.hex()}.{size}.{state.sent}",
                    "Nats-Expected-Stream": SAMPLES,
                },
                timeout_s=_TIMEOUT_S,
            )
            self._hub.planned_bytes += wire_bytes(len(part.data))
            state.part_sent(self._now())
            spent = len(part.data) + MESSAGE_BYTES
            await asyncio.sleep(max(0.0, spent / pace - (time.monotonic() - began)))
        _log.info("sample_sent", camera=state.name, parts=parts, bytes=len(state.sample))

    # From the hub

    async def _fetch(self) -> None:
        session: Session | None = None
        while True:
            fresh = await self._hub.ready()
            for state in self._cameras.values():
                wait_s = _DUE_EVERY_S if state.waits_for_profile else _ASK_EVERY_S
                if fresh is session and time.monotonic() - state.asked_hub_s < wait_s and state.asked_hub_s:
                    continue
                try:
                    await self._ask(fresh, state)
                except (BusError, DecodeError) as problem:
                    _log.debug("profile_unanswered", camera=state.name, reason=str(problem))
                state.asked_hub_s = time.monotonic()
            session = fresh
            await asyncio.sleep(self._every_s)

    async def _ask(self, session: Session, state: Calibrated) -> None:
        key = profile_key(self._settings.site, self._settings.device, state.name)
        subject = f"$JS.API.DIRECT.GET.KV_{PROFILES}.$KV.{PROFILES}.{key}"
        try:
            answer = await session.request(subject, timeout_s=_TIMEOUT_S)
        except Refused:
            return  # no such bucket yet
        headers = answer.headers or {}
        if "Nats-Sequence" not in headers or headers.get("KV-Operation"):
            return
        if state.take(calibration_pb2.Profile.FromString(answer.data)):
            self._changed()
