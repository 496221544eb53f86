"""What the cameras showed, by the harness's own record, against what came of it.

The harness makes the recordings that the cameras play in real time: exactly `frames` pictures, one every
`1 / fps` seconds, each with its number drawn into it. So it knows what was shown without asking the system: a
run that played to its end showed all of it, and one that was killed showed what the schedule had reached.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Final

import av
import cv2
import numpy as np

from benchmarks import reference
from eyeline.values import Provenance, Result

WIDTH, HEIGHT = 384, 288
# What a killed agent had captured and not yet kept: one batch, one heartbeat, and the parts of a second that
# the stages take.
NOT_KEPT: Final = "not_kept"
_NOT_KEPT_S: Final = 2.5
_STREET = Path(__file__).with_name("clips") / "street.mp4"


@dataclass(frozen=True, slots=True)
class Recording:
    """A file with exactly so many pictures. left_out: of a seeded loss, a picture that is not in the file."""

    path: Path
    frames: int
    fps: int

    @property
    def seconds(self) -> float:
        """How long it plays."""
        return self.frames / self.fps


def record(path: Path, frames: int, fps: int, *, left_out: int | None = None) -> Recording:
    """Make a recording of the street, every picture with its number in it.

    left_out: a number that the file lacks though the record says it was shown: a seeded loss.
    """
    source = reference.Clip(_STREET, 10.0, 0, (0, 0))
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=Fraction(fps))
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        stream.options = {"preset": "ultrafast", "tune": "zerolatency", "crf": "23"}
        shown = 0
        for number, image in enumerate(reference.pictures(source, frames), start=1):
            if number == left_out:
                continue
            small = np.ascontiguousarray(cv2.resize(image, (WIDTH, HEIGHT), interpolation=cv2.INTER_AREA))
            cv2.putText(small, f"{number:06d}", (6, 24), cv2.FONT_HERSHEY_PLAIN, 1.5, (255, 255, 255), 2)
            frame = av.VideoFrame.from_ndarray(small, format="bgr24")
            frame.pts = shown
            shown += 1
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return Recording(path, frames, fps)


@dataclass(slots=True)
class Run:
    """One run of an agent: its cameras play `recording` from the start.

    counter: of the epoch, which counts runs in one state folder. killed_ns: our clock; None: it played to
    the end.
    """

    counter: int
    cameras: tuple[str, ...]
    recording: Recording
    started_ns: int
    killed_ns: int | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """A final result as it came. received_ns: our clock; 0 for one that was read from the store."""

    camera: str
    counter: int
    first: int
    last: int
    lane: int
    degraded: str
    captured_ns: int
    last_captured_ns: int
    received_ns: int
    has_pixels: bool

    @classmethod
    def of(cls, result: Result, received_ns: int) -> Answer:
        """From a result that a subscriber got."""
        message = result.proto
        is_degraded = result.provenance is Provenance.DEGRADED
        return cls(
            result.camera,
            result.epoch.counter,
            result.sequence,
            result.last_sequence,
            message.lane,
            (result.reason or "unknown") if is_degraded else "",
            result.captured_ns,
            message.last_captured_ns or result.captured_ns,
            received_ns,
            result.provenance is Provenance.CLOUD,
        )

    def delays_ms(self) -> list[float]:
        """From capture to us, for each frame."""
        captured = np.linspace(self.captured_ns, self.last_captured_ns, self.last - self.first + 1)
        return [float(delay) for delay in (self.received_ns - captured) / 1e6]


@dataclass(slots=True)
class Counted:
    """What came of the frames shown. lost: without a final answer that reached both store and subscriber, or
    answered DEGRADED for a reason that no policy of the scenario has."""

    captured: int = 0
    results: int = 0
    lost: int = 0
    duplicates: int = 0
    out_of_order: int = 0
    dropped_by_policy: int = 0
    p95_ms: float | None = None
    # For people: what was lost, dropped and why, and how far capture times lie off the schedule.
    lost_frames: list[str] = field(default_factory=list)
    reasons: Counter[str] = field(default_factory=Counter)
    off_schedule_ms: float = 0.0
    p50_ms: float | None = None
    late: int = 0


def count(
    runs: Sequence[Run], heard: Sequence[Answer], stored: Sequence[Answer], policies: frozenset[str]
) -> Counted:
    """Compare. heard: every final result that the subscriber got, in order; stored: what the hub holds."""
    counted = Counted()
    for run in runs:
        for camera in run.cameras:
            theirs = [
                [it for it in answers if (it.camera, it.counter) == (camera, run.counter)]
                for answers in (heard, stored)
            ]
            _count_camera(counted, run, theirs[0], theirs[1], policies)
    known = {(camera, run.counter) for run in runs for camera in run.cameras}
    # An answer for a camera or a run that never was is nobody's frame.
    counted.duplicates += sum(it.last - it.first + 1 for it in stored if (it.camera, it.counter) not in known)
    delays = [delay for answer in heard for delay in answer.delays_ms()]
    if delays:
        counted.p50_ms, counted.p95_ms = (round(float(np.percentile(delays, at)), 1) for at in (50, 95))
    return counted


def _count_camera(
    counted: Counted,
    run: Run,
    heard: Sequence[Answer],
    stored: Sequence[Answer],
    policies: frozenset[str],
) -> None:
    camera = (stored or heard)[0].camera if stored or heard else "a camera"
    times, kept_times = _frames(heard), _frames(stored)
    shown = _shown(run, [*stored, *heard])
    counted.captured += shown
    newest = max(kept_times, default=0)
    degraded = {
        number: it.degraded for it in stored if it.degraded for number in range(it.first, it.last + 1)
    }
    for number in range(1, max(shown, newest) + 1):
        answers = min(times[number], kept_times[number])
        counted.duplicates += max(times[number], kept_times[number], 1) - 1
        if number > shown:
            # It was never shown.
            counted.duplicates += answers
            continue
        counted.results += bool(answers)
        reason = degraded.get(number, "") if answers else ""
        tail = number > newest and run.killed_ns is not None
        if not answers and tail and shown - newest <= _NOT_KEPT_S * run.recording.fps:
            reason = NOT_KEPT
        if reason:
            counted.reasons[reason] += 1
        if reason in policies | {NOT_KEPT}:
            counted.dropped_by_policy += 1
        elif reason or not answers:
            counted.lost += 1
            counted.lost_frames.append(f"{camera}/{run.counter}/{number} {reason or 'unanswered'}")
    for lane in {it.lane for it in heard}:
        order = [it for it in heard if it.lane == lane]
        counted.out_of_order += sum(after.first <= before.last for before, after in pairwise(order))
    counted.late += sum(it.last - it.first + 1 for it in heard if it.lane != 1)
    counted.off_schedule_ms = max(counted.off_schedule_ms, _off_schedule_ms(run.recording, stored))


def _frames(answers: Iterable[Answer]) -> Counter[int]:
    return Counter(number for it in answers for number in range(it.first, it.last + 1))


def _shown(run: Run, answers: Sequence[Answer]) -> int:
    """Pictures that a run's camera had shown: all, or until it was killed."""
    if run.killed_ns is None:
        return run.recording.frames
    began = [it.captured_ns - (it.first - 1) * 1e9 / run.recording.fps for it in answers if it.captured_ns]
    if not began:
        # Nothing to tell when it began to show: it had at most been starting.
        return 0
    # The schedule's own start, as the middle of what the answers say of it.
    ran_s = (run.killed_ns - float(np.median(began))) / 1e9
    return min(run.recording.frames, max(0, int(ran_s * run.recording.fps) + 1))


def _off_schedule_ms(recording: Recording, answers: Sequence[Answer]) -> float:
    """How far the capture times of frames with pixels lie from the schedule, at most."""
    off = [it.captured_ns - (it.first - 1) * 1e9 / recording.fps for it in answers if it.has_pixels]
    if not off:
        return 0.0
    return round(float(np.abs(np.array(off) - np.median(off)).max()) / 1e6, 1)
