"""What the device says about one of its cameras."""

from __future__ import annotations

from edge_agent import status
from edge_agent.calibrate import Calibrations
from edge_agent.capture import CameraState, Capture
from edge_agent.delivery import Delivery
from edge_agent.frame_metrics import RUNG_BELOW, RUNG_F1
from edge_agent.pipeline import CameraPipeline
from eyeline.v1 import device_pb2


def camera_status(
    name: str,
    capture: Capture,
    pipeline: CameraPipeline,
    delivery: Delivery,
    calibrations: Calibrations | None,
    *,
    budget_kbit_s: float | None,
) -> device_pb2.CameraStatus:
    """A camera's status, now."""
    counts, stats = pipeline.counts(), capture.stats()
    state, message = stats.state.value, stats.message
    problem = delivery.claims.problem(name) if delivery.claims is not None else ""
    forwarder = delivery.forwarder
    if problem:
        state, message = device_pb2.CAMERA_STATE_FAILED, problem
    elif pipeline.redaction_problem:
        message = f"no pixels leave, they cannot be redacted: {pipeline.redaction_problem}"
    elif stats.state is CameraState.LIVE:
        message = _delivery_problem(delivery, name) or message
    lost = {"too_large": forwarder.too_large[name]} if forwarder and forwarder.too_large[name] else {}
    RUNG_F1.labels(name).set(counts.rung_standing[0])
    RUNG_BELOW.labels(name).set(counts.rung_standing[1])
    return device_pb2.CameraStatus(
        camera=name,
        state=state,
        message=message,
        frames_captured=stats.frames_captured,
        frames_sent=counts.sent,
        frames_edge=counts.edge,
        audits=pipeline.audits,
        frames_idle=counts.idle,
        frames_skipped=counts.skipped,
        frames_dropped=status.merge_drops(name, counts.dropped, delivery.keeper.dropped(name), lost),
        bytes_published=delivery.keeper.published_bytes(name),
        capture_fps=stats.fps,
        width_px=counts.size[0],
        height_px=counts.size[1],
        rung=counts.rung,
        rung_reason=counts.rung_reason,
        calibration=calibrations.line(name) if calibrations is not None else "",
        calibration_bytes=calibrations.sent_bytes(name) if calibrations is not None else 0,
        last_sequence=stats.last_sequence,
        reconnects=stats.reconnects,
        source_bytes=stats.yardstick.source_bytes,
        source_codec=stats.info.codec if stats.info is not None and stats.yardstick.source_bytes else "",
        jpeg_samples=stats.yardstick.jpeg_samples,
        jpeg_sampled_bytes=stats.yardstick.jpeg_bytes,
        budget_kbit_s=budget_kbit_s,
        masks=pipeline.masks,
    )


def _delivery_problem(delivery: Delivery, camera: str) -> str:
    """One line on why pictures do not arrive, empty when they do."""
    if delivery.spool.problem:
        return delivery.spool.problem
    if delivery.hub.problem:
        return delivery.hub.problem
    refused = delivery.forwarder.problem if delivery.forwarder is not None else ""
    if refused:
        return f"the hub refuses, frames are kept: {refused}"
    share = delivery.pressure(camera).share
    return f"the cloud is behind: pixels at {share:.0%} of the frame rate" if share < 1 else ""
