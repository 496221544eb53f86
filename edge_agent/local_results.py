"""Answers as consumers on the device get them: the messages that the cloud stores, made here."""

from __future__ import annotations

from typing import Final

from edge_agent.batch import CameraIdentity, Moment
from edge_agent.local import LocalItem
from eyeline.envelope import SCHEMA_MAJOR
from eyeline.v1 import frame_pb2 as pb
from eyeline.v1 import result_pb2

# As the cloud's provisional results; its final ones are higher.
REVISION: Final = 1

_PROVENANCE: Final = {
    pb.RANGE_KIND_EDGE: result_pb2.PROVENANCE_EDGE,
    pb.RANGE_KIND_SKIPPED: result_pb2.PROVENANCE_PROPAGATED,
}


def result_batch(
    identity: CameraIdentity,
    item: LocalItem,
    standing: pb.EdgeAnswer | None,
    clock: pb.ClockEstimate,
    now: Moment,
) -> result_pb2.ResultBatch:
    """One provisional result. standing: the answer that stands, of skipped frames; clock: at this moment."""
    frames = item.range
    provenance = _PROVENANCE.get(frames.kind, result_pb2.PROVENANCE_DEGRADED)
    if provenance == result_pb2.PROVENANCE_PROPAGATED and standing is None:
        provenance = result_pb2.PROVENANCE_DEGRADED
    says_something = provenance != result_pb2.PROVENANCE_DEGRADED

    def on_hub(monotonic_ns: int) -> int:
        return max(0, now.wall_ns - now.monotonic_ns + monotonic_ns + clock.offset_ns)

    answer = frames.edge if frames.HasField("edge") else standing
    result = result_pb2.Result(
        key=result_pb2.FrameKey(
            tenant=identity.tenant,
            site=identity.site,
            camera=identity.camera,
            epoch=identity.epoch.to_proto(),
            sequence=frames.first_sequence,
        ),
        last_sequence=frames.last_sequence,
        revision=REVISION,
        final=False,
        provenance=provenance,
        reason="" if says_something else frames.reason or "no_reference",
        model=identity.edge_model if says_something else None,
        detections=answer.detections if says_something and answer is not None else [],
        times=result_pb2.StageTimes(
            captured_ns=on_hub(frames.first_capture.monotonic_ns), answered_ns=now.wall_ns + clock.offset_ns
        ),
        last_captured_ns=on_hub(frames.last_capture.monotonic_ns),
        source_width_px=item.size[0],
        source_height_px=item.size[1],
        clock_uncertainty_ns=clock.uncertainty_ns,
        gate_reason=frames.gate_reason,
        lane=pb.LANE_LIVE,
        device=identity.device,
    )
    return result_pb2.ResultBatch(schema_major=SCHEMA_MAJOR, results=[result])
