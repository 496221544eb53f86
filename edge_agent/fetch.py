"""An artefact from the hub's object store, chunk by chunk: a broken link goes on where it stopped."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Final

from edge_agent.link import Session
from eyeline.errors import BadRelease
from eyeline.subjects import ARTEFACTS

_TIMEOUT_S: Final = 30.0


async def fetch(
    session: Session,
    object_id: str,
    into: Path,
    *,
    size: int,
    sha256: str,
    progress: Callable[[int], None] = lambda _done: None,
) -> None:
    """Bring the object into the file `into`; what is there already is not asked for again.

    Raises `BusError` when the link broke (call again), and `BadRelease` when what came is not what the
    manifest says; then nothing of it is kept.
    """
    note = into.with_name(f"{into.name}.note")
    subject = f"$O.{ARTEFACTS}.C.{object_id}"
    sequence, done = _resume(into, note, object_id)
    with into.open("r+b" if into.exists() else "w+b") as file:
        file.truncate(done)
        file.seek(done)
        while done < size:
            progress(done)
            body = json.dumps({"seq": sequence + 1, "next_by_subj": subject}).encode()
            answer = await session.request(f"$JS.API.DIRECT.GET.OBJ_{ARTEFACTS}", body, timeout_s=_TIMEOUT_S)
            headers = answer.headers or {}
            if "Nats-Sequence" not in headers:
                _forget(into, note)
                raise BadRelease(f"the hub has {done} of its {size} bytes: release it again")
            sequence, done = int(headers["Nats-Sequence"]), done + len(answer.data)
            if done > size or not answer.data:
                _forget(into, note)
                raise BadRelease(f"more than its {size} bytes came")
            file.write(answer.data)
            file.flush()
            note.write_text(json.dumps({"object": object_id, "sequence": sequence, "bytes": done}))
        progress(done)
    if digest_of(into) != sha256:
        _forget(into, note)
        raise BadRelease("its digest is not the one that was signed")
    note.unlink(missing_ok=True)


def digest_of(path: Path) -> str:
    """SHA-256, lower-case hexadecimal; raises OSError."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _resume(into: Path, note: Path, object_id: str) -> tuple[int, int]:
    """Stream sequence and byte count to go on from."""
    try:
        stored = json.loads(note.read_bytes())
        if stored["object"] == object_id and into.stat().st_size >= stored["bytes"]:
            return int(stored["sequence"]), int(stored["bytes"])
    except (OSError, ValueError, KeyError, TypeError):
        pass
    return 0, 0


def _forget(into: Path, note: Path) -> None:
    into.unlink(missing_ok=True)
    note.unlink(missing_ok=True)
