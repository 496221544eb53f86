"""The operating points that are measured; the same for every clip."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.tradeoff.eyeline import Operating

# A message of several seconds: what a device on a metered link would be set to. `defaults` is beside it.
_BATCH_MS, _HEARTBEAT_S = 4000, 10.0
_NO_EDGE = {"enabled": False}


def _grid() -> Iterator[Operating]:
    for max_fps, crfs in (
        (5.0, (30,)),
        (3.4, (26, 30, 34)),
        (2.5, (28, 32, 34, 36, 38, 40, 42, 44)),
        (2.0, (34, 38, 42)),
    ):
        for crf in crfs:
            yield Operating(
                f"{max_fps:g} fps crf{crf}",
                encode={"max_fps": max_fps, "crf": crf, "batch_ms": _BATCH_MS},
                detect=_NO_EDGE,
                heartbeat_s=_HEARTBEAT_S,
            )


def _pixels() -> Iterator[Operating]:
    yield from GRID
    yield Operating(
        "causal 5 fps crf30",
        encode={"max_fps": 5.0, "crf": 30, "batch_ms": _BATCH_MS},
        detect=_NO_EDGE,
        heartbeat_s=_HEARTBEAT_S,
        mode="causal",
    )
    for budget in BUDGETS:
        yield Operating(f"budget {budget} kbit/s", encode={"budget_kbit_s": budget}, detect=_NO_EDGE)
    yield Operating(
        "budget 20 kbit/s, messages of 4 s",
        encode={"budget_kbit_s": 20, "batch_ms": _BATCH_MS},
        detect=_NO_EDGE,
        heartbeat_s=_HEARTBEAT_S,
    )
    yield Operating("defaults", detect=_NO_EDGE)


BUDGETS = (20, 50, 200)
# Frames a second and quantiser, edge-only answers off.
GRID = tuple(_grid())
PIXELS = tuple(_pixels())
