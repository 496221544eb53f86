"""Opening and reading one source: camera, file, folder or test pattern.

`open_source` gives a `Source`, whose `shots` are decoded pictures with the time their data arrived. Sources
know nothing of pacing, numbering or reconnecting: `edge_agent.capture` does that. Everything raises
`SourceError` with one line that holds no credentials.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import av
import structlog

from edge_agent import hardware, pattern
from edge_agent.address import SourceKind, kind_of, with_credentials, without_credentials
from edge_agent.config import CameraSettings, Transport
from edge_agent.errors import SourceError, SourceInvalid, SourceUnavailable
from edge_agent.own import NO_OWN_PICTURE, OwnPicture, OwnPictures
from edge_agent.source_errors import explain

OPEN_TIMEOUT_S = 10.0
# An undecodable stream is given up after so long without one picture, or so many packets of a file.
NO_PICTURE_S = 15.0
NO_PICTURE_PACKETS = 500
IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff"})
# FFmpeg shows text files as pictures of a terminal.
_NOT_VIDEO = frozenset({"tty", "bin", "adf", "idf", "xbin"})
_DEFAULT_FPS = 25.0

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class StreamInfo:
    """What an opened source delivers. hardware: the decoder's kind, None for software."""

    kind: SourceKind
    width: int
    height: int
    codec: str
    pixel_format: str
    declared_fps: float | None
    hardware: str | None


@dataclass(frozen=True, slots=True, eq=False)
class Shot:
    """One decoded picture. arrived_ns: `time.monotonic_ns` when its data came; media_s: its place in the
    recording, in seconds, ascending (also over loops); own: its coded form, or why that cannot
    be passed on; coded_bytes: compressed bytes read for it, and since the picture before."""

    picture: av.VideoFrame
    arrived_ns: int
    media_s: float
    own: OwnPicture | str = NO_OWN_PICTURE
    coded_bytes: int = 0


class Source(Protocol):
    """An open source, read by one thread."""

    info: StreamInfo
    # `time.monotonic_ns` of the last sign of life, a packet say; read by the watchdog.
    progress_ns: int

    def shots(self) -> Iterator[Shot]:
        """Picture after picture; ends where a recording ends, raises `SourceError`."""

    def close(self) -> None:
        """Give the camera back; only by the reading thread."""


def open_source(settings: CameraSettings, *, address: str | None = None) -> Source:
    """Open a camera's source (or the other `address` of the same camera); raises `SourceError`."""
    address = settings.source if address is None else address
    kind = kind_of(address)
    if kind is SourceKind.PATTERN:
        return PatternSource(address)
    if kind is SourceKind.FOLDER:
        return FolderSource(Path(address), fps=settings.fps, loop=settings.loop)
    return AvSource(settings, address, kind)


class AvSource:
    """RTSP, V4L2 and video files through PyAV."""

    def __init__(self, settings: CameraSettings, address: str, kind: SourceKind) -> None:
        self.progress_ns = time.monotonic_ns()
        self._settings = settings
        self._address = address
        self._kind = kind
        self._shown = without_credentials(address)
        self._coded_bytes = 0
        self._open()
        context = self._decoder
        rate = self._stream.average_rate or self._stream.guessed_rate
        self.info = StreamInfo(
            kind=kind,
            width=context.width,
            height=context.height,
            codec=self._stream.codec_context.name,
            pixel_format=context.pix_fmt or "",
            declared_fps=float(rate) if rate else None,
            hardware=self._hardware,
        )
        _log.info(
            "source_opened",
            camera=settings.name,
            source=self._shown,
            codec=self.info.codec,
            hardware_decoder=self._hardware or "none",
        )

    def shots(self) -> Iterator[Shot]:
        """Decoded pictures; broken packets are passed over, as long as pictures still come."""
        offset_s = 0.0
        step_s = 1.0 / (self.info.declared_fps or _DEFAULT_FPS)
        while True:
            first_s, last_s = None, offset_s - step_s
            for picture, arrived_ns, own in self._pictures():
                here_s = picture.time if picture.time is not None else last_s + step_s
                first_s = here_s - offset_s if first_s is None else first_s
                last_s = max(last_s, here_s - first_s)
                coded, self._coded_bytes = self._coded_bytes, 0
                yield Shot(picture, arrived_ns, last_s, own, coded)
            if self._kind.is_live:
                raise SourceUnavailable(f"{self._shown}: the camera closed the stream")
            if first_s is None:
                raise SourceInvalid(f"{self._shown}: no picture in it can be decoded")
            if not self._settings.loop:
                return
            offset_s = last_s + step_s
            self.close()
            self._open()

    def close(self) -> None:
        """Close the container."""
        self._container.close()

    def _open(self) -> None:
        settings, kind = self._settings, self._kind
        if kind is SourceKind.FILE:
            _check_file(self._address)
        address = self._address
        options: dict[str, str] = {}
        if kind is SourceKind.RTSP:
            address = with_credentials(address, settings.user, settings.secret_password())
            options = {
                "rtsp_transport": settings.transport.value,
                "allowed_media_types": "video",
                # Parameter sets are in the session description: looking longer only adds delay.
                "analyzeduration": "200000",
                "fpsprobesize": "0",
                "max_delay": "200000" if settings.transport is Transport.UDP else "0",
            }
        wants_hardware = settings.hardware_decode == "auto" and kind is not SourceKind.V4L2
        try:
            container = av.open(
                address,
                format="v4l2" if kind is SourceKind.V4L2 else None,
                options=options,
                timeout=(OPEN_TIMEOUT_S, settings.stall_timeout_s),
                hwaccel=hardware.hwaccel() if wants_hardware else None,
            )
        except (av.error.FFmpegError, ValueError) as problem:
            raise explain(kind, self._shown, problem, OPEN_TIMEOUT_S) from None
        try:
            self._container = container
            self._stream = self._pick()
            self._prepare_decoder(wants_hardware=wants_hardware)
        except SourceError:
            container.close()
            raise

    def _pick(self) -> Any:
        found = [stream for stream in self._container.streams.video if stream.codec_context is not None]
        if self._container.format.name in _NOT_VIDEO:
            found = []
        if not found:
            what = "sends no video" if self._kind.is_live else "is not a video file"
            raise SourceInvalid(f"{self._shown}: {what} that can be decoded here")
        return found[0]

    def _prepare_decoder(self, *, wants_hardware: bool) -> None:
        context = self._stream.codec_context
        self._decoder = context
        self._hardware: str | None = None
        if context.is_hwaccel:
            self._hardware = hardware.accelerator()
            return
        decoder = hardware.v4l2_decoder(self._stream) if wants_hardware else None
        if decoder is not None:
            self._decoder, self._hardware = decoder, "v4l2m2m"
            return
        # Frame threading delays pictures; slices do not.
        context.thread_type = "SLICE"
        context.thread_count = min(4, os.cpu_count() or 1)

    def _pictures(self) -> Iterator[tuple[av.VideoFrame, int, OwnPicture | str]]:
        """Pictures of one pass, each with the monotonic time at which its packet arrived, and that packet."""
        arrivals: dict[int | None, int] = {}
        own = OwnPictures(self._stream)
        started_ns, packets, decoded = time.monotonic_ns(), 0, False
        packet_stream = self._container.demux(self._stream)
        # FFmpeg's parser hands a picture out when the first bytes of the next one arrive, so the first bytes
        # of a picture came when the one before was handed out.
        is_parsed = self._kind is SourceKind.RTSP and self.info.codec in {"h264", "hevc"}
        timeout_s = self._settings.stall_timeout_s
        before = None
        while True:
            asked_ns = time.monotonic_ns()
            try:
                packet = next(packet_stream, None)
            except (av.error.EOFError, StopIteration):
                return
            except av.error.FFmpegError as problem:
                raise explain(self._kind, self._shown, problem, timeout_s) from None
            if packet is None:
                return
            now = self.progress_ns = time.monotonic_ns()
            arrived_ns = before if is_parsed and before is not None else now
            before = now
            arrivals[packet.pts] = arrived_ns
            if packet.size:
                own.take(packet)
            if len(arrivals) > 64:
                del arrivals[next(iter(arrivals))]
            packets += 1
            if self.info.codec != "rawvideo":
                self._coded_bytes += packet.size
            for picture in self._decode(packet):
                decoded = True
                yield picture, arrivals.pop(picture.pts, arrived_ns), own.of(picture)
            if self._kind.is_live and now - asked_ns >= timeout_s * 1e9:
                # The time-out made the parser give its last picture away; the stream itself has stalled.
                raise SourceUnavailable(f"{self._shown}: nothing came within {timeout_s:g} s")
            if not decoded:
                self._give_up_when_blind(packets, (now - started_ns) / 1e9)

    def _decode(self, packet: Any) -> list[av.VideoFrame]:
        try:
            return list(self._decoder.decode(packet))
        except (av.error.InvalidDataError, av.error.EOFError):
            return []
        except av.error.FFmpegError as problem:
            raise explain(self._kind, self._shown, problem, self._settings.stall_timeout_s) from None

    def _give_up_when_blind(self, packets: int, seconds: float) -> None:
        if self._kind.is_live and seconds > NO_PICTURE_S:
            raise SourceUnavailable(f"{self._shown}: data comes, but no picture in {NO_PICTURE_S:g} s")
        if not self._kind.is_live and packets > NO_PICTURE_PACKETS:
            raise SourceInvalid(f"{self._shown}: no picture in it can be decoded")


class FolderSource:
    """A folder of images in the order of their names, at a fixed rate."""

    def __init__(self, folder: Path, *, fps: float, loop: bool) -> None:
        self.progress_ns = time.monotonic_ns()
        self._folder, self._fps, self._loop = folder, fps, loop
        try:
            self._files = sorted(
                path for path in folder.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file()
            )
        except OSError as problem:
            raise SourceInvalid(f"{folder}: the folder cannot be read ({problem.strerror})") from None
        first = next((picture for path in self._files if (picture := self._read(path)) is not None), None)
        if first is None:
            kinds = ", ".join(sorted(suffix[1:] for suffix in IMAGE_SUFFIXES))
            raise SourceInvalid(f"{folder}: no readable image in this folder (known: {kinds})")
        codec = self._files[0].suffix[1:].lower()
        self.info = StreamInfo(
            SourceKind.FOLDER, first.width, first.height, codec, first.format.name, fps, hardware=None
        )

    def shots(self) -> Iterator[Shot]:
        """One picture an image; unreadable ones are passed over with a log event."""
        shown = 0
        while True:
            before = shown
            for path in self._files:
                picture = self._read(path)
                self.progress_ns = time.monotonic_ns()
                if picture is not None:
                    yield Shot(picture, self.progress_ns, shown / self._fps)
                    shown += 1
            if shown == before:
                raise SourceInvalid(f"{self._folder}: its images cannot be read any more")
            if not self._loop:
                return

    def close(self) -> None:
        """Nothing is kept open."""

    def _read(self, path: Path) -> av.VideoFrame | None:
        try:
            # As a file object: FFmpeg takes a name with % in it for a series of files.
            with path.open("rb") as file, av.open(file) as container:
                picture: av.VideoFrame = next(container.decode(video=0))
        except (OSError, av.error.FFmpegError, ValueError, IndexError, StopIteration):
            _log.warning("image_unreadable", file=str(path))
            return None
        return picture


class PatternSource:
    """The generated test picture, without end."""

    def __init__(self, address: str) -> None:
        self.progress_ns = time.monotonic_ns()
        spec = pattern.parse(address)
        self._pattern = pattern.Pattern(spec)
        self.info = StreamInfo(
            SourceKind.PATTERN, spec.width, spec.height, "pattern", "yuv420p", spec.fps, hardware=None
        )

    def shots(self) -> Iterator[Shot]:
        """Frame after frame."""
        index = 0
        while True:
            picture = self._pattern.picture(index)
            self.progress_ns = time.monotonic_ns()
            yield Shot(picture, self.progress_ns, index / self._pattern.spec.fps)
            index += 1

    def close(self) -> None:
        """Nothing is kept open."""


# What to give instead of a missing file.
_HINT = "the path of a video file, or a camera's address"


def _check_file(address: str) -> None:
    path = Path(address)
    try:
        with path.open("rb") as file:
            empty = not file.read(1)
    except FileNotFoundError:
        raise SourceInvalid(f"{address}: no such file; give {_HINT}") from None
    except OSError as problem:
        raise SourceInvalid(f"{address}: the file cannot be read ({problem.strerror})") from None
    if empty:
        raise SourceInvalid(f"{address}: the file is empty")
