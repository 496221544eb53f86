"""The errors of the contract and the client.

    EyelineError
    ├── InvalidName        a site, device, camera or tenant name that cannot stand in a subject
    ├── BadEnvelope        a frame message that cannot be used; `reason` says in one word why
    ├── BadRelease         a release that a device does not take
    ├── ConfigError        a setting that cannot work; says where and what to do
    ├── ServerFailed       a server that we start ourselves does not come up or cannot be run
    ├── EncodeFailed       a picture could not be coded; its encoder is of no further use (`retryable`)
    ├── BusError           NATS refused, or is not there (`retryable`)
    └── ApiError           the gRPC API refused, or cannot be reached; `status` is the gRPC status
        ├── Unauthenticated    no token, or one that is not known
        ├── PermissionDenied   known, but not allowed
        ├── NotFound           no such camera, device or model
        ├── InvalidRequest     a request, token or image that can never be answered
        ├── ResumeGapError     what a resume token asks for is no longer kept; names the gap
        ├── Conflict           changed by someone else meanwhile (`retryable`, after reading again)
        ├── ResourceExhausted  too much at a time (`retryable`, later)
        ├── Unavailable        cannot be reached, or its hub or model cannot (`retryable`)
        ├── DeadlineExceeded   no answer in time (`retryable`)
        └── ServerError        a defect of the server, or a server that does not know this call

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


class BadRelease(EyelineError):
    """A release that a device does not take: not the operator's, not for it, damaged, or of no use to it."""


class ConfigError(EyelineError):
    """A setting that cannot work."""


class ServerFailed(EyelineError):
    """A server that we start ourselves does not come up or cannot be run."""


class EncodeFailed(EyelineError):
    """A picture could not be coded; its encoder is of no further use, another one may work."""

    retryable = True


class BusError(EyelineError):
    """NATS refused a request, or cannot be reached."""

    retryable = True


class ApiError(EyelineError):
    """The gRPC API refused a call, or cannot be reached.

    status: name of the gRPC status, such as "NOT_FOUND"; server_message: what the server said, in one line.
    """

    def __init__(
        self, message: str, *, status: str = "", server_message: str = "", retryable: bool | None = None
    ) -> None:
        super().__init__(message, retryable=retryable)
        self.status, self.server_message = status, server_message


class Unauthenticated(ApiError):
    """No token, or one that is not known."""


class PermissionDenied(ApiError):
    """The token is known, but does not allow this."""


class NotFound(ApiError):
    """No such camera, device or model."""


class InvalidRequest(ApiError):
    """A request, token or image that can never be answered."""


class ResumeGapError(ApiError):
    """A resume token whose results are no longer kept.

    token_ns: storage time of the last result that the caller has; oldest_ns: of the oldest one still kept,
    both nanoseconds since the Unix epoch, 0 when unknown; missing_messages: stored messages between the two,
    each with one or more results.
    """

    def __init__(
        self,
        message: str,
        *,
        status: str = "OUT_OF_RANGE",
        server_message: str = "",
        token_ns: int = 0,
        oldest_ns: int = 0,
        missing_messages: int = 0,
    ) -> None:
        super().__init__(message, status=status, server_message=server_message)
        self.token_ns, self.oldest_ns, self.missing_messages = token_ns, oldest_ns, missing_messages


class Conflict(ApiError):
    """Changed by someone else since it was read: read again, then retry."""

    retryable = True


class ResourceExhausted(ApiError):
    """Too much at a time: too many streams, or a message that is too large."""

    retryable = True


class Unavailable(ApiError):
    """The server cannot be reached, is stopping, or cannot reach what it needs."""

    retryable = True


class DeadlineExceeded(ApiError):
    """No answer in time."""

    retryable = True


class ServerError(ApiError):
    """A defect of the server, or a server that does not know this call."""
