"""Which device may publish a camera: a claim in the hub, so that two agents never mix one camera's frames."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

import structlog

from edge_agent.link import Link, Refused, Session
from eyeline.errors import BusError
from eyeline.subjects import CLAIMS, camera_key

_log = structlog.get_logger()

REFRESH_S: Final = 10.0
STALE_S: Final = 60.0
# Without a refresh for so long we stop publishing, well before anybody else may take over.
_TRUST_S: Final = 45.0
_RETRY_S: Final = 1.0
_TIMEOUT_S: Final = 5.0
_WRONG_REVISION: Final = 10071


@dataclass(slots=True)
class _Claim:
    confirmed_s: float = -1e9
    held: bool = False
    ever_held: bool = False
    lost_for_good: bool = False
    problem: str = ""


class Claims:
    """Claims this device's cameras and keeps them claimed while `run` runs.

    random_id: of this run; hub_now_ns: wall clock of the hub, as far as known.
    """

    def __init__(
        self,
        hub: Link,
        *,
        site: str,
        device: str,
        random_id: bytes,
        cameras: Iterable[str],
        hub_now_ns: Callable[[], int],
        refresh_s: float = REFRESH_S,
        stale_s: float = STALE_S,
        changed: Callable[[], None] = lambda: None,
    ) -> None:
        self._hub, self._site, self._device = hub, site, device
        self._random_id = random_id.hex()
        self._hub_now_ns = hub_now_ns
        self._refresh_s, self._stale_s = refresh_s, stale_s
        self._trust_s = min(_TRUST_S, 0.75 * stale_s)
        self._changed = changed
        self._claims = {camera: _Claim() for camera in cameras}

    def may_publish(self, camera: str) -> bool:
        """Whether the hub confirmed our claim not long ago."""
        claim = self._claims.get(camera)
        if claim is None:
            # Left in the spool by an earlier configuration; claimed from now on.
            self._claims[camera] = _Claim()
            return False
        return claim.held and time.monotonic() - claim.confirmed_s < self._trust_s

    def problem(self, camera: str) -> str:
        """Why the camera may not be published, in one line; empty when it may or nobody knows yet."""
        claim = self._claims.get(camera)
        return claim.problem if claim is not None else ""

    async def run(self) -> None:
        """Claim and refresh, for ever."""
        while True:
            session = await self._hub.ready()
            wait_s = self._refresh_s
            for camera, claim in list(self._claims.items()):
                before = (claim.held, claim.problem)
                try:
                    await self._claim(session, camera, claim)
                except BusError as problem:
                    # No bucket yet, or no answer: the claim stands as long as it is trusted.
                    _log.debug("claim_unanswered", camera=camera, reason=str(problem))
                    wait_s = _RETRY_S
                if before != (claim.held, claim.problem):
                    self._changed()
            await self._sleep(session, wait_s)

    async def _sleep(self, session: Session, wait_s: float) -> None:
        """Wait, but claim anew as soon as the connection is a new one, or there is a new camera."""
        deadline = time.monotonic() + wait_s
        known = len(self._claims)
        while time.monotonic() < deadline and len(self._claims) == known:
            try:
                async with asyncio.timeout(min(0.5, wait_s)):
                    await session.closed.wait()
            except TimeoutError:
                continue
            return

    async def _claim(self, session: Session, camera: str, claim: _Claim) -> None:
        if claim.lost_for_good:
            return
        revision, holder, age_s = await self._read(session, camera)
        ours = holder.get("device") == self._device and holder.get("random_id") == self._random_id
        if revision and not ours:
            other = str(holder.get("device", ""))
            if other == self._device and claim.ever_held:
                claim.lost_for_good = True
                self._failed(claim, camera, f"another agent named {other} took this camera over")
                return
            if other not in {"", self._device} and age_s < self._stale_s:
                self._failed(
                    claim,
                    camera,
                    f"camera {camera} of site {self._site} is published by device {other}: "
                    "give one of the two another name",
                )
                return
        value = {
            "device": self._device,
            "random_id": self._random_id,
            "claimed_ns": self._hub_now_ns(),
        }
        headers = {"Nats-Expected-Last-Subject-Sequence": str(revision)}
        try:
            await session.store(
                self._subject(camera), json.dumps(value).encode(), headers=headers, timeout_s=_TIMEOUT_S
            )
        except Refused as problem:
            if problem.code == _WRONG_REVISION:
                # Somebody was faster: look at the claim again soon.
                claim.held = False
                raise BusError("the claim changed meanwhile") from None
            raise
        if not claim.held:
            _log.info("camera_claimed", camera=camera)
        claim.held = claim.ever_held = True
        claim.problem = ""
        claim.confirmed_s = time.monotonic()

    def _failed(self, claim: _Claim, camera: str, problem: str) -> None:
        if claim.problem != problem:
            _log.error("camera_claimed_elsewhere", camera=camera, reason=problem)
        claim.held, claim.problem = False, problem

    def _subject(self, camera: str) -> str:
        return f"$KV.{CLAIMS}.{camera_key(self._site, camera)}"

    async def _read(self, session: Session, camera: str) -> tuple[int, dict[str, Any], float]:
        """The claim's revision, value and age; revision 0 without one."""
        answer = await session.request(
            f"$JS.API.DIRECT.GET.KV_{CLAIMS}.{self._subject(camera)}", timeout_s=_TIMEOUT_S
        )
        headers = answer.headers or {}
        if headers.get("Status") == "404":
            return 0, {}, 0.0
        if "Nats-Sequence" not in headers:
            raise BusError(f"claims: {headers.get('Description', 'no answer')}")
        try:
            value = json.loads(answer.data)
        except ValueError:
            value = {}
        written = parse_time_ns(headers.get("Nats-Time-Stamp", ""))
        age_s = max(0.0, (self._hub_now_ns() - written) / 1e9) if written else 0.0
        return int(headers["Nats-Sequence"]), value if isinstance(value, dict) else {}, age_s


def parse_time_ns(text: str) -> int:
    """An RFC 3339 time with up to nine decimals as nanoseconds since the Unix epoch; 0 when it is none."""
    head, _, tail = text.rstrip("Z").partition(".")
    try:
        seconds = int(datetime.fromisoformat(head + "+00:00").timestamp())
        return seconds * 1_000_000_000 + int((tail + "000000000")[:9])
    except ValueError:
        return 0
