"""MOT Challenge text (Leal-Taixe et al., "MOTChallenge 2015", section 3.3): a line an object and frame.

`frame, id, left, top, width, height, confidence, x, y, z`: frames and pixels counted from 1, the last three
are -1.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from eyeline.exports import frames
from eyeline.values import Result


def lines(results: Iterable[Result], classes: frozenset[str] = frozenset()) -> tuple[list[str], int, int]:
    """The lines of one camera, how many frames they are about, and how many of these have no answer.

    The first frame is number 1; later runs of the agent go on behind the one before, and so do track ids,
    which are unique only within a run. Frames without an answer have no lines: there is no word for them.
    classes: only these; empty for all.
    """
    written: list[str] = []
    without = 0
    base, end, epoch = 1, 0, None
    ids: dict[tuple[object, int], int] = {}
    for result in frames.in_order(results):
        if frames.epoch_of(result) != epoch:
            epoch, base = frames.epoch_of(result), end + 1 - result.sequence
        first, last = base + result.sequence, base + result.last_sequence
        end = max(end, last)
        kept, missing = frames.answered([result])
        without += missing
        for one in kept:
            rows = _rows(one, classes, ids)
            written += [f"{frame},{row}" for frame in range(first, last + 1) for row in rows]
    return written, end, without


def write(path: Path, results: Iterable[Result], classes: frozenset[str] = frozenset()) -> dict[str, int]:
    """Write one camera's lines, and `seqinfo.ini` beside them; counts of lines and frames."""
    ordered = frames.in_order(results)
    written, count, without = lines(ordered, classes)
    frames.write(path, "".join(f"{line}\n" for line in written))
    frames.write(path.with_suffix(".ini"), _seqinfo(ordered, path.stem, count))
    return {"lines": len(written), "frames": count, "frames_without_answer": without}


def _rows(result: Result, classes: frozenset[str], ids: dict[tuple[object, int], int]) -> list[str]:
    rows = []
    found = result.detections
    for row, (x1, y1, x2, y2) in enumerate(found.boxes.tolist()):
        if classes and found.class_names[row] not in classes:
            continue
        track = int(found.track_ids[row])
        number = ids.setdefault((frames.epoch_of(result), track), len(ids) + 1) if track else -1
        box = f"{x1 + 1:.2f},{y1 + 1:.2f},{x2 - x1:.2f},{y2 - y1:.2f}"
        rows.append(f"{number},{box},{float(found.scores[row]):.4f},-1,-1,-1")
    return rows


def _seqinfo(ordered: list[Result], name: str, count: int) -> str:
    """Name, rate, length and size of the sequence, as readers of MOT data sets want them."""
    captured = [result.captured_ns for result in ordered if result.captured_ns]
    span_s = (max(captured) - min(captured)) / 1e9 if captured else 0.0
    rate = round((count - 1) / span_s) if span_s > 0 else 0
    width, height = next((r.source_size for r in reversed(ordered) if r.source_size[0]), (0, 0))
    return (
        f"[Sequence]\nname={name}\nimDir=img1\nframeRate={rate}\nseqLength={count}\n"
        f"imWidth={width}\nimHeight={height}\nimExt=.jpg\n"
    )
