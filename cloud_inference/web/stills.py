"""Stills for browsers that cannot decode video: one decoder for each camera, whoever looks at it."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Final

import cv2

from cloud_inference.decode import CannotDecode, ChainDecoder

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cloud_inference.web.live import Unit

_QUALITY: Final = 80


class Stills:
    """One camera's. pool: threads that several cameras share; fps: at most so many pictures a second."""

    def __init__(self, pool: ThreadPoolExecutor, fps: float) -> None:
        self.interval_s = 1 / fps
        self._pool = pool
        self._decoder = ChainDecoder()
        self._first: Unit | None = None
        self._done = 0

    def forget(self) -> None:
        """Keep no picture, decoded or not."""
        self._decoder, self._first, self._done = ChainDecoder(), None, 0

    async def newest(self, units: Sequence[Unit]) -> bytes | None:
        """The last of an open chain's pictures as an image file; None when there is nothing new to decode.

        Called again and again as the chain grows: only what is new is decoded.
        """
        if units[-1].is_still:
            return units[-1].access_unit.data
        if self._first is not units[0]:
            self._first, self._done = units[0], 0
        fresh = list(units[self._done :])
        self._done += len(fresh)
        if not fresh:
            return None
        return await asyncio.get_running_loop().run_in_executor(self._pool, _last, self._decoder, fresh)

    async def at(self, units: Sequence[Unit], sequence: int) -> tuple[Unit, bytes] | None:
        """The newest of an open chain's pictures not after `sequence`: its unit, and an image file."""
        wanted = [unit for unit in units if unit.access_unit.sequence <= sequence]
        if not wanted:
            return None
        found = wanted[-1]
        if found.is_still:
            return found, found.access_unit.data
        loop = asyncio.get_running_loop()
        data = await loop.run_in_executor(self._pool, _last, ChainDecoder(), wanted)
        return (found, data) if data is not None else None


def _last(decoder: ChainDecoder, units: Sequence[Unit]) -> bytes | None:
    """Decode them all; the last one as JPEG."""
    try:
        for unit in units[:-1]:
            decoder.decode(unit.access_unit, unit.format, wanted=False)
        image: Any = decoder.decode(units[-1].access_unit, units[-1].format)
    except CannotDecode:
        return None
    done, data = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, _QUALITY])
    return data.tobytes() if done else None
