"""Scoring a sample: every rung of the ladder against the model's own answers on the pictures as they came.

Inferring costs most of all. So pictures are inferred once for each width and quantiser, coded at the sample's
own frame rate, and the rungs that send fewer take the answers they need; their bytes are their own.
"""

from __future__ import annotations

import asyncio
import functools
import itertools
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from typing import Any, Final, Literal

import av
import numpy as np
from google.protobuf.message import DecodeError
from numpy.typing import NDArray

from cloud_inference import rehearse
from cloud_inference.accuracy import Bands, compare, errors_together, f1_at_least, f1_of
from cloud_inference.decode import CannotDecode, ChainDecoder
from cloud_inference.errors import BadSample
from cloud_inference.frontier import Scored, frontier
from cloud_inference.infer import Inferred
from eyeline import ladder
from eyeline.envelope import SCHEMA_MAJOR
from eyeline.errors import EncodeFailed
from eyeline.ladder import Rung
from eyeline.overhead import on_the_wire
from eyeline.v1 import calibration_pb2, detection_pb2, frame_pb2
from eyeline.values import Detections
from eyeline_models.catalogue import ModelCard, detections
from eyeline_models.letterbox import Letterbox

MAX_PARTS: Final = 1024
_MAX_PICTURES: Final = 1000
_MAX_RUNGS: Final = 200
# With fewer objects in the reference, every rung looks perfect.
_LEAST_OBJECTS: Final = 40
# Pictures of so many seconds err alike: one draw of what the scene brings.
_ALIKE_S: Final = 5.0
# A gap as long as so many pictures ends a stretch.
_GAP: Final = 2.5

Propagate = Literal["causal", "smooth"]
# Rows for one picture of the model's size, as `infer.Inference.run` gives them.
Look = Callable[[NDArray[np.uint8]], Awaitable[Inferred | None]]


def assemble(parts: Iterable[calibration_pb2.SamplePart]) -> calibration_pb2.CalibrationSample | None:
    """The newest sample that is complete; None while there is none. Parts may come twice."""
    found: dict[bytes, dict[int, calibration_pb2.SamplePart]] = {}
    for part in parts:
        if 0 < part.parts <= MAX_PARTS and part.part < part.parts:
            found.setdefault(part.sample_id, {})[part.part] = part
    for sample_id, pieces in reversed(found.items()):
        if len(pieces) == pieces[min(pieces)].parts:
            data = b"".join(pieces[number].data for number in range(len(pieces)))
            try:
                sample = calibration_pb2.CalibrationSample.FromString(data)
            except DecodeError:
                continue
            if sample.sample_id == sample_id:
                return sample
    return None


@dataclass(slots=True)
class _Sample:
    """A sample, decoded.

    pictures: in the decoder's own format, coded size; to_bgr: one of them as uint8 [H, W, 3] BGR; stretches:
    first and one past last picture of what was taken without a pause.
    """

    pictures: list[av.VideoFrame]
    to_bgr: Callable[[av.VideoFrame], NDArray[np.uint8]]
    stretches: list[tuple[int, int]]
    fps: float
    cpu_s: float = 0.0
    inferences: int = 0
    reference: list[Detections] = field(default_factory=list)

    @property
    def size(self) -> tuple[int, int]:
        return self.pictures[0].width, self.pictures[0].height

    def picked(self, fps: float) -> list[int]:
        """Which pictures a rung of that frame rate sends: the gate opens at the start of each stretch."""
        return [
            first + it for first, end in self.stretches for it in rehearse.picked(end - first, self.fps, fps)
        ]


def open_sample(sample: calibration_pb2.CalibrationSample) -> _Sample:
    """Decode a sample; raises `BadSample`."""
    shape = sample.format.coded_width_px, sample.format.coded_height_px
    if not 2 <= len(sample.pictures) <= _MAX_PICTURES or not 0 < len(sample.ladder) <= _MAX_RUNGS:
        raise BadSample(f"a sample of {len(sample.pictures)} pictures and {len(sample.ladder)} rungs")
    pixels = len(sample.pictures) * shape[0] * shape[1]
    if not 0.1 <= sample.fps <= 240 or min(shape) < 16 or pixels > ladder.SAMPLE_PIXELS:
        raise BadSample(f"a sample of {shape[0]}x{shape[1]} px at {sample.fps:g} pictures a second")
    decoder, pictures = ChainDecoder(), []
    try:
        for index, one in enumerate(sample.pictures):
            unit = frame_pb2.AccessUnit(
                sequence=index + 1, chain_id=1, chain_index=index, keyframe=not index, data=one.data
            )
            pictures.append(decoder.frame(unit, sample.format))
    except CannotDecode as problem:
        raise BadSample(f"picture {len(pictures) + 1} of the sample: {problem.reason}") from None
    offsets = np.array([one.offset_ns for one in sample.pictures], float) / 1e9
    apart = np.diff(offsets)
    longest = _GAP * max(float(np.median(apart)), 1 / sample.fps)
    cuts = [0, *(np.flatnonzero(apart > longest) + 1).tolist(), len(pictures)]
    # The mean, not what is usual: 4 of 10 pictures a second are 0.2 and 0.3 s apart in turn.
    fps = min(sample.fps, 1 / max(float(apart[apart <= longest].mean()), 1e-3))
    to_bgr = functools.partial(decoder.to_bgr, picture=sample.format)
    return _Sample(pictures, to_bgr, list(itertools.pairwise(cuts)), fps)


@dataclass(frozen=True, slots=True)
class _Tried:
    """A rung on the sample; counts: hits, false alarms and misses of every picture, [N, 3]."""

    rung: Rung
    bytes_per_s: float
    counts: NDArray[np.float64]


class Scorer:
    """Makes profiles with one model. look: rows for a letterboxed picture; executor: for what takes CPU."""

    def __init__(self, card: ModelCard, look: Look, executor: Executor, propagate: Propagate) -> None:
        self._card, self._look, self._executor, self._propagate = card, look, executor, propagate
        self._bands = Bands.of(card)

    async def profile(self, sample: calibration_pb2.CalibrationSample) -> calibration_pb2.Profile:
        """Score every rung; a sample that cannot be scored gives a profile with a `problem`."""
        card, source = self._card, sample.format
        made = calibration_pb2.Profile(
            schema_major=SCHEMA_MAJOR,
            sample_id=sample.sample_id,
            propagate=self._propagate,
            model=detection_pb2.ModelRef(name=card.name, version=str(card.version), sha256=card.sha256),
            scene=sample.scene,
            source_width_px=source.source_width_px,
            source_height_px=source.source_height_px,
            pictures=len(sample.pictures),
            sample_bytes=sum(len(it.data) for it in sample.pictures),
        )
        if sample.HasField("edge_model"):
            made.edge_model.CopyFrom(sample.edge_model)
        try:
            opened, scored = await self._score(sample)
        except (BadSample, EncodeFailed, CannotDecode) as problem:
            made.problem = str(problem)
        else:
            made.frontier.extend(frontier(scored))
            made.scored = len(scored)
            made.cpu_seconds, made.inferences = opened.cpu_s, opened.inferences
        made.made_ns = time.time_ns()
        return made

    async def _score(self, sample: calibration_pb2.CalibrationSample) -> tuple[_Sample, list[Scored]]:
        try:
            rungs = [ladder.from_proto(it) for it in sample.ladder]
        except ValueError as problem:
            raise BadSample(str(problem)) from None
        opened, spent = await self._work(open_sample, sample)
        opened.cpu_s += spent
        for one in opened.pictures:
            image, spent = await self._work(opened.to_bgr, one)
            opened.cpu_s += spent
            opened.reference.append(await self._see(opened, image, thresholds=0.0))
        objects = sum(int((it.scores >= self._bands.must).sum()) for it in opened.reference)
        if objects < _LEAST_OBJECTS:
            raise BadSample(f"the model sees {objects} objects in the sample, {_LEAST_OBJECTS} are needed")
        tried: list[_Tried] = []
        for alike in _by_picture(rungs, opened.fps):
            seen = await self._seen(opened, alike)
            for rung in alike:
                one, spent = await self._work(self._one, opened, rung, seen, sample.batch_ns / 1e9)
                opened.cpu_s += spent
                tried.append(one)
        return opened, _scored(tried, max(1, round(_ALIKE_S * opened.fps)))

    async def _seen(self, opened: _Sample, alike: Sequence[Rung]) -> dict[int, Detections]:
        """What the model sees in the pictures that any of these rungs sends, in pixels of the sample."""
        fastest = max(alike, key=lambda it: it.max_fps)
        wanted = sorted({index for rung in alike for index in opened.picked(rung.max_fps)})
        shown, spent = await self._work(
            lambda: list(rehearse.coded_and_shown(fastest, opened.pictures, wanted))
        )
        opened.cpu_s += spent
        return {
            index: rehearse.in_sample(await self._see(opened, one.picture), one)
            for index, one in zip(wanted, shown, strict=True)
        }

    async def _see(
        self, opened: _Sample, image: NDArray[np.uint8], thresholds: float | Literal["own"] = "own"
    ) -> Detections:
        letterbox: Letterbox = self._card.letterbox(image.shape[1], image.shape[0])
        rows = await self._look(letterbox.apply(image))
        if rows is None:
            raise BadSample("the inference server refused a picture of the sample")
        opened.inferences += 1
        return detections(self._card, rows.boxes, rows.count, letterbox, thresholds=thresholds)

    def _one(self, opened: _Sample, rung: Rung, seen: dict[int, Detections], batch_s: float) -> _Tried:
        """Bytes of a rung, and how its answers compare."""
        indices = opened.picked(rung.max_fps)
        size = rehearse.coded_bytes(rung, opened.pictures, indices)
        company = max(1, int(batch_s * rung.max_fps))
        counts: list[tuple[int, int, int]] = []
        for first, end in opened.stretches:
            told = rehearse.answers(
                end - first,
                [(index - first, seen[index]) for index in indices if first <= index < end],
                size=opened.size,
                mode=self._propagate,
                company=company,
            )
            for reference, answer in zip(opened.reference[first:end], told, strict=True):
                hits = compare(reference, answer, self._bands)
                counts.append((hits.true_positive, hits.false_positive, hits.missed))
        seconds = len(opened.pictures) / opened.fps
        return _Tried(rung, on_the_wire(size, len(indices), company) / seconds, np.array(counts, float))

    async def _work(self, function: Callable[..., Any], *arguments: Any) -> tuple[Any, float]:
        """Run in the executor; the result, and the CPU seconds it took there."""

        def timed() -> tuple[Any, float]:
            began = time.thread_time()
            return function(*arguments), time.thread_time() - began

        return await asyncio.get_running_loop().run_in_executor(self._executor, timed)


def _scored(tried: Sequence[_Tried], block: int) -> list[Scored]:
    """F1 of every rung and what it is at least; block: pictures that err alike."""
    f1 = [f1_of(*one.counts.sum(0)) for one in tried]
    # How errors come together tells the better half: of coarse rungs whole objects are missing.
    better = [one.counts for one, its in zip(tried, f1, strict=True) if its >= float(np.median(f1))]
    together = errors_together(better, block)
    return [
        Scored(one.rung, one.bytes_per_s, its, f1_at_least(one.counts, block, together))
        for one, its in zip(tried, f1, strict=True)
    ]


def _by_picture(rungs: Sequence[Rung], fps: float) -> list[list[Rung]]:
    """Rungs whose pictures look the same, at most one of each group as fast as the sample or faster."""
    groups: dict[tuple[Any, ...], list[Rung]] = {}
    for rung in sorted(rungs, key=lambda it: it.max_fps):
        group = groups.setdefault((rung.codec, rung.width_px, rung.crf, rung.quality), [])
        if not group or group[-1].max_fps < fps * 0.99:
            group.append(rung)
    return list(groups.values())
