"""What a worker's cameras share: its model, its executor, and each tenant's connection."""

from __future__ import annotations

from concurrent.futures import Executor
from dataclasses import dataclass, field
from typing import Literal

from nats.aio.client import Client
from nats.js import JetStreamContext

from cloud_inference.infer import Inference
from cloud_inference.rollout.router import Router
from cloud_inference.traces import Traces
from cloud_inference.track import Tracks
from eyeline_models.catalogue import ModelCard


@dataclass(frozen=True, slots=True)
class Shared:
    """What the cameras of a worker have in common."""

    worker: str
    inference: Inference
    card: ModelCard
    tracks: Tracks
    executor: Executor
    max_in_flight: int
    propagate: Literal["causal", "smooth"]
    traces: Traces | None = None
    # By tenant; none, as in tests, for the one model.
    routers: dict[str, Router] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Bus:
    """One tenant's connection."""

    tenant: str
    connection: Client
    js: JetStreamContext
    # Pixels that are answered stay so long.
    pixels_keep_s: float = 0.0
