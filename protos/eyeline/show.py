"""Results, images and devices as the `eyeline` command shows them: for people, and as JSON for programs."""

from __future__ import annotations

from collections import Counter
from typing import Any

from rich.table import Table
from rich.text import Text

from eyeline._status import one_line
from eyeline.moments import format_duration, format_moment
from eyeline.v1 import device_pb2
from eyeline.values import Detections, ImageAnswer, Provenance, Result, Still

STYLES = {
    Provenance.CLOUD: "green",
    Provenance.EDGE: "cyan",
    Provenance.PROPAGATED: "blue",
    Provenance.DEGRADED: "yellow",
}
STATE_STYLES = {
    device_pb2.CAMERA_STATE_LIVE: "green",
    device_pb2.CAMERA_STATE_FAILED: "red",
    device_pb2.CAMERA_STATE_RECONNECTING: "yellow",
}


def result_line(result: Result) -> Text:
    """One line about a result."""
    line = Text(no_wrap=True, overflow="ignore")
    line.append(format_moment(result.captured_ns), "dim")
    line.append(f"  {one_line(result.site)}/{one_line(result.camera)}", "bold")
    line.append(f"  #{result.sequence}")
    if result.frames > 1:
        line.append(f"-{result.last_sequence}")
    line.append(f"  {result.provenance.name.lower()}", STYLES[result.provenance])
    if not result.final:
        line.append(" (provisional)", "dim")
    if result.late:
        line.append(" (late)", "dim")
    if result.provenance is Provenance.DEGRADED:
        line.append(f"  no answer: {one_line(result.reason) or 'no reason given'}", "yellow")
        if len(result.detections):
            line.append(f"; last known: {summary(result.detections)}", "dim")
    else:
        line.append(f"  {summary(result.detections)}")
    if result.captured_ns and result.answered_ns:
        line.append(f"  {format_duration(result.answered_ns - result.captured_ns)}", "dim")
    return line


def summary(detections: Detections) -> str:
    """Such as '2 person, 1 car', most first; 'nothing' when empty."""
    counts = Counter(one_line(name) or "?" for name in detections.class_names)
    return ", ".join(f"{count} {name}" for name, count in counts.most_common()) or "nothing"


def result_object(result: Result) -> dict[str, Any]:
    """A result for JSON."""
    return {
        "site": result.site,
        "camera": result.camera,
        "device": result.device,
        "epoch": {"counter": result.epoch.counter, "random_id": result.epoch.random_id.hex()},
        "sequence": result.sequence,
        "last_sequence": result.last_sequence,
        "revision": result.revision,
        "final": result.final,
        "provenance": result.provenance.name,
        "reason": result.reason,
        "model": result.model,
        "model_version": result.model_version,
        "detections": detection_objects(result.detections),
        "captured_ns": result.captured_ns,
        "answered_ns": result.answered_ns,
        "late": result.late,
        "source_size": list(result.source_size),
        "resume_token": result.resume_token,
    }


def detection_objects(detections: Detections) -> list[dict[str, Any]]:
    """Detections for JSON, boxes as x1, y1, x2, y2 in source pixels."""
    return [
        {
            "class": detections.class_names[i],
            "class_id": int(detections.class_ids[i]),
            "score": round(float(detections.scores[i]), 4),
            "box": [round(value, 2) for value in detections.boxes[i].tolist()],
            "track_id": int(detections.track_ids[i]),
        }
        for i in range(len(detections))
    ]


def image_object(name: str, answer: ImageAnswer) -> dict[str, Any]:
    """An image's answer for JSON."""
    return {
        "image": name,
        "image_size": list(answer.image_size),
        "model": answer.model,
        "model_version": answer.model_version,
        "detections": detection_objects(answer.detections),
        "infer_ns": answer.infer_ns,
    }


def image_table(name: str, answer: ImageAnswer) -> Table:
    """An image's answer as a table."""
    width, height = answer.image_size
    title = f"{one_line(name)}: {width}x{height} px, {summary(answer.detections)}"
    model = f"{one_line(answer.model)} {one_line(answer.model_version)}".strip()
    table = Table(
        title=Text(title), caption=Text(f"{model}, {format_duration(answer.infer_ns)}"), title_justify="left"
    )
    table.add_column("object")
    for column in ("score", "left", "top", "right", "bottom"):
        table.add_column(column, justify="right")
    for i, box in enumerate(answer.detections.boxes.tolist()):
        name_ = Text(one_line(answer.detections.class_names[i]))
        table.add_row(name_, f"{float(answer.detections.scores[i]):.2f}", *(f"{value:.0f}" for value in box))
    return table


def still_object(still: Still, path: str) -> dict[str, Any]:
    """A picture that was written, for JSON."""
    return {
        "out": path,
        "site": still.site,
        "camera": still.camera,
        "device": still.device,
        "sequence": still.sequence,
        "captured_ns": still.captured_ns,
        "size": list(still.size),
        "shows": [round(value, 2) for value in still.shows],
        "answer": result_object(still.answer) if still.answer is not None else None,
        "stands_until_ns": stands_until(still),
    }


def still_line(still: Still, path: str, now_ns: int) -> Text:
    """One line about a picture that was written."""
    line = Text(no_wrap=True, overflow="ignore")
    line.append(
        f"{path}: {still.size[0]}x{still.size[1]} px, {one_line(still.site)}/{one_line(still.camera)}"
    )
    line.append(f" #{still.sequence}, {format_duration(max(0, now_ns - still.captured_ns))} old")
    until = stands_until(still)
    if until > still.captured_ns:
        line.append(f", unchanged until {format_duration(max(0, now_ns - until))} ago")
    line.append(f"; {summary(still.answer.detections)}" if still.answer is not None else "; no answer yet")
    return line


def stands_until(still: Still) -> int:
    """Until when nothing moved since the picture, nanoseconds since the Unix epoch; 0 when none can tell."""
    latest = still.latest
    if latest is None or latest.provenance is Provenance.DEGRADED or latest.epoch != still.epoch:
        return 0
    return latest.proto.last_captured_ns if latest.last_sequence >= still.sequence else 0


def state_name(camera: device_pb2.CameraStatus) -> str:
    """Such as "live"."""
    if camera.state not in device_pb2.CameraState.values():
        return str(camera.state)
    return device_pb2.CameraState.Name(camera.state).removeprefix("CAMERA_STATE_").lower()


def device_object(device: device_pb2.Device) -> dict[str, Any]:
    """A device for JSON."""
    status = device.status
    return {
        "site": status.site,
        "device": status.device,
        "agent_version": status.agent_version,
        "reported_ns": status.reported_ns,
        "stored_ns": status.stored_ns,
        "hub_connected": status.hub_connected,
        "clock_offset_ns": status.clock.offset_ns,
        "clock_uncertainty_ns": status.clock.uncertainty_ns,
        "spool_bytes": status.spool.bytes,
        "spool_limit_bytes": status.spool.limit_bytes,
        "spool_oldest_age_ns": status.spool.oldest_age_ns,
        "resident_bytes": status.resident_bytes,
        "edge_model": status.edge_model.name,
        "config_revision": status.config_revision,
        "desired_revision": device.desired.revision,
        "cameras": [
            {
                "camera": camera.camera,
                "state": state_name(camera),
                "message": camera.message,
                "frames_captured": camera.frames_captured,
                "frames_sent": camera.frames_sent,
                "frames_idle": camera.frames_idle,
                "frames_skipped": camera.frames_skipped,
                "frames_dropped": dict(camera.frames_dropped),
                "bytes_published": camera.bytes_published,
                "rung": camera.rung,
                "rung_reason": camera.rung_reason,
                "source_bytes": camera.source_bytes,
                "source_codec": camera.source_codec,
                "jpeg_samples": camera.jpeg_samples,
                "jpeg_sampled_bytes": camera.jpeg_sampled_bytes,
                "audits": {
                    name: getattr(camera.audits, name) for name in ("frames", "agreed", "extra", "missed")
                },
                "capture_fps": round(camera.capture_fps, 2),
                "size": [camera.width_px, camera.height_px],
                "last_sequence": camera.last_sequence,
                "reconnects": camera.reconnects,
                "calibration": camera.calibration,
            }
            for camera in status.cameras
        ],
    }


def device_lines(devices: list[device_pb2.Device], now_ns: int) -> list[Text | Table]:
    """A line a device, under it a row a camera, and what the cameras say: narrow enough for any terminal."""
    lines: list[Text | Table] = []
    for device in devices:
        status = device.status
        heard_ns = status.stored_ns or status.reported_ns
        line = Text(f"{one_line(status.site)}/{one_line(status.device)}", "bold")
        line.append(f"  {_heard(heard_ns, now_ns)}  ", "default")
        line.append(*(("connected", "green") if status.hub_connected else ("away from the hub", "yellow")))
        line.append(f"  spool {status.spool.bytes / 1e6:.1f} MB", "default")
        lines.append(line)
        shown = device_object(device)["cameras"]
        if not shown:
            lines.append(Text("  no cameras", "dim"))
            continue
        table = Table(pad_edge=False, box=None, header_style="dim")
        table.add_column("  camera", overflow="fold", min_width=10)
        table.add_column("state", no_wrap=True)
        for column in ("fps", "captured", "sent", "dropped"):
            table.add_column(column, justify="right", no_wrap=True)
        for camera, of in zip(status.cameras, shown, strict=True):
            table.add_row(
                Text(f"  {one_line(of['camera'])}"),
                Text(of["state"], STATE_STYLES.get(camera.state, "")),
                f"{of['capture_fps']:.1f}",
                str(of["frames_captured"]),
                str(of["frames_sent"]),
                str(sum(of["frames_dropped"].values())),
            )
        lines.append(table)
        lines += [
            Text(f"  {one_line(of['camera'])}: {one_line(of['message'])}", "dim")
            for of in shown
            if of["message"]
        ]
    return lines


def _heard(heard_ns: int, now_ns: int) -> str:
    return f"heard {format_duration(max(now_ns - heard_ns, 0))} ago" if heard_ns else "never heard"
