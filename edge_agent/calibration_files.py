"""What calibration keeps on the device: samples until they have done their work, and profiles."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self

import structlog
from google.protobuf.message import DecodeError

from edge_agent.epoch import write_atomically
from eyeline.v1 import calibration_pb2

_log = structlog.get_logger()

FOLDER: Final = "calibration"
_MOST_BYTES: Final = 64 << 20


@dataclass(frozen=True, slots=True)
class Notes:
    """When a sample was taken (seconds since the Unix epoch), and how far it is sent."""

    sampled_s: float = 0.0
    sample_id: str = ""
    part_bytes: int = 0
    parts: int = 0
    sent: int = 0
    sent_s: float = 0.0

    def but(self, **changes: Any) -> Self:
        """The same with changes."""
        return dataclasses.replace(self, **changes)


class Store:
    """One camera's files. Writing never raises: calibration that cannot be kept starts over."""

    def __init__(self, state_dir: Path, camera: str) -> None:
        self._folder, self._camera = state_dir / FOLDER, camera
        self._said = False

    def notes(self) -> Notes:
        """What was noted; nothing where that cannot be read."""
        try:
            found = json.loads(self._path("json").read_text("utf-8"))
            known = {field.name: field.type for field in dataclasses.fields(Notes)}
            notes = Notes(**{name: value for name, value in found.items() if name in known})
            return (
                notes
                if all(isinstance(it, int | float | str) for it in dataclasses.astuple(notes))
                else Notes()
            )
        except (OSError, ValueError, TypeError, AttributeError):
            return Notes()

    def keep_notes(self, notes: Notes) -> None:
        """Write them down."""
        with self._writing():
            write_atomically(self._path("json"), dataclasses.asdict(notes))

    def profile(self) -> calibration_pb2.Profile | None:
        """The profile; None without one that can be read."""
        with contextlib.suppress(OSError, DecodeError):
            return calibration_pb2.Profile.FromString(self._path("profile").read_bytes()[:_MOST_BYTES])
        return None

    def keep_profile(self, profile: calibration_pb2.Profile) -> None:
        """Put a new one in its place."""
        self._write("profile", profile.SerializeToString())

    def sample(self) -> tuple[bytes, bytes]:
        """The sample's id and its bytes; both empty without one that can be read."""
        with contextlib.suppress(OSError, DecodeError):
            data = self._path("sample").read_bytes()[:_MOST_BYTES]
            return calibration_pb2.CalibrationSample.FromString(data).sample_id, data
        return b"", b""

    def keep_sample(self, data: bytes) -> None:
        """Put a new one in its place."""
        self._write("sample", data)

    def forget_sample(self) -> None:
        """Its pixels are not needed any more."""
        self._path("sample").unlink(missing_ok=True)

    # What `edge-agent calibrate` says and hears

    def wish(self) -> None:
        """Ask the running agent for a sample; raises OSError."""
        self._folder.mkdir(parents=True, exist_ok=True)
        self._path("wish").touch()

    def wished(self) -> bool:
        """Whether somebody asks for a sample."""
        return self._path("wish").exists()

    def clear_wish(self) -> None:
        """The sample is taken."""
        self._path("wish").unlink(missing_ok=True)

    def say(self, line: str) -> None:
        """What happens, for whoever waits."""
        self._write("line", line.encode())

    def said(self) -> str:
        """What the agent last said."""
        with contextlib.suppress(OSError):
            return self._path("line").read_text("utf-8")
        return ""

    def _path(self, kind: str) -> Path:
        return self._folder / f"{self._camera}.{kind}"

    def _write(self, kind: str, data: bytes) -> None:
        path = self._path(kind)
        with self._writing():
            temporary = path.with_name(path.name + ".tmp")
            with temporary.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)

    @contextlib.contextmanager
    def _writing(self) -> Any:
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            yield
        except OSError as problem:
            if not self._said:
                _log.warning("calibration_not_kept", camera=self._camera, reason=problem.strerror)
            self._said = True
        else:
            self._said = False
