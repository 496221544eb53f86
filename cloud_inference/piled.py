"""Live messages that piled up in the hub while nobody answered: the newest picture first, these behind it.

After an outage of workers or of the inference server, the live lane of a camera may be minutes long. Answered
in order, the live picture would come last. So messages that waited for too long are put off: they are
answered later, in a lane of their own, and the live lane goes on at the next keyframe that is fresh.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

# A take-over or a restart takes up to 5 s: what waited for that is answered in order within about a second,
# which costs less than the keyframe that the live picture would need to go first.
PILED_S: Final = 8.0
# From how old a picture the live lane goes on.
FRESH_S: Final = 4.0

Handed = TypeVar("Handed")


@dataclass(slots=True)
class Stretch(Generic[Handed]):
    """Live messages that were put off, by their stream sequences, both ends included.

    items: how many of the last one; None for all. handed: what the live lane gave along when the stretch
    began in the middle of its chain.
    """

    first: int
    last: int
    items: int | None = None
    handed: Handed | None = None


@dataclass(frozen=True, slots=True)
class Message:
    """What the decision takes of a live message.

    wants_pixels: it brings pixels of frames without an answer. fresh_start: index of its first item that
    depends on nothing before it. in_time: its owner set a deadline, or wants no overtaking.
    """

    sequence: int
    items: int
    waited_s: float
    wants_pixels: bool = True
    fresh_start: int | None = None
    in_time: bool = False


@dataclass(frozen=True, slots=True)
class Look:
    """What to do with a live message.

    put_off: so many of its items, from the first: none, all, or those before its keyframe. begins: a stretch
    begins with it. rejoins: the live lane goes on as if nothing had been put off before it.
    """

    put_off: int
    begins: bool = False
    rejoins: bool = False


class Piled(Generic[Handed]):
    """Which live messages are put off: the live reader looks at each in turn, the late reader asks."""

    def __init__(self) -> None:
        self._stretches: deque[Stretch[Handed]] = deque()
        self._running: Stretch[Handed] | None = None

    @property
    def is_on(self) -> bool:
        """Whether live messages are being put off, until a fresh start."""
        return self._running is not None

    def look(self, message: Message, *, caught_up: bool) -> Look:
        """What to do with a live message. caught_up: whether all that was put off has been answered."""
        running = self._running
        if running is None:
            if message.in_time or not message.wants_pixels or message.waited_s <= PILED_S:
                return Look(0)
            self._running = running = Stretch(message.sequence, message.sequence)
            self._stretches.append(running)
            return Look(message.items, begins=True)
        if message.waited_s <= FRESH_S and (caught_up or message.fresh_start is not None):
            self._running = None
            if caught_up or not message.fresh_start:
                return Look(0, rejoins=caught_up)
            running.last, running.items = message.sequence, message.fresh_start
            return Look(message.fresh_start)
        running.last = message.sequence
        return Look(message.items)

    def begun(self, handed: Handed) -> None:
        """Give the stretch that has just begun what it needs of the live lane."""
        assert self._running is not None  # noqa: S101  # just begun
        self._running.handed = handed

    def stretch_of(self, sequence: int) -> Stretch[Handed] | None:
        """The stretch that a message was put off with; asked in ascending order, of what was looked at."""
        waiting = self._stretches
        while waiting and waiting[0].last < sequence and waiting[0] is not self._running:
            waiting.popleft()
        return waiting[0] if waiting and waiting[0].first <= sequence <= waiting[0].last else None
