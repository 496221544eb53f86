"""What was seen of stable model and candidate, added up; and what a policy makes of it."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from typing import Final, Literal

import numpy as np

from cloud_inference.accuracy import IOU, Bands, compare, f1_of, iou
from cloud_inference.rollout.plan import Policy, Rollout
from eyeline.values import Detections

# Beyond this many requests a difference in time is no accident.
_TIMED: Final = 20


@dataclass(slots=True)
class Seen:
    """Sums of one worker over one rollout: they add up over workers.

    hits, extra, missed: of the candidate's objects against the stable model's. shift: of scores, summed over
    `shifted` objects that both found. *_s: seconds, of requests that were answered.
    """

    rollout: str = ""
    compared: int = 0
    hits: int = 0
    extra: int = 0
    missed: int = 0
    shift: float = 0.0
    shifted: int = 0
    stable_requests: int = 0
    stable_s: float = 0.0
    candidate_requests: int = 0
    candidate_s: float = 0.0
    errors: int = 0
    # Why this worker cannot ask the candidate at all.
    broken: str = ""

    @property
    def agreement(self) -> float:
        """F1 of the candidate's objects against the stable model's; 1 before the first."""
        return f1_of(self.hits, self.extra, self.missed)

    @property
    def score_shift(self) -> float:
        """Mean difference of scores, candidate less stable."""
        return self.shift / self.shifted if self.shifted else 0.0

    @property
    def error_share(self) -> float:
        """Of the requests to the candidate."""
        asked = self.candidate_requests + self.errors
        return self.errors / asked if asked else 0.0

    @property
    def slower(self) -> float:
        """Mean time of the candidate over the stable model's; 1 while there are too few to tell."""
        if min(self.stable_requests, self.candidate_requests) < _TIMED or self.stable_s <= 0:
            return 1.0
        return (self.candidate_s / self.candidate_requests) / (self.stable_s / self.stable_requests)

    def add(self, stable: Detections, candidate: Detections, bands: Bands, other: Bands) -> None:
        """One frame that both have answered; `other` are the candidate's bands."""
        # Scores of two models need not mean the same: what each itself would answer is compared.
        answer = candidate.take(candidate.scores >= other.answer)
        count = compare(stable, answer, Bands(bands.must, bands.ignore, 0.0))
        self.compared += 1
        self.hits += count.true_positive
        self.extra += count.false_positive
        self.missed += count.missed
        overlap = iou(stable.boxes, candidate.boxes)
        if overlap.size:
            for row in np.flatnonzero(stable.scores >= bands.must):
                column = int(overlap[row].argmax())
                same = stable.class_names[row] == candidate.class_names[column]
                if same and overlap[row, column] > IOU:
                    self.shift += float(candidate.scores[column] - stable.scores[row])
                    self.shifted += 1

    def __add__(self, other: Seen) -> Seen:
        total = Seen(self.rollout)
        for name in _SUMS:
            setattr(total, name, getattr(self, name) + getattr(other, name))
        total.broken = self.broken or other.broken
        return total

    def to_json(self) -> bytes:
        """For the bucket."""
        return json.dumps(asdict(self)).encode()

    @classmethod
    def from_json(cls, text: bytes) -> Seen | None:
        """None for what is none, such as of a newer worker."""
        try:
            found = json.loads(text)
            return cls(**{it.name: found[it.name] for it in fields(cls) if it.name in found})
        except (ValueError, TypeError):
            return None


_SUMS: Final = [it.name for it in fields(Seen) if it.name not in {"rollout", "broken"}]


@dataclass(frozen=True, slots=True)
class Verdict:
    """What is to be done, and why."""

    what: Literal["promote", "rollback"]
    why: str


def judge(rollout: Rollout, seen: Seen, now_s: float) -> Verdict | None:
    """What the policy makes of it; None for going on."""
    policy = rollout.policy
    if policy is None or not rollout.running:
        return None
    if seen.broken:
        return Verdict("rollback", seen.broken)
    why = _breach(policy, seen)
    if why:
        return Verdict("rollback", why)
    held = seen.compared >= policy.least_compared and now_s - rollout.began_s >= policy.promote_after_s
    if policy.promote and held:
        return Verdict("promote", f"{figures(seen)} over {now_s - rollout.began_s:.0f} s")
    return None


def _breach(policy: Policy, seen: Seen) -> str:
    asked = seen.candidate_requests + seen.errors
    if asked >= policy.least_compared and seen.error_share > policy.most_errors:
        return f"{seen.error_share:.1%} of {asked} requests failed, at most {policy.most_errors:.1%} may"
    if seen.compared < policy.least_compared:
        return ""
    if seen.agreement < policy.least_agreement:
        return (
            f"agreement {seen.agreement:.3f} on {seen.compared} frames, at least {policy.least_agreement:g} "
            "is asked"
        )
    if abs(seen.score_shift) > policy.most_score_shift:
        return f"scores shift by {seen.score_shift:+.3f}, at most {policy.most_score_shift:g} may be"
    if seen.slower > policy.most_slower:
        return f"it takes {seen.slower:.1f} times as long, at most {policy.most_slower:g} may be"
    return ""


def figures(seen: Seen) -> str:
    """For a person, in one line."""
    return (
        f"agreement {seen.agreement:.3f} on {seen.compared} frames, scores shift {seen.score_shift:+.3f}, "
        f"{seen.slower:.2f} times as long, errors {seen.error_share:.1%}"
    )
