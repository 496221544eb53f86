"""Up to which message everything is answered, while the live lane overtakes the backlog."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class _Reader:
    """One reader of the stream: how far it has read, and how much of what it took is unanswered."""

    read: int
    answered: int
    under_way: int = 0

    @property
    def through(self) -> int:
        """Everything of its own up to here is answered."""
        return self.answered if self.under_way else self.read


class Watermark:
    """Stream sequences of one camera's messages, read twice.

    The live reader takes every message but puts those of the backlog off, and live ones that piled up; the
    late reader follows, and takes those alone. Of one message, each may take a part. Everything up to `start`
    counts as answered.
    """

    def __init__(self, start: int) -> None:
        self._live, self._late = _Reader(start, start), _Reader(start, start)
        self._put_off_to = start

    @property
    def put_off_to(self) -> int:
        """The newest message that was put off."""
        return self._put_off_to

    @property
    def late_from(self) -> int:
        """Where the late reader goes on."""
        return self._late.read + 1

    @property
    def late_behind(self) -> bool:
        """Whether messages were put off that the late reader has not read yet."""
        return self._late.read < self._put_off_to

    @property
    def overtaken(self) -> bool:
        """Whether messages were put off that are not answered yet."""
        return self._late.through < self._put_off_to

    @property
    def answered_to(self) -> int:
        """Every message up to this one is answered."""
        return min(self._live.through, self._late.through) if self.overtaken else self._live.through

    def put_off(self, sequence: int) -> None:
        """The live reader came to a message of the backlog."""
        self._live.read = max(self._live.read, sequence)
        if not self.overtaken and sequence > self._late.read:
            # All before it was the live reader's.
            self._late.read = self._late.answered = sequence - 1
        self._put_off_to = max(self._put_off_to, sequence)

    def took(self, sequence: int, *, late: bool) -> None:
        """A reader took a message whose end is to be answered."""
        reader = self._late if late else self._live
        reader.read = max(reader.read, sequence)
        reader.under_way += 1

    def passed(self, sequence: int) -> None:
        """The late reader came to a message that is not its own."""
        self._late.read = max(self._late.read, sequence)

    def answered(self, sequence: int, *, late: bool) -> None:
        """A message that a reader took is answered in full."""
        reader = self._late if late else self._live
        reader.under_way -= 1
        reader.answered = max(reader.answered, sequence)
