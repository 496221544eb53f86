"""Protobuf as the page's JSON, and a browser's JSON as protobuf. Times in milliseconds, sizes in pixels."""

from __future__ import annotations

from typing import Any

from eyeline.subjects import check_token
from eyeline.v1 import device_pb2, frame_pb2, result_pb2


def _ms(nanoseconds: int) -> float:
    return round(nanoseconds / 1e6, 1)


def result_form(result: result_pb2.Result) -> dict[str, Any]:
    """One answer. boxes: [x1, y1, x2, y2, score, track, class name]."""
    key = result.key
    form: dict[str, Any] = {
        "camera": f"{key.site}/{key.camera}",
        "epoch": f"{key.epoch.counter}:{key.epoch.random_id.hex()}",
        "sequence": key.sequence,
        "last": max(result.last_sequence, key.sequence),
        "provenance": result_pb2.Provenance.Name(result.provenance).removeprefix("PROVENANCE_").lower(),
        "captured": _ms(result.times.captured_ns),
        "last_captured": _ms(result.last_captured_ns or result.times.captured_ns),
        "answered": _ms(result.times.answered_ns),
        "source": [result.source_width_px, result.source_height_px],
        "idle": result.gate_reason == frame_pb2.GATE_REASON_IDLE,
        "device": result.device,
        "model": f"{result.model.name} {result.model.version}".strip(),
        "boxes": [
            [
                round(one.box.x1_px, 1),
                round(one.box.y1_px, 1),
                round(one.box.x2_px, 1),
                round(one.box.y2_px, 1),
                round(one.score, 3),
                one.track_id,
                one.class_name,
            ]
            for one in result.detections
        ],
    }
    if result.reason:
        form["reason"] = result.reason
    if result.late or result.lane == frame_pb2.LANE_BACKLOG:
        form["late"] = True
    if not result.final:
        form["provisional"] = True
    if result.zones:
        form["zones"] = [[it.zone, it.inside, it.entered, it.left, it.entered_total] for it in result.zones]
    if result.lines:
        form["lines"] = [
            [it.line, it.forward, it.backward, it.forward_total, it.backward_total] for it in result.lines
        ]
    return form


def device_form(device: device_pb2.Device) -> dict[str, Any]:
    """A device, what it reports and what is wanted of it."""
    status = device.status
    return {
        "site": status.site,
        "device": status.device,
        "version": status.agent_version,
        "reported": _ms(status.reported_ns),
        "stored": _ms(status.stored_ns),
        "epoch": status.epoch.counter,
        "hub_connected": status.hub_connected,
        "resident_bytes": status.resident_bytes,
        "cpu_seconds": round(status.cpu_seconds, 2),
        "bytes_sent": status.hub_bytes_sent,
        "model": f"{status.edge_model.name} {status.edge_model.version}".strip(),
        "clock": {
            "offset": _ms(status.clock.offset_ns),
            "uncertainty": _ms(status.clock.uncertainty_ns),
        },
        "spool": {
            "messages": status.spool.messages,
            "bytes": status.spool.bytes,
            "limit_bytes": status.spool.limit_bytes,
            "oldest": _ms(status.spool.oldest_age_ns),
        },
        "revision": status.config_revision,
        "wanted_revision": device.desired.revision,
        "cameras": [_camera_form(camera) for camera in status.cameras],
        "desired": {camera.camera: desired_form(camera) for camera in device.desired.cameras},
    }


def _camera_form(camera: device_pb2.CameraStatus) -> dict[str, Any]:
    return {
        "camera": camera.camera,
        "state": device_pb2.CameraState.Name(camera.state).removeprefix("CAMERA_STATE_").lower(),
        "message": camera.message,
        "captured": camera.frames_captured,
        "sent": camera.frames_sent,
        "idle": camera.frames_idle,
        "skipped": camera.frames_skipped,
        "dropped": dict(camera.frames_dropped),
        "bytes": camera.bytes_published,
        "fps": round(camera.capture_fps, 2),
        "size": [camera.width_px, camera.height_px],
        "rung": camera.rung,
        "reconnects": camera.reconnects,
        "budget_kbit_s": camera.budget_kbit_s if camera.HasField("budget_kbit_s") else None,
        "masks": camera.masks,
    }


def desired_form(camera: device_pb2.DesiredCamera) -> dict[str, Any]:
    """What is drawn on a camera's picture, in fractions of its sides."""
    return {
        "masks": [_polygon_form(one) for one in camera.masks],
        "zones": [_polygon_form(one) for one in camera.zones],
        "lines": [{"name": one.name, "points": _points_form([one.start, one.end])} for one in camera.lines],
    }


def _polygon_form(polygon: device_pb2.Mask | device_pb2.Zone) -> dict[str, Any]:
    return {"name": polygon.name, "points": _points_form(polygon.points)}


def _points_form(points: Any) -> list[list[float]]:
    return [[round(point.x, 5), round(point.y, 5)] for point in points]


def camera_name(value: Any) -> tuple[str, str]:
    """Site and camera of `SITE/CAMERA`; raises ValueError."""
    site, slash, camera = str(value).partition("/")
    if not slash:
        raise ValueError("name a camera as SITE/CAMERA")
    return check_token(site, "site"), check_token(camera, "camera")


def drawing(value: Any, camera: device_pb2.DesiredCamera) -> None:
    """Put what a browser drew in place of what was drawn; raises ValueError. The API checks the shapes."""
    if not isinstance(value, dict):
        raise ValueError("a drawing is an object with masks, zones and lines")  # noqa: TRY004
    del camera.masks[:], camera.zones[:], camera.lines[:]
    try:
        for kind in ("masks", "zones"):
            for shape in value.get(kind, []):
                points = [device_pb2.MaskPoint(x=float(x), y=float(y)) for x, y in shape["points"]]
                getattr(camera, kind).add(name=str(shape["name"]), points=points)
        for line in value.get("lines", []):
            start, end = (device_pb2.MaskPoint(x=float(x), y=float(y)) for x, y in line["points"])
            camera.lines.append(device_pb2.Line(name=str(line["name"]), start=start, end=end))
    except (KeyError, TypeError, ValueError, OverflowError):
        raise ValueError("each shape has a name, and points as pairs of numbers; a line has two") from None
