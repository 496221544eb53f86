"""One version apart, both ways: what the version before wrote, and what the next one may write.

`golden/before` is what agents and workers of an earlier version wrote; nothing here changes it.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from cloud_inference.answered import Answered
from cloud_inference.consume import Intake, Kind, Work
from cloud_inference.feed import StreamMessage
from edge_agent.config import DetectSettings, EncodeSettings
from edge_agent.plan import Planner
from eyeline.envelope import encode_envelope, parse_envelope
from eyeline.errors import BadEnvelope
from eyeline.subjects import frame_subject
from eyeline.v1 import device_pb2, frame_pb2, result_pb2
from eyeline.values import Provenance, Result

BEFORE = Path(__file__).with_name("golden") / "before"


def intake() -> Intake:
    return Intake(tenant="acme", answered=Answered())


def message(envelope: frame_pb2.FrameEnvelope, data: bytes | None = None, sequence: int = 1) -> StreamMessage:
    subject = frame_subject(envelope.site, envelope.device, envelope.camera)
    data = envelope.SerializeToString() if data is None else data
    return StreamMessage(subject, data, {}, sequence, 1, 0)


def frames(work: list[Work]) -> list[int]:
    return [n for one in work if one.kind is not Kind.END for n in range(one.first, one.last + 1)]


def envelope(first: int, last: int, previous: int = 0) -> frame_pb2.FrameEnvelope:
    """A range of idle frames."""
    return frame_pb2.FrameEnvelope(
        schema_major=1,
        tenant="acme",
        site="yard",
        device="box1",
        camera="gate",
        epoch=frame_pb2.Epoch(counter=1, random_id=bytes(8)),
        previous_sequence=previous,
        items=[
            frame_pb2.FrameItem(
                range=frame_pb2.FrameRange(
                    first_sequence=first, last_sequence=last, kind=frame_pb2.RANGE_KIND_IDLE
                )
            )
        ],
    )


# Written by the version before


def test_an_older_agents_envelope_has_no_deadline_and_lets_live_answers_pass() -> None:
    older = parse_envelope((BEFORE / "frame_envelope.bin").read_bytes())
    assert (older.deadline_ns, older.in_order) == (0, False)
    work = Intake(tenant=older.tenant, answered=Answered()).accept(message(older))
    assert frames(work)[-1] == work[-1].last


def test_an_older_workers_results_are_late_by_their_lane() -> None:
    older = result_pb2.ResultBatch.FromString((BEFORE / "result_batch.bin").read_bytes())
    assert older.checkpoint.frame_stream_sequence
    result = result_pb2.Result.FromString((BEFORE / "result.bin").read_bytes())
    result.lane = frame_pb2.LANE_BACKLOG
    assert Result.from_proto(result).late
    result.lane = frame_pb2.LANE_LIVE
    assert not Result.from_proto(result).late


def test_an_older_devices_status_is_read() -> None:
    status = device_pb2.DeviceStatus.FromString((BEFORE / "device_status.bin").read_bytes())
    assert status.cameras
    assert status.agent_version


# Written by the version after


def test_fields_of_the_next_version_are_passed_over_and_kept() -> None:
    data = envelope(1, 5).SerializeToString() + b"\xc2\x3e\x03new"  # field 1000, a string
    read = parse_envelope(data)
    assert frames(intake().accept(message(read, data))) == [1, 2, 3, 4, 5]
    assert encode_envelope(read) == data


def test_an_unknown_lane_is_answered_as_live_and_an_unknown_range_as_degraded() -> None:
    one = envelope(1, 5)
    one.lane = 7  # type: ignore[assignment]
    one.items[0].range.kind = 9  # type: ignore[assignment]
    (work, end) = intake().accept(message(one))
    assert (work.kind, work.first, work.last, work.reason) == (Kind.DROPPED, 1, 5, "unknown_range")
    assert end.kind is Kind.END


def test_an_unknown_kind_of_item_costs_its_own_frames_only() -> None:
    """Its message is set aside; what follows it tells which frames it had, and none goes unanswered."""
    reader = intake()
    reader.accept(message(envelope(1, 3)))
    strange = envelope(4, 6, previous=3)
    strange.items[0].ClearField("range")
    data = strange.SerializeToString()
    with pytest.raises(BadEnvelope):
        reader.accept(message(strange, data, 2))
    work = reader.accept(message(envelope(7, 9, previous=6), sequence=3))
    assert [(one.kind, one.first, one.last, one.reason) for one in work[:1]] == [(Kind.DROPPED, 4, 6, "lost")]
    assert frames(work) == [4, 5, 6, 7, 8, 9]


def test_an_unknown_provenance_is_never_taken_for_an_answer() -> None:
    result = result_pb2.Result.FromString((BEFORE / "result.bin").read_bytes())
    result.provenance = 9  # type: ignore[assignment]
    assert Result.from_proto(result).provenance is Provenance.DEGRADED


def test_what_a_newer_cloud_asks_for_is_followed_as_far_as_it_is_known() -> None:
    data = device_pb2.DesiredCamera(camera="gate", max_fps=3.0).SerializeToString() + b"\xc2\x3e\x03new"
    planner = Planner(EncodeSettings(), DetectSettings())
    planner.desire(device_pb2.DesiredCamera.FromString(data))
    assert planner.rung.max_fps == 3.0
    request = device_pb2.ControlRequest(camera="gate", keyframe=True).SerializeToString() + b"\xc0\x3e\x01"
    assert device_pb2.ControlRequest.FromString(request).keyframe
