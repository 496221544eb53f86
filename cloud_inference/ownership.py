"""Which worker answers which camera: one at a time, handed over within seconds when a worker goes.

Workers announce themselves in a bucket a few times per lease; the one with the highest rendezvous weight is
a camera's owner (Thaler and Ravishankar, "Using name-based mappings to increase hit rates", 1998), so that
a worker that joins or leaves moves only its own share. The lease bucket says who holds a camera now: taken
with a revision check, so that two never hold it, and given back before another may take it, unless its
holder has been silent for a lease. Silence is measured on the observer's own monotonic clock.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import time
from collections.abc import Callable, Coroutine, Iterable
from dataclasses import dataclass, field
from typing import Any

import nats.errors
import structlog
from nats.js.errors import APIError, BucketNotFoundError
from nats.js.kv import KeyValue

from cloud_inference.feed import Feed
from cloud_inference.metrics import CAMERAS, FRAMES_STORED, HUB_ANSWERS
from cloud_inference.shares import Bus
from eyeline import subjects
from eyeline.errors import BusError, InvalidName

_log = structlog.get_logger()

_LOOK_EVERY_S = 0.5
# A camera without a message in the hub is given up after this long.
_FORGET_S = 600.0
_CRASH_WAIT_S = 1.0
# For cameras to end what they are at; what they do not, the next worker does.
_STOP_S = 2.0

CameraKey = tuple[str, str]


def weight(worker: str, camera: str) -> int:
    """Rendezvous weight of a worker for a camera."""
    return int.from_bytes(hashlib.blake2b(f"{worker}\0{camera}".encode(), digest_size=8).digest())


def owner_of(camera: str, workers: set[str]) -> str | None:
    """The worker that should answer a camera."""
    return max(workers, key=lambda worker: (weight(worker, camera), worker), default=None)


@dataclass(slots=True)
class _Bucket:
    """A key-value bucket as last heard: value and revision of each key."""

    entries: dict[str, tuple[str, int]] = field(default_factory=dict)
    heard_s: dict[str, float] = field(default_factory=dict)
    # When it was written, by the hub's clock, and the newest of all.
    written_ns: dict[str, int] = field(default_factory=dict)
    newest_ns: int = 0


class Ownership:
    """Keeps `work(site, camera)` running for each camera that this worker owns, in one tenant."""

    def __init__(
        self,
        bus: Bus,
        worker: str,
        *,
        lease_s: float,
        work: Callable[[str, str], Coroutine[Any, Any, None]],
    ) -> None:
        self._bus, self._worker, self._lease_s, self._work = bus, worker, lease_s, work
        self._workers, self._leases = _Bucket(), _Bucket()
        self._running: dict[CameraKey, asyncio.Task[None]] = {}
        self._seen_s: dict[CameraKey, float] = {}
        self._log = _log.bind(tenant=bus.tenant, worker=worker)
        self._announced_s = 0.0

    @property
    def cameras(self) -> int:
        """How many cameras are ours."""
        return len(self._running)

    def owns(self, site: str, camera: str) -> bool:
        """Whether the camera is ours now."""
        return (site, camera) in self._running

    async def run(self) -> None:
        """Announce, watch and work until cancelled; then give everything back."""
        leases, workers = await self._bucket(subjects.LEASES), await self._bucket(subjects.WORKERS)
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._watch(subjects.LEASES, self._leases))
                group.create_task(self._watch(subjects.WORKERS, self._workers))
                group.create_task(self._announce(workers))
                group.create_task(self._balance(leases))
        finally:
            await asyncio.shield(self._leave(leases, workers))

    async def _bucket(self, name: str) -> KeyValue:
        try:
            return await self._bus.js.key_value(name)
        except (TimeoutError, APIError, BucketNotFoundError, nats.errors.Error) as problem:
            raise BusError(f"bucket {name}: {problem}") from None

    async def _watch(self, name: str, bucket: _Bucket) -> None:
        prefix = f"$KV.{name}."
        feed = Feed(self._bus.connection, self._bus.js, f"KV_{name}", [f"{prefix}>"], last_per_subject=True)
        while True:
            for message in await feed.take():
                key = message.subject.removeprefix(prefix)
                bucket.heard_s[key] = time.monotonic()
                bucket.written_ns[key] = message.stored_ns
                bucket.newest_ns = max(bucket.newest_ns, message.stored_ns)
                if message.headers.get("KV-Operation"):
                    bucket.entries.pop(key, None)
                else:
                    bucket.entries[key] = (message.data.decode(errors="replace"), message.sequence)

    async def _announce(self, workers: KeyValue) -> None:
        while True:
            try:
                await workers.put(self._worker, b"1")
                self._announced_s = time.monotonic()
            except (TimeoutError, APIError, nats.errors.Error):
                pass  # silence is what it is: the others will take over
            await asyncio.sleep(self._lease_s / 4)

    def _alive(self) -> set[str]:
        now, found = time.monotonic(), self._workers
        # What we heard when we started may have been old already: our own announcement tells the hub's time.
        oldest_ns = found.newest_ns - self._lease_s * 1e9
        alive = {
            worker
            for worker in found.entries
            if now - found.heard_s[worker] <= self._lease_s and found.written_ns[worker] >= oldest_ns
        }
        return alive | {self._worker}

    async def _balance(self, leases: KeyValue) -> None:
        while True:
            await asyncio.sleep(_LOOK_EVERY_S if self._seen_s else _LOOK_EVERY_S / 2)
            try:
                await self._find_cameras()
                HUB_ANSWERS.labels(self._bus.tenant).set(1)
                await self._settle(leases)
            except (TimeoutError, APIError, nats.errors.Error) as problem:
                HUB_ANSWERS.labels(self._bus.tenant).set(0)
                self._log.debug("balance_waits", reason=str(problem))
            CAMERAS.labels(self._bus.tenant).set(len(self._running))

    async def _find_cameras(self) -> None:
        info = await self._bus.js.stream_info(
            subjects.FRAMES, subjects_filter=subjects.frame_subject("*", "*", "*")
        )
        if info.config.max_bytes and info.config.max_bytes > 0:
            FRAMES_STORED.labels(self._bus.tenant).set(info.state.bytes / info.config.max_bytes)
        now = time.monotonic()
        for subject in info.state.subjects or {}:
            try:
                address = subjects.parse_frame_subject(subject)
            except InvalidName:
                continue  # such a subject cannot be answered, and no agent publishes it
            self._seen_s[address.site, address.camera] = now
        for camera in [camera for camera, seen in self._seen_s.items() if now - seen > _FORGET_S]:
            del self._seen_s[camera]

    async def _settle(self, leases: KeyValue) -> None:
        alive = self._alive()
        silent = time.monotonic() - self._announced_s > self._lease_s
        for camera in list(self._running):
            key = subjects.camera_key(*camera)
            holder = self._leases.entries.get(key, ("", 0))[0]
            if silent or (holder and holder != self._worker):
                await self._stop([camera], "lease_lost")
            elif camera not in self._seen_s or owner_of(key, alive) != self._worker:
                await self._stop([camera], "handed_over")
                await self._give_back(leases, key)
        if silent:
            return
        for camera in self._seen_s:
            key = subjects.camera_key(*camera)
            if camera not in self._running and owner_of(key, alive) == self._worker:
                await self._try_take(leases, camera, alive)

    async def _try_take(self, leases: KeyValue, camera: CameraKey, alive: set[str]) -> None:
        key = subjects.camera_key(*camera)
        entry = self._leases.entries.get(key)
        # A worker that just started has heard the others when it hears itself: its own is the newest.
        unsure = self._worker not in self._workers.entries
        if entry is not None and entry[0] != self._worker and (unsure or entry[0] in alive):
            return
        try:
            if entry is None:
                await leases.create(key, self._worker.encode())
            else:
                await leases.update(key, self._worker.encode(), last=entry[1])
        except APIError:
            return  # another worker was quicker; the watch will tell
        if entry is not None and entry[0] != self._worker:
            self._log.info("camera_taken_over", site=camera[0], camera=camera[1], from_worker=entry[0])
        else:
            self._log.info("camera_taken", site=camera[0], camera=camera[1])
        self._leases.entries[key] = (self._worker, self._leases.entries.get(key, ("", 0))[1])
        self._running[camera] = asyncio.create_task(self._keep_working(camera))

    async def _keep_working(self, camera: CameraKey) -> None:
        """A bug in one camera's path stops neither the others nor, for long, that camera."""
        while True:
            try:
                await self._work(*camera)
            except Exception:  # noqa: BLE001
                self._log.exception("camera_crashed", site=camera[0], camera=camera[1])
            await asyncio.sleep(_CRASH_WAIT_S)

    async def _stop(self, cameras: Iterable[CameraKey], reason: str) -> None:
        """Stop them together: whatever one of them waits for, the others do not wait for it."""
        tasks = {camera: self._running.pop(camera) for camera in cameras}
        for task in tasks.values():
            task.cancel()
        if tasks:
            await asyncio.wait(tasks.values(), timeout=_STOP_S)
        for site, camera in tasks:
            self._log.info("camera_released", site=site, camera=camera, reason=reason)

    async def _give_back(self, leases: KeyValue, key: str) -> None:
        with contextlib.suppress(TimeoutError, APIError, nats.errors.Error):  # it lapses with our heartbeat
            await leases.delete(key)

    async def _leave(self, leases: KeyValue, workers: KeyValue) -> None:
        held = list(self._running)
        await self._stop(held, "worker_stops")
        with contextlib.suppress(TimeoutError, APIError, nats.errors.Error):
            async with asyncio.timeout(2):
                for camera in held:
                    await self._give_back(leases, subjects.camera_key(*camera))
                await workers.delete(self._worker)
