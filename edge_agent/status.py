"""What the device says about itself: to the hub, to its own bus, and as metrics."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

import psutil
from prometheus_client import Gauge

from edge_agent.wire import WireBytes
from eyeline.envelope import SCHEMA_MAJOR
from eyeline.release import version
from eyeline.v1 import detection_pb2, device_pb2
from eyeline.v1 import frame_pb2 as pb
from eyeline.values import Epoch

SPOOL_BYTES: Final = Gauge("eyeline_edge_spool_bytes", "Size of what the hub does not have yet.")
SPOOL_MESSAGES: Final = Gauge("eyeline_edge_spool_messages_count", "Messages that the hub does not have yet.")
SPOOL_AGE: Final = Gauge("eyeline_edge_spool_oldest_age_seconds", "Age of the oldest of these messages.")
HUB_CONNECTED: Final = Gauge("eyeline_edge_hub_connected_ratio", "1 with a connection to the hub, else 0.")
CLOCK_OFFSET: Final = Gauge("eyeline_edge_clock_offset_seconds", "Hub wall clock minus device wall clock.")
CLOCK_UNCERTAINTY: Final = Gauge(
    "eyeline_edge_clock_uncertainty_seconds", "Half-width of the clock estimate; 0 before the first."
)
HUB_BYTES: Final = Gauge(
    "eyeline_edge_hub_wire_bytes",
    "Every byte of the connection to the hub since start, without TCP and IP headers.",
    ["direction"],
)
RESIDENT: Final = Gauge("eyeline_edge_resident_bytes", "Resident memory of the agent and its broker.")
LOST: Final = Gauge(
    "eyeline_edge_delivery_lost_frames_count",
    "Captured frames that delivery had to drop since start, by reason.",
    ["camera", "reason"],
)


@dataclass(frozen=True, slots=True)
class Device:
    """What the whole device reports. Sizes in bytes, ages in seconds."""

    site: str
    device: str
    epoch: Epoch
    clock: pb.ClockEstimate
    hub_connected: bool
    spool_messages: int
    spool_bytes: int
    spool_limit_bytes: int
    spool_oldest_s: float
    broker_pid: int | None
    config_revision: int
    edge_model: detection_pb2.ModelRef | None = None
    wire: WireBytes = field(default_factory=WireBytes)
    releases: list[device_pb2.ReleaseStatus] = field(default_factory=list)
    erasures: list[device_pb2.ErasureStatus] = field(default_factory=list)


def build(device: Device, cameras: Iterable[device_pb2.CameraStatus]) -> device_pb2.DeviceStatus:
    """The status message, now; sets the metrics on the way."""
    resident, cpu = _usage(device.broker_pid)
    status = device_pb2.DeviceStatus(
        schema_major=SCHEMA_MAJOR,
        site=device.site,
        device=device.device,
        epoch=device.epoch.to_proto(),
        agent_version=version(),
        reported_ns=time.time_ns(),
        clock=device.clock,
        hub_connected=device.hub_connected,
        cameras=cameras,
        spool=device_pb2.SpoolStatus(
            messages=device.spool_messages,
            bytes=device.spool_bytes,
            limit_bytes=device.spool_limit_bytes,
            oldest_age_ns=int(device.spool_oldest_s * 1e9),
        ),
        resident_bytes=resident,
        cpu_seconds=cpu,
        edge_model=device.edge_model,
        config_revision=device.config_revision,
        hub_bytes_sent=device.wire.sent,
        hub_bytes_received=device.wire.received,
        releases=device.releases,
        erasures=device.erasures,
    )
    HUB_BYTES.labels("sent").set(device.wire.sent)
    HUB_BYTES.labels("received").set(device.wire.received)
    SPOOL_BYTES.set(device.spool_bytes)
    SPOOL_MESSAGES.set(device.spool_messages)
    SPOOL_AGE.set(device.spool_oldest_s)
    HUB_CONNECTED.set(int(device.hub_connected))
    CLOCK_OFFSET.set(device.clock.offset_ns / 1e9)
    CLOCK_UNCERTAINTY.set(device.clock.uncertainty_ns / 1e9)
    RESIDENT.set(resident)
    return status


def merge_drops(camera: str, *sources: Mapping[str, int]) -> dict[str, int]:
    """Frames dropped by reason, from every stage that drops."""
    total: Counter[str] = Counter()
    for source in sources:
        total.update(source)
    for reason, frames in total.items():
        LOST.labels(camera, reason).set(frames)
    return dict(total)


def _usage(broker_pid: int | None) -> tuple[int, float]:
    """Resident bytes and CPU seconds of this process and the broker."""
    resident, cpu = 0, 0.0
    for pid in (None, broker_pid):
        if pid is None and resident:
            continue
        try:
            process = psutil.Process(pid)
            with process.oneshot():
                resident += process.memory_info().rss
                times = process.cpu_times()
        except psutil.Error:
            continue
        cpu += times.user + times.system
    return resident, cpu
