"""What waits for a worker, by lane."""

from __future__ import annotations

from prometheus_client import REGISTRY

from cloud_inference.workload import CameraLoad
from eyeline.v1 import frame_pb2

LIVE, BACKLOG = frame_pb2.LANE_LIVE, frame_pb2.LANE_BACKLOG


def value(name: str, lane: str, tenant: str = "load") -> float:
    return REGISTRY.get_sample_value(name, {"tenant": tenant, "lane": lane}) or 0.0


def waiting(lane: str) -> float:
    return value("eyeline_cloud_waiting_messages_count", lane)


def test_waiting_is_the_sum_over_cameras_and_goes_with_them() -> None:
    one, other = CameraLoad("load"), CameraLoad("load")
    one.took(LIVE, 40)
    other.took(LIVE, 2)
    assert (waiting("live"), waiting("backlog")) == (42, 0)
    one.took(LIVE, 0)
    assert waiting("live") == 2
    one.close()
    other.close()
    assert waiting("live") == 0


def test_waiting_is_shared_out_by_the_lanes_of_late() -> None:
    load = CameraLoad("load")
    for _ in range(200):
        load.took(BACKLOG, 100)
    load.took(LIVE, 100)
    assert waiting("backlog") > 90
    assert waiting("live") + waiting("backlog") == 100
    load.close()


def test_lag_is_that_of_the_worst_camera() -> None:
    one, other = CameraLoad("load"), CameraLoad("load")
    one.lagging(LIVE, 3.0)
    other.lagging(BACKLOG, 90.0)
    assert value("eyeline_cloud_lag_seconds", "live") == 3.0
    assert value("eyeline_cloud_lag_seconds", "backlog") == 90.0
    other.lagging(LIVE, -0.001)
    assert value("eyeline_cloud_lag_seconds", "backlog") == 90.0
    other.lagging(BACKLOG, 0.0)
    assert value("eyeline_cloud_lag_seconds", "backlog") == 0.0
    one.close()
    other.close()
    assert value("eyeline_cloud_lag_seconds", "live") == 0.0


def test_an_unspecified_lane_is_live() -> None:
    load = CameraLoad("load")
    before = value("eyeline_cloud_taken_messages_total", "live")
    load.took(frame_pb2.LANE_UNSPECIFIED, 0)
    assert value("eyeline_cloud_taken_messages_total", "live") == before + 1
    load.close()
