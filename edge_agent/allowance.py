"""What a camera's messages may still put on the wire: the budget, against what the connection has carried.

The plan makes no more than the budget (see `budget`), but what was made may leave all at once: after an
outage, or behind a slow link. So each message waits here until it fits the last ten seconds. What the
connection carries beside pictures (connecting, status, clock, claims, what the cloud wants) is measured, and
comes off first.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from typing import Final

from edge_agent.budget import DEVICE_BYTES_S, START_S, WINDOW_S
from edge_agent.config import AgentSettings
from edge_agent.link import Link, Session

# Of a message, beyond its payload: subject, headers, acknowledgement, TCP/IP.
_MESSAGE_BYTES: Final = 400
_PACKET_SHARE: Final = 0.03
# Of the budget, what is given away: the cloud says more while it catches up.
_HEADROOM: Final = 0.9
# A lost connection's last words come once more, after all: so many seconds of what a device says.
_LAST_WORDS_S: Final = 7.0
# Until a connection stands for so long, what it costs to make it is still to come.
_SETTLED_S: Final = 1.0
# Of the budget, what late messages leave to the live picture, whether it takes it or not.
_LIVE_SHARE: Final = 0.5
_POLL_S: Final = 0.1


class Allowance:
    """One camera's. Not thread-safe: it belongs to the agent's event loop."""

    def __init__(self, kbit_s: float, beside: Callable[[], float], now: Callable[[], float]) -> None:
        """beside: bytes of the last ten seconds that are no pictures', this camera's share."""
        self._limit = _HEADROOM * kbit_s * 125 * WINDOW_S
        self._beside, self._now = beside, now
        self._sent: deque[tuple[float, float, bool]] = deque()

    def room(self, *, late: bool) -> float:
        """Bytes that a message may have now; late ones leave room for the live picture."""
        self._forget()
        live = sum(size for _, size, behind in self._sent if not behind)
        behind = sum(size for _, size, it in self._sent if it)
        left = self._limit - self._beside()
        taken = behind + max(live, _LIVE_SHARE * left) if late else behind + live
        return left - taken - _MESSAGE_BYTES

    async def wait(self, size: int, *, late: bool) -> None:
        """Wait until a message so large fits, and count it; what never fits goes once in ten seconds."""
        since = self._now()
        while size * (1 + _PACKET_SHARE) > self.room(late=late):
            alone = not any(behind == late for _, _, behind in self._sent)
            if not self._sent or (alone and self._now() - since >= WINDOW_S):
                break
            await asyncio.sleep(_POLL_S)
        self._sent.append((self._now(), wire_bytes(size), late))

    def _forget(self) -> None:
        while self._sent and self._now() - self._sent[0][0] >= WINDOW_S:
            self._sent.popleft()


class Allowances:
    """All cameras', and what is measured for them. Cameras without a budget have none."""

    def __init__(self, settings: AgentSettings, hub: Link, now: Callable[[], float] = time.monotonic) -> None:
        self._hub, self._now = hub, now
        self._cameras = len(settings.cameras)
        # When, bytes on the wire by then, and those of them that had room in a budget.
        self._looks: deque[tuple[float, float, float]] = deque([(now(), 0.0, 0.0)])
        # The connection that was seen last, since when, and whether there was one before it.
        self._session: Session | None = None
        self._up_s = 0.0
        self._again = False
        self._of: dict[str, Allowance] = {}
        for camera in settings.cameras:
            kbit_s = settings.encode_of(camera.name).budget_kbit_s
            if kbit_s is not None:
                self._of[camera.name] = Allowance(kbit_s, self.beside_bytes, now)

    def __bool__(self) -> bool:
        """Whether any camera has a budget."""
        return bool(self._of)

    def look(self) -> None:
        """Measure; to be called several times a second."""
        now = self._now()
        self._follow(now)
        self._looks.append((now, self._hub.wire.total, self._hub.planned_bytes))
        while len(self._looks) > 2 and now - self._looks[1][0] >= WINDOW_S:
            self._looks.popleft()

    def beside_bytes(self) -> float:
        """What the connection carries in ten seconds beside what is planned for; of each camera its share.

        A fresh connection has all of its chatter still before it, and one that comes up its greeting too.
        """
        (_, first, first_planned), (_, last, last_planned) = self._looks[0], self._looks[-1]
        measured = max(0.0, last - first - (last_planned - first_planned))
        up_s = self._follow(self._now())
        if up_s < _SETTLED_S:
            measured = max(measured, START_S * DEVICE_BYTES_S)
        if self._again and up_s < WINDOW_S:
            measured += _LAST_WORDS_S * DEVICE_BYTES_S
        coming = DEVICE_BYTES_S * max(0.0, WINDOW_S - up_s)
        return max(DEVICE_BYTES_S * WINDOW_S, measured + coming) / self._cameras

    def _follow(self, now: float) -> float:
        """Notice another connection at once; seconds that there is one, 0 without."""
        session = self._hub.session
        if session is not self._session:
            self._again = self._again or self._session is not None
            self._session, self._up_s = session, now
        return now - self._up_s if session is not None else 0.0

    def room(self, camera: str, *, late: bool) -> float:
        """Bytes that a message of this camera may have now; infinite without a budget."""
        allowance = self._of.get(camera)
        return allowance.room(late=late) if allowance is not None else float("inf")

    async def wait(self, camera: str, size: int, *, late: bool) -> None:
        """Wait until the camera's budget has room for a message with so large a payload, and take it."""
        allowance = self._of.get(camera)
        if allowance is not None:
            await allowance.wait(size, late=late)
        self._hub.planned_bytes += wire_bytes(size)


def wire_bytes(payload_bytes: int) -> float:
    """What a message with such a payload takes on the wire."""
    return payload_bytes * (1 + _PACKET_SHARE) + _MESSAGE_BYTES
