"""The errors of the edge agent.

    EyelineError
    ├── RedactFailed             a picture could not be redacted, so that none of it leaves (retryable)
    ├── DetectFailed             the edge model cannot be loaded or run
    ├── SourceError              a camera, file or folder that gives no frames
    │   ├── SourceUnavailable    ... now: refused, unreachable, busy, unplugged, stalled (retryable)
    │   └── SourceInvalid        ... until a person mends it: wrong password, not a video, no such file
    └── SpoolError               the device's own spool takes nothing: its disk or its broker (retryable)
        └── SpoolFull            ... because its limit in bytes is reached

Messages are one line and never hold a user, a password or a query.
"""

from __future__ import annotations

from eyeline.errors import EyelineError


class SourceError(EyelineError):
    """A source that gives no frames."""


class SourceUnavailable(SourceError):
    """Opening it again later can succeed."""

    retryable = True


class SourceInvalid(SourceError):
    """Opening it again cannot succeed until somebody changes something."""


class RedactFailed(EyelineError):
    """A picture could not be redacted: no pixel of it may leave. late: the models took too long."""

    retryable = True

    def __init__(self, message: str, *, late: bool = False) -> None:
        super().__init__(message)
        self.late = late


class DetectFailed(EyelineError):
    """The edge model cannot be loaded or run."""


class SpoolError(EyelineError):
    """The spool takes nothing for now."""

    retryable = True


class SpoolFull(SpoolError):
    """The spool has reached its limit in bytes."""
