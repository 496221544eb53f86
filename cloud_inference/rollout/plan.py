"""A rollout as it stands in the tenant's bucket `MODELS`, under the key `rollout`: JSON, changed by revision.

Every worker of the tenant follows it, whatever its own settings name: `stable` answers, and `candidate`
answers for the canary's cameras or is asked beside (shadow).
"""

from __future__ import annotations

import hashlib
import json
import secrets
from typing import Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from eyeline.errors import ConfigError
from eyeline.subjects import check_pattern

KEY: Final = "rollout"
SEEN_PREFIX: Final = "seen."
DRIFT_PREFIX: Final = "drift."
_HISTORY: Final = 20

Mode = Literal["off", "canary", "shadow"]


class _Value(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class Policy(_Value):
    """When the system itself ends a rollout. Shares and ratios; agreement is F1 with the stable model's
    answers.

    Nothing is judged before `least_compared` frames were compared, or as many requests failed or not.
    promote: a candidate that held every bound for `promote_after_s` becomes the stable model.
    """

    least_compared: int = Field(default=200, ge=1)
    least_agreement: float = Field(default=0.8, ge=0, le=1)
    most_score_shift: float = Field(default=0.15, gt=0)
    most_errors: float = Field(default=0.02, ge=0, le=1)
    most_slower: float = Field(default=2.0, gt=0)
    promote: bool = False
    promote_after_s: float = Field(default=3600.0, ge=0)


class Event(_Value):
    """What was done, when (seconds since the Unix epoch), by whom and why."""

    at_s: float
    what: str
    by: str
    why: str = ""


class Rollout(_Value):
    """stable, candidate: models of the catalogue; a stable of None is what the workers' settings name.

    share: of the cameras that `cameras` (SITE/CAMERA patterns) name, for a canary; of their frames, for a
    shadow. A canary compares each `compare_every`-th frame of its cameras with the stable model.
    """

    id: str = ""
    stable: str | None = None
    # What was stable before the last promotion, for the way back.
    before: str | None = None
    candidate: str | None = None
    mode: Mode = "off"
    share: float = Field(default=0.1, ge=0, le=1)
    cameras: tuple[str, ...] = ("*/*",)
    compare_every: int = Field(default=4, ge=1)
    policy: Policy | None = Policy()
    began_s: float = 0.0
    history: tuple[Event, ...] = ()

    @property
    def running(self) -> bool:
        """Whether a candidate is asked at all."""
        return self.mode != "off" and self.candidate is not None

    def covers(self, site: str, camera: str) -> bool:
        """Whether the camera is one of those named."""
        return any((a in {"*", site}) and (b in {"*", camera}) for a, b in map(check_pattern, self.cameras))

    def is_canary(self, site: str, camera: str) -> bool:
        """Whether the candidate answers for it: the same for every worker, and kept when the share grows."""
        return self.mode == "canary" and self.covers(site, camera) and _place(site, camera) < self.share

    def begin(self, candidate: str, mode: Mode, *, by: str, at_s: float, **changes: Any) -> Rollout:
        """A new rollout of that candidate."""
        new = {
            "id": secrets.token_hex(6),
            "candidate": candidate,
            "mode": mode,
            "began_s": at_s,
            "history": self._told(Event(at_s=at_s, what=f"{mode} {candidate}", by=by)),
        }
        return Rollout.model_validate(self.model_dump() | changes | new)

    def promoted(self, *, by: str, at_s: float, why: str = "") -> Rollout:
        """The candidate is the stable model from now on."""
        event = Event(at_s=at_s, what=f"promote {self.candidate}", by=by, why=why)
        change = {"stable": self.candidate, "before": self.stable, "candidate": None, "mode": "off"}
        return self.model_copy(update=change | {"history": self._told(event)})

    def rolled_back(self, *, by: str, at_s: float, why: str = "") -> Rollout:
        """The stable model alone, from now on."""
        event = Event(at_s=at_s, what=f"rollback {self.candidate}", by=by, why=why)
        return self.model_copy(update={"candidate": None, "mode": "off", "history": self._told(event)})

    def _told(self, event: Event) -> tuple[Event, ...]:
        return (*self.history, event)[-_HISTORY:]

    def to_json(self) -> bytes:
        """For the bucket."""
        return self.model_dump_json().encode()

    @classmethod
    def from_json(cls, text: bytes) -> Rollout:
        """Raises `ConfigError` for what is none."""
        try:
            return cls.model_validate(json.loads(text))
        except (ValueError, ValidationError) as problem:
            raise ConfigError(f"bucket MODELS, key {KEY}: {str(problem).splitlines()[0]}") from None


def _place(site: str, camera: str) -> float:
    """A number from 0 to 1 that is the camera's own: not the rollout's, so that a canary's cameras stay
    the same.
    """
    digest = hashlib.blake2b(f"{site}/{camera}".encode(), digest_size=8).digest()
    return int.from_bytes(digest) / 2**64
