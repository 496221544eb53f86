"""Writes the golden files beside it, by hand: `python -m tests.wire.make_golden`. Tests only read them.

They stand for what agents and workers in the field have stored: change one only with a new schema number.
"""

from __future__ import annotations

from pathlib import Path

from google.protobuf.message import Message

from eyeline.v1 import detection_pb2, device_pb2, frame_pb2, result_pb2

FOLDER = Path(__file__).with_name("golden")
_NS = 1_760_000_000_000_000_000


def epoch() -> frame_pb2.Epoch:
    """Of all the messages here."""
    return frame_pb2.Epoch(counter=12, random_id=bytes(range(1, 9)))


def detections() -> list[detection_pb2.Detection]:
    """A person and a car."""
    return [
        detection_pb2.Detection(
            class_id=0,
            class_name="person",
            score=0.875,
            box=detection_pb2.Box(x1_px=10.5, y1_px=20.25, x2_px=60.75, y2_px=180),
            track_id=41,
        ),
        detection_pb2.Detection(
            class_id=2,
            class_name="car",
            score=0.5,
            box=detection_pb2.Box(x1_px=300, y1_px=200, x2_px=420.5, y2_px=280),
            track_id=2**40,
        ),
    ]


def model() -> detection_pb2.ModelRef:
    """Of every answer here."""
    return detection_pb2.ModelRef(name="centernet-mobilenetv3", version="1", sha256="ab" * 32)


def capture(seconds: int) -> frame_pb2.CaptureTime:
    """So many seconds after the first frame."""
    return frame_pb2.CaptureTime(monotonic_ns=5_000_000_000 + seconds * 10**9, wall_ns=_NS + seconds * 10**9)


def frame_envelope() -> frame_pb2.FrameEnvelope:
    """A keyframe, a frame that depends on it with the edge's answer, and a range of every kind."""
    envelope = frame_pb2.FrameEnvelope(
        schema_major=1,
        tenant="acme",
        site="yard",
        device="box1",
        camera="gate",
        epoch=epoch(),
        clock=frame_pb2.ClockEstimate(offset_ns=-1_500_000, uncertainty_ns=400_000),
        format=frame_pb2.PictureFormat(
            codec=frame_pb2.CODEC_H264,
            color_matrix=frame_pb2.COLOR_MATRIX_BT601,
            color_range=frame_pb2.COLOR_RANGE_LIMITED,
            coded_width_px=416,
            coded_height_px=416,
            source_width_px=768,
            source_height_px=576,
            scale_x=1.846,
            scale_y=1.846,
            pad_x_px=0.5,
            pad_y_px=52,
            origin_x_px=1.5,
            origin_y_px=2.5,
        ),
        edge_model=model(),
        planned_for_model=detection_pb2.ModelRef(name="yolox-s", version="2"),
        published=capture(6),
        traceparent="00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        lane=frame_pb2.LANE_LIVE,
        rung="416px crf20",
        previous_sequence=99,
        deadline_ns=400_000_000,
        in_order=True,
    )
    envelope.items.add().access_unit.CopyFrom(
        frame_pb2.AccessUnit(
            sequence=100,
            capture=capture(0),
            chain_id=7,
            chain_index=0,
            keyframe=True,
            gate_reason=frame_pb2.GATE_REASON_FIRST,
            data=b"\x00\x00\x00\x01keyframe",
        )
    )
    envelope.items.add().access_unit.CopyFrom(
        frame_pb2.AccessUnit(
            sequence=101,
            capture=capture(1),
            chain_id=7,
            chain_index=1,
            gate_reason=frame_pb2.GATE_REASON_MOTION,
            data=b"\x00\x00\x00\x01delta",
            edge=frame_pb2.EdgeAnswer(detections=detections()),
        )
    )
    ranges = (
        (frame_pb2.RANGE_KIND_IDLE, frame_pb2.GATE_REASON_IDLE, ""),
        (frame_pb2.RANGE_KIND_SKIPPED, frame_pb2.GATE_REASON_HOLD, ""),
        (frame_pb2.RANGE_KIND_EDGE, frame_pb2.GATE_REASON_MOTION, ""),
        (frame_pb2.RANGE_KIND_DROPPED, frame_pb2.GATE_REASON_MOTION, "spool_full"),
    )
    for number, (kind, gate, reason) in enumerate(ranges):
        made = envelope.items.add().range
        made.first_sequence, made.last_sequence = 102 + number * 10, 111 + number * 10
        made.first_capture.CopyFrom(capture(2 + number))
        made.last_capture.CopyFrom(capture(3 + number))
        made.kind, made.gate_reason, made.reason = kind, gate, reason
        if kind == frame_pb2.RANGE_KIND_EDGE:
            made.edge.SetInParent()  # it looked, and saw nothing
    return envelope


def result() -> result_pb2.Result:
    """A final answer with everything set."""
    return result_pb2.Result(
        key=result_pb2.FrameKey(tenant="acme", site="yard", camera="gate", epoch=epoch(), sequence=100),
        last_sequence=101,
        revision=2,
        final=True,
        provenance=result_pb2.PROVENANCE_CLOUD,
        model=model(),
        detections=detections(),
        times=result_pb2.StageTimes(
            captured_ns=_NS,
            published_ns=_NS + 10,
            hub_stored_ns=_NS + 20,
            consumed_ns=_NS + 30,
            decoded_ns=_NS + 40,
            infer_start_ns=_NS + 50,
            infer_end_ns=_NS + 60,
            answered_ns=_NS + 70,
        ),
        source_width_px=768,
        source_height_px=576,
        clock_uncertainty_ns=400_000,
        gate_reason=frame_pb2.GATE_REASON_MOTION,
        lane=frame_pb2.LANE_BACKLOG,
        device="box1",
        last_captured_ns=_NS + 10**9,
        traceparent="00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        coded_bytes=2048,
        resume_token="AQEBAgMEBQYHCAkKCwwNDg8Q",
        zones=[result_pb2.ZoneCount(zone="yard", inside=2, entered=1, left=3, entered_total=40)],
        lines=[result_pb2.LineCount(line="door", forward=1, backward=2, forward_total=30, backward_total=20)],
        late=True,
    )


def result_batch() -> result_pb2.ResultBatch:
    """A message of the results stream: an answer, a range without one, and the checkpoint."""
    stored = result()
    stored.resume_token = ""
    degraded = result_pb2.Result(
        key=result_pb2.FrameKey(tenant="acme", site="yard", camera="gate", epoch=epoch(), sequence=102),
        last_sequence=140,
        final=True,
        provenance=result_pb2.PROVENANCE_DEGRADED,
        reason="chain_gap",
        device="box1",
    )
    checkpoint = result_pb2.Checkpoint(
        answered=[
            result_pb2.AnsweredEpoch(
                device="box1",
                epoch=epoch(),
                ranges=[
                    result_pb2.SequenceRange(first=1, last=140),
                    result_pb2.SequenceRange(first=200, last=2**40),
                ],
            )
        ],
        lanes=[
            result_pb2.LaneCheckpoint(
                lane=frame_pb2.LANE_LIVE,
                epoch=epoch(),
                chain_id=7,
                keyframe_stream_sequence=5_000,
                last_sequence=140,
            )
        ],
        frame_stream_sequence=5_010,
        next_track_id=42,
        worker="worker-1",
    )
    return result_pb2.ResultBatch(schema_major=1, results=[stored, degraded], checkpoint=checkpoint)


def device_status() -> device_pb2.DeviceStatus:
    """A device with a camera that works and one that does not."""
    live = device_pb2.CameraStatus(
        camera="gate",
        state=device_pb2.CAMERA_STATE_LIVE,
        frames_captured=1_000,
        frames_sent=400,
        frames_idle=500,
        frames_skipped=98,
        frames_dropped={"spool_full": 2},
        bytes_published=2**33,
        capture_fps=25,
        width_px=1280,
        height_px=720,
        rung="416px crf20",
        last_sequence=1_000,
        reconnects=3,
    )
    failed = device_pb2.CameraStatus(
        camera="door", state=device_pb2.CAMERA_STATE_FAILED, message="no such file: door.mp4"
    )
    return device_pb2.DeviceStatus(
        schema_major=1,
        site="yard",
        device="box1",
        epoch=epoch(),
        agent_version="0.1.0",
        reported_ns=_NS,
        clock=frame_pb2.ClockEstimate(offset_ns=-1_500_000, uncertainty_ns=400_000),
        hub_connected=True,
        cameras=[live, failed],
        spool=device_pb2.SpoolStatus(messages=3, bytes=9_000, limit_bytes=1 << 30, oldest_age_ns=2 * 10**9),
        resident_bytes=200 << 20,
        cpu_seconds=12.5,
        edge_model=model(),
        config_revision=9,
        stored_ns=_NS + 5,
        hub_bytes_sent=2**34,
        hub_bytes_received=12_345,
        releases=[
            device_pb2.ReleaseStatus(
                kind="agent",
                serial=4,
                version="0.2.0",
                sha256="ab" * 32,
                state=device_pb2.RELEASE_STATE_TRIAL,
                message="runs for 20 s",
                done_bytes=1_000,
                total_bytes=1_000,
            )
        ],
        erasures=[device_pb2.ErasureStatus(id="e1", messages=7, done=True)],
    )


MESSAGES = {
    "frame_envelope": frame_envelope,
    "result": result,
    "result_batch": result_batch,
    "device_status": device_status,
}


def newer(message: Message, *, schema: bool) -> bytes:
    """Bytes as a later version may write them: with unknown fields, and its own schema number."""
    later = type(message)()
    later.CopyFrom(message)
    if schema:
        later.schema_major = 2  # type: ignore[attr-defined]
    number, text = _tag(1_900, 0) + b"\x2a", _tag(1_901, 2) + b"\x05later"
    return later.SerializeToString(deterministic=True) + number + text


def _tag(field: int, wire_type: int) -> bytes:
    """The tag of a field whose number takes three bytes."""
    value = field << 3 | wire_type
    return bytes([value & 0x7F | 0x80, value >> 7 & 0x7F | 0x80, value >> 14])


def main() -> None:
    """Write all of them."""
    FOLDER.mkdir(exist_ok=True)
    for name, build in MESSAGES.items():
        message = build()
        (FOLDER / f"{name}.bin").write_bytes(message.SerializeToString(deterministic=True))
        (FOLDER / f"{name}.unknown_fields.bin").write_bytes(newer(message, schema=False))
        if "schema_major" in message.DESCRIPTOR.fields_by_name:
            (FOLDER / f"{name}.schema2.bin").write_bytes(newer(message, schema=True))


if __name__ == "__main__":
    main()
