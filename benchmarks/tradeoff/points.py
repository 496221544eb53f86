"""An operating point and its figures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from benchmarks.score import Counts, compare, score
from benchmarks.tradeoff.clip import Scene
from eyeline.values import Detections

Kind = Literal["jpeg", "x264", "passthrough", "edge", "eyeline", "eyeline-pixels"]


@dataclass(frozen=True, slots=True)
class Point:
    """Figures per captured frame; see `shared` definitions in the README.

    f1_cloud_frames: F1 over the frames with a CLOUD answer; None when there are none. edge_cpu_ms: by stage.
    provenance: captured frames by where their answer came from.
    """

    name: str
    kind: Kind
    bytes_per_frame: float
    f1: float
    f1_low: float
    f1_high: float
    f1_frame_mean: float
    f1_cloud_frames: float | None
    inferences_per_frame: float
    edge_cpu_ms: dict[str, float]
    provenance: dict[str, int]
    delay_ms: dict[str, float] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)


def make(
    name: str,
    kind: Kind,
    *,
    total_bytes: float,
    scene: Scene,
    answers: Sequence[Detections],
    provenance: Sequence[str],
    inferences: int,
    cpu_ms: dict[str, float],
    every: int = 1,
    delay_ms: dict[str, float] | None = None,
    config: dict[str, Any] | None = None,
) -> Point:
    """Score answers, one for every so many captured frames; cpu_ms: of all of them together, by stage."""
    wanted = scene.reference[::every]
    counts = [compare(*pair, scene.bands) for pair in zip(wanted, answers, strict=True)]
    whole = score(counts)
    frames = len(counts)
    return Point(
        name=name,
        kind=kind,
        bytes_per_frame=total_bytes / frames,
        f1=whole.f1,
        f1_low=whole.f1_low,
        f1_high=whole.f1_high,
        f1_frame_mean=whole.f1_frame_mean,
        f1_cloud_frames=_cloud_f1(counts, provenance),
        inferences_per_frame=inferences / frames,
        edge_cpu_ms={stage: total / frames for stage, total in cpu_ms.items()},
        provenance={kind: list(provenance).count(kind) for kind in sorted(set(provenance))},
        delay_ms=delay_ms or {},
        config=config or {},
    )


def _cloud_f1(counts: Sequence[Counts], provenance: Sequence[str]) -> float | None:
    seen = [one for one, where in zip(counts, provenance, strict=True) if where == "cloud"]
    return score(seen).f1 if seen else None
