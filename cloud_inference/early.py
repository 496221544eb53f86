"""Answers ahead of the frames themselves: what a device answered by itself while the cloud was away.

They are stored as provisional results, of a lower revision than the final ones, so that whoever catches up
sees at once what the device saw; the cloud's own answers supersede them as the backlog comes in.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final

from cloud_inference.answer import result_of
from cloud_inference.consume import Kind, Work
from eyeline.v1 import frame_pb2, result_pb2
from eyeline.values import Detections

PROVISIONAL_REVISION: Final = 1


def provisional(
    works: Iterable[Work], is_open: Callable[[Work], bool] = lambda _work: True
) -> list[result_pb2.Result]:
    """Provisional results for work of provisional messages, in its order.

    is_open: whether no frame of it has a final answer by now; what is not is left out. Skipped frames get the
    answer that stood before them in the same message, and none without one.
    """
    results: list[result_pb2.Result] = []
    standing, source = Detections.empty(), None
    for work in works:
        if work.kind is Kind.EDGE and work.edge is not None:
            standing, source = Detections.from_proto(work.edge.detections), work.source
            provenance = result_pb2.PROVENANCE_EDGE
        elif work.kind is Kind.SKIPPED and source is work.source:
            provenance = result_pb2.PROVENANCE_PROPAGATED
        else:
            continue
        if is_open(work):
            result = result_of(work, provenance, standing, work.source.envelope.edge_model, late=True)
            result.revision, result.final = PROVISIONAL_REVISION, False
            result.lane = frame_pb2.LANE_BACKLOG
            results.append(result)
    return results
