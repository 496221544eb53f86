"""Which live pictures are left out while more come than the model can take.

A camera whose pictures come faster than places at the model become free would be answered later and later
until its device has heard of it and sends less. So pictures are left out, spread over what waits, so that the
newest one is never further away than a bound; their frames are filled in from the pictures around them, as
those are that the device itself skips. Pictures that are left out are decoded all the same: the next one of
their chain needs them. The first one of a run, or behind a loss, is never left out: there would be nothing
before it to fill it in from.
"""

from __future__ import annotations

import statistics
from collections import deque
from typing import Final

# Behind more than that, by the wait for places, pictures are left out.
BEHIND_S: Final = 2.0
# Waits that tell how fast places become free; the median, since one long wait is an outage of the model.
_WAITS: Final = 5


class Thinning:
    """Of one camera: told how long each picture waited for its place, asked about the next one."""

    def __init__(self) -> None:
        self._waits_s = deque([0.0] * _WAITS, _WAITS)
        # The run that the newest picture at the model was of, if none was lost since.
        self._run: object = None

    def waited(self, wait_s: float) -> None:
        """A picture has its place at the model now, after so long."""
        self._waits_s.append(wait_s)

    def looked_at(self, run: object) -> None:
        """A picture of that run of the device goes to the model."""
        self._run = run

    def lost(self) -> None:
        """A picture cannot be decoded, or a stretch is left out: what comes next does not follow."""
        self._run = None

    def leaves_out(self, behind: float, run: object) -> bool:
        """Whether a picture of that run is left out. behind: live pictures that wait after it."""
        return run == self._run and behind * statistics.median(self._waits_s) > BEHIND_S
