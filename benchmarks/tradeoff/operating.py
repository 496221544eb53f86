"""The operating points that are measured; the same for every clip."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.tradeoff.eyeline import Operating

# A message of several seconds: what a device on a metered link would be set to. `defaults` is beside it.
_BATCH_MS, _HEARTBEAT_S = 4000, 10.0
_NO_EDGE = {"enabled": False}


def pixels() -> Iterator[Operating]:
    """Frames a second and quantiser, edge-only answers off."""
    for max_fps, crfs in (
        (5.0, (30, 36)),
        (3.4, (26, 30, 34, 38)),
        (2.5, (26, 28, 30, 32, 34, 36, 38, 40)),
        (2.0, (30, 34, 38)),
    ):
        for crf in crfs:
            yield Operating(
                f"{max_fps:g} fps crf{crf}",
                encode={"max_fps": max_fps, "crf": crf, "batch_ms": _BATCH_MS},
                detect=_NO_EDGE,
                heartbeat_s=_HEARTBEAT_S,
            )
    for max_fps in (2.5, 5.0):
        yield Operating(
            f"causal {max_fps:g} fps crf30",
            encode={"max_fps": max_fps, "crf": 30, "batch_ms": _BATCH_MS},
            detect=_NO_EDGE,
            heartbeat_s=_HEARTBEAT_S,
            mode="causal",
        )
    for budget in BUDGETS:
        yield Operating(f"budget {budget} kbit/s", encode={"budget_kbit_s": budget}, detect=_NO_EDGE)
    yield Operating("defaults", detect=_NO_EDGE)


BUDGETS = (20, 50, 200)
PIXELS = tuple(pixels())
