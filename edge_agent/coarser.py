"""Coarser pictures while the link is too slow for the live ones, where no calibration says what is better."""

from __future__ import annotations

from typing import Final

_MOST_STEPS: Final = 3
# A step costs a keyframe: so down only when it lasts, and up again much later.
_DOWN_AFTER_NS: Final = 3_000_000_000
_UP_AFTER_NS: Final = 30_000_000_000
_PRESSED: Final = 0.8


class Coarser:
    """How many steps of the quantiser down: one more for each while of pressure, one less after long calm."""

    def __init__(self) -> None:
        self.steps = 0
        self._since_ns: int | None = None
        self._pressed = False

    def follow(self, now_ns: int, share: float) -> bool:
        """share: of the bytes that the link takes, up to 1; whether `steps` changed."""
        pressed = share < _PRESSED
        if self._since_ns is None or pressed != self._pressed or (not pressed and share < 1.0):
            self._since_ns, self._pressed = now_ns, pressed
            return False
        if now_ns - self._since_ns < (_DOWN_AFTER_NS if pressed else _UP_AFTER_NS):
            return False
        self._since_ns = now_ns
        before = self.steps
        self.steps = min(self.steps + 1, _MOST_STEPS) if pressed else max(self.steps - 1, 0)
        return self.steps != before
