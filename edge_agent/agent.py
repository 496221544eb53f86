"""The agent's process: starts its parts in order, and stops them so that nothing kept is lost."""

from __future__ import annotations

import asyncio
import contextlib
import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import structlog
from google.protobuf.message import DecodeError
from nats.aio.msg import Msg

from edge_agent import status, watch
from edge_agent.batch import CameraIdentity, Moment
from edge_agent.calibrate import Calibrations
from edge_agent.camera_status import camera_status
from edge_agent.capture import CameraState, Capture
from edge_agent.config import AgentSettings, CameraSettings, Source
from edge_agent.delivery import Delivery
from edge_agent.desired import Desired
from edge_agent.epoch import next_epoch
from edge_agent.erase import Eraser
from edge_agent.frame import Frame
from edge_agent.handoff import Dropped
from edge_agent.launch_state import RESTART_STATUS
from edge_agent.local import LocalItem
from edge_agent.only_one import only_one
from edge_agent.outage import Outage
from edge_agent.pipeline import CameraPipeline
from edge_agent.redact_models import redactor
from edge_agent.sample import Sampler, sample_spec
from edge_agent.seen import Seen
from edge_agent.shared_model import Loaded, load_detector
from edge_agent.sink import LoopSink
from edge_agent.updates import Agent as UpdatedAgent
from edge_agent.updates import Updates
from eyeline.health import HealthServer
from eyeline.subjects import control_subject, status_subject
from eyeline.traceparent import Traceparent
from eyeline.v1 import detection_pb2, device_pb2
from eyeline.values import Epoch

_log = structlog.get_logger()

_STATUS_EVERY_S: Final = 2.0
_FLUSH_S: Final = 10.0
_LAST_FORWARD_S: Final = 2.0
_KEYFRAME_EVERY_S: Final = 1.0
_POLL_S: Final = 0.1


class SystemClock:
    """The device's two clocks, in nanoseconds."""

    def monotonic_ns(self) -> int:
        """Monotonic; comparable within one boot."""
        return time.monotonic_ns()

    def wall_ns(self) -> int:
        """Since the Unix epoch, uncorrected."""
        return time.time_ns()


class _CaptureSource:
    """Capture as the pipeline wants it."""

    def __init__(self, capture: Capture) -> None:
        self._capture = capture

    @property
    def ended(self) -> bool:
        return self._capture.is_over

    def read(self, timeout_s: float) -> Frame | Dropped | None:
        return self._capture.read(timeout_s)


@dataclass(slots=True, eq=False)
class _Camera:
    settings: CameraSettings
    capture: Capture
    pipeline: CameraPipeline
    sink: LoopSink
    thread: threading.Thread
    keeping: asyncio.Task[None]
    keyframe_asked_s: float = -1e9


class Agent:
    """Runs the configured cameras until told to stop.

    source: where the settings came from; without it, nothing that is released is taken. exit_when_done: end
    by itself when every source ended and the hub has everything.
    """

    def __init__(
        self, settings: AgentSettings, source: Source | None = None, *, exit_when_done: bool = False
    ) -> None:
        self.settings = settings
        self._source = source
        self._updates: Updates | None = None
        self._eraser: Eraser | None = None
        self.http_port = 0
        self._exit_when_done = exit_when_done
        self._stop_cameras = threading.Event()
        self._cameras: dict[str, _Camera] = {}
        self._delivery: Delivery | None = None
        self._desired: Desired | None = None
        self._calibrations: Calibrations | None = None
        self._outage: Outage | None = None
        self._epoch = Epoch(0, b"")
        self._changed = asyncio.Event()
        self._edge_model: detection_pb2.ModelRef | None = None
        self._loop = asyncio.get_running_loop()
        self._started_s = time.monotonic()
        self._beat_s = time.monotonic()

    async def run(self, stop: asyncio.Event) -> int:
        """Work until `stop` is set; returns the exit status. Raises `EyelineError` when it cannot start."""
        with only_one(self.settings.state_dir):
            delivery = self._delivery = Delivery(self.settings)
            http = HealthServer(
                self.settings.http.host, self.settings.http.port, healthy=self._healthy, ready=self._ready
            )
            tasks: list[asyncio.Task[None]] = []
            # Beside the spool's start: after a power cut, every second counts.
            loading = asyncio.create_task(asyncio.to_thread(load_detector, self.settings))
            try:
                highest = await delivery.open_spool()
                self._epoch = next_epoch(self.settings.state_dir, at_least=highest)
                await delivery.report_not_kept()
                watch.announce(self.settings.state_dir, delivery.spool.url, self.settings.site)
                delivery.changed = self._tell
                delivery.start(self._epoch)
                http.start()
                self.http_port = http.port
                outage = self._outage = self._make_outage(delivery)
                self._make_cameras(delivery, outage, await loading)
                self._eraser = delivery.eraser(self._epoch)
                self._desired = Desired(
                    delivery.hub,
                    site=self.settings.site,
                    device=self.settings.device,
                    state_dir=self.settings.state_dir,
                    apply=self._apply,
                    unknown=self._withhold,
                )
                self._updates = Updates(
                    delivery.hub,
                    self.settings,
                    UpdatedAgent(self._source, self._live, self._unwell),
                )
                # Before the first frame: what the cloud wants hidden is hidden after a restart too.
                self._desired.recall()
                self._start_cameras()
                _log.info(
                    "agent_started",
                    device=self.settings.device,
                    epoch=self._epoch.counter,
                    cameras=list(self._cameras),
                )
                tasks = [
                    asyncio.create_task(delivery.watch()),
                    asyncio.create_task(self._desired.run()),
                    asyncio.create_task(self._updates.run()),
                    asyncio.create_task(self._eraser.run()),
                    asyncio.create_task(self._report_status(delivery)),
                    asyncio.create_task(outage.run()),
                    asyncio.create_task(self._follow_control(delivery)),
                    asyncio.create_task(self._calibrate()),
                ]
                return await self._until_over(stop, tasks, delivery)
            finally:
                await asyncio.gather(loading, return_exceptions=True)
                await self._shut_down(delivery, tasks)
                http.stop() if self.http_port else None

    # Cameras

    def _make_outage(self, delivery: Delivery) -> Outage:
        claims = delivery.claims
        outage = Outage(
            delivery.hub,
            lambda: delivery.spool.session,
            may_publish=lambda camera: claims is not None and claims.may_publish(camera),
            clock=delivery.clock.estimate,
            now=lambda: Moment(time.monotonic_ns(), time.time_ns()),
            ahead=self.settings.spool.order != "live-only",
        )
        delivery.keeper.instead = outage.instead
        if delivery.forwarder is not None:
            delivery.forwarder.goes_first = outage.goes_first
        return outage

    def _take_local(self, outage: Outage, camera: str, item: LocalItem) -> None:
        """From a camera's thread."""
        with contextlib.suppress(RuntimeError):  # the agent is gone
            self._loop.call_soon_threadsafe(outage.take, camera, item)

    def _make_cameras(self, delivery: Delivery, outage: Outage, loaded: Loaded) -> None:
        detector, self._edge_model, models = loaded
        calibrations = self._calibrations = Calibrations(
            self.settings,
            delivery.hub,
            link_state=delivery.link_state,
            edge_model=self._edge_model,
            changed=self._tell,
        )
        for chosen in self.settings.cameras:
            name = chosen.name
            sink = LoopSink(self._loop, delivery.publish)
            seen = delivery.seen[name] = Seen(self.settings.state_dir, name, self._epoch)
            capture = Capture(
                chosen,
                SystemClock(),
                lambda _state, _message: self._tell_from_thread(),
                on_frame=seen.captured,
            )
            identity = CameraIdentity(
                self.settings.tenant,
                self.settings.site,
                self.settings.device,
                name,
                self._epoch,
                edge_model=self._edge_model,
                deadline_ns=int((chosen.deadline_s or 0) * 1e9),
                in_order=self.settings.spool.order == "backlog-first",
            )
            outage.add(identity)
            pipeline = CameraPipeline(
                self.settings,
                identity,
                _CaptureSource(capture),
                sink,
                detector=detector,
                redactor=redactor(self.settings, name, models),
                sampler=Sampler(
                    name,
                    sample_spec(self.settings),
                    lambda sample, name=name: calibrations.taken(name, sample),  # type: ignore[misc]
                ),
                link=lambda name=name: delivery.link_state(name),  # type: ignore[misc]
                clock=delivery.clock.estimate,
                traceparent=_sampler(self.settings.trace_share),
                local=lambda item, name=name: self._take_local(outage, name, item),  # type: ignore[misc]
            )
            calibrations.attach(name, pipeline, lambda pipeline=pipeline: pipeline.counts().size)  # type: ignore[misc]
            thread = threading.Thread(
                target=pipeline.run, args=(self._stop_cameras,), name=f"camera-{name}", daemon=True
            )
            keeping = asyncio.create_task(sink.run())
            self._cameras[name] = _Camera(chosen, capture, pipeline, sink, thread, keeping)

    def _start_cameras(self) -> None:
        for camera in self._cameras.values():
            camera.capture.start()
            camera.thread.start()

    def _apply(self, desired: device_pb2.DesiredConfig | None) -> None:
        wanted = {it.camera: it for it in desired.cameras} if desired is not None else {}
        for name, camera in self._cameras.items():
            camera.pipeline.desire(wanted.get(name))
        if self._eraser is not None:
            self._eraser.want(desired.erasures if desired is not None else ())
        self._changed.set()

    def _withhold(self) -> None:
        for camera in self._cameras.values():
            camera.pipeline.withhold_pixels("what the cloud wants hidden cannot be read from state_dir")

    async def _follow_control(self, delivery: Delivery) -> None:
        """Take a worker's requests, in every session with the hub."""
        subject = control_subject(self.settings.site, self.settings.device)

        async def handle(message: Msg) -> None:
            try:
                request = device_pb2.ControlRequest.FromString(message.data)
            except DecodeError:
                _log.warning("control_request_unreadable", bytes=len(message.data))
                return
            camera, now = self._cameras.get(request.camera), time.monotonic()
            if request.releases and self._updates is not None:
                self._updates.look()
            if request.lag_ns and camera:
                delivery.pressure(request.camera).heard(request.lag_ns / 1e9)
            if request.profile and self._calibrations is not None:
                self._calibrations.told(request.camera)
            if request.backlog_lag_ns and camera:
                delivery.pressure(request.camera).heard_backlog(request.backlog_lag_ns / 1e9)
            if request.HasField("answers") and camera:
                delivery.pressure(request.camera).heard_answers()
                camera.pipeline.heard(request.answers)
                if self._outage is not None:
                    self._outage.understood()
            if request.keyframe and camera and now - camera.keyframe_asked_s >= _KEYFRAME_EVERY_S:
                camera.keyframe_asked_s = now
                camera.pipeline.demand_keyframe()

        while True:
            session = await delivery.hub.ready()
            with contextlib.suppress(Exception):
                await session.client.subscribe(subject, cb=handle)
            await session.closed.wait()

    async def _calibrate(self) -> None:
        assert self._calibrations is not None  # noqa: S101  # made with the cameras
        await self._calibrations.run()

    # End

    async def _until_over(
        self, stop: asyncio.Event, tasks: list[asyncio.Task[None]], delivery: Delivery
    ) -> int:
        stopping = asyncio.create_task(stop.wait())
        try:
            while True:
                await asyncio.wait(
                    {stopping, *tasks, *(camera.keeping for camera in self._cameras.values())},
                    timeout=_POLL_S,
                    return_when=asyncio.FIRST_COMPLETED,
                )
                self._beat_s = time.monotonic()
                if stopping.done():
                    return 0
                if self._updates is not None and self._updates.restart.is_set():
                    return RESTART_STATUS
                for task in (*tasks, *(camera.keeping for camera in self._cameras.values())):
                    if task.done():
                        task.result()  # raises what ended a part that never ends
                over = all(not camera.thread.is_alive() for camera in self._cameras.values())
                if self._exit_when_done and over and self._all_kept() and delivery.idle:
                    failed = [name for name, it in self._cameras.items() if _failed(it)]
                    return 1 if failed else 0
        finally:
            stopping.cancel()

    def _all_kept(self) -> bool:
        return all(camera.sink.drained for camera in self._cameras.values())

    async def _shut_down(self, delivery: Delivery, tasks: list[asyncio.Task[None]]) -> None:
        """Everything captured gets into the spool, and on to the hub; bounded in time."""
        cameras = self._cameras.values()
        if cameras:
            await asyncio.gather(*(asyncio.to_thread(camera.capture.stop) for camera in cameras))
            # What is read already still goes through the pipeline: its source now ends.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_FLUSH_S):
                    await asyncio.gather(
                        *(asyncio.to_thread(it.thread.join) for it in cameras if it.thread.ident)
                    )
                    while not self._all_kept():  # noqa: ASYNC110  # the queues belong to threads
                        await asyncio.sleep(0.02)
            self._stop_cameras.set()
            for camera in cameras:
                if camera.sink.last is not None:
                    await delivery.keeper.flush_missed(camera.sink.last)
            await delivery.finish(_LAST_FORWARD_S)
            await self._send_status(delivery)
        for task in tasks:
            task.cancel()
        for camera in cameras:
            camera.keeping.cancel()
        await asyncio.gather(*tasks, *(camera.keeping for camera in cameras), return_exceptions=True)
        for seen in delivery.seen.values():
            seen.close()
        left = delivery.spool.messages
        await delivery.stop()
        _log.info("agent_stopped", kept_messages=left)

    # Status

    def _tell(self) -> None:
        self._changed.set()

    def _tell_from_thread(self) -> None:
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._changed.set)

    async def _report_status(self, delivery: Delivery) -> None:
        while True:
            await self._send_status(delivery)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_STATUS_EVERY_S):
                    await self._changed.wait()
            self._changed.clear()
            # Several changes at once are one report.
            await asyncio.sleep(0.1)

    async def _send_status(self, delivery: Delivery) -> None:
        payload = self.status(delivery).SerializeToString()
        subject = status_subject(self.settings.site, self.settings.device)
        for session in (delivery.hub.session, delivery.spool.session):
            if session is not None and not session.closed.is_set():
                with contextlib.suppress(Exception):
                    await session.client.publish(subject, payload)

    def status(self, delivery: Delivery) -> device_pb2.DeviceStatus:
        """The device's status, now."""
        spool = delivery.spool
        device = status.Device(
            site=self.settings.site,
            device=self.settings.device,
            epoch=self._epoch,
            clock=delivery.clock.estimate(),
            hub_connected=delivery.hub.session is not None,
            spool_messages=spool.messages,
            spool_bytes=spool.size,
            spool_limit_bytes=self.settings.spool.max_bytes,
            spool_oldest_s=spool.oldest_age_s(),
            broker_pid=spool.pid,
            config_revision=self._desired.revision if self._desired is not None else 0,
            edge_model=self._edge_model,
            wire=delivery.hub.wire,
            erasures=self._eraser.status() if self._eraser is not None else [],
            releases=self._updates.status() if self._updates is not None else [],
        )
        cameras = [
            camera_status(
                name,
                it.capture,
                it.pipeline,
                delivery,
                self._calibrations,
                budget_kbit_s=self.settings.encode.budget_kbit_s,
            )
            for name, it in self._cameras.items()
        ]
        return status.build(device, cameras)

    # Health; called from the HTTP server's threads

    def _live(self) -> set[str]:
        good = {CameraState.LIVE, CameraState.ENDED}
        return {name for name, it in self._cameras.items() if it.capture.stats().state in good}

    def _unwell(self) -> str:
        """Why the agent does not work as it should, whatever its cameras do; one line."""
        if self._delivery is not None and self._delivery.spool.problem:
            return self._delivery.spool.problem
        dead = [name for name, it in self._cameras.items() if not it.thread.is_alive()]
        ended = {name for name, it in self._cameras.items() if it.capture.is_over}
        stuck = sorted(set(dead) - ended)
        return f"the pipeline ended of: {', '.join(stuck)}" if stuck else ""

    def _healthy(self) -> tuple[bool, str]:
        silent = time.monotonic() - self._beat_s
        return (silent < 30, "ok" if silent < 30 else f"the agent's loop is stuck since {silent:.0f} s")

    def _ready(self) -> tuple[bool, str]:
        delivery = self._delivery
        if delivery is None or not self._cameras:
            return False, "starting"
        if delivery.spool.problem:
            return False, delivery.spool.problem
        good = {CameraState.LIVE, CameraState.ENDED}
        bad = [name for name, it in list(self._cameras.items()) if it.capture.stats().state not in good]
        return (not bad, "ok" if not bad else f"no picture from: {', '.join(bad)}")


def _sampler(share: float) -> Callable[[], str]:
    """Begins a trace for that share of the messages; empty for the others."""
    return lambda: str(Traceparent.start()) if random.random() < share else ""


def _failed(camera: _Camera) -> bool:
    return camera.capture.stats().state is CameraState.FAILED
