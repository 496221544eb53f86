"""The byte budget: what a camera may send in any ten seconds, and how far down the ladder that pushes it.

Where the rung takes most of it, the quantiser rises, which costs a keyframe and so happens rarely. Until
then, and where no step is left, frames are thinned out, which costs more accuracy. Pure: time comes in.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field
from typing import Final

from eyeline.overhead import HEADERS_SHARE, MESSAGE_BYTES, UNIT_BYTES

WINDOW_S: Final = 10.0
# From this share of the window's bytes on, frames are thinned out.
_EASE_FROM: Final = 0.8
# A keyframe costs about so many units, as long as no unit was seen.
_KEYFRAME_UNITS: Final = 8
# Status, clock, claims and the question what the cloud wants: what a device says beside frames, a second.
DEVICE_BYTES_S: Final = 550.0
# Connecting, with TLS or without, costs as much as so many seconds of that.
START_S: Final = 13.0
# What measured bytes beside frames leave of a budget, however tiny.
_LEAST_SHARE: Final = 0.2
# Of the budget, what is left to live pictures while late ones wait to be sent.
_LIVE_SHARE: Final = 0.6
# One step of the quantiser, a third of the bytes; at most so many, and so many up where there is room for it;
# how long before one down, and one up.
STEP_CRF: Final = 4
_MOST_STEPS: Final = 5
_MOST_UP: Final = 2
_STEP_GAIN: Final = 1.5
_FIRST_STEP_S: Final = 5.0
_STEP_EVERY_S: Final = 20.0
# A busy picture's keyframe at CRF 24, in bytes a pixel; half with every 5 more. It may take half the window.
_KEYFRAME_PX_BYTES: Final = 0.27
_KEYFRAME_SHARE: Final = 0.5
# Of the window, what the camera's own stream may take.
_OWN_SHARE: Final = 0.9
# What the rung would send against the budget: a step down above, a step up below.
_TOO_MUCH: Final = 0.8
_LITTLE: Final = 0.3


@dataclass(slots=True)
class ByteBudget:
    """kbit_s: kilobits a second; batch_s: how long units wait for company; max_fps: of the rung.

    device_bytes_s: what the device says beside frames comes off as well, at most half of all, or what was
    measured of it (`beside_bytes`, in ten seconds).
    """

    kbit_s: float
    batch_s: float
    max_fps: float
    device_bytes_s: float = 0.0
    # Steps that the quantiser has been raised, or rungs down the frontier.
    steps: int = 0
    # Whether the rung may be finer than it was set, where there is room for it: steps below 0.
    may_rise: bool = False
    # Bytes a second that something else may send meanwhile: a calibration sample.
    lent_bytes_s: float = 0.0
    beside_bytes: float = 0.0
    # Whether late pictures wait behind the live ones.
    late: bool = False
    _sent: deque[tuple[int, float]] = field(default_factory=deque)
    _used: float = 0.0
    # The camera's own pictures, sent or not.
    _own: deque[tuple[int, int]] = field(default_factory=deque)
    # Mean bytes of a unit, keyframe apart, and of the last keyframe.
    _unit: float = 0.0
    _keyframe: float = 0.0
    _stepped_ns: int | None = None
    # Below this, a keyframe would not fit.
    _least: int = 0

    def start(self, crf: int, width_px: int) -> None:
        """Begin so far down that a keyframe of a picture so wide, 4 to 3, leaves room in the window."""
        guess = _KEYFRAME_PX_BYTES * width_px**2 * 0.75 * 2.0 ** ((24 - crf) / 5)
        self._least = self._steps_from(guess / (self._limit * _KEYFRAME_SHARE))
        self.beside_bytes = self.device_bytes_s * (WINDOW_S + START_S)
        self.steps = max(0, self._steps_from(guess / (self._limit * _KEYFRAME_SHARE)))

    def spend(self, data_bytes: int, now_ns: int, *, keyframe: bool) -> None:
        """A unit was sent."""
        company = max(1.0, self.batch_s * self.max_fps)
        size = data_bytes + UNIT_BYTES + MESSAGE_BYTES / company
        self._sent.append((now_ns, size))
        self._used += size
        if keyframe:
            self._keyframe = size
        else:
            self._unit = size if self._unit == 0 else self._unit + 0.1 * (size - self._unit)
        if self._stepped_ns is None:
            self._stepped_ns = now_ns

    def share(self, now_ns: int) -> float:
        """Share of the frame rate that can be afforded now, 0 to 1."""
        used = self._in_window(now_ns) / self._limit
        return min(max((1 - used) / (1 - _EASE_FROM), 0.0), 1.0)

    def fits(self, now_ns: int, *, keyframe: bool) -> bool:
        """Whether another unit, as large as they are, still fits the window. The very first one does."""
        used = self._in_window(now_ns)
        expected = self._keyframe if keyframe else self._unit or self._keyframe / _KEYFRAME_UNITS
        return used == 0 or used + expected <= self._limit

    def saw(self, data_bytes: int, now_ns: int) -> None:
        """The camera made a picture of its own of so many bytes, sent or not."""
        self._own.append((now_ns, data_bytes + UNIT_BYTES))
        while now_ns - self._own[0][0] >= WINDOW_S * 1e9:
            self._own.popleft()

    def takes(self, data_bytes: int, now_ns: int, *, keyframe: bool) -> bool:
        """Whether the camera's own pictures fit: this one, and from a keyframe on those that follow it."""
        if keyframe and sum(size for _, size in self._own) > _OWN_SHARE * self._limit:
            return False
        return self._in_window(now_ns) + data_bytes + UNIT_BYTES <= self._limit

    def step(self, now_ns: int) -> bool:
        """Whether `steps` has just changed: the rung has to follow."""
        if self._stepped_ns is None or not self._unit:
            return False
        waited_s = (now_ns - self._stepped_ns) / 1e9
        # Of what is there in the long run: connecting, and a backlog, pass sooner than a step is taken back.
        wanted = self._unit * self.max_fps / (self._limit_beside(0.0, share=1.0) / WINDOW_S)
        if wanted > _TOO_MUCH and self.steps < _MOST_STEPS:
            due_s, steps = _FIRST_STEP_S, min(self.steps + self._steps_for(wanted), _MOST_STEPS)
        elif wanted < _LITTLE and self.steps > (self._least if self.may_rise else max(0, self._least)):
            due_s, steps = _STEP_EVERY_S, self.steps - 1
        else:
            return False
        if waited_s < due_s:
            return False
        self.steps, self._stepped_ns, self._unit = steps, now_ns, 0.0
        return True

    def _steps_from(self, over: float) -> int:
        """Steps for a keyframe that takes so much of what it may."""
        return self._steps_for(over) if over > 1 else -min(int(-math.log2(over) * 5 / STEP_CRF), _MOST_UP)

    @staticmethod
    def _steps_for(over: float) -> int:
        return min(math.ceil(math.log(over) / math.log(_STEP_GAIN)), _MOST_STEPS)

    @property
    def _limit(self) -> float:
        """Bytes of this window."""
        return self._limit_beside(self.beside_bytes, share=_LIVE_SHARE if self.late else 1.0)

    def _limit_beside(self, measured: float, *, share: float) -> float:
        """Bytes of a window. Messages bunch what was made over `batch_s` more, so less is planned for."""
        whole = self.kbit_s * 125 * WINDOW_S
        beside = max(
            min(self.device_bytes_s * WINDOW_S, whole / 2),
            min(measured, (1 - _LEAST_SHARE) * whole),
        )
        own = (whole - beside) * share - self.lent_bytes_s * WINDOW_S
        return (1 - HEADERS_SHARE) * own * WINDOW_S / (WINDOW_S + self.batch_s)

    def _in_window(self, now_ns: int) -> float:
        while self._sent and now_ns - self._sent[0][0] >= WINDOW_S * 1e9:
            self._used -= self._sent.popleft()[1]
        if not self._sent:
            self._used = 0.0
        return self._used
