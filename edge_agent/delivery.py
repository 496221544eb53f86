"""Delivery as one thing: spool, hub connection, claims, clock and forwarder, started and stopped together."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import time
from collections.abc import Callable
from typing import Any, Final

import structlog
from nats.aio.client import Client

from edge_agent import clock
from edge_agent.allowance import Allowances
from edge_agent.batch import CameraIdentity
from edge_agent.claim import Claims
from edge_agent.clock import HubClock
from edge_agent.config import AgentSettings
from edge_agent.ending import end_tasks
from edge_agent.erase import Eraser
from edge_agent.forward import Forwarder
from edge_agent.keep import PURGE_ABOVE_FILL, Keeper
from edge_agent.link import Link
from edge_agent.plan import LinkState
from edge_agent.pressure import LAG, SHARE, Pressure
from edge_agent.seen import Seen, boot_id, forget, left_behind, report
from edge_agent.segments import last_capture
from edge_agent.spool import Spool
from eyeline import bus
from eyeline.envelope import last_sequence
from eyeline.subjects import device_inbox
from eyeline.v1 import frame_pb2 as pb
from eyeline.values import Epoch

_log = structlog.get_logger()

_STATE_EVERY_S: Final = 0.1
# A cloud that answers says so every ten seconds; one report may be lost.
_REPORTS_S: Final = 25.0


class Delivery:
    """Takes envelopes and brings them to the hub, whatever happens to the link, the hub or this process."""

    def __init__(self, settings: AgentSettings) -> None:
        self.settings = settings
        self.spool = Spool(settings.spool, settings.state_dir)
        self.keeper = Keeper(self.spool)
        self.clock = HubClock()
        self.hub = Link("hub", self._connect)
        self.allowances = Allowances(settings, self.hub)
        self.claims: Claims | None = None
        self.forwarder: Forwarder | None = None
        # Called, without arguments, when something changed that the status tells.
        self.changed: Callable[[], None] = lambda: None
        self._password = settings.hub.secret_password()
        self._states: dict[str, LinkState] = {}
        # How far each camera of this run has come.
        self.seen: dict[str, Seen] = {}
        self.keeper.kept = self._kept
        self._pressures: dict[str, Pressure] = {}
        self._tasks: list[asyncio.Task[None]] = []

    async def open_spool(self) -> int:
        """Start the spool; returns the highest epoch counter in it. Raises `ServerFailed`, `SpoolError`."""
        await self.spool.start()
        return self.spool.highest_epoch

    def start(self, epoch: Epoch) -> None:
        """Connect to the hub and forward, from now on."""
        settings = self.settings
        self.claims = Claims(
            self.hub,
            site=settings.site,
            device=settings.device,
            random_id=epoch.random_id,
            cameras=[camera.name for camera in settings.cameras],
            hub_now_ns=self.clock.hub_now_ns,
            changed=self._tell,
        )
        self.forwarder = Forwarder(
            self.spool,
            self.keeper,
            self.hub,
            site=settings.site,
            device=settings.device,
            permission=self.claims,
            state_dir=settings.state_dir,
            pressure=self.pressure,
            allowances=self.allowances,
            clock_at=lambda of, moment: self.clock.estimate_at(moment) if of == epoch else pb.ClockEstimate(),
            taken=self._taken,
        )
        for work in (
            self.hub.run(),
            self.claims.run(),
            clock.follow(self.clock, self.hub, frugal=bool(self.allowances)),
            self.forwarder.run(),
            self.keeper.purge_aged(),
            self._refresh_states(),
        ):
            self._tasks.append(asyncio.create_task(work))

    async def report_not_kept(self) -> None:
        """Report what an earlier run, which was killed, had captured and not kept.

        To be called before this run's cameras are recorded. Raises `SpoolError`.
        """
        settings = self.settings
        for camera, progress in left_behind(settings.state_dir).items():
            spooled = max(
                (it.last_frame for it in self.spool.index(camera).segments if it.epoch == progress.epoch),
                default=0,
            )
            durable = settings.spool.storage == "file"
            gap = progress.gap(spooled, durable=durable, boot_id=boot_id())
            if gap is not None:
                identity = CameraIdentity(
                    settings.tenant, settings.site, settings.device, camera, progress.epoch
                )
                _log.warning("frames_not_kept", camera=camera, first=gap[0], last=gap[1])
                await self.keeper.report_not_kept(report(identity, progress, *gap))
            forget(settings.state_dir, camera)

    def _kept(self, envelope: pb.FrameEnvelope) -> None:
        seen = self.seen.get(envelope.camera)
        if seen is not None:
            seen.kept(last_sequence(envelope), last_capture(envelope).monotonic_ns, envelope.clock)

    def _taken(self, camera: str) -> None:
        seen = self.seen.get(camera)
        if seen is not None:
            waiting = self.spool.index(camera).waiting()
            seen.at_hub(min((it.next_frame for it in waiting if it.epoch == seen.epoch), default=None))

    def eraser(self, epoch: Epoch) -> Eraser:
        """What takes out of the spool what the operator wants erased."""
        return Eraser(
            self.spool,
            self.keeper,
            hub_now_ns=self.clock.hub_now_ns,
            clock_at=lambda of, moment: self.clock.estimate_at(moment) if of == epoch else pb.ClockEstimate(),
            changed=self._tell,
        )

    async def _connect(self, changed: Any) -> Client:
        settings = self.settings
        return await bus.connect(
            settings.hub.url if isinstance(settings.hub.url, str) else list(settings.hub.url),
            name=f"{settings.site}.{settings.device}",
            user=settings.hub.user,
            password=self._password,
            creds_file=settings.hub.creds_file,
            ca_file=settings.hub.ca_file,
            inbox_prefix=device_inbox(settings.site, settings.device),
            on_change=changed,
        )

    def _tell(self) -> None:
        self.changed()

    async def watch(self) -> None:
        """Returns only by raising what ended a part that never ends: a bug."""
        done, _ = await asyncio.wait(self._tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()

    async def publish(self, envelope: pb.FrameEnvelope) -> bool:
        """Keep one envelope; see `Keeper.publish`."""
        return await self.keeper.publish(envelope)

    def pressure(self, camera: str) -> Pressure:
        """What the cloud says about this camera's messages."""
        return self._pressures.setdefault(camera, Pressure())

    def link_state(self, camera: str) -> LinkState:
        """What the plan needs to know; safe to call from any thread."""
        state = self._states.get(camera, LinkState())
        return dataclasses.replace(state, breaks=self.keeper.breaks(camera))

    async def _refresh_states(self) -> None:
        """Keep what `link_state` tells up to date; the spool's books belong to this thread."""
        late_s = self.settings.spool.late_after_s
        while True:
            self.allowances.look()
            lost_at = self.hub.lost_at
            # A chain goes on over a short cut, since the spool bridges it: no keyframe is spent on that.
            connected = lost_at is None or time.monotonic() - lost_at < late_s
            for camera in self.settings.cameras:
                pressure = self.pressure(camera.name)
                SHARE.labels(camera.name).set(pressure.share)
                LAG.labels(camera.name).set(pressure.lag_s)
                self._states[camera.name] = LinkState(
                    connected=connected,
                    backlog_s=self.spool.oldest_age_s(camera.name),
                    # The keeper makes room by purging old chains: the plan eases off, but goes on sending.
                    fill=min(self.spool.fill, PURGE_ABOVE_FILL),
                    cloud_share=pressure.share,
                    live_wait_s=self._live_wait_s(camera.name) if lost_at is None else 0.0,
                    away=self._is_away(pressure),
                    beside_bytes=self.allowances.beside_bytes(),
                    late_waits=lost_at is None and self._late_waits(camera.name),
                )
            await asyncio.sleep(_STATE_EVERY_S)

    def _is_away(self, pressure: Pressure) -> bool:
        """Whether the cloud answers nothing: no link, too far behind, or silent though it spoke before."""
        after_s, lost_at = self.settings.detect.outage_after_s, self.hub.lost_at
        silent_after_s = after_s + _REPORTS_S + 2 * self.settings.heartbeat_s
        return (
            (lost_at is not None and time.monotonic() - lost_at >= after_s)
            or pressure.lag_s >= after_s
            or pressure.silent_s >= silent_after_s
        )

    def _live_wait_s(self, camera: str) -> float:
        """Age of the oldest live message that the hub does not have; what is late by now is none."""
        waiting = self.spool.index(camera).waiting()
        stored = [it.stored_s for it in waiting if it.lane == pb.LANE_LIVE]
        return max(0.0, time.monotonic() - min(stored)) if stored else 0.0

    def _late_waits(self, camera: str) -> bool:
        return any(it.lane == pb.LANE_BACKLOG for it in self.spool.index(camera).waiting())

    @property
    def idle(self) -> bool:
        """Whether everything kept is at the hub."""
        return self.spool.messages == 0

    async def finish(self, within_s: float) -> None:
        """Nothing more is captured: bring what is kept to the hub, if it is there, for so long at most."""
        if self.hub.session is None or self.forwarder is None:
            return
        self.forwarder.spare_nothing()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(within_s):
                while not self.idle:  # noqa: ASYNC110  # acknowledged by the hub, one after the other
                    await asyncio.sleep(0.02)

    async def stop(self) -> None:
        """Stop forwarding, then the spool; what is not at the hub stays in it."""
        await end_tasks(self._tasks)
        await self.spool.stop()
