"""The device's status, as a message and as metrics."""

from __future__ import annotations

import os

from prometheus_client import REGISTRY

from edge_agent import status
from eyeline.v1 import device_pb2
from eyeline.v1 import frame_pb2 as pb
from eyeline.values import Epoch


def build(broker_pid: int | None = None) -> device_pb2.DeviceStatus:
    device = status.Device(
        site="yard",
        device="box1",
        epoch=Epoch(7, b"12345678"),
        clock=pb.ClockEstimate(offset_ns=-30_000_000_000, uncertainty_ns=2_000_000),
        hub_connected=False,
        spool_messages=12,
        spool_bytes=34_000,
        spool_limit_bytes=1 << 20,
        spool_oldest_s=61.5,
        broker_pid=broker_pid,
        config_revision=3,
    )
    return status.build(device, [device_pb2.CameraStatus(camera="gate")])


def test_message_and_metrics_agree() -> None:
    made = build()
    assert (made.site, made.device, made.epoch.counter, made.schema_major) == ("yard", "box1", 7, 1)
    assert (made.spool.messages, made.spool.bytes, made.spool.limit_bytes) == (12, 34_000, 1 << 20)
    assert made.spool.oldest_age_ns == 61_500_000_000
    assert made.cpu_seconds > 0
    assert [camera.camera for camera in made.cameras] == ["gate"]
    for name, value in (
        ("eyeline_edge_spool_messages_count", 12),
        ("eyeline_edge_spool_bytes", 34_000),
        ("eyeline_edge_spool_oldest_age_seconds", 61.5),
        ("eyeline_edge_hub_connected_ratio", 0),
        ("eyeline_edge_clock_offset_seconds", -30),
        ("eyeline_edge_resident_bytes", made.resident_bytes),
    ):
        assert REGISTRY.get_sample_value(name) == value


def test_memory_counts_the_broker() -> None:
    alone = build().resident_bytes
    assert build(os.getpid()).resident_bytes > 1.5 * alone
    assert build(2**22 + 1).resident_bytes < 1.5 * alone, "a broker that is gone counts nothing"


def test_drops_of_all_stages_add_up() -> None:
    merged = status.merge_drops("gate", {"overload": 3}, {"overload": 2, "spool_full": 5}, {})
    assert merged == {"overload": 5, "spool_full": 5}
    labels = {"camera": "gate", "reason": "spool_full"}
    assert REGISTRY.get_sample_value("eyeline_edge_delivery_lost_frames_count", labels) == 5
