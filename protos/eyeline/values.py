"""Plain values for applications and stages, and their protobuf forms."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eyeline.optional import needed
from eyeline.v1 import detection_pb2, frame_pb2, inference_pb2, result_pb2, still_pb2

FloatArray = NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class Detections:
    """Objects in one picture, row by row.

    boxes: float32 [N, 4] x1, y1, x2, y2 in source pixels; scores: float32 [N] in 0..1; class_ids: int32 [N];
    track_ids: int64 [N], 0 for untracked; class_names: N strings.
    """

    boxes: FloatArray
    scores: FloatArray
    class_ids: NDArray[np.int32]
    class_names: tuple[str, ...]
    track_ids: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.boxes)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Detections):
            return NotImplemented
        return (
            self.class_names == other.class_names
            and np.array_equal(self.boxes, other.boxes)
            and np.array_equal(self.scores, other.scores)
            and np.array_equal(self.class_ids, other.class_ids)
            and np.array_equal(self.track_ids, other.track_ids)
        )

    __hash__ = None  # type: ignore[assignment]

    @classmethod
    def empty(cls) -> Detections:
        """No objects."""
        return cls.build(np.empty((0, 4)), np.empty(0), np.empty(0), ())

    @classmethod
    def build(
        cls,
        boxes: Any,
        scores: Any,
        class_ids: Any,
        class_names: Sequence[str],
        track_ids: Any = None,
    ) -> Detections:
        """Build from anything array-like; raises ValueError when the lengths differ."""
        boxes = np.asarray(boxes, np.float32).reshape(-1, 4)
        count = len(boxes)
        tracks = np.zeros(count, np.int64) if track_ids is None else np.asarray(track_ids, np.int64)
        made = cls(
            boxes,
            np.asarray(scores, np.float32).reshape(-1),
            np.asarray(class_ids, np.int32).reshape(-1),
            tuple(class_names),
            tracks.reshape(-1),
        )
        lengths = {len(made.scores), len(made.class_ids), len(made.class_names), len(made.track_ids)}
        if lengths != {count}:
            raise ValueError(f"{count} boxes, but other columns have {sorted(lengths)} rows")
        return made

    def take(self, rows: Any) -> Detections:
        """The chosen rows: an index array or a boolean mask of length N."""
        index = np.arange(len(self))[rows]
        names = tuple(self.class_names[i] for i in index)
        return Detections(
            self.boxes[index], self.scores[index], self.class_ids[index], names, self.track_ids[index]
        )

    def with_tracks(self, track_ids: Any) -> Detections:
        """The same objects with other track ids, int64 [N]."""
        return Detections.build(self.boxes, self.scores, self.class_ids, self.class_names, track_ids)

    def supervision_arrays(self) -> dict[str, Any]:
        """What `supervision.Detections(**arrays)` takes: xyxy, confidence, class_id, tracker_id, data.

        tracker_id is int64 [N], or None when nothing is tracked; data["class_name"] is a str array [N].
        """
        return {
            "xyxy": self.boxes,
            "confidence": self.scores,
            "class_id": self.class_ids,
            "tracker_id": self.track_ids if self.track_ids.any() else None,
            "data": {"class_name": np.array(self.class_names, np.str_)},
        }

    def to_supervision(self) -> Any:
        """As `supervision.Detections`; raises `ConfigError` when supervision is not installed."""
        return needed("supervision", "supervision").Detections(**self.supervision_arrays())

    def to_proto(self) -> list[detection_pb2.Detection]:
        """As protobuf messages, in the same order."""
        return [
            detection_pb2.Detection(
                class_id=int(self.class_ids[i]),
                class_name=self.class_names[i],
                score=float(self.scores[i]),
                box=detection_pb2.Box(x1_px=x1, y1_px=y1, x2_px=x2, y2_px=y2),
                track_id=int(self.track_ids[i]),
            )
            for i, (x1, y1, x2, y2) in enumerate(self.boxes.tolist())
        ]

    @classmethod
    def from_proto(cls, messages: Iterable[detection_pb2.Detection]) -> Detections:
        """From protobuf messages, in the same order."""
        found = list(messages)
        return cls.build(
            [[m.box.x1_px, m.box.y1_px, m.box.x2_px, m.box.y2_px] for m in found],
            [m.score for m in found],
            [m.class_id for m in found],
            tuple(m.class_name for m in found),
            [m.track_id for m in found],
        )


class Provenance(Enum):
    """Where an answer comes from."""

    CLOUD = result_pb2.PROVENANCE_CLOUD
    EDGE = result_pb2.PROVENANCE_EDGE
    PROPAGATED = result_pb2.PROVENANCE_PROPAGATED
    DEGRADED = result_pb2.PROVENANCE_DEGRADED


@dataclass(frozen=True, slots=True)
class Epoch:
    """One run of an agent; ordered by `counter` within a device."""

    counter: int
    random_id: bytes

    def to_proto(self) -> frame_pb2.Epoch:
        """As a protobuf message."""
        return frame_pb2.Epoch(counter=self.counter, random_id=self.random_id)

    @classmethod
    def from_proto(cls, message: frame_pb2.Epoch) -> Epoch:
        """From a protobuf message."""
        return cls(message.counter, message.random_id)


@dataclass(frozen=True, slots=True)
class Result:
    """The answer for one frame, or the same answer for frames `sequence` to `last_sequence`.

    Times are nanoseconds since the Unix epoch on the hub's clock, 0 where the frame did not pass the stage.
    A `DEGRADED` answer means that no trustworthy answer exists: it is not the same as "no objects".
    """

    site: str
    camera: str
    device: str
    epoch: Epoch
    sequence: int
    last_sequence: int
    revision: int
    final: bool
    provenance: Provenance
    reason: str
    model: str
    model_version: str
    detections: Detections
    captured_ns: int
    answered_ns: int
    source_size: tuple[int, int]
    resume_token: str
    proto: result_pb2.Result = field(repr=False, compare=False)

    @classmethod
    def from_proto(cls, message: result_pb2.Result) -> Result:
        """From a protobuf message; the whole message stays reachable as `proto`."""
        provenance = message.provenance or result_pb2.PROVENANCE_DEGRADED
        return cls(
            site=message.key.site,
            camera=message.key.camera,
            device=message.device,
            epoch=Epoch.from_proto(message.key.epoch),
            sequence=message.key.sequence,
            last_sequence=max(message.last_sequence, message.key.sequence),
            revision=message.revision,
            final=message.final,
            provenance=Provenance(provenance) if provenance in _KNOWN else Provenance.DEGRADED,
            reason=message.reason,
            model=message.model.name,
            model_version=message.model.version,
            detections=Detections.from_proto(message.detections),
            captured_ns=message.times.captured_ns,
            answered_ns=message.times.answered_ns,
            source_size=(message.source_width_px, message.source_height_px),
            resume_token=message.resume_token,
            proto=message,
        )

    @property
    def frames(self) -> int:
        """Number of captured frames that this answer covers."""
        return self.last_sequence - self.sequence + 1

    @property
    def late(self) -> bool:
        """Whether its frames waited for the link on the device or for the cloud in the hub, or it came after
        the camera's deadline.

        The live picture goes on beside what was kept in an outage, so such an answer may come after one for
        later frames.
        """
        return self.proto.late or self.proto.lane == frame_pb2.LANE_BACKLOG


@dataclass(frozen=True, slots=True)
class ImageAnswer:
    """What a model sees in one image; boxes in pixels of the image as sent, EXIF orientation applied."""

    detections: Detections
    model: str
    model_version: str
    image_size: tuple[int, int]
    infer_ns: int

    @classmethod
    def from_proto(cls, message: inference_pb2.DetectResponse) -> ImageAnswer:
        """From a protobuf message."""
        return cls(
            detections=Detections.from_proto(message.detections),
            model=message.model.name,
            model_version=message.model.version,
            image_size=(message.width_px, message.height_px),
            infer_ns=message.infer_ns,
        )


@dataclass(frozen=True, slots=True)
class Still:
    """What a camera shows now. Times are nanoseconds since the Unix epoch on the hub's clock.

    jpeg: the picture, width and height in `size`; shows: the part of the captured frame that it is, x1, y1,
    x2, y2 in source pixels; answer: for exactly this frame, None while there is none; latest: the camera's
    newest.
    """

    site: str
    camera: str
    device: str
    epoch: Epoch
    sequence: int
    captured_ns: int
    jpeg: bytes = field(repr=False)
    size: tuple[int, int]
    shows: tuple[float, float, float, float]
    answer: Result | None
    latest: Result | None

    @classmethod
    def from_proto(cls, message: still_pb2.GetStillResponse) -> Still:
        """From a protobuf message."""
        box = message.shows
        return cls(
            site=message.key.site,
            camera=message.key.camera,
            device=message.device,
            epoch=Epoch.from_proto(message.key.epoch),
            sequence=message.key.sequence,
            captured_ns=message.captured_ns,
            jpeg=message.image,
            size=(message.width_px, message.height_px),
            shows=(box.x1_px, box.y1_px, box.x2_px, box.y2_px),
            answer=Result.from_proto(message.answer) if message.HasField("answer") else None,
            latest=Result.from_proto(message.latest) if message.HasField("latest") else None,
        )


# A newer server may send a provenance that this client does not know; no answer is safer than a wrong one.
_KNOWN = {member.value for member in Provenance}
