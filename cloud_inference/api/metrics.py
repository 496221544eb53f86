"""What the API counts."""

from __future__ import annotations

from prometheus_client import Counter, Gauge, Histogram

STREAMS = Gauge("eyeline_cloud_api_streams_count", "Open subscriptions.")
RESULTS = Counter("eyeline_cloud_api_results_total", "Results sent to subscribers.")
REFUSALS = Counter(
    "eyeline_cloud_api_refusals_total", "Calls that ended with an error, by gRPC status.", ["status"]
)
UNREADABLE = Counter(
    "eyeline_cloud_api_unreadable_total", "Stored messages left out because they hold no results."
)
GAPS = Counter(
    "eyeline_cloud_api_gaps_total", "Subscriptions told that results aged out before they got to them."
)
DELIVERY_SECONDS = Histogram(
    "eyeline_cloud_api_delivery_seconds",
    "From a result being stored to its being handed to a subscriber.",
    buckets=(0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5, 1, 5, 30),
)
DETECT_SECONDS = Histogram("eyeline_cloud_api_detect_seconds", "Time of a Detect call, decoding included.")
STILLS = Counter("eyeline_cloud_api_stills_total", "Pictures of cameras given to callers.")
