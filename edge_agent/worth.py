"""Whether asking the edge model pays on one camera: bytes on the wire with it and without it, as they come.

What its answers save is measured, not assumed: a picture left out makes the next one larger, so both are
counted. What it costs is what travels beside pixels to be compared, there and back. As long as it has not
saved that, trying is an investment: a fixed one at the start, and a small share of what the camera sends.
"""

from __future__ import annotations

from typing import Final

# What trying may cost in advance, in bytes: some 0.4 a frame, spread over an hour of 10 frames a second.
_START_BYTES: Final = 16_000.0
# And what it may cost beyond what it saved, of the bytes that pictures take.
_SHARE: Final = 0.03
# Half of what was counted is forgotten after so long: a scene that changed is tried again.
_HALF_S: Final = 1800.0
# Of the running mean of a picture's bytes: how much the newest counts.
_NEWEST: Final = 0.1
# On the wire, of one frame's comparison on its way back; and of an answered frame beside its objects.
_VERDICT_BYTES: Final = 12.0
_ITEM_BYTES: Final = 24.0


class Ledger:
    """One camera's. Times are nanoseconds of a monotonic clock that does not go back."""

    def __init__(self) -> None:
        # Bytes, fading: of pictures; spent on comparing; not sent because answers stood.
        self._pictures = self._spent = self._saved = 0.0
        # Of a picture that follows another one directly; None before the first.
        self._usual: float | None = None
        self._answered = 0
        self._at_ns: int | None = None

    @property
    def pays(self) -> bool:
        """Whether asking has cost no more than it saved, and what it may cost in advance."""
        return self._spent <= _START_BYTES + _SHARE * self._pictures + self._saved

    @property
    def balance_bytes(self) -> float:
        """Saved less spent, of late."""
        return self._saved - self._spent

    def sent(self, data_bytes: int, now_ns: int, *, keyframe: bool, compared_bytes: int | None) -> None:
        """A picture left; compared_bytes: of what the edge model saw, if that went along."""
        self._fade(now_ns)
        self._pictures += data_bytes
        if compared_bytes is not None:
            self._spent += compared_bytes + _VERDICT_BYTES
        if not keyframe:
            if self._answered and self._usual is not None:
                # It also shows what changed in those that were left out.
                self._saved -= data_bytes - self._usual
            elif not self._answered:
                usual = self._usual if self._usual is not None else float(data_bytes)
                self._usual = usual + _NEWEST * (data_bytes - usual)
        self._answered = 0

    def answered(self, answer_bytes: int, now_ns: int) -> None:
        """A frame's answer left in place of its picture."""
        self._fade(now_ns)
        if self._usual is not None:
            self._saved += self._usual - answer_bytes - _ITEM_BYTES
        self._answered += 1

    def _fade(self, now_ns: int) -> None:
        since_s = (now_ns - self._at_ns) / 1e9 if self._at_ns is not None else 0.0
        self._at_ns = now_ns
        stays = 0.5 ** (since_s / _HALF_S)
        self._pictures *= stays
        self._spent *= stays
        self._saved *= stays
