"""The errors of the contract and the client.

    EyelineError
    ├── InvalidName        a site, device, camera or tenant name that cannot stand in a subject
    ├── BadEnvelope        a frame message that cannot be used; `reason` says in one word why
    ├── ConfigError        a setting that cannot work; says where and what to do
    ├── ServerFailed       a server that we start ourselves does not come up or cannot be run
    └── BusError           NATS refused, or is not there (`retryable`)

Each message is one line for a person: what, where, what to do. `retryable` says whether the same call can
succeed later.
"""

from __future__ import annotations


class EyelineError(Exception):
    """Base of every expected failure; programs print `str(error)` and never a traceback."""

    retryable: bool = False

    def __init__(self, message: str, *, retryable: bool | None = None) -> None:
        super().__init__(message)
        if retryable is not None:
            self.retryable = retryable


class InvalidName(EyelineError, ValueError):
    """A name that cannot be part of a subject."""


class BadEnvelope(EyelineError):
    """A frame message that cannot be used.

    `reason` is stable and snake_case: too_large, corrupt, newer_schema or invalid.
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class ConfigError(EyelineError):
    """A setting that cannot work."""


class ServerFailed(EyelineError):
    """A server that we start ourselves does not come up or cannot be run."""


class BusError(EyelineError):
    """NATS refused a request, or cannot be reached."""

    retryable = True
