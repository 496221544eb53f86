"""What pixels cost on the wire beyond themselves: estimates of the budget and of the scoring of rungs."""

from __future__ import annotations

from typing import Final

# Of one message beyond its units, with its acknowledgement and headers; and of a unit beyond its data.
MESSAGE_BYTES: Final = 750
UNIT_BYTES: Final = 60
# Of TCP/IP, as a share.
HEADERS_SHARE: Final = 0.03


def on_the_wire(data_bytes: float, units: int, company: float) -> float:
    """Bytes of so many access units, of which `company` share a message."""
    return (data_bytes + units * (UNIT_BYTES + MESSAGE_BYTES / max(company, 1.0))) * (1 + HEADERS_SHARE)
