"""Moments as people write them: RFC 3339, or how long ago."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from decimal import Decimal
from typing import Final

from eyeline.errors import InvalidRequest

_UNITS_NS: Final = {
    "ms": 10**6,
    "s": 10**9,
    "m": 60 * 10**9,
    "h": 3600 * 10**9,
    "d": 86_400 * 10**9,
    "w": 7 * 86_400 * 10**9,
}
_PART = re.compile(r"([0-9]{1,12}(?:\.[0-9]{1,9})?)(ms|[smhdw])")
_AGO = re.compile(rf"(?:{_PART.pattern})+")
_RFC3339 = re.compile(
    r"\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d:\d\d(?P<fraction>\.\d{1,9})?\d*(?P<zone>[Zz]|[+-]\d\d:\d\d)", re.ASCII
)
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


def parse_moment(text: str, now_ns: int) -> int:
    """Nanoseconds since the Unix epoch of '2026-03-01T12:00:00Z', or of '10m' or '1h30m' before `now_ns`.

    Raises `InvalidRequest`. The format is RFC 3339, with up to nanoseconds.
    """
    written = text.strip()
    if _AGO.fullmatch(written):
        ago = sum(int(Decimal(number) * _UNITS_NS[unit]) for number, unit in _PART.findall(written))
        if ago <= now_ns:
            return now_ns - ago
    elif shape := _RFC3339.fullmatch(written):
        zone = "+00:00" if shape["zone"] in "Zz" else shape["zone"]
        try:
            since = datetime.fromisoformat(written[:19].replace(" ", "T").upper() + zone) - _EPOCH
        except (ValueError, OverflowError):
            pass
        else:
            fraction = int(((shape["fraction"] or ".0")[1:]).ljust(9, "0"))
            ns = (since.days * 86_400 + since.seconds) * 10**9 + fraction
            if 0 <= ns < 2**63:
                return ns
    raise InvalidRequest(
        f"{text[:60]!r} is no time; write 2026-03-01T12:00:00Z, or how long ago: 30s, 10m, 1h30m, 2d"
    )


def format_moment(ns: int) -> str:
    """RFC 3339 in UTC with milliseconds; '-' for 0, which means unknown."""
    if ns == 0:
        return "-"
    try:
        moment = datetime.fromtimestamp(ns // 10**9, UTC)
    except (OverflowError, ValueError, OSError):
        return f"{ns} ns"
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{ns // 10**6 % 1000:03d}Z"


def format_duration(ns: int) -> str:
    """Such as '83 ms', '12.3 s', '5 min', '3 h', '2 d'."""
    sign, seconds = ("-", -ns / 1e9) if ns < 0 else ("", ns / 1e9)
    if seconds < 1:
        return f"{sign}{seconds * 1000:.0f} ms"
    if seconds < 100:
        return f"{sign}{seconds:.1f} s"
    for limit, unit, name in ((6_000, 60, "min"), (172_800, 3600, "h")):
        if seconds < limit:
            return f"{sign}{seconds / unit:.0f} {name}"
    return f"{sign}{seconds / 86_400:.0f} d"
