"""W3C trace context (https://www.w3.org/TR/trace-context/), as envelopes and results carry it."""

from __future__ import annotations

import re
import secrets
from dataclasses import dataclass

_FORM = re.compile(r"00-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})")


@dataclass(frozen=True, slots=True)
class Traceparent:
    """Trace and parent span of a message, and whether somebody wants to see them."""

    trace_id: int
    span_id: int
    sampled: bool = True

    def __str__(self) -> str:
        return f"00-{self.trace_id:032x}-{self.span_id:016x}-{self.sampled:02x}"

    @classmethod
    def start(cls) -> Traceparent:
        """A trace of its own."""
        return cls(secrets.randbits(128) or 1, secrets.randbits(64) or 1)

    @classmethod
    def parse(cls, text: str) -> Traceparent | None:
        """From its text; None for one that is empty or broken, which the standard says to ignore."""
        found = _FORM.fullmatch(text)
        if found is None:
            return None
        trace_id, span_id, flags = (int(part, 16) for part in found.groups())
        return cls(trace_id, span_id, bool(flags & 1)) if trace_id and span_id else None
