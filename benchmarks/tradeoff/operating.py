"""The operating points that are measured; the same for every clip."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.tradeoff.eyeline import Operating

# A message of several seconds: what a device on a metered link would be set to. `prompt` is beside it.
_BATCH_MS, _HEARTBEAT_S = 4000, 10.0


def pixels() -> Iterator[Operating]:
    """Frames a second, coded width and quantiser, edge-only answers off."""
    for max_fps, width, crfs in (
        (5.0, 416, (24, 28, 32, 36)),
        (3.4, 416, (24, 28, 32, 34, 36, 38, 40)),
        (2.5, 416, (26, 30, 32, 34, 36, 38, 40)),
        (2.0, 416, (26, 30, 32, 34, 36, 38, 40, 42)),
        (1.7, 416, (30, 34, 36, 38, 40)),
        (2.0, 576, (34, 38)),
    ):
        for crf in crfs:
            yield Operating(
                f"{max_fps:g} fps {width}px crf{crf}",
                encode={"max_fps": max_fps, "width_px": width, "crf": crf, "batch_ms": _BATCH_MS},
                detect={"enabled": False},
                heartbeat_s=_HEARTBEAT_S,
            )
    for budget in (20, 50, 200):
        yield Operating(
            f"budget {budget} kbit/s",
            encode={"max_fps": 3.4, "crf": 26, "batch_ms": 1000, "budget_kbit_s": budget},
            detect={"enabled": False},
            heartbeat_s=5.0,
        )
    for crf in (30, 36):
        yield Operating(
            f"prompt 2 fps 416px crf{crf}",
            encode={"max_fps": 2.0, "crf": crf, "batch_ms": 0},
            detect={"enabled": False},
            heartbeat_s=2.0,
        )


PIXELS = tuple(pixels())
