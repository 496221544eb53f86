"""How much work waits for a worker, by lane: what autoscaling and the dashboards go by."""

from __future__ import annotations

from collections import defaultdict
from typing import Final

from cloud_inference import metrics
from eyeline.v1 import frame_pb2

LANES: Final[dict[int, str]] = {
    frame_pb2.LANE_LIVE: "live",
    frame_pb2.LANE_BACKLOG: "backlog",
    frame_pb2.LANE_OVERTAKEN: "backlog",
}
# Weight of the newest message in the share of each lane.
_NEWEST: Final = 0.05

_lags: defaultdict[tuple[str, str], dict[int, float]] = defaultdict(dict)


class CameraLoad:
    """One camera's part of its worker's gauges, until `close`."""

    def __init__(self, tenant: str) -> None:
        self._tenant = tenant
        self._behind = 0
        self._share = dict.fromkeys(LANES.values(), 0.0)
        self._waiting = dict.fromkeys(LANES.values(), 0.0)

    def took(self, lane: int, waiting: int, *, put_off: bool = False) -> None:
        """A message was taken, and so many wait behind it, shared out by the lanes of the latest ones."""
        name = LANES.get(lane, "live")
        metrics.TAKEN.labels(self._tenant, name).inc(not put_off)
        first = not any(self._share.values())
        for other, share in self._share.items():
            part = float(other == name)
            self._share[other] = part if first else share + _NEWEST * (part - share)
            self._set(other, waiting * self._share[other] + self._behind * (other == "backlog"))

    def live_part(self, messages: int) -> float:
        """How many of so many messages are live, by the latest ones."""
        return messages * self._share[LANES[frame_pb2.LANE_LIVE]]

    def caught_up(self, behind: int, *, taken: int = 1) -> None:
        """A message that was put off is taken now, and so many more wait."""
        metrics.TAKEN.labels(self._tenant, "backlog").inc(taken)
        self._behind = behind
        self._set("backlog", behind)

    def picture(self, lane: int) -> None:
        """A picture goes to the inference server."""
        metrics.PICTURES.labels(self._tenant, LANES.get(lane, "live")).inc()

    def lagging(self, lane: int, lag_s: float) -> None:
        """The oldest frame of a lane in work has waited for so long since the hub stored it; 0 for none."""
        name = LANES.get(lane, "live")
        _lags[self._tenant, name][id(self)] = max(0.0, lag_s)
        self._tell(name)

    def close(self) -> None:
        """Nothing of this camera waits for us any more."""
        for name in LANES.values():
            self._set(name, 0.0)
            _lags[self._tenant, name].pop(id(self), None)
            self._tell(name)

    def _set(self, lane: str, waiting: float) -> None:
        metrics.WAITING.labels(self._tenant, lane).inc(waiting - self._waiting[lane])
        self._waiting[lane] = waiting

    def _tell(self, lane: str) -> None:
        metrics.LAG.labels(self._tenant, lane).set(max(_lags[self._tenant, lane].values(), default=0.0))
