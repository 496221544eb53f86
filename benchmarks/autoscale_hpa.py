"""The horizontal autoscaler of Kubernetes, as its documentation describes it, on a clock that is given.

Source: kubernetes.io/docs, "Horizontal Pod Autoscaling": algorithm details, and configurable scaling
behaviour. What a controller does once in 15 s is one call of `Autoscaler.step`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

import yaml

SYNC_S: Final = 15.0
TOLERANCE: Final = 0.1

Kind = Literal["average", "value", "utilization"]
_QUANTITY: Final = {"m": 1e-3, "k": 1e3, "M": 1e6, "G": 1e9}


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric of an autoscaler.

    kind: `average`, a total that is shared out over the replicas; `value`, a figure that more replicas
    bring down; `utilization`, the mean over the pods that are ready, as a share of what they requested.
    """

    name: str
    kind: Kind
    target: float


@dataclass(frozen=True, slots=True)
class Policy:
    """At most `value` pods, or `value` per cent of them, within `period_s`."""

    kind: Literal["Pods", "Percent"]
    value: float
    period_s: float


@dataclass(frozen=True, slots=True)
class Direction:
    """`behavior.scaleUp` or `behavior.scaleDown`."""

    window_s: float
    policies: tuple[Policy, ...]


@dataclass(frozen=True, slots=True)
class Rules:
    """What an autoscaler is told."""

    least: int
    most: int
    metrics: tuple[Metric, ...]
    up: Direction
    down: Direction


def quantity(text: str | float) -> float:
    """A quantity as Kubernetes writes it: `200m` is 0.2."""
    if isinstance(text, str) and text[-1:] in _QUANTITY:
        return float(text[:-1]) * _QUANTITY[text[-1]]
    return float(text)


def read(path: Path) -> dict[str, Rules]:
    """The autoscalers of a manifest, by the name of what they scale."""
    found = {}
    for document in yaml.safe_load_all(path.read_text("utf-8")):
        spec = document["spec"]
        found[spec["scaleTargetRef"]["name"]] = Rules(
            spec["minReplicas"],
            spec["maxReplicas"],
            tuple(_metric(each) for each in spec["metrics"]),
            _direction(spec["behavior"]["scaleUp"]),
            _direction(spec["behavior"]["scaleDown"]),
        )
    return found


def _metric(spec: Mapping[str, Any]) -> Metric:
    if spec["type"] == "External":
        target = spec["external"]["target"]
        name = spec["external"]["metric"]["name"]
        if target["type"] == "AverageValue":
            return Metric(name, "average", quantity(target["averageValue"]))
        return Metric(name, "value", quantity(target["value"]))
    if spec["type"] == "ContainerResource":
        inner = spec["containerResource"]
        return Metric(inner["name"], "utilization", inner["target"]["averageUtilization"] / 100)
    raise ValueError(f"{spec['type']}: a metric of this type is not simulated")


def _direction(spec: Mapping[str, Any]) -> Direction:
    policies = tuple(Policy(each["type"], each["value"], each["periodSeconds"]) for each in spec["policies"])
    return Direction(spec["stabilizationWindowSeconds"], policies)


def wanted(metric: Metric, reading: float | None, replicas: int, ready: int) -> int | None:
    """Replicas that one metric asks for; None while it is missing.

    reading: the total for `average` and `value`; for `utilization` the mean over the pods that are ready.
    """
    if reading is None:
        return None
    if metric.kind == "average":
        share = reading / (metric.target * replicas)
        return replicas if abs(share - 1) <= TOLERANCE else math.ceil(reading / metric.target)
    share = reading / metric.target
    if abs(share - 1) <= TOLERANCE:
        return replicas
    if metric.kind == "utilization" and share > 1 and ready < replicas:
        # Pods that are not ready yet count as idle before anything is scaled out.
        share = reading * ready / replicas / metric.target
        if share <= 1 + TOLERANCE:
            return replicas
        return math.ceil(share * replicas)
    return math.ceil(share * ready)


@dataclass(slots=True)
class Autoscaler:
    """One autoscaler and what it remembers."""

    rules: Rules
    _asked: list[tuple[float, int]] = field(default_factory=list)
    _changes: list[tuple[float, int]] = field(default_factory=list)

    def step(self, now_s: float, readings: Mapping[str, float | None], replicas: int, ready: int) -> int:
        """Replicas from now on."""
        answers = [wanted(each, readings.get(each.name), replicas, ready) for each in self.rules.metrics]
        known = [each for each in answers if each is not None]
        ask = max(known, default=replicas)
        if len(known) < len(answers):
            # What is missing might have asked for more.
            ask = max(ask, replicas)
        ask = min(max(ask, self.rules.least), self.rules.most)
        asked = self._settle(now_s, ask, replicas)
        new = min(max(self._limit(now_s, asked, replicas), self.rules.least), self.rules.most)
        if new != replicas:
            self._changes.append((now_s, new - replicas))
        return new

    def _settle(self, now_s: float, ask: int, replicas: int) -> int:
        """Of what was asked for within the windows: the least on the way up, the most on the way down."""
        up, down = self.rules.up.window_s, self.rules.down.window_s
        self._asked = [each for each in self._asked if now_s - each[0] < max(up, down)]
        lowest = min([ask, *(count for at, count in self._asked if now_s - at < up)])
        highest = max([ask, *(count for at, count in self._asked if now_s - at < down)])
        self._asked.append((now_s, ask))
        return min(max(replicas, lowest), highest)

    def _limit(self, now_s: float, asked: int, replicas: int) -> int:
        """As far as the policies of that direction allow within their periods; the most generous counts."""
        self._changes = [each for each in self._changes if now_s - each[0] < 3600]
        if asked > replicas:
            return min(asked, max(self._reach(now_s, each, replicas, +1) for each in self.rules.up.policies))
        if asked < replicas:
            return max(
                asked, min(self._reach(now_s, each, replicas, -1) for each in self.rules.down.policies)
            )
        return replicas

    def _reach(self, now_s: float, policy: Policy, replicas: int, sign: int) -> int:
        before = replicas - self._changed(now_s - policy.period_s, sign)
        if policy.kind == "Pods":
            return before + sign * int(policy.value)
        factor = 1 + sign * policy.value / 100
        return math.ceil(before * factor) if sign > 0 else math.floor(before * factor)

    def _changed(self, since_s: float, sign: int) -> int:
        return sum(by for at, by in self._changes if at > since_s and by * sign > 0)


def replaced(rules: Rules, metrics: Sequence[Metric]) -> Rules:
    """The same limits and behaviour, by other metrics."""
    return Rules(rules.least, rules.most, tuple(metrics), rules.up, rules.down)
