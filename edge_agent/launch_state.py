"""What of the released things is in force, on trial, or failed: one small file, replaced in one step.

The launcher writes it only while no agent runs, the agent only while it runs. Only the standard library: the
launcher must work whatever was installed.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from edge_agent.durable import write_durable

FOLDER: Final = "updates"
# Set for an agent that the launcher runs.
LAUNCHED: Final = "EYELINE_LAUNCHED"
# Exit status of an agent that wants to be started again.
RESTART_STATUS: Final = 75
# An agent on trial may end so often before the trial is given up.
MOST_BOOTS: Final = 3


@dataclass(frozen=True, slots=True)
class Slot:
    """One released thing. path: below the folder, empty for what the device was installed with."""

    serial: int
    version: str = ""
    sha256: str = ""
    path: str = ""


@dataclass(slots=True)
class Trial:
    """What is tried. live: cameras that gave pictures before; deadline_s: time to become healthy."""

    kind: str
    slot: Slot
    live: list[str]
    deadline_s: float
    boots: int = 0


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a release is not in force. tries: how often it was tried; again: whether it will be."""

    serial: int
    version: str
    reason: str
    tries: int = 1
    again: bool = False


@dataclass(slots=True)
class UpdateState:
    """The file `updates/state.json` in the agent's state folder."""

    folder: Path
    current: dict[str, Slot] = field(default_factory=dict)
    trial: Trial | None = None
    failed: dict[str, Failure] = field(default_factory=dict)
    # The highest serial that was ever taken up, by kind.
    highest: dict[str, int] = field(default_factory=dict)

    @classmethod
    def load(cls, state_dir: Path) -> UpdateState:
        """As it stands; empty when there is none, or none that can be read."""
        folder = state_dir / FOLDER
        try:
            stored = json.loads((folder / "state.json").read_bytes())
            trial = stored["trial"]
            return cls(
                folder,
                {kind: Slot(**slot) for kind, slot in stored["current"].items()},
                Trial(**{**trial, "slot": Slot(**trial["slot"])}) if trial else None,
                {kind: Failure(**failure) for kind, failure in stored["failed"].items()},
                {kind: int(serial) for kind, serial in stored["highest"].items()},
            )
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return cls(folder)

    def save(self) -> None:
        """Write it, durably; raises OSError."""
        stored: dict[str, Any] = {
            "current": {kind: asdict(slot) for kind, slot in self.current.items()},
            "trial": asdict(self.trial) if self.trial is not None else None,
            "failed": {kind: asdict(failure) for kind, failure in self.failed.items()},
            "highest": self.highest,
        }
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        write_durable(self.folder / "state.json", json.dumps(stored, indent=1).encode())

    def in_force(self) -> dict[str, Slot]:
        """What an agent that starts now runs, by kind."""
        trial = {self.trial.kind: self.trial.slot} if self.trial is not None else {}
        return {**self.current, **trial}

    def path(self, kind: str) -> Path | None:
        """Where the thing in force lies; None for what the device was installed with."""
        slot = self.in_force().get(kind)
        return self.folder / slot.path if slot is not None and slot.path else None

    def begin(self, kind: str, slot: Slot, live: list[str], deadline_s: float) -> None:
        """Put something on trial, from the next start on."""
        self.trial = Trial(kind, slot, live, deadline_s)
        self.highest[kind] = max(slot.serial, self.highest.get(kind, 0))
        self.save()

    def confirm(self) -> None:
        """The trial went well."""
        assert self.trial is not None  # noqa: S101  # the caller saw it
        self.current[self.trial.kind] = self.trial.slot
        self.failed.pop(self.trial.kind, None)
        self.trial = None
        self.save()

    def roll_back(self, reason: str, *, again: bool = False) -> None:
        """End the trial: what was in force before is so again, from the next start on."""
        assert self.trial is not None  # noqa: S101  # the caller saw it
        kind, slot = self.trial.kind, self.trial.slot
        self.trial = None
        self._fail(kind, slot.serial, slot.version, reason, again=again)

    def refuse(self, kind: str, serial: int, version: str, reason: str) -> None:
        """Remember that a release is not taken, for good."""
        self.highest[kind] = max(serial, self.highest.get(kind, 0))
        self._fail(kind, serial, version, reason, again=False)

    def give_up(self) -> None:
        """Try nothing again that failed."""
        if any(failure.again for failure in self.failed.values()):
            self.failed = {kind: replace(failure, again=False) for kind, failure in self.failed.items()}
            self.save()

    def _fail(self, kind: str, serial: int, version: str, reason: str, *, again: bool) -> None:
        before = self.failed.get(kind)
        tries = before.tries + 1 if before is not None and before.serial == serial else 1
        self.failed[kind] = Failure(serial, version, reason[:300], tries, again and tries < MOST_BOOTS)
        self.save()
