"""Eyeline: the contract between edge, cloud and applications, and the client SDK.

What applications use is here: `Client`, `BlockingClient`, the values they return and the errors they raise.

- `eyeline.v1`: generated protobuf and gRPC stubs (the `.proto` files stand beside them)
- `subjects`: names on the bus
- `envelope`: encode and parse what an agent publishes
- `values`: plain values with numpy boxes
- `errors`: the tree of errors
- `ladder`: rungs, what pixels may look like; `pictures`, `coding`: how one turns pictures into bytes (extras)
- `bus`: connecting to NATS (needs `nats-py`, which the extras bring)
- `log`: structured logging for our processes
- `client`: the client SDK; `subscription`: its streams; `blocking`: the same for threads
- `cli`: the `eyeline` command; `terminal`: what its parts have in common; `overview`, `doctor`, `reports`
- `exports`: files for other tools; `sinks`: passing results on
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from eyeline.blocking import BlockingClient, BlockingSubscription
    from eyeline.client import Client
    from eyeline.errors import (
        ApiError,
        ConfigError,
        Conflict,
        DeadlineExceeded,
        EyelineError,
        InvalidName,
        InvalidRequest,
        NotFound,
        PermissionDenied,
        ResourceExhausted,
        ResumeGapError,
        ServerError,
        Unauthenticated,
        Unavailable,
    )
    from eyeline.subscription import Backoff, Subscription
    from eyeline.values import Detections, Epoch, ImageAnswer, Provenance, Result, Still

__all__ = [
    "ApiError",
    "Backoff",
    "BlockingClient",
    "BlockingSubscription",
    "Client",
    "ConfigError",
    "Conflict",
    "DeadlineExceeded",
    "Detections",
    "Epoch",
    "EyelineError",
    "ImageAnswer",
    "InvalidName",
    "InvalidRequest",
    "NotFound",
    "PermissionDenied",
    "Provenance",
    "ResourceExhausted",
    "Result",
    "ResumeGapError",
    "ServerError",
    "Still",
    "Subscription",
    "Unauthenticated",
    "Unavailable",
]

_HOMES = {
    "BlockingClient": "blocking",
    "BlockingSubscription": "blocking",
    "Client": "client",
    "Backoff": "subscription",
    "Subscription": "subscription",
    "Detections": "values",
    "Epoch": "values",
    "ImageAnswer": "values",
    "Provenance": "values",
    "Result": "values",
    "Still": "values",
}


def __getattr__(name: str) -> Any:
    """Import on first use: whoever needs only the names on the bus does not load gRPC."""
    if name not in __all__:
        raise AttributeError(f"module 'eyeline' has no attribute {name!r}")
    value = getattr(import_module(f"eyeline.{_HOMES.get(name, 'errors')}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
