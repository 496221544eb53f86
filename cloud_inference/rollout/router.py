"""In the worker, one for each tenant: which model is asked for a frame, and what comes of a rollout.

The candidate never holds a frame up. When it fails, the stable model answers and the failure counts; what is
only asked for comparison goes beside the frame's own way, bounded, and is left out when there is too much of
it. Sums go into the tenant's bucket, every worker judges the whole by the policy, and the first to change the
rollout's revision has decided.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any, Final, Protocol

import nats.errors
import structlog
from nats.aio.client import Client
from nats.js import JetStreamContext
from nats.js.errors import APIError, BucketNotFoundError, KeyNotFoundError
from nats.js.kv import KeyValue

from cloud_inference import metrics
from cloud_inference.accuracy import Bands
from cloud_inference.feed import Feed
from cloud_inference.infer import Inference
from cloud_inference.rollout import compare, plan
from cloud_inference.rollout.compare import Seen
from cloud_inference.rollout.drift import FEATURES, MUCH, CameraDrift
from cloud_inference.rollout.plan import Rollout
from cloud_inference.triton_pool import TritonPool
from eyeline import subjects
from eyeline.errors import BusError, ConfigError, EyelineError
from eyeline_models import catalogue
from eyeline_models.catalogue import ModelCard

_log = structlog.get_logger()

_LOOK_EVERY_S: Final = 1.0
_KEEP_DRIFT_EVERY_S: Final = 60.0
# Comparisons on their way.
_MOST_BESIDE: Final = 8

OpenModel = Callable[[ModelCard], TritonPool]


class TenantBus(Protocol):
    """What is needed of `camera.Bus`."""

    @property
    def tenant(self) -> str: ...
    @property
    def connection(self) -> Client: ...
    @property
    def js(self) -> JetStreamContext: ...


@dataclass(frozen=True, slots=True)
class Arm:
    """A model that can be asked: `inference` waits for its server, `inference.model` asks once."""

    card: ModelCard
    inference: Inference
    bands: Bands

    @classmethod
    def of(cls, card: ModelCard, inference: Inference) -> Arm:
        """With the bands that its scores have."""
        return cls(card, inference, Bands.of(card))


class Router:
    """Follows the tenant's rollout. `stable` and `candidate` change while it runs."""

    def __init__(self, bus: TenantBus, worker: str, default: Arm, open_model: OpenModel) -> None:
        self._bus, self._worker, self._default, self._open = bus, worker, default, open_model
        self.plan = Rollout()
        self.stable = default
        self.candidate: Arm | None = None
        self.seen = Seen()
        self.loaded = asyncio.Event()
        self._revision = 0
        self._others: dict[str, Seen] = {}
        self._stored_drift: dict[str, bytes] = {}
        self._drift: dict[str, CameraDrift] = {}
        self._opened: list[TritonPool] = []
        self._beside: set[asyncio.Task[None]] = set()
        self._kept_s = time.monotonic()
        self._log = _log.bind(tenant=bus.tenant, worker=worker)
        # There from the start, whether there is ever a rollout or not.
        metrics.ROLLOUT_SHARE.labels(bus.tenant)
        # There from the start: an increase from nothing is none to Prometheus.
        for decision in ("promote", "rollback"):
            metrics.ROLLOUT_DECISIONS.labels(bus.tenant, decision)

    @property
    def tenant(self) -> str:
        """Whose cameras."""
        return self._bus.tenant

    async def run(self) -> None:
        """Follow, publish and judge until cancelled; raises `BusError` when the hub is away."""
        try:
            bucket = await self._bus.js.key_value(subjects.MODELS)
        except (TimeoutError, APIError, BucketNotFoundError, nats.errors.Error) as problem:
            raise BusError(f"bucket {subjects.MODELS}: {problem}") from None
        try:
            await self._load(bucket)
            async with asyncio.TaskGroup() as group:
                group.create_task(self._follow())
                group.create_task(self._publish(bucket))
        finally:
            await self._close()

    async def _load(self, bucket: KeyValue) -> None:
        """As it stands when we begin: no frame goes to a model that another took the place of."""
        try:
            entry = await bucket.get(plan.KEY)
        except KeyNotFoundError:
            pass
        except (TimeoutError, APIError, nats.errors.Error) as problem:
            raise BusError(f"bucket {subjects.MODELS}: {problem}") from None
        else:
            self._revision = entry.revision or 0
            await self._change(self._read(entry.value or b""))
        self.loaded.set()

    async def _close(self) -> None:
        for task in self._beside:
            task.cancel()
        await asyncio.gather(*self._beside, return_exceptions=True)
        for model in self._opened:
            await model.close()
        self._opened.clear()

    async def _follow(self) -> None:
        prefix = f"$KV.{subjects.MODELS}."
        stream = f"KV_{subjects.MODELS}"
        feed = Feed(self._bus.connection, self._bus.js, stream, [f"{prefix}>"], last_per_subject=True)
        try:
            while True:
                for message in await feed.take():
                    key = message.subject.removeprefix(prefix)
                    gone = bool(message.headers.get("KV-Operation"))
                    if key == plan.KEY:
                        self._revision = message.sequence
                        await self._change(Rollout() if gone else self._read(message.data))
                    elif key.startswith(plan.SEEN_PREFIX) and key != plan.SEEN_PREFIX + self._worker:
                        seen = None if gone else Seen.from_json(message.data)
                        if seen is None:
                            self._others.pop(key, None)
                        else:
                            self._others[key] = seen
                    elif key.startswith(plan.DRIFT_PREFIX):
                        self._stored_drift[key.removeprefix(plan.DRIFT_PREFIX)] = message.data
        finally:
            await feed.close()

    def _read(self, text: bytes) -> Rollout:
        try:
            return Rollout.from_json(text)
        except ConfigError as problem:
            self._log.error("rollout_unreadable", reason=str(problem))
            return self.plan

    async def _change(self, new: Rollout) -> None:
        """Go over to a rollout as it stands now."""
        old, self.plan = self.plan, new
        if new.id != old.id:
            self.seen = Seen(new.id)
        if new.stable != old.stable:
            self.stable = await self._arm(new.stable) or self.stable
        if (new.id, new.candidate) != (old.id, old.candidate):
            self.candidate = await self._arm(new.candidate) if new.candidate else None
        share = new.share if new.running else 0.0
        metrics.ROLLOUT_SHARE.labels(self._bus.tenant).set(share)
        if new != old:
            self._log.info(
                "rollout_changed",
                mode=new.mode,
                stable=self.stable.card.name,
                candidate=new.candidate,
                share=share,
            )

    async def _arm(self, name: str | None) -> Arm | None:
        """The model of that name, if it can be asked; else why not is in `seen`."""
        for arm in (self._default, self.stable, self.candidate):
            if arm is not None and name in {None, arm.card.name}:
                return arm
        assert name is not None  # noqa: S101  # the default has that
        try:
            card = await asyncio.to_thread(catalogue.load, name)
            model = self._open(card)
            await model.__aenter__()
            self._opened.append(model)
            await model.check()
        except EyelineError as problem:
            self._log.error("model_cannot_be_asked", model=name, reason=str(problem))
            if not problem.retryable:
                self.seen.broken = f"{name} cannot be asked: {problem}"
                return None
        return Arm.of(card, Inference(model, most=1))

    async def _publish(self, bucket: KeyValue) -> None:
        while True:
            await asyncio.sleep(_LOOK_EVERY_S)
            with contextlib.suppress(TimeoutError, APIError, nats.errors.Error):
                if self.plan.running:
                    await bucket.put(plan.SEEN_PREFIX + self._worker, self.seen.to_json())
                    await self._judge(bucket)
                await self._tidy(bucket)
                await self._keep_drift(bucket)

    async def _judge(self, bucket: KeyValue) -> None:
        total = self.seen
        for other in self._others.values():
            if other.rollout == self.plan.id:
                total += other
        tenant = self._bus.tenant
        metrics.ROLLOUT_AGREEMENT.labels(tenant).set(total.agreement)
        metrics.ROLLOUT_SHIFT.labels(tenant).set(total.score_shift)
        metrics.ROLLOUT_COMPARED.labels(tenant).set(total.compared)
        verdict = compare.judge(self.plan, total, time.time())
        if verdict is None:
            return
        change = self.plan.promoted if verdict.what == "promote" else self.plan.rolled_back
        decided = change(by="policy", at_s=time.time(), why=verdict.why)
        # Refused when somebody decided before us: their decision comes with the next message.
        await bucket.update(plan.KEY, decided.to_json(), last=self._revision)
        metrics.ROLLOUT_DECISIONS.labels(tenant, verdict.what).inc()
        self._log.warning(
            "rollout_decided", decision=verdict.what, model=self.plan.candidate, reason=verdict.why
        )

    async def _tidy(self, bucket: KeyValue) -> None:
        """Sums of rollouts that are over are of no use to anybody."""
        for key, seen in list(self._others.items()):
            if seen.rollout != self.plan.id:
                await bucket.purge(key)
                self._others.pop(key, None)

    # Drift

    def drift_of(self, site: str, camera: str) -> CameraDrift:
        """The camera's drift, going on from where another worker was."""
        key, model = f"{site}.{camera}", self.stable.card.sha256
        drift = self._drift.get(key)
        if drift is None or drift.model != model:
            drift = self._drift[key] = CameraDrift.from_json(self._stored_drift.get(key, b""), model)
        return drift

    def forget(self, site: str, camera: str) -> None:
        """It is another worker's camera now."""
        self._drift.pop(f"{site}.{camera}", None)

    async def _keep_drift(self, bucket: KeyValue) -> None:
        tenant = self._bus.tenant
        psis = [drift.psi() for drift in self._drift.values()]
        for feature in FEATURES:
            values = [psi[feature] for psi in psis]
            metrics.DRIFTING.labels(tenant, feature).set(sum(value > MUCH for value in values))
            metrics.DRIFT_WORST.labels(tenant, feature).set(max(values, default=0.0))
        if time.monotonic() - self._kept_s < _KEEP_DRIFT_EVERY_S:
            return
        self._kept_s = time.monotonic()
        for key, drift in list(self._drift.items()):
            await bucket.put(plan.DRIFT_PREFIX + key, drift.to_json())

    # Beside the frames' own way

    def beside(self, work: Coroutine[Any, Any, None]) -> None:
        """Run a comparison, unless there are too many on their way."""
        if len(self._beside) >= _MOST_BESIDE:
            work.close()
            return
        task = asyncio.create_task(work)
        self._beside.add(task)
        task.add_done_callback(self._beside.discard)
