"""Artefacts into folders: nothing outside the folder, nothing unbounded, and whole or not at all."""

from __future__ import annotations

import os
import secrets
import shutil
import stat
import zipfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import IO, Final

from eyeline.errors import BadRelease

_MOST_FILES: Final = 20_000
_MOST_BYTES: Final = 1 << 30
# Deflate cannot do more than 1032; what unpacks to that much is made to hurt.
_MOST_RATIO: Final = 500
_SMALL_BYTES: Final = 1 << 20
_BLOCK: Final = 1 << 20


def unpack_wheels(artefact: Path, into: Path) -> None:
    """A wheel, or a zip of wheels, as importable files in the folder `into`; raises `BadRelease`, OSError."""
    with _new(into) as folder, _opened(artefact) as archive:
        inner = [name for name in archive.namelist() if name.endswith(".whl") and "/" not in name]
        if not inner:
            _extract(archive, folder, _importable)
        budget = _Budget()
        for name in inner:
            budget.take(archive.getinfo(name))
            with archive.open(name) as stream, _opened(stream) as wheel:
                _extract(wheel, folder, _importable)


def unpack_model(artefact: Path, into: Path) -> None:
    """A zip of a model's folder, `card.yaml` and what belongs to it; raises `BadRelease`, OSError."""
    with _new(into) as folder, _opened(artefact) as archive:
        _extract(archive, folder, lambda path: path if len(path.parts) == 1 else None)
        if not (folder / "card.yaml").is_file():
            raise BadRelease("the model has no card.yaml")


def tidy(folder: Path) -> None:
    """Take away what an interrupted installation left."""
    for left in folder.glob(".new-*"):
        shutil.rmtree(left, ignore_errors=True)


class _new:  # noqa: N801  # reads as what it does
    """A folder that appears under its name only when everything in it has reached the disk."""

    def __init__(self, into: Path) -> None:
        self._into = into
        self._made = into.parent / f".new-{secrets.token_hex(4)}"

    def __enter__(self) -> Path:
        self._made.mkdir(parents=True, mode=0o700)
        return self._made

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            shutil.rmtree(self._made, ignore_errors=True)
            return
        os.sync()
        shutil.rmtree(self._into, ignore_errors=True)
        self._made.rename(self._into)
        os.sync()


class _Budget:
    """What one archive may unpack to."""

    def __init__(self) -> None:
        self._files, self._bytes = 0, 0

    def take(self, member: zipfile.ZipInfo) -> None:
        """Count a member; raises `BadRelease`."""
        self._files += 1
        self._bytes += member.file_size
        if self._files > _MOST_FILES or self._bytes > _MOST_BYTES:
            raise BadRelease(f"it unpacks to more than {_MOST_FILES} files or {_MOST_BYTES} bytes")
        if member.file_size > _SMALL_BYTES and member.file_size > member.compress_size * _MOST_RATIO:
            raise BadRelease(f"{member.filename[:80]!r} unpacks to over {_MOST_RATIO} times its size")


def _opened(source: Path | IO[bytes]) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(source)
    except (zipfile.BadZipFile, NotImplementedError, ValueError):
        raise BadRelease("it is no wheel and no zip archive") from None


def _extract(archive: zipfile.ZipFile, folder: Path, place: object) -> None:
    assert callable(place)  # noqa: S101  # one of ours
    budget = _Budget()
    for member in archive.infolist():
        if member.is_dir():
            continue
        path = _safe(member)
        where = place(path)
        if where is None:
            continue
        budget.take(member)
        target = folder / where
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            with archive.open(member) as source, target.open("wb") as file:
                left = member.file_size
                for block in _blocks(source):
                    left -= len(block)
                    if left < 0:
                        raise BadRelease(f"{member.filename[:80]!r} is larger than it says")
                    file.write(block)
        except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError) as problem:
            raise BadRelease(f"{member.filename[:80]!r} cannot be unpacked: {problem}") from None


def _blocks(source: IO[bytes]) -> Iterator[bytes]:
    while block := source.read(_BLOCK):
        yield block


def _safe(member: zipfile.ZipInfo) -> PurePosixPath:
    """The member's place; raises `BadRelease` for one outside the folder, and for anything but files."""
    path = PurePosixPath(member.filename)
    odd = path.is_absolute() or ".." in path.parts or "\\" in member.filename or not path.parts
    if odd or stat.S_ISLNK(member.external_attr >> 16):
        raise BadRelease(f"{member.filename[:80]!r} is no plain file inside its folder")
    return path


def _importable(path: PurePosixPath) -> PurePosixPath | None:
    """Where a wheel's file belongs for importing; None for scripts, headers and data (PEP 427)."""
    if not path.parts[0].endswith(".data"):
        return path
    if len(path.parts) > 2 and path.parts[1] in {"purelib", "platlib"}:
        return PurePosixPath(*path.parts[2:])
    return None
