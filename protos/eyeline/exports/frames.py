"""Results as exports want them: in frame order, the highest revision of each, times in one place."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from eyeline.errors import ConfigError
from eyeline.values import Provenance, Result

# Device, epoch counter, random id.
_Epoch = tuple[str, int, bytes]


def in_order(results: Iterable[Result]) -> list[Result]:
    """Sorted by camera, epoch and frame; of each frame only the result with the highest revision.

    Epochs of a camera are in the order in which their first frame was captured.
    """
    best: dict[tuple[str, str, _Epoch, int], Result] = {}
    began: dict[tuple[str, str, _Epoch], int] = {}
    for result in results:
        camera = (result.site, result.camera, epoch_of(result))
        began[camera] = min(began.get(camera, result.captured_ns), result.captured_ns)
        key = (*camera, result.sequence)
        if key not in best or result.revision > best[key].revision:
            best[key] = result
    return sorted(best.values(), key=lambda r: (r.site, r.camera, began[_camera(r)], _camera(r), r.sequence))


def epoch_of(result: Result) -> _Epoch:
    """What frame numbers and track ids are unique within."""
    return result.device, result.epoch.counter, result.epoch.random_id


def answered(results: Iterable[Result]) -> tuple[list[Result], int]:
    """Those that have an answer, and how many frames have none, for formats without a word for that."""
    kept: list[Result] = []
    without = 0
    for result in results:
        if result.provenance is Provenance.DEGRADED:
            without += result.frames
        else:
            kept.append(result)
    return kept, without


def write(path: Path, text: str) -> None:
    """Write a file, whole or not at all; raises `ConfigError`."""
    part = path.with_name(path.name + ".part")
    try:
        part.write_text(text, encoding="utf-8")
        part.replace(path)
    except OSError as problem:
        raise ConfigError(f"{path} cannot be written: {problem.strerror}") from None


def _camera(result: Result) -> tuple[str, str, _Epoch]:
    return result.site, result.camera, epoch_of(result)
