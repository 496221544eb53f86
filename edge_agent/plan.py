"""The plan: what happens to each frame, as plain decisions; no pixels, no I/O, no clock of its own."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Final

from edge_agent.budget import STEP_CRF, ByteBudget
from edge_agent.coarser import Coarser
from edge_agent.config import DetectSettings, EncodeSettings
from edge_agent.frontier import Home, Position, Step
from edge_agent.gate import GateDecision, GateReason
from edge_agent.own import OwnPicture
from eyeline.ladder import Effort, Rung, affordable_effort
from eyeline.v1 import device_pb2

# After a pause of 1 to 60 s, an intra-coded picture costs 14 to 20 times the inter-coded one that continues
# the chain on a street, and 3 to 15 times at a doorway (416 px, CRF 28): idle time alone is worth no
# keyframe. A chain idle for so long is ended all the same: the hub keeps the log of every open chain.
NEW_CHAIN_AFTER_IDLE_S: Final = 300.0

# Finer rungs within an ample byte budget also have so many times the frames.
_RISEN_FPS: Final = 1.36

# Between these fills of the spool the frame rate falls, down to this share of the rung's.
_EASE_FROM: Final = 0.5
_FULL: Final = 0.95
_LOWEST_SHARE: Final = 0.1
# And between these ages of the oldest live message, in seconds, down to this share.
_WAIT_FROM_S: Final = 0.7
_WAIT_FULL_S: Final = 3.0
_AGED_SHARE: Final = 0.4


@dataclass(frozen=True, slots=True)
class LinkState:
    """What delivery says about itself.

    backlog_s: age of the oldest message that the hub does not have; fill: of the spool, 0 to 1; breaks:
    counts up whenever the live lane stops being consecutive (messages moved to the backlog lane, or purged);
    overloaded: delivery takes no further message for now. cloud_share: share of the frame rate that the
    cloud keeps up with, as far as it says. live_wait_s: age of the oldest live message that the hub does not
    have, while there is a link. away: nobody out there answers frames. beside_bytes: of what the link carries
    in ten seconds beside pictures, this camera's share; late_waits: late messages wait to be sent over it.
    """

    connected: bool = True
    backlog_s: float = 0.0
    fill: float = 0.0
    breaks: int = 0
    overloaded: bool = False
    cloud_share: float = 1.0
    live_wait_s: float = 0.0
    away: bool = False
    beside_bytes: float = 0.0
    late_waits: bool = False


class Action(Enum):
    """What happens to a frame."""

    SEND = "send"
    SKIP = "skip"
    IDLE = "idle"
    DROP = "drop"


class ChainReason(Enum):
    """Why a chain starts."""

    FIRST = "first"
    STILL = "still"
    REOPENED = "reopened"
    IDLE = "idle"
    RECONNECT = "reconnect"
    LANE = "lane"
    RUNG = "rung"
    DEMAND = "demand"
    FRAMES = "frames"
    AGE = "age"
    LOST = "lost"
    CAMERA = "camera"


@dataclass(frozen=True, slots=True)
class Decision:
    """What happens to one frame.

    reason: of DROP, a snake_case word for the wire. look: the edge model may look at it. chain: of SEND, why
    a new chain starts with this frame, or None to continue. reference_only: of SEND, whether the frame goes
    along for those that depend on it, and is answered as if it had been skipped.
    """

    action: Action
    rung: Rung
    reason: str = ""
    look: bool = False
    chain: ChainReason | None = None
    reference_only: bool = False


class Pace:
    """Picks frames evenly, at most `max_fps` of them a second: a phase accumulator.

    Each frame adds its share of the wanted interval; the frame nearest to a whole number is picked, and the
    rest is carried over. So 25 fps at most 10 picks every 2nd and 3rd in turn, and a jittering 10 fps
    camera at most 10 loses none.
    """

    def __init__(self) -> None:
        self._phase = 1.0
        self._last_ns: int | None = None
        self._interval_s = 0.0

    def pick(self, now_ns: int, max_fps: float, *, force: bool = False) -> bool:
        """Whether this frame is picked; `force` picks it whatever its phase."""
        step_s = 0.0 if self._last_ns is None else max((now_ns - self._last_ns) / 1e9, 0.0)
        self._last_ns = now_ns
        # The camera's own interval, smoothed; a pause is no interval.
        if self._interval_s == 0.0:
            self._interval_s = step_s
        elif step_s < 3 * self._interval_s:
            self._interval_s += 0.1 * (step_s - self._interval_s)
        else:
            self._interval_s *= 1.1
        self._phase = min(self._phase + step_s * max_fps, 1.0 + min(self._interval_s * max_fps, 1.0) / 2)
        if not force and self._phase < 1.0 - min(self._interval_s * max_fps, 1.0) / 2:
            return False
        self._phase = max(self._phase - 1.0, -1.0)
        return True


class Planner:
    """Plans one camera's frames in order. Not thread-safe."""

    def __init__(
        self, encode: EncodeSettings, detect: DetectSettings, *, device_bytes_s: float = 0.0
    ) -> None:
        """device_bytes_s: this camera's share of what its device sends beside frames."""
        self._encode = encode
        self._detect = detect
        self._rung = rung_of(encode).transcoded
        self._paused = False
        self._link = LinkState()
        self._pace = Pace()
        self._look_pace = Pace()
        self._pending: ChainReason | None = ChainReason.FIRST
        self._demanded = False
        self._gate_was_open = False
        # Motion that no sent frame shows yet: "nothing changed" would be a lie.
        self._unseen_motion = True
        self._chain_frames = 0
        self._chain_ns = 0
        self._sent_ns = 0
        # Of the camera's own pictures, the last one sent; None when the last one sent was coded here.
        self._own_index: int | None = None
        self._wanted = rung_of(encode)
        # Whether the cloud asks for another rung than the settings' own.
        self._overridden = False
        self._position: Position | None = None
        self._coarser = Coarser()
        self._budget = (
            ByteBudget(encode.budget_kbit_s, encode.batch_ms / 1e3, encode.max_fps, device_bytes_s)
            if encode.budget_kbit_s is not None
            else None
        )
        if self._budget is not None:
            self._budget.start(self._rung.crf, self._rung.width_px)
            self._follow_rung()

    @property
    def rung(self) -> Rung:
        """The rung in force."""
        return self._wanted if self._own_index is not None else self._rung

    @property
    def wants_own(self) -> bool:
        """Whether the camera's own packets are to be passed on, wherever they can."""
        return self._wanted.is_own

    def desire(self, desired: device_pb2.DesiredCamera | None) -> None:
        """Put what the cloud asks for over the settings; None goes back to them."""
        self._wanted = rung_of(self._encode, desired)
        self._overridden = self._wanted != rung_of(self._encode)
        self._follow_rung()
        paused = desired is not None and desired.paused
        if self._paused and not paused:
            self._start_chain(ChainReason.LOST)
        self._paused = paused

    def settle(self, steps: Sequence[Step], home: Home | None) -> None:
        """Sit on a frontier that calibration found; without a home, on what the settings say."""
        self._position = Position(steps, home) if home is not None else None
        self._follow_rung()

    def lend(self, bytes_s: float) -> None:
        """Leave so many bytes a second of the budget to something else."""
        if self._budget is not None:
            self._budget.lent_bytes_s = bytes_s

    @property
    def reason(self) -> str:
        """Why this rung, in one line."""
        if self._overridden:
            return "as the cloud asks"
        position = self._calibrated
        if position is None:
            said = "as the settings say"
            if self._coarser.steps:
                said = f"{self._coarser.steps} coarser for the link; {said}"
        else:
            said = position.home.reason
            if position.index < position.home.index:
                said = f"{position.home.index - position.index} below home for the link or the cloud; {said}"
        if self._budget is not None and self._budget.steps:
            steps = self._budget.steps
            why = f"{steps} down for the byte budget" if steps > 0 else f"{-steps} up within the byte budget"
            said = f"{why}; {said}"
        return said

    @property
    def standing(self) -> tuple[float, int]:
        """Accuracy that calibration measured of the rung in force (0 without), and rungs below home."""
        position = self._calibrated
        if position is None:
            return 0.0, 0
        down = self._budget.steps if self._budget is not None else 0
        index = max(0, position.index - down)
        return position.steps[index].f1, max(0, position.home.index - index)

    @property
    def _calibrated(self) -> Position | None:
        """The place on the frontier, where it decides."""
        return None if self._overridden or self._wanted.is_own else self._position

    def demand_keyframe(self) -> None:
        """Start a new chain with the next frame, idle or not: a decoder lost its state."""
        self._demanded = True
        self._start_chain(ChainReason.DEMAND)

    def sent(self, data_bytes: int, now_ns: int, *, keyframe: bool) -> None:
        """The last SEND made an access unit of so many bytes."""
        if self._budget is None:
            return
        self._budget.spend(data_bytes, now_ns, keyframe=keyframe)
        if self._budget.step(now_ns):
            self._follow_rung()

    def missed(self) -> None:
        """Frames were lost before they could be looked at: what they showed is unknown."""
        self._unseen_motion = True

    def broken(self) -> None:
        """The last SEND did not leave as planned: its chain cannot go on."""
        self._unseen_motion = True
        self._start_chain(ChainReason.LOST)

    def decide(
        self,
        gate: GateDecision,
        now_ns: int,
        link: LinkState,
        *,
        opened: bool = False,
        own: OwnPicture | None = None,
    ) -> Decision:
        """Plan one frame captured at now_ns (monotonic).

        opened: the first after the source was reopened; own: the camera's own coded picture, if it may leave.
        """
        self._follow_link(link)
        if own is not None and self._budget is not None:
            self._budget.saw(len(own.data), now_ns)
        if opened:
            self._start_chain(ChainReason.REOPENED)
        if self._paused:
            self._unseen_motion = True
            return Decision(Action.DROP, self._rung, "paused")
        moving = gate.reason not in {GateReason.HOLD, GateReason.IDLE}
        must = (
            self._demanded
            or gate.reason in {GateReason.FIRST, GateReason.REFRESH}
            or (gate.open and not self._gate_was_open)
            or (not gate.open and self._unseen_motion)
        )
        self._gate_was_open = gate.open
        self._unseen_motion = self._unseen_motion or moving
        if not gate.open and not must:
            return Decision(Action.IDLE, self._rung)
        bytes_share = min(_share(link.fill), _age_share(link.live_wait_s))
        share = min(bytes_share, link.cloud_share)
        passes = self._passes(own, now_ns) if share >= 1 else None
        if passes is None:
            share = self._along(now_ns, bytes_share, link.cloud_share)
        if self._budget is not None and passes is None:
            share *= self._budget.share(now_ns)
            if not self._budget.fits(now_ns, keyframe=(self._pending or self._limit(now_ns)) is not None):
                # What must be shown stays to be shown: as soon as there is room.
                self._unseen_motion = True
                return Decision(Action.SKIP, self._rung)
        must = must or (passes is not None and passes.keyframe)
        rate = self._rung.max_fps
        if gate.camera_moves:
            rate = max(rate, self._encode.moving_fps)
        picked = self._pace.pick(now_ns, rate * share, force=must)
        if not picked and passes is None:
            return Decision(Action.SKIP, self._rung)
        if link.fill >= _FULL or link.overloaded:
            self._start_chain(ChainReason.LOST)
            self._unseen_motion = True
            return Decision(Action.DROP, self._rung, "spool_full" if link.fill >= _FULL else "overload")
        return self._send(now_ns, passes, seen=picked)

    def _along(self, now_ns: int, bytes_share: float, rate_share: float) -> float:
        """Move along the frontier under pressure; the share of the frame rate that is left after that."""
        position = self._calibrated
        if position is None:
            if self._coarser.follow(now_ns, bytes_share):
                self._follow_rung()
            return min(bytes_share, rate_share)
        if position.follow(now_ns, bytes_share=bytes_share, rate_share=rate_share):
            self._follow_rung()
        return position.residual(bytes_share, rate_share)

    def _passes(self, own: OwnPicture | None, now_ns: int) -> OwnPicture | None:
        """The camera's own picture, if it is wanted and can be decoded with what was sent before it."""
        if own is None or not self._wanted.is_own:
            return None
        if self._budget is not None and not self._budget.takes(len(own.data), now_ns, keyframe=own.keyframe):
            return None
        goes_on = own.index - 1 == self._own_index and self._pending is None and self._limit(now_ns) is None
        return own if own.keyframe or goes_on else None

    def _send(self, now_ns: int, own: OwnPicture | None, *, seen: bool) -> Decision:
        chain = self._pending or self._limit(now_ns)
        if own is not None:
            chain = chain or (ChainReason.CAMERA if own.keyframe else None)
        elif self._rung.is_still:
            chain = chain or ChainReason.STILL
        elif self._own_index is not None:
            chain = chain or ChainReason.RUNG
        self._own_index = own.index if own is not None else None
        if chain is not None:
            self._chain_frames, self._chain_ns = 0, now_ns
        self._chain_frames += 1
        self._sent_ns = now_ns
        self._pending, self._demanded = None, False
        self._unseen_motion = self._unseen_motion and not seen
        look = seen and self._detect.enabled and self._look_pace.pick(now_ns, self._detect.max_fps)
        return Decision(Action.SEND, self.rung, look=look, chain=chain, reference_only=not seen)

    def _limit(self, now_ns: int) -> ChainReason | None:
        if self._chain_frames >= self._encode.max_chain_frames:
            return ChainReason.FRAMES
        if now_ns - self._chain_ns >= self._encode.max_chain_s * 1e9:
            return ChainReason.AGE
        if now_ns - self._sent_ns >= NEW_CHAIN_AFTER_IDLE_S * 1e9:
            return ChainReason.IDLE
        return None

    def _follow_link(self, link: LinkState) -> None:
        if link.connected and not self._link.connected:
            self._start_chain(ChainReason.RECONNECT)
        elif link.breaks != self._link.breaks:
            self._start_chain(ChainReason.LANE)
        self._link = link
        if self._budget is not None:
            self._budget.late = link.late_waits
            self._budget.beside_bytes = link.beside_bytes

    def _follow_rung(self) -> None:
        """Take up what is wanted, as far as the budget lets it."""
        rung = self._wanted.transcoded
        steps = self._budget.steps if self._budget is not None else 0
        position = self._calibrated
        if position is not None:
            steps = max(0, steps)
            rung = position.steps[max(0, position.index - steps)].rung
            steps = max(0, steps - position.index)
        elif self._coarser.steps > 0:
            steps = max(steps, self._coarser.steps)
        rung = dataclasses.replace(rung, crf=min(max(rung.crf + STEP_CRF * steps, 0), 51))
        if steps < 0:
            rung = dataclasses.replace(rung, max_fps=rung.max_fps * _RISEN_FPS)
        if self._budget is not None:
            self._budget.max_fps = rung.max_fps
            # What a calibration found, or the cloud asks for, is all that is wanted.
            self._budget.may_rise = position is None and not self._overridden
        if not rung.same_stream(self._rung):
            self._start_chain(ChainReason.RUNG)
        self._rung = rung

    def _start_chain(self, reason: ChainReason) -> None:
        self._pending = self._pending or reason


def rung_of(settings: EncodeSettings, desired: device_pb2.DesiredCamera | None = None) -> Rung:
    """The rung that the settings name, with what the cloud asks for put over them.

    Desired values outside the settings' own bounds are brought to the nearest bound.
    """
    rung = Rung(
        settings.codec,
        settings.width_px,
        settings.crf,
        settings.quality,
        settings.max_fps,
        _effort(settings),
    )
    if desired is None:
        return rung
    if desired.HasField("max_fps"):
        rung = dataclasses.replace(rung, max_fps=min(max(desired.max_fps, 0.01), 240.0))
    if desired.HasField("crf"):
        rung = dataclasses.replace(rung, crf=min(desired.crf, 51))
    if desired.HasField("width_px"):
        rung = dataclasses.replace(rung, width_px=min(max(desired.width_px, 64), 4096))
    return rung


def _effort(settings: EncodeSettings) -> Effort:
    """What the settings say; by default what costs no more CPU than coding every frame the quick way.

    Not of what the cloud asks for: another frame rate must not cost a keyframe.
    """
    if settings.effort != "auto":
        return settings.effort
    return affordable_effort(settings.max_fps, settings.width_px)


def _age_share(live_wait_s: float) -> float:
    """Share of the frame rate that a link still takes which lets live messages wait for so long."""
    eased = (live_wait_s - _WAIT_FROM_S) / (_WAIT_FULL_S - _WAIT_FROM_S)
    return 1.0 - (1.0 - _AGED_SHARE) * min(max(eased, 0.0), 1.0)


def _share(fill: float) -> float:
    """Share of the frame rate that a spool so full still takes."""
    eased = (fill - _EASE_FROM) / (_FULL - _EASE_FROM)
    return 1.0 - (1.0 - _LOWEST_SHARE) * min(max(eased, 0.0), 1.0)
