"""The figures of a report: what a period's results and the devices' own counters tell."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from eyeline.v1 import device_pb2
from eyeline.values import Provenance, Result

BINS = 60
PERCENTILES = (50, 90, 95, 99)
# A pause in capturing that a report counts as one.
GAP_NS = 10_000_000_000
# What estimates fall back to when no device measured anything, in bits a source pixel: typical of street
# video. A report says where it used them.
JPEG_BITS_PER_PX = 2.0
H264_BITS_PER_PX = 0.08


@dataclass(slots=True)
class Outage:
    """Frames that reached the cloud late, or never: from when they were captured to the last of them."""

    begin_ns: int
    end_ns: int
    late_frames: int = 0
    lost_frames: int = 0
    reasons: Counter[str] = field(default_factory=Counter)


@dataclass(slots=True)
class Cost:
    """What sending every frame another way would have taken, and how it is known: measured or estimated."""

    bytes: float
    how: str
    measured: bool


@dataclass(slots=True)
class Zone:
    """What happened at a zone or line in the period: came in and went out, or crossed either way."""

    forward: int = 0
    backward: int = 0
    most: int = 0


@dataclass(slots=True)
class CameraReport:
    """One camera in the period. Series have `BINS` values over the period."""

    name: str
    frames: int = 0
    sent: int = 0
    coded_bytes: int = 0
    by_source: Counter[str] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)
    delays_ms: list[float] = field(default_factory=list)
    late: int = 0
    objects: dict[str, set[tuple[object, int]]] = field(default_factory=lambda: defaultdict(set))
    present: Counter[str] = field(default_factory=Counter)
    zones: dict[str, Zone] = field(default_factory=dict)
    lines: dict[str, Zone] = field(default_factory=dict)
    series_bytes: list[float] = field(default_factory=lambda: [0.0] * BINS)
    series_frames: list[float] = field(default_factory=lambda: [0.0] * BINS)
    series_lost: list[float] = field(default_factory=lambda: [0.0] * BINS)
    series_delay: list[list[float]] = field(default_factory=lambda: [[] for _ in range(BINS)])
    series_objects: dict[str, list[float]] = field(default_factory=lambda: defaultdict(lambda: [0.0] * BINS))
    outages: list[Outage] = field(default_factory=list)
    envelope_share: float = 1.0
    # Since the agent started: frames, and F1 of their objects (None when neither model saw any).
    audits: tuple[int, float | None] | None = None
    jpeg: Cost | None = None
    video: Cost | None = None
    rung: str = ""
    size: tuple[int, int] = (0, 0)

    @property
    def wire_bytes(self) -> float:
        """Bytes that the device published, envelopes included."""
        return self.coded_bytes * self.envelope_share

    def percentile(self, q: float) -> float | None:
        """Delay in milliseconds from capture to answer, of live frames with pixels."""
        return percentile(self.delays_ms, q)


@dataclass(slots=True)
class Report:
    """A period: nanoseconds since the Unix epoch."""

    begin_ns: int
    end_ns: int
    server: str
    cameras: list[CameraReport]
    notes: list[str] = field(default_factory=list)

    def total(self, name: str) -> float:
        """Of a number over all cameras."""
        return float(sum(getattr(camera, name) for camera in self.cameras))


def percentile(values: Sequence[float], q: float) -> float | None:
    """The value that `q` percent do not exceed (nearest rank); None without values."""
    if not values:
        return None
    return sorted(values)[max(0, math.ceil(q / 100 * len(values)) - 1)]


class Collector:
    """Takes a period's results, in any order."""

    def __init__(self, begin_ns: int, end_ns: int) -> None:
        self._begin, self._end = begin_ns, end_ns
        self._cameras: dict[str, CameraReport] = {}
        self._seen: dict[tuple[object, ...], int] = {}
        self._troubled: dict[str, list[tuple[int, int, int, str]]] = defaultdict(list)

    def add(self, result: Result) -> None:
        """Count a result; a provisional one that a final one replaces must not be given."""
        name = f"{result.site}/{result.camera}"
        camera = self._cameras.setdefault(name, CameraReport(name))
        self._frames(camera, result)
        if result.provenance is not Provenance.DEGRADED:
            self._objects(camera, result)

    def _bin(self, ns: int) -> int:
        part = (ns - self._begin) / max(self._end - self._begin, 1)
        return min(max(int(part * BINS), 0), BINS - 1)

    def _frames(self, camera: CameraReport, result: Result) -> None:
        camera.frames += result.frames
        camera.by_source[result.provenance.name] += result.frames
        if result.source_size[0]:
            camera.size = result.source_size
        last_ns = result.proto.last_captured_ns or result.captured_ns
        first, last = self._bin(result.captured_ns), self._bin(last_ns)
        for index in range(first, last + 1):
            camera.series_frames[index] += result.frames / (last - first + 1)
        if result.proto.coded_bytes:
            camera.sent += 1
            camera.coded_bytes += result.proto.coded_bytes
            camera.series_bytes[first] += result.proto.coded_bytes
        lost = result.provenance is Provenance.DEGRADED
        if lost:
            camera.reasons[result.reason or "unknown"] += result.frames
            for index in range(first, last + 1):
                camera.series_lost[index] += result.frames / (last - first + 1)
        elif result.late:
            camera.late += result.frames
        elif result.provenance is Provenance.CLOUD and result.answered_ns > result.captured_ns > 0:
            delay_ms = (result.answered_ns - result.captured_ns) / 1e6
            camera.delays_ms.append(delay_ms)
            camera.series_delay[first].append(delay_ms)
        if lost or result.late:
            reason = result.reason or "unknown" if lost else ""
            self._troubled[camera.name].append((result.captured_ns, last_ns, result.frames, reason))

    def _objects(self, camera: CameraReport, result: Result) -> None:
        index = self._bin(result.captured_ns)
        counts = Counter(result.detections.class_names)
        for name, count in counts.items():
            camera.present[name] += count * result.frames
            camera.series_objects[name][index] = max(camera.series_objects[name][index], count)
        epoch = (result.device, result.epoch.random_id)
        for name, track in zip(result.detections.class_names, result.detections.track_ids, strict=True):
            if track:
                camera.objects[name].add((epoch, int(track)))
        for zone in result.proto.zones:
            seen = camera.zones.setdefault(zone.zone, Zone())
            seen.forward += zone.entered
            seen.backward += zone.left
            seen.most = max(seen.most, zone.inside)
        for line in result.proto.lines:
            seen = camera.lines.setdefault(line.line, Zone())
            seen.forward += line.forward
            seen.backward += line.backward

    def report(self, server: str, devices: Iterable[device_pb2.Device]) -> Report:
        """The figures, once all results were given."""
        for name, troubled in self._troubled.items():
            self._cameras[name].outages = outages(troubled)
        statuses: dict[str, device_pb2.CameraStatus] = {}
        for device in sorted(devices, key=lambda it: it.status.stored_ns):
            for status in device.status.cameras:
                statuses[f"{device.status.site}/{status.camera}"] = status
        for name, camera in self._cameras.items():
            _costs(camera, statuses.get(name))
        return Report(self._begin, self._end, server, [self._cameras[name] for name in sorted(self._cameras)])


def outages(troubled: Sequence[tuple[int, int, int, str]]) -> list[Outage]:
    """Runs of frames that came late or got no answer, with less than `GAP_NS` between them.

    troubled: first and last capture, number of frames, reason (empty for late) of each result.
    """
    found: list[Outage] = []
    for begin_ns, end_ns, frames, reason in sorted(troubled):
        if not found or begin_ns - found[-1].end_ns > GAP_NS:
            found.append(Outage(begin_ns, end_ns))
        outage = found[-1]
        outage.end_ns = max(outage.end_ns, end_ns)
        if reason:
            outage.lost_frames += frames
            outage.reasons[reason] += frames
        else:
            outage.late_frames += frames
    return found


def _f1(audits: device_pb2.EdgeAudits) -> float | None:
    total = 2 * audits.agreed + audits.extra + audits.missed
    return 2 * audits.agreed / total if total else None


def _costs(camera: CameraReport, status: device_pb2.CameraStatus | None) -> None:
    """What JPEG and the source's own video would have taken, from the device's counters where it has them."""
    if status is not None:
        camera.rung = status.rung
        if status.audits.frames:
            camera.audits = status.audits.frames, _f1(status.audits)
        if status.width_px:
            camera.size = status.width_px, status.height_px
        if status.frames_sent and camera.sent:
            pictures = camera.coded_bytes / camera.sent * status.frames_sent
            camera.envelope_share = max(1.0, status.bytes_published / pictures)
    pixels = camera.size[0] * camera.size[1]
    if status is not None and status.jpeg_samples:
        mean = status.jpeg_sampled_bytes / status.jpeg_samples
        how = f"quality 90, from {status.jpeg_samples} frames that the device coded to measure it"
        camera.jpeg = Cost(mean * camera.frames, how, measured=True)
    elif pixels:
        how = f"quality 90, taken as {JPEG_BITS_PER_PX:g} bits a pixel"
        camera.jpeg = Cost(pixels * JPEG_BITS_PER_PX / 8 * camera.frames, how, measured=False)
    if status is not None and status.source_bytes and status.frames_captured:
        mean = status.source_bytes / status.frames_captured
        how = f"the camera's own {status.source_codec or 'video'} stream, whose bytes the device counted"
        camera.video = Cost(mean * camera.frames, how, measured=True)
    elif pixels:
        how = f"H.264 of every frame, taken as {H264_BITS_PER_PX:g} bits a pixel"
        camera.video = Cost(pixels * H264_BITS_PER_PX / 8 * camera.frames, how, measured=False)
