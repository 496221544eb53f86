"""What a worker counts."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from prometheus_client import Counter, Gauge, Histogram

from eyeline.v1 import result_pb2

_FAST = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60)

FRAMES = Counter(
    "eyeline_cloud_frames_total", "Frames with a final result, by provenance.", ["tenant", "provenance"]
)
DEGRADED = Counter(
    "eyeline_cloud_degraded_frames_total", "Frames answered DEGRADED, by reason.", ["tenant", "reason"]
)
DEAD_LETTERS = Counter(
    "eyeline_cloud_dead_letters_total", "Messages set aside, by reason.", ["tenant", "reason"]
)
CODED_BYTES = Counter("eyeline_cloud_coded_bytes_total", "Bytes of coded pictures taken in.", ["tenant"])
DECODE_SECONDS = Histogram("eyeline_cloud_decode_seconds", "Time to decode one picture.", buckets=_FAST)
INFER_SECONDS = Histogram(
    "eyeline_cloud_infer_seconds", "Time from request to answer of the server.", buckets=_FAST
)
INFER_RETRIES = Counter(
    "eyeline_cloud_infer_retries_total", "Requests sent again because the server was away."
)
INFER_GIVEN_UP = Counter(
    "eyeline_cloud_infer_given_up_total", "Requests cancelled because their frame's deadline had come."
)
STORE_SECONDS = Histogram("eyeline_cloud_store_seconds", "Time to store one batch of results.", buckets=_FAST)
ANSWER_SECONDS = Histogram(
    "eyeline_cloud_answer_seconds",
    "From capture to the stored answer of frames with pixels, on the hub's clock.",
    buckets=_FAST,
)
FENCED = Counter("eyeline_cloud_fenced_writes_total", "Writes refused because another worker had written.")
INFERENCE_READY = Gauge(
    "eyeline_cloud_inference_ready_ratio", "1 once the inference server was seen to serve the worker's model."
)
HUB_ANSWERS = Gauge(
    "eyeline_cloud_hub_answers_ratio",
    "1 while the hub answers this worker about the tenant's frames, 0 while it does not.",
    ["tenant"],
)
FRAMES_STORED = Gauge(
    "eyeline_cloud_frames_stored_ratio",
    "Bytes of frames that the hub keeps of what it may; when it is full it refuses, and devices spool.",
    ["tenant"],
)
CAMERAS = Gauge("eyeline_cloud_cameras_count", "Cameras that this worker owns.", ["tenant"])
WAITING = Gauge(
    "eyeline_cloud_waiting_messages_count",
    "Messages in the hub not yet taken, of the cameras owned, as of their last message.",
    ["tenant", "lane"],
)
TAKEN = Counter("eyeline_cloud_taken_messages_total", "Messages taken from the hub.", ["tenant", "lane"])
PICTURES = Counter(
    "eyeline_cloud_pictures_total", "Pictures handed to the inference server.", ["tenant", "lane"]
)
THINNED = Counter(
    "eyeline_cloud_thinned_pictures_total",
    "Live pictures left out and filled in, because more came than the inference server takes.",
    ["tenant"],
)
LAG = Gauge(
    "eyeline_cloud_lag_seconds",
    "How long the oldest frame in work has waited since the hub stored it, of the worst camera owned.",
    ["tenant", "lane"],
)
IN_FLIGHT = Gauge(
    "eyeline_cloud_in_flight_frames_count", "Decoded frames that wait for the inference server."
)
KEYFRAME_REQUESTS = Counter(
    "eyeline_cloud_keyframe_requests_total", "Keyframes asked for after a gap.", ["tenant"]
)
CALIBRATIONS = Counter(
    "eyeline_cloud_calibrations_total",
    "Calibration samples scored, by outcome: done or failed.",
    ["tenant", "outcome"],
)
CALIBRATING = Gauge(
    "eyeline_cloud_calibrating_count", "Calibration samples being scored at the moment.", ["tenant"]
)
CALIBRATION_CPU = Counter(
    "eyeline_cloud_calibration_cpu_seconds_total",
    "CPU time of scoring calibration samples in the worker, the inference server apart.",
    ["tenant"],
)
ROLLOUT_SHARE = Gauge(
    "eyeline_cloud_rollout_share_ratio", "Share that the candidate model gets; 0 without one.", ["tenant"]
)
ROLLOUT_REQUESTS = Counter(
    "eyeline_cloud_rollout_requests_total",
    "Requests to the candidate model, by outcome: answered or failed.",
    ["tenant", "outcome"],
)
ROLLOUT_SECONDS = Histogram(
    "eyeline_cloud_rollout_seconds", "Time from request to answer of the candidate model.", buckets=_FAST
)
ROLLOUT_AGREEMENT = Gauge(
    "eyeline_cloud_rollout_agreement_ratio",
    "F1 of the candidate's objects against the stable model's, of all workers; 1 before the first.",
    ["tenant"],
)
ROLLOUT_SHIFT = Gauge(
    "eyeline_cloud_rollout_score_shift_ratio",
    "Mean difference of scores, candidate less stable model, of all workers.",
    ["tenant"],
)
ROLLOUT_COMPARED = Gauge(
    "eyeline_cloud_rollout_compared_frames_count",
    "Frames that both models have answered in the rollout that runs, of all workers.",
    ["tenant"],
)
ROLLOUT_DECISIONS = Counter(
    "eyeline_cloud_rollout_decisions_total",
    "What the policy did by itself: promote or rollback.",
    ["tenant", "decision"],
)
DRIFTING = Gauge(
    "eyeline_cloud_drifting_cameras_count",
    "Cameras of this worker of which a feature has moved much (population stability index above 0.25).",
    ["tenant", "feature"],
)
DRIFT_WORST = Gauge(
    "eyeline_cloud_drift_worst_ratio",
    "Population stability index of the camera of this worker that has moved most.",
    ["tenant", "feature"],
)

_MOST_REASONS: Final = 32
_reasons: dict[str, set[str]] = {}


def reason_label(tenant: str, reason: str) -> str:
    """The reason as a label: devices make them up, so a tenant gets only so many, and "other" after that."""
    known = _reasons.setdefault(tenant, set())
    if reason not in known and len(known) < _MOST_REASONS:
        known.add(reason)
    return reason if reason in known else "other"


def count(tenant: str, results: Iterable[result_pb2.Result]) -> None:
    """Count stored final results."""
    for result in results:
        frames = result.last_sequence - result.key.sequence + 1
        name = result_pb2.Provenance.Name(result.provenance).removeprefix("PROVENANCE_").lower()
        FRAMES.labels(tenant, name).inc(frames)
        if result.reason:
            DEGRADED.labels(tenant, reason_label(tenant, result.reason)).inc(frames)
        if result.provenance == result_pb2.PROVENANCE_CLOUD:
            CODED_BYTES.labels(tenant).inc(result.coded_bytes)
            delay_ns = result.times.answered_ns - result.times.captured_ns
            ANSWER_SECONDS.observe(max(0, delay_ns) / 1e9)
