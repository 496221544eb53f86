"""The egress gate: the one place through which every pixel leaves the device.

Encoders take a `RedactedPicture` and nothing else, and only `Redactor.apply` makes one: polygon masks burned
into the planes, people or faces made unrecognisable where a model finds them. It fails closed: whatever goes
wrong (no model, a model that is late or breaks, a picture of an unknown kind) is `RedactFailed`, and then
there is no picture to encode. New ways out (calibration samples, audits, snapshots, debug dumps) start here.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any, Final, Protocol, final

import av
import numpy as np
from av.video.reformatter import ColorRange, Colorspace
from numpy.typing import NDArray

from edge_agent.config import Mask, RedactSettings
from edge_agent.errors import RedactFailed
from edge_agent.frame import CapturedPicture, Frame
from edge_agent.redact_mask import SUBSAMPLING, Stencil, conceal, planes_of
from edge_agent.redact_tracks import Tracks
from eyeline.values import Detections, FloatArray

__all__ = ["Finder", "RedactedPicture", "Redactor", "pixels_of"]

_KEY: Final = object()
# Between looks of the models, whatever `every` says, at most so long.
_LONGEST_BLIND_NS: Final = 500_000_000


@final
class RedactedPicture:
    """A picture that may leave the device. Only `Redactor.apply` makes one; nobody changes its pixels."""

    __slots__ = ("_picture",)

    def __init__(self, key: object, picture: CapturedPicture) -> None:
        if key is not _KEY:
            raise TypeError("only Redactor.apply makes a RedactedPicture")
        self._picture = picture

    @property
    def size(self) -> tuple[int, int]:
        """Width and height, in pixels."""
        return self._picture.width, self._picture.height


def pixels_of(redacted: RedactedPicture) -> av.VideoFrame:
    """The pixels, for an encoder; raises TypeError for anything that did not pass the gate."""
    if type(redacted) is not RedactedPicture:
        raise TypeError(f"{type(redacted).__name__} did not pass the redaction gate (Redactor.apply)")
    return redacted._picture  # the class is a seal, this is its key


class Finder(Protocol):
    """Finds what has to be blurred."""

    def find(self, frame: Frame) -> FloatArray:
        """Boxes, float32 [N, 4] in source pixels; raises when it cannot look."""
        ...


class Redactor:
    """One camera's gate. `apply` belongs to one thread.

    finders: one for each entry of `settings.blur`; fewer are an error of the caller's.
    """

    def __init__(self, settings: RedactSettings, finders: Sequence[Finder] = (), *, camera: str = "") -> None:
        if len(finders) != len(settings.blur):
            raise ValueError(f"{len(settings.blur)} kinds are to be blurred, {len(finders)} finders given")
        self._settings = self._own = settings
        # Why nothing may leave at all; empty while that is not so.
        self._withheld = ""
        self._finders = tuple(finders)
        self._tracks = [Tracks(margin=settings.margin, hold_s=settings.hold_s) for _ in finders]
        self._watch = _Watch(f"redact-{camera}") if finders else None
        self._stencils: dict[tuple[tuple[int, int], tuple[int, int]], Stencil] = {}
        self._size = (0, 0)
        self._since_look = 0
        self._look_ns: int | None = None

    @property
    def masks(self) -> int:
        """How many masks are in force."""
        return len(self._settings.masks)

    @property
    def active(self) -> bool:
        """Whether anything is hidden at all."""
        return self._settings.active

    @property
    def model_cpu_ns(self) -> int:
        """CPU time that the models' own thread spent so far, in nanoseconds."""
        return self._watch.spent_ns if self._watch is not None else 0

    def apply(self, frame: Frame) -> RedactedPicture:
        """The frame's picture, fit to leave; raises `RedactFailed`, and then no pixel of it may.

        The frame itself stays as it is: decoders still need it.
        """
        if self._withheld:
            raise RedactFailed(self._withheld)
        if not self._settings.active:
            return RedactedPicture(_KEY, frame.picture)
        try:
            return RedactedPicture(_KEY, self._redacted(frame))
        except RedactFailed:
            raise
        except Exception as problem:  # noqa: BLE001  # whatever it is, nothing leaves
            line = (str(problem).splitlines() or [type(problem).__name__])[0][:200]
            raise RedactFailed(f"redaction failed: {line}") from None

    def hide_also(self, masks: Sequence[Mask]) -> None:
        """Hide these polygons, points in fractions, beside the settings' own, from the next frame on.

        Points outside the picture lie on its border then; a polygon that is none withholds everything.
        """
        self._stencils.clear()
        if not all(len(mask) >= 3 and np.isfinite(mask).all() for mask in masks):
            self.withhold("a mask that the cloud wants is no polygon")
            return
        self._withheld = ""
        more = tuple(tuple((min(max(x, 0.0), 1.0), min(max(y, 0.0), 1.0)) for x, y in mask) for mask in masks)
        together = {"masks": (*self._own.polygons(), *more), "size_px": None}
        self._settings = self._own.model_copy(update=together) if more else self._own

    def withhold(self, reason: str) -> None:
        """Let nothing leave, until `hide_also` says what to hide."""
        self._withheld = reason

    def pass_coded(self, data: bytes) -> bytes:
        """The camera's own coded pictures, untouched; raises `RedactFailed` where something is hidden."""
        if self._withheld:
            raise RedactFailed(self._withheld)
        if self._settings.active:
            raise RedactFailed("the camera's own stream cannot be passed on: this camera is redacted")
        return data

    def visible(self, found: Detections, size: tuple[int, int]) -> Detections:
        """Without the objects whose centre is masked; boxes in pixels of a picture of that size."""
        if not self._settings.masks or not len(found):
            return found
        hidden = self._stencil(size, (1, 1)).hidden
        x = ((found.boxes[:, 0] + found.boxes[:, 2]) / 2).astype(int).clip(0, size[0] - 1)
        y = ((found.boxes[:, 1] + found.boxes[:, 3]) / 2).astype(int).clip(0, size[1] - 1)
        return found.take(~hidden[y, x])

    def gate_luma(self, frame: Frame) -> NDArray[np.uint8]:
        """What the motion gate may see: nothing moves behind a mask. uint8 [H, W]."""
        luma = frame.gate_luma()
        if not self._settings.masks:
            return luma
        stencil = self._stencil((luma.shape[1], luma.shape[0]), (1, 1))
        shown = luma.copy()
        stencil.burn([shown])
        return shown

    def _redacted(self, frame: Frame) -> CapturedPicture:
        boxes = self._boxes(frame)
        picture: CapturedPicture = _copy(frame.picture)
        factors = SUBSAMPLING[picture.format.name]
        planes = planes_of(picture)
        for some in boxes:
            conceal(planes, some, factors, solid=self._settings.style == "solid")
        if self._settings.masks:
            self._stencil(frame.size, factors).burn(planes)
        return picture

    def _stencil(self, size: tuple[int, int], factors: tuple[int, int]) -> Stencil:
        stencil = self._stencils.get((size, factors))
        if stencil is None:
            # A camera and its substream have one size each, and change it rarely.
            if len(self._stencils) >= 8:
                self._stencils.clear()
            stencil = Stencil(self._settings.polygons(), size, factors)
            self._stencils[size, factors] = stencil
        return stencil

    def _boxes(self, frame: Frame) -> list[FloatArray]:
        """What the models hide in this frame, by finder."""
        if self._watch is None:
            return []
        now_ns = frame.monotonic_ns
        if frame.opened or frame.size != self._size:
            self._size = frame.size
            self._look_ns = None
            for tracks in self._tracks:
                tracks.clear()
        self._since_look += 1
        blind = self._look_ns is None or now_ns - self._look_ns >= _LONGEST_BLIND_NS
        if blind or self._since_look >= self._settings.every:
            # Until it succeeds, nothing is known: the next frame looks again.
            self._look_ns = None
            found = self._watch.run(
                lambda: [finder.find(frame) for finder in self._finders], self._settings.timeout_s
            )
            for tracks, boxes in zip(self._tracks, found, strict=True):
                tracks.look(boxes, now_ns)
            self._since_look, self._look_ns = 0, now_ns
        return [tracks.cover(now_ns) for tracks in self._tracks]


class _Watch:
    """Runs models in a thread of their own, so that one that hangs does not take its camera along."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._jobs: queue.SimpleQueue[tuple[Future[list[FloatArray]], Callable[[], list[FloatArray]]]]
        self._jobs = queue.SimpleQueue()
        self._last: Future[list[FloatArray]] | None = None
        self._thread: threading.Thread | None = None
        self.spent_ns = 0

    def run(self, work: Callable[[], list[FloatArray]], timeout_s: float) -> list[FloatArray]:
        """What the work returns; raises `RedactFailed` when it fails, or takes longer than this."""
        if self._last is not None and not self._last.done():
            raise RedactFailed("the model still works on an earlier frame", late=True)
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name=self._name, daemon=True)
            self._thread.start()
        job = self._last = Future[list[FloatArray]]()
        self._jobs.put((job, work))
        try:
            return job.result(timeout_s)
        except TimeoutError:
            raise RedactFailed(f"the model did not answer within {timeout_s:g} s", late=True) from None

    def _work(self) -> None:
        while True:
            job, work = self._jobs.get()
            start_ns = time.thread_time_ns()
            try:
                job.set_result(work())
            except BaseException as problem:  # noqa: BLE001  # told to whoever waits
                job.set_exception(problem)
            self.spent_ns += time.thread_time_ns() - start_ns


def _copy(picture: CapturedPicture) -> Any:
    """The picture in a buffer of its own, in one of `SUBSAMPLING`'s formats, its colours stated."""
    source: Any = picture
    if source.format.name not in SUBSAMPLING:
        rgb = source.format.is_rgb
        made = source.reformat(format="yuv420p")
        # As `encode.colours` reads the original.
        made.colorspace = int(Colorspace.ITU601) if rgb else int(source.colorspace)
        made.color_range = int(ColorRange.MPEG) if rgb else int(source.color_range)
        return made
    made = av.VideoFrame(source.width, source.height, source.format.name)
    for target, values in zip(planes_of(made), planes_of(source), strict=True):
        target[...] = values
    made.colorspace, made.color_range = int(source.colorspace), int(source.color_range)
    return made
