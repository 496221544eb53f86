"""Eyeline's own operating points: the real edge path, its envelopes as bytes, and the real cloud path.

Nothing stands for anything: gate, plan, encoder and batching are the agent's, every envelope is serialized,
counted as it goes over the wire, parsed by the worker's intake, decoded by its chain decoder and answered by
its tracker and propagation. Only the transport is left out, and time is the clip's own.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from benchmarks.tradeoff import points
from benchmarks.tradeoff.clip import Model, Scene
from benchmarks.tradeoff.points import Kind, Point
from benchmarks.tradeoff.wire import control_bytes, envelope_bytes
from cloud_inference.agree import Reports
from cloud_inference.answer import Answers, Pending, Seen
from cloud_inference.answered import Answered
from cloud_inference.consume import Intake, Work
from cloud_inference.consume import Kind as WorkKind
from cloud_inference.decode import CannotDecode, ChainDecoder, to_source
from cloud_inference.feed import StreamMessage
from cloud_inference.track import Tracks
from edge_agent.batch import CameraIdentity, Moment
from edge_agent.config import AgentSettings
from edge_agent.detect import EdgeModel
from edge_agent.frame import Frame
from edge_agent.frame_metrics import STAGES
from edge_agent.pipeline import CameraPipeline
from eyeline.envelope import encode_envelope
from eyeline.subjects import frame_subject
from eyeline.v1 import detection_pb2, device_pb2, result_pb2
from eyeline.v1 import frame_pb2 as pb
from eyeline.values import Detections, Epoch

_TENANT, _SITE, _DEVICE, _CAMERA = "default", "default", "edge", "cam"
_EPOCH = Epoch(1, bytes(range(8)))
# Of the simulated clocks, when the first picture is captured: no value may be 0.
_START_NS = 10**12
_WALL_NS = 1_760_000_000 * 10**9
# A byte budget has to hold over any window of this.
_WINDOW_S = 10.0


@dataclass(frozen=True, slots=True)
class Operating:
    """An operating point: what of the agent's configuration differs from its defaults."""

    name: str
    kind: Kind = "eyeline-pixels"
    encode: dict[str, Any] = field(default_factory=dict)
    gate: dict[str, Any] = field(default_factory=dict)
    detect: dict[str, Any] = field(default_factory=dict)
    heartbeat_s: float = 5.0
    # How skipped frames are answered: smooth (when the next picture is) or causal (at once, foretold).
    mode: str = "smooth"


class _Source:
    def __init__(self) -> None:
        self.waiting: deque[Frame] = deque()
        self.ended = False

    def read(self, timeout_s: float) -> Frame | None:  # noqa: ARG002  # everything is here already
        return self.waiting.popleft() if self.waiting else None


class _Cloud:
    """The worker's path for one camera, answering into `answers` by frame."""

    def __init__(self, model: Model, mode: Any, tell: Callable[[device_pb2.AnswerReport], None]) -> None:
        self._model, self._tell = model, tell
        self._reports = Reports(model.card)
        ids = itertools.count(1)
        card = model.card
        self._intake = Intake(tenant=_TENANT, answered=Answered())
        self._decoder = ChainDecoder()
        self._answers = Answers(
            tracks=Tracks(),
            next_track_id=lambda: next(ids),
            model=detection_pb2.ModelRef(name=card.name, version=str(card.version), sha256=card.sha256),
            mode=mode,
        )
        self._messages = itertools.count(1)
        self._subject = frame_subject(_SITE, _DEVICE, _CAMERA)
        self.results: dict[int, tuple[Detections, str]] = {}
        self.delays_ms: list[float] = []
        self.sent: list[tuple[float, int]] = []
        self.feedback_bytes = 0

    def ready(self) -> bool:
        return True

    def offer(self, envelope: pb.FrameEnvelope) -> None:
        """Take a message of the edge, as bytes."""
        sequence = next(self._messages)
        now_s = envelope.published.monotonic_ns / 1e9
        self.sent.append((now_s, envelope_bytes(envelope, sequence)))
        message = StreamMessage(self._subject, encode_envelope(envelope), {}, sequence, 1, 0)
        for work in self._intake.accept(message):
            if work.kind is not WorkKind.PIXELS:
                self._answers.append(work, now_s)
            elif work.wanted:
                self._look(work, self._answers.append(work, now_s))
            else:
                self._decode(work)
        self.collect(now_s)

    def _look(self, work: Work, pending: Pending) -> None:
        picture = self._decode(work)
        if isinstance(picture, str):
            pending.outcome = picture
            return
        assert work.unit is not None  # PIXELS has one
        pending.outcome = Seen(self._found(work.unit, picture, work.source.envelope.format), 1, 2, 3)

    def _decode(self, work: Work) -> Any:
        """The picture, or why there is none."""
        assert work.unit is not None  # PIXELS has one
        try:
            return self._decoder.decode(work.unit, work.source.envelope.format)
        except CannotDecode as problem:
            return problem.reason

    def _found(self, unit: pb.AccessUnit, picture: Any, picture_format: pb.PictureFormat) -> Detections:
        """What the model sees, held against what the edge model saw where it looked."""
        if not unit.HasField("edge"):
            return to_source(self._model(picture), picture_format)
        found = to_source(self._model(picture, least=self._reports.least), picture_format)
        self._reports.compare(_DEVICE, _EPOCH.counter, unit, found)
        return found.take(found.scores >= self._model.card.thresholds[found.class_ids])

    def report(self, now_s: float) -> None:
        """Tell the device what became of its frames, and count what that costs."""
        for _, report in self._reports.due(now_s):
            size = control_bytes(_SITE, _DEVICE, device_pb2.ControlRequest(camera=_CAMERA, answers=report))
            self.sent.append((now_s, size))
            self.feedback_bytes += size
            self._tell(report)

    def peak_kbit_s(self) -> float:
        """Of the ten seconds that brought most."""
        windows = [
            sum(size for at, size in self.sent if start <= at < start + _WINDOW_S) for start, _ in self.sent
        ]
        return max(windows, default=0) / 125 / _WINDOW_S

    def collect(self, now_s: float) -> None:
        """Note what can be answered by then."""
        while (collected := self._answers.collect(now_s)).done:
            for result in collected.results:
                self._note(result, now_s)

    def _note(self, result: result_pb2.Result, now_s: float) -> None:
        if result.lane == pb.LANE_LIVE:
            self._reports.answered(_DEVICE, _EPOCH.counter, result.last_sequence)
        name = result_pb2.Provenance.Name(result.provenance).removeprefix("PROVENANCE_").lower()
        found = Detections.from_proto(result.detections)
        first, last = result.key.sequence, result.last_sequence
        start, end = result.times.captured_ns, result.last_captured_ns
        for sequence in range(first, last + 1):
            assert sequence not in self.results, f"frame {sequence} was answered twice"
            self.results[sequence] = found, name
            part = (sequence - first) / max(last - first, 1)
            captured_s = (start + (end - start) * part - _WALL_NS + _START_NS) / 1e9
            self.delays_ms.append((now_s - captured_s) * 1e3)


@dataclass(frozen=True, slots=True)
class _Passed:
    """Counts at the end of a pass, since the first began."""

    sent_bytes: int
    feedback_bytes: int
    messages: int
    inferences: int
    sent: int
    edge: int
    cpu_ns: dict[str, int]

    @classmethod
    def of(cls, cloud: _Cloud, pipeline: CameraPipeline, model: Model) -> _Passed:
        counts = pipeline.counts()
        return cls(
            sum(size for _, size in cloud.sent),
            cloud.feedback_bytes,
            len(cloud.sent),
            model.inferences,
            counts.sent,
            counts.edge,
            dict(counts.stage_cpu_ns),
        )

    def since(self, before: _Passed) -> _Passed:
        numbers = {
            it.name: getattr(self, it.name) - getattr(before, it.name)
            for it in dataclasses.fields(self)
            if it.name != "cpu_ns"
        }
        return _Passed(cpu_ns={it: self.cpu_ns[it] - before.cpu_ns[it] for it in self.cpu_ns}, **numbers)


def _edge_figures(passed: Sequence[_Passed], frames: int) -> dict[str, Any]:
    """Of the edge model's answers: without spreading the teaching pass, and how much came of them."""
    first, last = passed[1].since(passed[0]), passed[-1].since(passed[-2])
    return {
        "unlearned_bytes_per_frame": first.sent_bytes / frames,
        "learned_bytes_per_frame": last.sent_bytes / frames,
        "feedback_bytes_per_frame": last.feedback_bytes / frames,
        "answered_at_the_edge": last.edge,
        "sent": last.sent,
    }


def run(scene: Scene, point: Operating, *, edge: EdgeModel | None = None, passes: int = 1) -> Point:
    """Play the clip through both sides.

    passes: how often; all but the last one teach, and what they cost more than it is spread over an hour.
    """
    pictures, model = scene.pictures, scene.model
    settings = AgentSettings.model_validate(
        {
            "tenant": _TENANT,
            "site": _SITE,
            "device": _DEVICE,
            "cameras": [{"name": _CAMERA, "source": str(pictures.path)}],
            "encode": point.encode,
            "gate": point.gate,
            "detect": point.detect,
            "heartbeat_s": point.heartbeat_s,
        }
    )
    source, clock = _Source(), [_START_NS]
    cloud = _Cloud(model, point.mode, lambda report: pipeline.heard(report))  # noqa: PLW0108  # made below
    pipeline = CameraPipeline(
        settings,
        CameraIdentity(_TENANT, _SITE, _DEVICE, _CAMERA, _EPOCH, edge.model_ref if edge else None),
        source,
        cloud,
        detector=edge,
        clock=lambda: pb.ClockEstimate(offset_ns=1_234_567, uncertainty_ns=500_000),
        now=lambda: Moment(clock[0], clock[0] - _START_NS + _WALL_NS),
    )
    frames = len(pictures)
    passed = [_Passed.of(cloud, pipeline, model)]
    for number in range(passes):
        for index, shown in enumerate(pictures, 1 + number * frames):
            clock[0] = _START_NS + int(index * 1e9 / pictures.fps)
            wall_ns = clock[0] - _START_NS + _WALL_NS
            source.waiting.append(Frame(index, clock[0], wall_ns, shown))
            pipeline.step(0)
            cloud.collect(clock[0] / 1e9)
            cloud.report(clock[0] / 1e9)
        if number == passes - 1:
            pipeline.close()
            cloud.collect(float("inf"))
        passed.append(_Passed.of(cloud, pipeline, model))
    answered = [cloud.results[index] for index in range(1 + (passes - 1) * frames, 1 + passes * frames)]
    last = passed[-1].since(passed[-2])
    taught = passed[-2].sent_bytes - (passes - 1) * last.sent_bytes
    delays = np.percentile(cloud.delays_ms[-frames:], [50, 95, 99])
    return points.make(
        point.name,
        point.kind,
        total_bytes=last.sent_bytes + taught * frames / (3600 * pictures.fps),
        scene=scene,
        answers=[found for found, _ in answered],
        provenance=[name for _, name in answered],
        inferences=last.inferences,
        cpu_ms={stage: last.cpu_ns[stage] / 1e6 for stage in STAGES},
        delay_ms=dict(zip(("p50", "p95", "p99"), map(float, delays), strict=True)),
        config={
            "encode": point.encode,
            "heartbeat_s": point.heartbeat_s,
            "propagate": point.mode,
            "messages": last.messages,
            **(_edge_figures(passed, frames) if edge is not None else {}),
            "peak_10s_kbit_s": cloud.peak_kbit_s(),
        },
    )
