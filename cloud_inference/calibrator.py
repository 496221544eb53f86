"""Calibration as a part of the worker: samples of the cameras that it owns in, profiles out.

Nothing is kept here: a sample stays in the hub until its profile is stored, so that another worker that takes
the camera over finds it and starts anew. Live pictures come first: a sample asks the inference server about
one picture at a time, and waits while the live ones queue.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from concurrent.futures import Executor
from typing import Final

import nats.errors
import numpy as np
import structlog
from google.protobuf.message import DecodeError
from nats.js.errors import APIError, BucketNotFoundError
from nats.js.kv import KeyValue
from numpy.typing import NDArray

from cloud_inference import metrics
from cloud_inference.calibrate import Propagate, Scorer, assemble
from cloud_inference.feed import Feed
from cloud_inference.infer import Inference, Inferred
from cloud_inference.shares import Bus
from eyeline import subjects
from eyeline.envelope import SCHEMA_MAJOR
from eyeline.errors import BusError, InvalidName
from eyeline.subjects import FrameAddress
from eyeline.v1 import calibration_pb2, device_pb2
from eyeline_models.catalogue import ModelCard

_log = structlog.get_logger()

_LOOK_EVERY_S: Final = 1.0
# Live pictures may keep a sample waiting for so long at a time.
_STEP_ASIDE_S: Final = 0.5
_READ_S: Final = 10.0


class LiveFirst:
    """Asks about one picture at a time, behind the live ones. one: held meanwhile, for all that calibrate."""

    def __init__(self, inference: Inference, one: asyncio.Lock) -> None:
        self._inference, self._one = inference, one

    async def __call__(self, image: NDArray[np.uint8]) -> Inferred | None:
        """Rows for one letterboxed picture."""
        async with self._one:
            waited = 0.0
            while not self._inference.quiet and waited < _STEP_ASIDE_S:
                await asyncio.sleep(0.02)
                waited += 0.02
            await self._inference.reserve(late=True)
            try:
                found = await self._inference.run(image)
                return found if isinstance(found, Inferred) else None
            finally:
                self._inference.release(late=True)


class Calibrator:
    """One tenant's samples.

    model: what answers for the tenant's cameras now; one: see `LiveFirst`; executor: for what takes CPU;
    owns: whether a camera, by site and name, is this worker's now.
    """

    def __init__(
        self,
        bus: Bus,
        model: Callable[[], tuple[ModelCard, Inference]],
        one: asyncio.Lock,
        executor: Executor,
        *,
        propagate: Propagate,
        owns: Callable[[str, str], bool],
    ) -> None:
        self._bus, self._model, self._owns = bus, model, owns
        self._one, self._executor, self._propagate = one, executor, propagate
        self._log = _log.bind(tenant=bus.tenant)
        # Messages on a subject when it was last read in vain: read again once there are more.
        self._read: dict[str, int] = {}
        # By key: revision and value.
        self._profiles: dict[str, tuple[int, calibration_pb2.Profile]] = {}

    async def run(self) -> None:
        """Work until cancelled; a hub that is away is waited for."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._follow())
            group.create_task(self._look())

    async def _look(self) -> None:
        while True:
            try:
                await self._samples()
                await self._review()
            except (TimeoutError, APIError, BusError, nats.errors.Error) as problem:
                self._log.debug("calibration_waits", reason=str(problem))
            except Exception:  # noqa: BLE001  # a bug here must not stop the cameras
                self._log.exception("calibration_crashed")
            await asyncio.sleep(_LOOK_EVERY_S)

    async def _samples(self) -> None:
        info = await self._bus.js.stream_info(
            subjects.SAMPLES, subjects_filter=subjects.sample_subject("*", "*", "*")
        )
        waiting = info.state.subjects or {}
        self._read = {subject: count for subject, count in self._read.items() if subject in waiting}
        for subject, count in waiting.items():
            try:
                address = subjects.parse_frame_subject(subject)
            except InvalidName:
                continue
            if self._owns(address.site, address.camera) and self._read.get(subject) != count:
                self._read[subject] = count
                await self._sample(subject, address, count)

    async def _sample(self, subject: str, address: FrameAddress, count: int) -> None:
        """Score a sample if all its parts are there, store its profile, and forget its pixels."""
        parts, last = await self._parts(subject, address, count)
        sample = await asyncio.to_thread(assemble, parts)
        if sample is None:
            return
        log = self._log.bind(site=address.site, camera=address.camera, device=address.device)
        log.info("calibration_started", pictures=len(sample.pictures), rungs=len(sample.ladder))
        with metrics.CALIBRATING.labels(self._bus.tenant).track_inprogress():
            card, inference = self._model()
            look = LiveFirst(inference, self._one)
            profile = await Scorer(card, look, self._executor, self._propagate).profile(sample)
        metrics.CALIBRATIONS.labels(self._bus.tenant, "failed" if profile.problem else "done").inc()
        metrics.CALIBRATION_CPU.labels(self._bus.tenant).inc(profile.cpu_seconds)
        log.info(
            "calibrated",
            rungs=profile.scored,
            frontier=len(profile.frontier),
            cpu_s=round(profile.cpu_seconds, 2),
            inferences=profile.inferences,
            problem=profile.problem,
        )
        bucket = await self._bucket()
        await bucket.put(subjects.profile_key(*address), profile.SerializeToString())
        await self._tell(address)
        await self._bus.js.purge_stream(subjects.SAMPLES, seq=last + 1, subject=subject)

    async def _parts(
        self, subject: str, address: FrameAddress, count: int
    ) -> tuple[list[calibration_pb2.SamplePart], int]:
        """What the hub has of a camera's samples, and the stream sequence of the last message."""
        feed = Feed(
            self._bus.connection, self._bus.js, subjects.SAMPLES, [subject], start_sequence=1, batch=64
        )
        parts, read, last = [], 0, 0
        try:
            async with asyncio.timeout(_READ_S):
                while read < count:
                    for message in await feed.take(64):
                        read, last = read + 1, message.sequence
                        part = _part(message.data)
                        named = part and (part.tenant, part.site, part.device, part.camera)
                        if part is None or named != (self._bus.tenant, *address):
                            self._log.warning("sample_part_unusable", subject=subject, message=last)
                            continue
                        parts.append(part)
        except TimeoutError:
            pass  # fewer than were counted: they aged out meanwhile
        finally:
            await feed.close()
        return parts, last

    async def _follow(self) -> None:
        """Keep in mind which profiles there are."""
        prefix = f"$KV.{subjects.PROFILES}."
        feed = Feed(
            self._bus.connection,
            self._bus.js,
            f"KV_{subjects.PROFILES}",
            [f"{prefix}>"],
            last_per_subject=True,
        )
        while True:
            for message in await feed.take():
                key = message.subject.removeprefix(prefix)
                self._profiles.pop(key, None)
                if not message.headers.get("KV-Operation"):
                    with contextlib.suppress(DecodeError):
                        profile = calibration_pb2.Profile.FromString(message.data)
                        self._profiles[key] = (message.sequence, profile)

    async def _review(self) -> None:
        """Mark the profiles of our cameras that another model made: their devices take new samples."""
        card, _ = self._model()
        for key, (revision, profile) in list(self._profiles.items()):
            site, device, camera = (*key.split("."), "", "")[:3]
            if profile.stale or profile.model.sha256 == card.sha256 or not self._owns(site, camera):
                continue
            marked = calibration_pb2.Profile()
            marked.CopyFrom(profile)
            marked.stale = f"the cloud's model is now {card.name} {card.version}"
            bucket = await self._bucket()
            with contextlib.suppress(APIError):  # changed meanwhile
                await bucket.update(key, marked.SerializeToString(), last=revision)
                self._log.info("profile_stale", key=key, reason=marked.stale)
                await self._tell(FrameAddress(site, device, camera))

    async def _bucket(self) -> KeyValue:
        try:
            return await self._bus.js.key_value(subjects.PROFILES)
        except BucketNotFoundError as problem:
            raise BusError(f"bucket {subjects.PROFILES}: {problem}") from None

    async def _tell(self, address: FrameAddress) -> None:
        request = device_pb2.ControlRequest(camera=address.camera, profile=True)
        with contextlib.suppress(nats.errors.Error):  # the device looks by itself now and then
            await self._bus.connection.publish(
                subjects.control_subject(address.site, address.device), request.SerializeToString()
            )


def _part(data: bytes) -> calibration_pb2.SamplePart | None:
    try:
        part = calibration_pb2.SamplePart.FromString(data)
    except DecodeError:
        return None
    return part if 1 <= part.schema_major <= SCHEMA_MAJOR else None
