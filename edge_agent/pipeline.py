"""One camera, one thread: capture, gate, plan, detect, encode, batch, and hand over to delivery.

Every frame that the source presented is answered by exactly one item of one envelope, whatever fails:
pixels, idle, skipped, or dropped with a reason. Frames are dropped before the encoder, never after it, and a
chain that lost a frame is not continued.
"""

from __future__ import annotations

import dataclasses
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from types import MappingProxyType
from typing import Any, Final

import cv2
import structlog

from edge_agent.batch import CameraIdentity, EnvelopeBuilder, Moment, Unit
from edge_agent.budget import DEVICE_BYTES_S
from edge_agent.config import AgentSettings
from edge_agent.encode import Encoder, fits, open_encoder
from edge_agent.frame import Frame
from edge_agent.frame_metrics import CHAINS, REDACTION_FAILED, Outcomes, Pace, StageClock
from edge_agent.frontier import Home, Step
from edge_agent.gate import Gate, GateDecision, GateReason
from edge_agent.handoff import Dropped
from edge_agent.local import LocalAnswers, LocalItem
from edge_agent.opinion import Look, Opinion, Verdict
from edge_agent.own import OwnPicture, own_format
from edge_agent.plan import Action, ChainReason, Decision, LinkState, Planner
from edge_agent.redact import RedactedPicture, Redactor
from edge_agent.redact_models import redactor as redactor_of
from edge_agent.sample import Sampler
from edge_agent.scene import SceneMean
from edge_agent.seams import Counts, EdgeDetector, Sink, Source
from edge_agent.stage_health import StageHealth
from eyeline.ladder import Rung
from eyeline.v1 import calibration_pb2, device_pb2
from eyeline.v1 import frame_pb2 as pb
from eyeline.values import Detections

_log = structlog.get_logger()

_READ_TIMEOUT_S: Final = 0.1
# While delivery takes nothing, items merge; from so many on, every frame becomes part of one dropped range.
_MOST_WAITING: Final = 500
# Redaction is tried again soon: until it works, the cloud is blind.
_REDACT_FIRST_RETRY_S: Final = 0.2
_REDACT_LONGEST_RETRY_S: Final = 5.0
_RANGE_KINDS: Final = {Action.IDLE: pb.RANGE_KIND_IDLE, Action.SKIP: pb.RANGE_KIND_SKIPPED}


class CameraPipeline:
    """Runs one camera. `run` and `step` belong to one thread; every other method may be called from any."""

    def __init__(
        self,
        settings: AgentSettings,
        identity: CameraIdentity,
        source: Source,
        sink: Sink,
        *,
        detector: EdgeDetector | None = None,
        redactor: Redactor | None = None,
        sampler: Sampler | None = None,
        link: Callable[[], LinkState] = LinkState,
        clock: Callable[[], pb.ClockEstimate | None] = lambda: None,
        now: Callable[[], Moment] = lambda: Moment(time.monotonic_ns(), time.time_ns()),
        traceparent: Callable[[], str] = lambda: "",
        encoders: Callable[[Rung, Any], Encoder] = open_encoder,
        local: Callable[[LocalItem], None] = lambda _item: None,
    ) -> None:
        self.camera = identity.camera
        self._source = source
        self._sink = sink
        self._detector = detector
        self._link = link
        self._clock = clock
        self._now = now
        self._traceparent = traceparent
        self._open_encoder = encoders
        self._gate = Gate(settings.gate)
        detect = (
            settings.detect if detector is not None else settings.detect.model_copy(update={"enabled": False})
        )
        sha256 = identity.edge_model.sha256 if detector is not None and identity.edge_model else ""
        epoch = identity.epoch.counter
        self._opinion = Opinion(detect, self.camera, epoch=epoch, model_sha256=sha256)
        self._local = LocalAnswers(detect, local, heartbeat_s=settings.heartbeat_s)
        self._planner = Planner(
            settings.encode_of(self.camera), detect, device_bytes_s=DEVICE_BYTES_S / len(settings.cameras)
        )
        self._sampler = sampler
        self._scene = SceneMean()
        self._builder = EnvelopeBuilder(
            identity, batch_ms=settings.encode.batch_ms, heartbeat_s=settings.heartbeat_s
        )
        self._leaving: deque[pb.FrameEnvelope] = deque()
        self._requests: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._encoder: Encoder | None = None
        self._rung: Rung | None = None
        # Of the last unit.
        self._format = pb.PictureFormat()
        self._own_refused = ""
        self._chain_id = 0
        self._chain_index = 0
        self._gate_health = StageHealth("gate", self.camera)
        self._detector_health = StageHealth("detector", self.camera)
        self._encoder_health = StageHealth("encoder", self.camera)
        # Without one given, the settings' own: no way around it.
        self._redactor = redactor if redactor is not None else redactor_of(settings, self.camera)
        self._redact_health = StageHealth(
            "redaction", self.camera, first_s=_REDACT_FIRST_RETRY_S, longest_s=_REDACT_LONGEST_RETRY_S
        )
        self._redact_cpu_ns = 0
        # The newest picture that was redacted: what is sent may be sampled as well.
        self._redacted: tuple[int, RedactedPicture | None] = (0, None)
        if self._redactor.active:
            REDACTION_FAILED.labels(self.camera).set(0)
        self._stages = StageClock()
        self._outcomes = Outcomes(self.camera)
        self._chains = 0
        self._next_sequence = 1
        self._size = (0, 0)
        self._pace = Pace()

    def desire(self, desired: device_pb2.DesiredCamera | None) -> None:
        """Follow what the cloud asks for, from the next frame on; None goes back to the settings."""
        self._requests.put(lambda: self._desire(desired))

    def withhold_pixels(self, reason: str) -> None:
        """Let no pixels leave until the next `desire`: what to hide is not known."""
        self._requests.put(lambda: self._redactor.withhold(reason))

    def _desire(self, desired: device_pb2.DesiredCamera | None) -> None:
        self._planner.desire(desired)
        masks = desired.masks if desired is not None else ()
        self._redactor.hide_also([tuple((point.x, point.y) for point in mask.points) for mask in masks])

    def demand_keyframe(self) -> None:
        """Start a new chain with the next frame: a decoder lost its state."""
        self._requests.put(self._planner.demand_keyframe)

    def settle(self, steps: Sequence[Step], home: Home | None) -> None:
        """Sit on a calibrated frontier from the next frame on; without a home, on what the settings say."""
        self._requests.put(lambda: self._planner.settle(steps, home))

    def lend(self, bytes_s: float) -> None:
        """Leave so many bytes a second of the budget to something else, from the next frame on."""
        self._requests.put(lambda: self._planner.lend(bytes_s))

    def ask_sample(self) -> None:
        """Take a calibration sample from the next motion on."""
        if self._sampler is not None:
            self._requests.put(self._sampler.ask)

    def fingerprint(self) -> calibration_pb2.SceneFingerprint | None:
        """What the camera looks at; None while too little was seen of it."""
        return self._scene.fingerprint()

    def heard(self, report: device_pb2.AnswerReport) -> None:
        """Learn from what the cloud says of earlier frames."""
        self._requests.put(lambda: self._opinion.heard(report, self._now().monotonic_ns))

    @property
    def masks(self) -> int:
        """How many masks are in force: the device's own, and those that the cloud wants."""
        return self._redactor.masks

    @property
    def audits(self) -> device_pb2.EdgeAudits:
        """How answers of the edge model that would have stood compare with the cloud's."""
        return self._opinion.audits

    @property
    def redaction_problem(self) -> str:
        """Why no pixels leave, in one line; empty while they do, or while nothing is to be hidden."""
        return self._redact_health.problem

    def counts(self) -> Counts:
        """What happened so far."""
        return Counts(
            captured=self._next_sequence - 1,
            sent=self._outcomes.frames["sent"],
            edge=self._outcomes.frames["edge"],
            idle=self._outcomes.frames["idle"],
            skipped=self._outcomes.frames["skipped"],
            dropped=MappingProxyType(dict(self._outcomes.dropped)),
            chains=self._chains,
            last_sequence=self._next_sequence - 1,
            rung=self._planner.rung.name,
            rung_reason=self._planner.reason,
            rung_standing=self._planner.standing,
            size=self._size,
            capture_fps=self._pace.fps,
            stage_cpu_ns=MappingProxyType(dict(self._stages.spent_ns)),
        )

    def run(self, stop: threading.Event, *, flush_timeout_s: float = 10.0) -> None:
        """Work until the source ended, or `stop` is set and its queue is empty; then hand over the rest."""
        # Each camera has its thread; OpenCV's own pool would only make them wait for each other.
        cv2.setNumThreads(1)
        while not self._source.ended and (self.step(_READ_TIMEOUT_S) or not stop.is_set()):
            pass
        self.close(flush_timeout_s)

    def step(self, timeout_s: float) -> bool:
        """Take one item of the source through all stages; false when none came in time."""
        while not self._requests.empty():
            self._requests.get()()
        item = self._source.read(timeout_s)
        if isinstance(item, Frame):
            if self._in_turn(item.sequence, Moment(item.monotonic_ns, item.wall_ns)):
                self._next_sequence = item.sequence + 1
                self._frame(item)
        elif item is not None:
            self._capture_dropped(item)
        self._hand_over(end=False)
        return item is not None

    def close(self, timeout_s: float = 10.0) -> None:
        """Hand over what is left, waiting for delivery at most so long; frees the encoder."""
        deadline = time.monotonic() + timeout_s
        self._hand_over(end=True)
        while self._leaving and time.monotonic() < deadline:
            time.sleep(0.01)
            self._hand_over(end=True)
        if self._leaving:
            _log.warning("envelopes_left", camera=self.camera, envelopes=len(self._leaving))
        self._close_encoder()
        if self._sampler is not None:
            self._sampler.close()

    def _frame(self, frame: Frame) -> None:
        self._size = frame.size
        self._pace.frame(frame.monotonic_ns)
        moment = Moment(frame.monotonic_ns, frame.wall_ns)
        with self._stages.stage("gate"):
            gate = self._look(frame)
        overloaded = bool(self._leaving) or not self._sink.ready()
        if overloaded and self._builder.waiting >= _MOST_WAITING:
            self._planner.broken()
            self._drop("overload", frame.sequence, moment)
            return
        with self._stages.stage("plan"):
            link = dataclasses.replace(self._link(), overloaded=overloaded)
            own = self._own(frame) if self._planner.wants_own else None
            decision = self._planner.decide(gate, frame.monotonic_ns, link, opened=frame.opened, own=own)
        look, verdict = self._ask_edge(frame, gate, decision, away=link.away)
        blocked = self.redaction_problem and "redaction_failed"
        self._local.frame(frame, gate.reason, look, away=link.away, reason=blocked)
        if decision.action is Action.SEND and look is not None and verdict is Verdict.ANSWER:
            with self._stages.stage("batch"):
                self._builder.add_edge(gate.reason, (frame.sequence, moment), look.detections)
                self._opinion.answered(look.detections, frame.monotonic_ns)
            self._outcomes.add("edge")
        elif decision.action is Action.SEND:
            carried = look.detections if look is not None and verdict is Verdict.CARRY else None
            self._send(frame, moment, gate, decision, carried)
        elif decision.action is Action.DROP:
            self._drop(decision.reason, frame.sequence, moment)
        else:
            with self._stages.stage("batch"):
                kind = _RANGE_KINDS[decision.action]
                self._builder.add_range(kind, gate.reason, (frame.sequence, moment))
            self._outcomes.add("idle" if decision.action is Action.IDLE else "skipped")
        if self._sampler is not None and not overloaded and not frame.behind:
            self._sample(self._sampler, frame, gate)

    def _sample(self, sampler: Sampler, frame: Frame, gate: GateDecision) -> None:
        """Take the frame into the calibration sample, where it is wanted there."""
        if not sampler.wants(frame, moving=gate.open):
            return
        sequence, picture = self._redacted
        if sequence != frame.sequence:
            picture = self._redact(frame)
        if picture is not None:
            with self._stages.stage("encode"):
                sampler.take(frame, picture)

    def _look(self, frame: Frame) -> GateDecision:
        try:
            if frame.opened:
                self._gate.reset()
                self._scene.reset()
            luma = self._redactor.gate_luma(frame)
            self._scene.look(luma, frame.monotonic_ns)
            decision = self._gate.look(luma, frame.monotonic_ns)
        except Exception as problem:  # noqa: BLE001  # a camera's odd picture must stop no other camera
            self._gate_health.failed(problem, frame.monotonic_ns)
            self._gate.reset()
            return GateDecision(open=True, reason=GateReason.OFF)
        self._gate_health.worked()
        return decision

    def _ask_edge(
        self, frame: Frame, gate: GateDecision, decision: Decision, *, away: bool
    ) -> tuple[Look | None, Verdict]:
        """What the edge model saw, if it looked, and what comes of it for a frame that is to be sent."""
        now_ns, blocked = frame.monotonic_ns, bool(self.redaction_problem)
        # The camera's own pictures depend on each other; one frame that waits is no falling behind yet.
        free = decision.look and not decision.rung.is_own and frame.behind < 2
        wanted = decision.action is Action.SEND and free and self._opinion.wants(now_ns)
        if not wanted and (blocked or not self._local.wants(now_ns, away=away, gate_open=gate.open)):
            return None, Verdict.PIXELS
        look = self._detect(frame)
        if look is None or not wanted:
            return look, Verdict.PIXELS
        must_send = (
            decision.chain not in {None, ChainReason.STILL}
            or gate.reason in {GateReason.FIRST, GateReason.REFRESH}
            or blocked
        )
        return look, self._opinion.judge(look, frame.sequence, now_ns, must_send=must_send)

    def _send(
        self,
        frame: Frame,
        moment: Moment,
        gate: GateDecision,
        decision: Decision,
        edge: Detections | None,
    ) -> None:
        if not self._encoder_health.due(frame.monotonic_ns):
            self._planner.broken()
            self._drop("encoder_failed", frame.sequence, moment)
            return
        picture = self._redact(frame)
        if picture is None:
            self._planner.broken()
            self._drop("redaction_failed", frame.sequence, moment)
            return
        with self._stages.stage("encode"):
            if decision.rung.is_own:
                data, started = self._pass_on(frame, decision)
            else:
                data, started = self._encode(frame, picture, decision)
        if not data:
            self._planner.broken()
            self._drop("encoder_failed", frame.sequence, moment)
            return
        if self._builder.too_large(data):
            self._planner.broken()
            self._drop("frame_too_large", frame.sequence, moment)
            return
        if started is not None:
            self._chains += 1
            CHAINS.labels(self.camera, started.value).inc()
        unit = Unit(
            frame.sequence,
            moment,
            self._chain_id,
            self._chain_index,
            gate.reason,
            data,
            edge,
            decision.reference_only,
        )
        with self._stages.stage("batch"):
            self._builder.add_unit(unit, self._format, decision.rung.name)
        key = self._chain_index == 0
        self._planner.sent(len(data), frame.monotonic_ns, keyframe=key)
        self._opinion.sent(len(data), frame.monotonic_ns, keyframe=key, carried=edge)
        self._outcomes.add("sent")

    def _redact(self, frame: Frame) -> RedactedPicture | None:
        """The picture as it may leave; None when it may not."""
        if not self._redact_health.due(frame.monotonic_ns):
            return None
        with self._stages.stage("redact"):
            try:
                picture = self._redactor.apply(frame)
            except Exception as problem:  # noqa: BLE001  # whatever it is, no pixels leave
                self._redact_health.failed(problem, frame.monotonic_ns)
                REDACTION_FAILED.labels(self.camera).set(1)
                picture = None
        cpu_ns = self._redactor.model_cpu_ns
        self._stages.add("redact", cpu_ns - self._redact_cpu_ns)
        self._redact_cpu_ns = cpu_ns
        self._redacted = frame.sequence, picture
        if picture is not None and self._redact_health.worked():
            REDACTION_FAILED.labels(self.camera).set(0)
        return picture

    def _encode(
        self, frame: Frame, picture: RedactedPicture, decision: Decision
    ) -> tuple[bytes, ChainReason | None]:
        """The access unit, and why it starts a chain if it does; empty when the encoder failed."""
        chain = decision.chain
        try:
            encoder = self._encoder
            same = self._rung is not None and self._rung.same_stream(decision.rung)
            if encoder is None or not same or not fits(encoder, frame.picture):
                self._close_encoder()
                encoder = self._open_encoder(decision.rung, frame.picture)
                self._encoder, self._rung = encoder, decision.rung
                chain = chain or ChainReason.LOST
            data = encoder.encode(picture, keyframe=chain is not None)
        except Exception as problem:  # noqa: BLE001  # codecs raise much; it must stop no other camera
            self._encoder_health.failed(problem, frame.monotonic_ns)
            self._close_encoder()
            return b"", None
        self._encoder_health.worked()
        self._format = encoder.picture_format
        self._continue(chain)
        return data, chain

    def _pass_on(self, frame: Frame, decision: Decision) -> tuple[bytes, ChainReason | None]:
        """The camera's own access unit, and why it starts a chain if it does."""
        own = frame.own
        assert isinstance(own, OwnPicture)  # noqa: S101  # the plan was offered it
        data = self._redactor.pass_coded(own.data)
        self._format = own_format(own, frame.picture)
        self._continue(decision.chain)
        return data, decision.chain

    def _continue(self, chain: ChainReason | None) -> None:
        if chain is None:
            self._chain_index += 1
        else:
            self._chain_id += 1
            self._chain_index = 0

    def _own(self, frame: Frame) -> OwnPicture | None:
        """The camera's own picture, if it may leave; says once a change why none does."""
        own = "what the camera shows is redacted" if self._redactor.active else frame.own
        refused = own if isinstance(own, str) else ""
        if refused and refused != self._own_refused:
            _log.warning("passthrough_refused", camera=self.camera, reason=refused, effect="transcoded")
        self._own_refused = refused
        return own if isinstance(own, OwnPicture) else None

    def _detect(self, frame: Frame) -> Look | None:
        """What the edge model sees; None when it fails, since the pixels go to the cloud all the same."""
        if self._detector is None or not self._detector_health.due(frame.monotonic_ns):
            return None
        with self._stages.stage("detect"):
            try:
                found = self._detector.look(frame)
            except Exception as problem:  # noqa: BLE001  # a model runtime's failure must stop no camera
                self._detector_health.failed(problem, frame.monotonic_ns)
                return None
        self._detector_health.worked()
        return Look(
            self._redactor.visible(found.detections, frame.size),
            self._redactor.visible(found.doubtful, frame.size),
        )

    def _capture_dropped(self, item: Dropped) -> None:
        first = (item.first, Moment(item.first_capture.monotonic_ns, item.first_capture.wall_ns))
        last = (item.last, Moment(item.last_capture.monotonic_ns, item.last_capture.wall_ns))
        if not self._in_turn(*first):
            return
        self._next_sequence = last[0] + 1
        self._planner.missed()
        self._local.dropped(first, last, item.reason)
        self._drop_range(item.reason, first, last)

    def _in_turn(self, sequence: int, moment: Moment) -> bool:
        """Whether the source goes on where it was; answers what it left out, and refuses what it repeats."""
        if sequence < self._next_sequence:
            _log.error("frame_repeated", camera=self.camera, sequence=sequence, expected=self._next_sequence)
            return False
        if sequence > self._next_sequence:
            _log.error("frames_missing", camera=self.camera, sequence=sequence, expected=self._next_sequence)
            gap = (self._next_sequence, moment), (sequence - 1, moment)
            self._local.dropped(*gap, "capture_gap")
            self._drop_range("capture_gap", *gap)
            self._planner.missed()
        return True

    def _drop(self, reason: str, sequence: int, moment: Moment) -> None:
        self._drop_range(reason, (sequence, moment), (sequence, moment))

    def _drop_range(self, reason: str, first: tuple[int, Moment], last: tuple[int, Moment]) -> None:
        frames = last[0] - first[0] + 1
        with self._stages.stage("batch"):
            self._builder.add_range(pb.RANGE_KIND_DROPPED, GateReason.OFF, first, last, reason=reason)
        if self._outcomes.drop(reason, frames):
            _log.warning("frames_dropped", camera=self.camera, reason=reason, sequence=first[0])

    def _hand_over(self, *, end: bool) -> None:
        with self._stages.stage("publish"):
            while True:
                if not self._leaving:
                    self._leaving.extend(
                        self._builder.take(self._now(), self._clock(), self._traceparent(), end=end)
                    )
                if not self._leaving or not self._sink.ready():
                    return
                self._sink.offer(self._leaving.popleft())

    def _close_encoder(self) -> None:
        if self._encoder is not None:
            self._encoder.close()
        self._encoder = self._rung = None
