"""How far each camera had come: what was captured, kept, and taken by the hub, so that a run that was killed
leaves no frame unanswered.

A few dozen bytes a camera in a shared mapping, written in place: the kernel has them as soon as they are
written, so they outlive this process and cost the storage nothing to speak of. A power cut may take the last
half minute of them along, as the kernel writes them when it likes.
"""

from __future__ import annotations

import mmap
import struct
import threading
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import structlog

from edge_agent.batch import CameraIdentity
from edge_agent.frame import Frame
from eyeline.envelope import MAX_RANGE_FRAMES, SCHEMA_MAJOR
from eyeline.errors import ConfigError, InvalidName
from eyeline.subjects import check_token
from eyeline.v1 import frame_pb2 as pb
from eyeline.values import Epoch

_log = structlog.get_logger()

# The reason that the cloud answers with.
NOT_KEPT: Final = "not_kept"
_FOLDER: Final = "seen"
_BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")
_LAYOUT: Final = struct.Struct("<4sQ8s36sQQQQQQQqQ")
_CHECK: Final = struct.Struct("<I")
_SIZE: Final = _LAYOUT.size + _CHECK.size
_MAGIC: Final = b"EYS1"


@dataclass(slots=True)
class Progress:
    """One camera's run: sequences, and capture times on the monotonic clock in nanoseconds.

    first_ns: of frame 1. seen: captured; kept: acknowledged by the spool; at_hub: everything up to it is at
    the hub. wall_ns: of the newest frame captured, uncorrected.
    """

    epoch: Epoch
    boot_id: bytes
    first_ns: int = 0
    seen: int = 0
    seen_ns: int = 0
    wall_ns: int = 0
    kept: int = 0
    kept_ns: int = 0
    at_hub: int = 0
    offset_ns: int = 0
    uncertainty_ns: int = 0

    def to_bytes(self) -> bytes:
        """As it stands in the file."""
        data = _LAYOUT.pack(
            _MAGIC,
            self.epoch.counter,
            self.epoch.random_id,
            self.boot_id,
            self.first_ns,
            self.seen,
            self.seen_ns,
            self.wall_ns,
            self.kept,
            self.kept_ns,
            self.at_hub,
            self.offset_ns,
            self.uncertainty_ns,
        )
        return data + _CHECK.pack(zlib.crc32(data))

    @classmethod
    def from_bytes(cls, data: bytes) -> Progress | None:
        """What a file holds; None when it was torn or is none of ours."""
        if len(data) != _SIZE or _CHECK.unpack(data[-4:])[0] != zlib.crc32(data[:-4]):
            return None
        magic, counter, random_id, boot_id, *numbers = _LAYOUT.unpack(data[:-4])
        return cls(Epoch(counter, random_id), boot_id, *numbers) if magic == _MAGIC else None

    def gap(self, spooled: int, *, durable: bool, boot_id: bytes) -> tuple[int, int] | None:
        """Frames of this run that nobody has; None without any.

        spooled: the last one that is still in the spool, 0 without. durable: whether the spool is on disk.
        When it lost what it had kept, by a power cut or for being in memory, the range may begin with frames
        that the hub has: it goes on with the answers that these have.
        """
        if durable and boot_id == self.boot_id:
            first = max(self.kept, spooled) + 1
        else:
            first = (spooled or self.at_hub) + 1
        last = min(self.seen, first + MAX_RANGE_FRAMES - 1)
        return (first, last) if first <= last else None

    def at_ns(self, sequence: int) -> int:
        """About when a frame was captured: exact for the ends, and evenly spaced between."""
        if sequence > self.kept:
            base, base_ns = (self.kept, self.kept_ns) if self.kept else (1, self.first_ns)
        else:
            base, base_ns = 1, self.first_ns
        end, end_ns = (self.seen, self.seen_ns) if sequence >= self.kept else (self.kept, self.kept_ns)
        if end <= base:
            return end_ns
        return base_ns + (end_ns - base_ns) * (sequence - base) // (end - base)


class Seen:
    """The record of one camera's run. Methods may be called from any thread."""

    def __init__(self, state_dir: Path, camera: str, epoch: Epoch) -> None:
        self.epoch = epoch
        self._path = state_dir / _FOLDER / camera
        self._lock = threading.Lock()
        self._now = Progress(epoch, boot_id())
        self._map: mmap.mmap | None = None
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.open("wb+") as file:
                file.write(self._now.to_bytes())
                file.flush()
                self._map = mmap.mmap(file.fileno(), _SIZE)
        except OSError as problem:
            raise ConfigError(f"{self._path} cannot be written: {problem.strerror}") from None

    def captured(self, frame: Frame) -> None:
        """The camera presented this frame."""
        with self._lock:
            now = self._now
            now.first_ns = now.first_ns or frame.monotonic_ns
            now.seen, now.seen_ns, now.wall_ns = frame.sequence, frame.monotonic_ns, frame.wall_ns
            self._write()

    def kept(self, sequence: int, captured_ns: int, clock: pb.ClockEstimate) -> None:
        """The spool has everything up to this frame, or a report of it."""
        with self._lock:
            now = self._now
            now.kept, now.kept_ns = sequence, captured_ns
            now.offset_ns, now.uncertainty_ns = clock.offset_ns, clock.uncertainty_ns
            self._write()

    def at_hub(self, waiting: int | None) -> None:
        """The hub has everything kept before frame `waiting`; before all others when that is None."""
        with self._lock:
            self._now.at_hub = max(self._now.at_hub, self._now.kept if waiting is None else waiting - 1)
            self._write()

    def close(self) -> None:
        """The run ends in an orderly way; one that kept or reported everything is forgotten."""
        with self._lock:
            if self._map is not None:
                self._map.close()
                self._map = None
            if self._now.kept >= self._now.seen:
                self._path.unlink(missing_ok=True)

    def _write(self) -> None:
        if self._map is not None:
            self._map[:] = self._now.to_bytes()


def boot_id() -> bytes:
    """Of this boot of the machine; empty where there is none to read."""
    try:
        return _BOOT_ID.read_bytes().strip()[:36]
    except OSError:
        return b""


def left_behind(state_dir: Path) -> dict[str, Progress]:
    """What runs that were killed left, by camera."""
    found: dict[str, Progress] = {}
    folder = state_dir / _FOLDER
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        try:
            check_token(path.name)
            progress = Progress.from_bytes(path.read_bytes())
        except (OSError, InvalidName):
            continue
        if progress is None:
            _log.warning("progress_unreadable", camera=path.name, effect="frames not kept are not reported")
        else:
            found[path.name] = progress
    return found


def forget(state_dir: Path, camera: str) -> None:
    """What a run of this camera left is told."""
    (state_dir / _FOLDER / camera).unlink(missing_ok=True)


def report(identity: CameraIdentity, progress: Progress, first: int, last: int) -> pb.FrameEnvelope:
    """An envelope that answers these frames of an earlier run as not kept."""
    return pb.FrameEnvelope(
        schema_major=SCHEMA_MAJOR,
        tenant=identity.tenant,
        site=identity.site,
        device=identity.device,
        camera=identity.camera,
        epoch=progress.epoch.to_proto(),
        clock=pb.ClockEstimate(offset_ns=progress.offset_ns, uncertainty_ns=progress.uncertainty_ns),
        published=pb.CaptureTime(monotonic_ns=progress.seen_ns, wall_ns=progress.wall_ns),
        lane=pb.LANE_BACKLOG,
        items=[
            pb.FrameItem(
                range=pb.FrameRange(
                    first_sequence=first,
                    last_sequence=last,
                    first_capture=pb.CaptureTime(monotonic_ns=progress.at_ns(first)),
                    last_capture=pb.CaptureTime(monotonic_ns=progress.at_ns(last)),
                    kind=pb.RANGE_KIND_DROPPED,
                    reason=NOT_KEPT,
                )
            )
        ],
    )
