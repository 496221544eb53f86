"""What a rung would have given on pictures that are all known: coded, decoded and answered as in earnest.

The agent's own encoder, the worker's own decoder, tracker and propagation; only the gate and the transport
are left out. So the figures are those of a scene in which something moves all the time.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Literal

import av
import numpy as np
from numpy.typing import NDArray

from cloud_inference.answer import Answers, Seen
from cloud_inference.consume import Kind, Source, Work
from cloud_inference.decode import ChainDecoder, to_source
from cloud_inference.track import Tracks
from eyeline.coding import open_coder
from eyeline.ladder import Rung
from eyeline.v1 import detection_pb2, frame_pb2
from eyeline.values import Detections

_KEY: Final = ("rehearsal", 1, b"")


@dataclass(frozen=True, slots=True)
class Shown:
    """One picture as the cloud would have had it: uint8 [H, W, 3] BGR at its coded size."""

    picture_format: frame_pb2.PictureFormat
    picture: NDArray[np.uint8]


def picked(count: int, fps: float, rung_fps: float) -> list[int]:
    """Which of `count` pictures, `fps` of them a second, a rung sends: evenly, the first one always."""
    share = min(1.0, rung_fps / fps)
    return [it for it in range(count) if it == 0 or int(it * share + 1e-9) > int((it - 1) * share + 1e-9)]


def coded_bytes(rung: Rung, pictures: Sequence[av.VideoFrame], indices: Sequence[int]) -> int:
    """What the pictures of these indices take as one chain; raises `EncodeFailed`."""
    coder = open_coder(rung, pictures[indices[0]])
    try:
        return sum(
            len(coder.encode(pictures[it], keyframe=rung.is_still or not number))
            for number, it in enumerate(indices)
        )
    finally:
        coder.close()


def coded_and_shown(rung: Rung, pictures: Sequence[av.VideoFrame], indices: Sequence[int]) -> Iterator[Shown]:
    """The pictures of these indices as the cloud sees them, as one chain.

    Raises `EncodeFailed`, `CannotDecode`.
    """
    coder, decoder = open_coder(rung, pictures[indices[0]]), ChainDecoder()
    try:
        for number, index in enumerate(indices):
            keyframe = rung.is_still or not number
            unit = frame_pb2.AccessUnit(
                sequence=index + 1,
                chain_id=number + 1 if rung.is_still else 1,
                chain_index=0 if rung.is_still else number,
                keyframe=keyframe,
                data=coder.encode(pictures[index], keyframe=keyframe),
            )
            picture = decoder.decode(unit, coder.picture_format)
            assert picture is not None  # noqa: S101  # it was wanted
            yield Shown(coder.picture_format, picture)
    finally:
        coder.close()


def answers(
    count: int,
    seen: Sequence[tuple[int, Detections]],
    *,
    size: tuple[int, int],
    mode: Literal["causal", "smooth"],
    company: int = 1,
) -> list[Detections]:
    """What a subscriber would have had for each of `count` pictures.

    seen: index of a picture that was sent, and what the model saw, in pixels of the sample; size: width and
    height of the sample's pictures; company: how many came in one message.
    """
    ids = itertools.count(1)
    told = Answers(
        tracks=Tracks(), next_track_id=lambda: next(ids), model=detection_pb2.ModelRef(name="-"), mode=mode
    )
    picture_format = frame_pb2.PictureFormat(source_width_px=size[0], source_height_px=size[1])
    source = Source(frame_pb2.FrameEnvelope(format=picture_format), _KEY, 1, 1, 1)
    found: list[Detections] = [Detections.empty()] * count

    def collect(now_s: float) -> None:
        while (collected := told.collect(now_s)).done:
            for result in collected.results:
                for sequence in range(result.key.sequence, result.last_sequence + 1):
                    found[sequence - 1] = Detections.from_proto(result.detections)

    after = 1
    for number, (index, detections) in enumerate(seen):
        sequence = index + 1
        if sequence > after:
            told.append(Work(Kind.SKIPPED, source, after, sequence - 1), 0.0)
        pending = told.append(Work(Kind.PIXELS, source, sequence, sequence), 0.0)
        pending.outcome = Seen(detections, 1, 1, 1)
        after = sequence + 1
        if number % company == company - 1:
            collect(0.0)
    if seen and after <= count:
        told.append(Work(Kind.SKIPPED, source, after, count), 0.0)
    collect(float("inf"))
    return found


def in_sample(found: Detections, shown: Shown) -> Detections:
    """What was seen in a coded picture, in pixels of the sample."""
    return to_source(found, shown.picture_format)
