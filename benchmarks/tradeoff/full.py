"""Eyeline in full: where the edge model has proved to agree with the cloud's, it answers; no pixels go."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.tradeoff import eyeline
from benchmarks.tradeoff.clip import Scene
from benchmarks.tradeoff.eyeline import Operating
from benchmarks.tradeoff.points import Point
from edge_agent.detect import EdgeModel

# One pass teaches, as the first minutes of a camera do, and is not scored.
_PASSES = 2


def _points() -> Iterator[Operating]:
    for max_fps, crfs in ((3.4, (30,)), (2.5, (28, 34, 38)), (2.0, (30, 34, 38))):
        for crf in crfs:
            yield Operating(
                f"edge + {max_fps:g} fps crf{crf}",
                "eyeline",
                encode={"max_fps": max_fps, "crf": crf, "batch_ms": 4000},
                heartbeat_s=10.0,
            )


FULL = tuple(_points())


def run(scene: Scene, edge: EdgeModel) -> Iterator[Point]:
    """The full curve; none where edge and cloud model are the same, which would prove nothing."""
    if edge.card.sha256 == scene.model.card.sha256:
        return
    for operating in FULL:
        yield eyeline.run(scene, operating, edge=edge, passes=_PASSES)
