"""One camera's way to a model: the stable one, the candidate, or both."""

from __future__ import annotations

import itertools
import time
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from cloud_inference import metrics
from cloud_inference.infer import Inference, Inferred
from cloud_inference.rollout.router import Arm, Router
from eyeline.errors import EyelineError
from eyeline.v1 import detection_pb2
from eyeline.values import Detections
from eyeline_models.catalogue import ModelCard, detections
from eyeline_models.letterbox import Letterbox

# A picture takes 0.15 ms, and its neighbours say the same.
_DRIFT_EVERY: Final = 4


@dataclass(frozen=True, slots=True)
class Input:
    """A picture as a model takes it, uint8 [H, W, 3] BGR."""

    image: NDArray[np.uint8]
    letterbox: Letterbox

    @classmethod
    def of(cls, card: ModelCard, picture: NDArray[np.uint8]) -> Input:
        """Letterboxed."""
        letterbox = card.letterbox(picture.shape[1], picture.shape[0])
        return cls(letterbox.apply(picture), letterbox)


@dataclass(frozen=True, slots=True)
class Prepared:
    """A decoded picture, for the model that answers, and for another one that is asked too."""

    answering: Arm
    first: Input
    other: Arm | None = None
    second: Input | None = None
    canary: bool = False
    compared: bool = False


@dataclass(frozen=True, slots=True)
class Answered:
    """Objects in pixels of the coded picture, with whose rows they are, and how that model got the
    picture.
    """

    card: ModelCard
    rows: Inferred
    found: Detections
    letterbox: Letterbox


class CameraRoute:
    """Asks for one camera. router: None where there is no rollout to follow, as in tests."""

    def __init__(
        self, inference: Inference, card: ModelCard, router: Router | None, site: str, camera: str
    ) -> None:
        self._inference, self._card, self._router = inference, card, router
        self._site, self._camera = site, camera
        self._count, self._looked = itertools.count(), itertools.count()
        self._shared = 0.0
        self._only = Arm.of(card, inference)

    def close(self) -> None:
        """It is not ours any more."""
        if self._router is not None:
            self._router.forget(self._site, self._camera)

    def prepare(self, picture: NDArray[np.uint8]) -> Prepared:
        """Letterbox a decoded picture for whoever will be asked; in any thread."""
        router = self._router
        if router is None:
            return Prepared(self._only, Input.of(self._card, picture))
        stable, candidate, plan = router.stable, router.candidate, router.plan
        first = Input.of(stable.card, picture)
        if candidate is None or not plan.running:
            return Prepared(stable, first)
        if plan.is_canary(self._site, self._camera):
            # The stable model's input is there in any case: it answers when the candidate cannot.
            compared = next(self._count) % plan.compare_every == 0
            return Prepared(
                candidate, Input.of(candidate.card, picture), stable, first, canary=True, compared=compared
            )
        if plan.mode == "shadow" and plan.covers(self._site, self._camera):
            self._shared += plan.share
            if self._shared >= 1:
                self._shared -= 1
                return Prepared(stable, first, candidate, Input.of(candidate.card, picture))
        return Prepared(stable, first)

    async def infer(self, prepared: Prepared, *, within_s: float | None = None) -> Answered | str:
        """The answer for the frame, or the reason why there is none; within_s as `Inference.run` has it."""
        router, arm = self._router, prepared.answering
        if router is None or prepared.other is None or prepared.second is None:
            return await self._stable(arm, prepared.first, within_s)
        if not prepared.canary:
            answer = await self._stable(arm, prepared.first, within_s)
            if isinstance(answer, Answered):
                router.beside(self._mirror(prepared, answer, arm, prepared.other))
            return answer
        asked = time.monotonic()
        rows = await self._ask(router, arm, prepared.first, within_s)
        if rows is None:
            left_s = None if within_s is None else within_s - (time.monotonic() - asked)
            return await self._stable(prepared.other, prepared.second, left_s)
        answer = _answered(arm.card, rows, prepared.first)
        if prepared.compared:
            router.beside(self._check(prepared, rows, arm, prepared.other))
        return answer

    async def _stable(self, arm: Arm, given: Input, within_s: float | None) -> Answered | str:
        began = time.perf_counter()
        rows = await arm.inference.run(given.image, within_s=within_s)
        if isinstance(rows, str):
            return rows
        router = self._router
        if router is not None:
            if router.plan.running:
                router.seen.stable_requests += 1
                router.seen.stable_s += time.perf_counter() - began
            if next(self._looked) % _DRIFT_EVERY == 0:
                router.drift_of(self._site, self._camera).add(given.image, _all(arm.card, rows, given))
        return _answered(arm.card, rows, given)

    async def _ask(
        self, router: Router, arm: Arm, given: Input, within_s: float | None = None
    ) -> Inferred | None:
        """The candidate's rows, asked once; None when it fails, which counts."""
        start_ns, began = time.time_ns(), time.perf_counter()
        tenant = router.tenant
        try:
            answer = await arm.inference.model.infer(given.image[None], within_s=within_s)
        except EyelineError:
            router.seen.errors += 1
            metrics.ROLLOUT_REQUESTS.labels(tenant, "failed").inc()
            return None
        took_s = time.perf_counter() - began
        router.seen.candidate_requests += 1
        router.seen.candidate_s += took_s
        metrics.ROLLOUT_REQUESTS.labels(tenant, "answered").inc()
        metrics.ROLLOUT_SECONDS.observe(took_s)
        return Inferred(answer.boxes[0], int(answer.count[0]), start_ns, time.time_ns())

    async def _mirror(self, prepared: Prepared, answer: Answered, stable: Arm, candidate: Arm) -> None:
        """Shadow: ask the candidate about what the stable model has answered."""
        router = self._router
        assert router is not None and prepared.second is not None  # noqa: S101, PT018  # infer() looked
        rows = await self._ask(router, candidate, prepared.second)
        if rows is None:
            return
        theirs = _all(candidate.card, rows, prepared.second)
        ours = _all(stable.card, answer.rows, prepared.first)
        router.seen.add(ours, theirs, stable.bands, candidate.bands)

    async def _check(self, prepared: Prepared, rows: Inferred, candidate: Arm, stable: Arm) -> None:
        """Canary: ask the stable model about what the candidate has answered."""
        router = self._router
        assert router is not None and prepared.second is not None  # noqa: S101, PT018  # infer() looked
        began = time.perf_counter()
        try:
            answer = await stable.inference.model.infer(prepared.second.image[None], within_s=None)
        except EyelineError:
            return
        router.seen.stable_requests += 1
        router.seen.stable_s += time.perf_counter() - began
        ours = Inferred(answer.boxes[0], int(answer.count[0]), 0, 0)
        router.seen.add(
            _all(stable.card, ours, prepared.second),
            _all(candidate.card, rows, prepared.first),
            stable.bands,
            candidate.bands,
        )


def _all(card: ModelCard, rows: Inferred, given: Input) -> Detections:
    return detections(card, rows.boxes, rows.count, given.letterbox, thresholds=0.0)


def _answered(card: ModelCard, rows: Inferred, given: Input) -> Answered:
    found = detections(card, rows.boxes, rows.count, given.letterbox)
    return Answered(card, rows, found, given.letterbox)


def ref_of(card: ModelCard) -> detection_pb2.ModelRef:
    """As results name it."""
    return detection_pb2.ModelRef(name=card.name, version=str(card.version), sha256=card.sha256)
