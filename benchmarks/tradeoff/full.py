"""Eyeline in full: where the edge model has proved to agree with the cloud's, it answers; no pixels go."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from benchmarks.tradeoff import eyeline
from benchmarks.tradeoff.clip import Scene
from benchmarks.tradeoff.operating import GRID
from benchmarks.tradeoff.points import Point
from edge_agent.detect import EdgeModel

# One pass teaches, as the first minutes of a camera do, and is not scored.
_PASSES = 2


# Frames a second up to which a point of the pixels' grid is measured in full, too: more costs more only.
_MOST_FPS = 3.4
FULL = tuple(
    dataclasses.replace(one, name=f"edge + {one.name}", kind="eyeline", detect={})
    for one in GRID
    if one.encode["max_fps"] <= _MOST_FPS
)


def run(scene: Scene, edge: EdgeModel) -> Iterator[Point]:
    """The full curve; none where edge and cloud model are the same, which would prove nothing."""
    if edge.card.sha256 == scene.model.card.sha256:
        return
    for operating in FULL:
        yield eyeline.run(scene, operating, edge=edge, passes=_PASSES)
