"""While the cloud is away, and after: where the answers that cameras give by themselves go.

- On the device's own bus, at once: serialized `ResultBatch` messages on `eyeline.v1.result.{site}.{camera}`,
  provisional, for whoever listens here.
- To the cloud, as soon as the link is back: provisional answers ahead of the backlog, which supersedes them.
- Into reports of frames that were dropped on the way: what the edge model saw then is the final answer.

They live in memory and are bounded: what is lost with the agent still has its pixels in the spool.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Final

import structlog

from edge_agent.batch import CameraIdentity, Moment
from edge_agent.link import Link, Session
from edge_agent.local import LocalItem
from edge_agent.local_results import result_batch
from eyeline.envelope import MAX_ITEMS, SCHEMA_MAJOR, message_id
from eyeline.errors import BusError
from eyeline.subjects import FRAMES, frame_subject, result_subject
from eyeline.v1 import frame_pb2 as pb
from eyeline.values import Epoch

_log = structlog.get_logger()

# Items remembered for each camera: about an hour at a look a second.
_REMEMBERED: Final = 8_000
_MOST_ITEMS: Final = 400
_MOST_BYTES: Final = 200_000
_EVERY_S: Final = 0.25
# The backlog waits for these answers for so long after a connection came up.
_FIRST_S: Final = 3.0
_ACK_TIMEOUT_S: Final = 10.0
_REPORT_ITEMS: Final = MAX_ITEMS - 100
_UNTOLD_S: Final = 3.0


@dataclass(slots=True)
class _Camera:
    identity: CameraIdentity
    # In order, gapless within an outage; sent: how many of the oldest the cloud has.
    items: deque[LocalItem] = field(default_factory=deque)
    sent: int = 0
    # Of the answer that stands on the device's own bus.
    standing: pb.EdgeAnswer | None = None
    waiting: deque[LocalItem] = field(default_factory=deque)


class Outage:
    """All cameras', on the agent's event loop.

    bus: the device's own broker, None while it is away. ahead: whether provisional answers go to the cloud.
    """

    def __init__(
        self,
        hub: Link,
        bus: Callable[[], Session | None],
        *,
        may_publish: Callable[[str], bool],
        clock: Callable[[], pb.ClockEstimate],
        now: Callable[[], Moment],
        ahead: bool,
    ) -> None:
        self._hub, self._bus, self._may_publish = hub, bus, may_publish
        self._clock, self._now, self._ahead = clock, now, ahead
        self._cameras: dict[str, _Camera] = {}
        self._understood = False
        self._wake = asyncio.Event()
        # The connection that was looked at last, and since when it stands.
        self._session: Session | None = None
        self._session_s = 0.0

    def add(self, identity: CameraIdentity) -> None:
        """Take a camera in."""
        self._cameras[identity.camera] = _Camera(identity)

    def take(self, camera: str, item: LocalItem) -> None:
        """An answer that a camera gave by itself."""
        known = self._cameras[camera]
        known.items.append(item)
        known.waiting.append(item)
        if len(known.items) > _REMEMBERED:
            known.items.popleft()
            known.sent = max(0, known.sent - 1)
        self._wake.set()

    def understood(self) -> None:
        """The cloud is of a version that knows provisional answers: an older one takes them for final."""
        self._understood = True

    def goes_first(self, camera: str) -> bool:
        """Whether the backlog of a camera has to wait: what was answered here is not told yet.

        For some seconds of a connection only: one may be refused, or need a clock that does not come.
        """
        session, known = self._hub.session, self._cameras.get(camera)
        if session is not self._session:
            self._session, self._session_s = session, time.monotonic()
        if session is None or known is None or time.monotonic() - self._session_s > _FIRST_S:
            return False
        waits = self._ahead and self._understood and known.sent < len(known.items)
        if waits:
            self._wake.set()
        return waits

    async def run(self) -> None:
        """Hand answers on, for ever."""
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_EVERY_S):
                    await self._wake.wait()
            self._wake.clear()
            for name, camera in self._cameras.items():
                await self._tell_here(camera)
                await self._send_ahead(name, camera)

    # On this device

    async def _tell_here(self, camera: _Camera) -> None:
        while camera.waiting:
            item = camera.waiting.popleft()
            if item.range.HasField("edge"):
                camera.standing = item.range.edge
            session = self._bus()
            if session is None or session.closed.is_set():
                continue
            batch = result_batch(camera.identity, item, camera.standing, self._clock(), self._now())
            subject = result_subject(camera.identity.site, camera.identity.camera)
            with contextlib.suppress(Exception):  # the broker is away: so are its listeners
                await session.client.publish(subject, batch.SerializeToString())

    # To the cloud, ahead of the backlog

    async def _send_ahead(self, name: str, camera: _Camera) -> None:
        while self._ahead and self._understood and camera.sent < len(camera.items):
            session = self._hub.session
            if session is None or not self._may_publish(name) or not self._clock().uncertainty_ns:
                return
            envelope, used = self._ahead_of_backlog(camera)
            try:
                if envelope is not None:
                    await session.store(
                        frame_subject(camera.identity.site, camera.identity.device, name),
                        envelope.SerializeToString(),
                        headers={
                            "Nats-Msg-Id": f"{message_id(envelope)}.ahead",
                            "Nats-Expected-Stream": FRAMES,
                        },
                        timeout_s=_ACK_TIMEOUT_S,
                    )
            except BusError as problem:
                _log.debug("provisional_answers_wait", camera=name, reason=str(problem))
                return
            camera.sent += used

    def _ahead_of_backlog(self, camera: _Camera) -> tuple[pb.FrameEnvelope | None, int]:
        """The next unsent answers, and how many items they are; None when there is nothing to say in them."""
        chosen: list[LocalItem] = []
        size = 0
        for item in itertools.islice(camera.items, camera.sent, None):
            size += item.range.ByteSize() + 8
            gap = chosen and item.range.first_sequence != chosen[-1].range.last_sequence + 1
            if chosen and (gap or size > _MOST_BYTES or len(chosen) == _MOST_ITEMS):
                break
            chosen.append(item)
        if not any(item.range.kind == pb.RANGE_KIND_EDGE for item in chosen):
            return None, len(chosen)
        envelope = self._envelope(camera.identity, [item.range for item in chosen])
        envelope.provisional = True
        envelope.format.source_width_px, envelope.format.source_height_px = chosen[-1].size
        return envelope, len(chosen)

    def _envelope(self, identity: CameraIdentity, ranges: list[pb.FrameRange]) -> pb.FrameEnvelope:
        return pb.FrameEnvelope(
            schema_major=SCHEMA_MAJOR,
            tenant=identity.tenant,
            site=identity.site,
            device=identity.device,
            camera=identity.camera,
            epoch=identity.epoch.to_proto(),
            clock=self._clock(),
            items=[pb.FrameItem(range=it) for it in ranges],
            edge_model=identity.edge_model,
            published=self._now().to_proto(),
            lane=pb.LANE_LIVE,
        )

    # Instead of dropped frames

    def instead(self, dropped: pb.FrameEnvelope) -> list[pb.FrameEnvelope]:
        """What to report of frames that were dropped here: answers where there are some, the rest dropped.

        dropped: an envelope of one DROPPED range. The answer is gapless over the same frames.
        """
        camera = self._cameras.get(dropped.camera)
        span = dropped.items[0].range
        if camera is None or Epoch.from_proto(dropped.epoch) != camera.identity.epoch:
            return [dropped]
        ranges = list(_covering(span, (it.range for it in camera.items)))
        if all(it.kind == pb.RANGE_KIND_DROPPED for it in ranges):
            return [dropped]
        reports = []
        for start in range(0, len(ranges), _REPORT_ITEMS):
            report = pb.FrameEnvelope()
            report.CopyFrom(dropped)
            report.ClearField("items")
            report.items.extend(pb.FrameItem(range=it) for it in ranges[start : start + _REPORT_ITEMS])
            if camera.identity.edge_model is not None:
                report.edge_model.CopyFrom(camera.identity.edge_model)
            reports.append(report)
        return reports


def _covering(span: pb.FrameRange, known: Iterator[pb.FrameRange]) -> Iterator[pb.FrameRange]:
    """The frames of `span`, in order: ranges of `known` where there are some, else dropped as they were."""
    at = span.first_sequence
    newest: pb.FrameRange | None = None
    for found in known:
        newest = found
        first = max(found.first_sequence, at)
        last = min(found.last_sequence, span.last_sequence)
        if first > last:
            continue
        if first > at:
            yield _part(span, at, first - 1)
        # What had no answer here either was dropped for the report's reason.
        whole = span if found.kind == pb.RANGE_KIND_DROPPED else found
        yield _part(whole, first, last)
        at = last + 1
    if at <= span.last_sequence:
        rest = _part(span, at, span.last_sequence)
        if newest is not None and newest.kind != pb.RANGE_KIND_DROPPED and newest.last_sequence == at - 1:
            waited_ns = rest.last_capture.monotonic_ns - newest.last_capture.monotonic_ns
            if waited_ns <= _UNTOLD_S * 1e9:
                # The camera has not told of its newest frames yet.
                rest.kind, rest.reason = pb.RANGE_KIND_SKIPPED, ""
        yield rest


def _part(whole: pb.FrameRange, first: int, last: int) -> pb.FrameRange:
    """Frames `first` to `last` of a range, capture times evenly spaced."""
    part = pb.FrameRange()
    part.CopyFrom(whole)
    part.first_sequence, part.last_sequence = first, last
    frames = whole.last_sequence - whole.first_sequence
    start, end = whole.first_capture, whole.last_capture
    for sequence, capture in ((first, part.first_capture), (last, part.last_capture)):
        share = (sequence - whole.first_sequence) / frames if frames else 0.0
        capture.monotonic_ns = start.monotonic_ns + int((end.monotonic_ns - start.monotonic_ns) * share)
        capture.wall_ns = start.wall_ns + int((end.wall_ns - start.wall_ns) * share)
    return part
