"""One camera's edge model at work: when it looks, and whether its answer stands for the cloud's.

It is asked about frames that would be sent. Where it has proved to agree with the cloud (`agree`), its answer
stands and no pixels leave, save for audits. Where nothing is known yet, the pixels go with what it saw, and
the cloud tells how that compares. Where it has proved not to agree, the pixels go alone. Where that is nearly
always so, or where comparing and answering cost more bytes than they save (`worth`), it is hardly asked any
more: once in a while, to notice when that changes.
"""

from __future__ import annotations

import random
from collections import OrderedDict
from dataclasses import dataclass
from enum import Enum
from typing import Final

import structlog

from edge_agent.agree import FULL_AFTER_S, Agreement, Condition, Trust, frame_f1
from edge_agent.batch import edge_answer
from edge_agent.config import DetectSettings
from edge_agent.frame_metrics import EDGE_LOOKS
from edge_agent.worth import Ledger
from eyeline.v1 import device_pb2
from eyeline.values import Detections

_log = structlog.get_logger()

# Without news of the cloud for so long, nothing checks the edge model: pixels go.
_FRESH_S: Final = 600.0
# While it is hardly ever sure, it looks once in so long, to notice when that changes.
_PROBE_S: Final = 30.0
# Of the running share of looks that were worth it: how much the newest counts, and from where on they go on.
_NEWEST: Final = 0.1
_WORTH: Final = 0.15
# So many samples without an answer: this cloud does not compare, or the way back is closed.
_DEAF: Final = 60
_REMEMBERED: Final = 300
# Frames of a condition are compared about so far apart: closer ones count for less, and cost as much.
_COMPARED_EVERY_NS: Final = int(FULL_AFTER_S * 0.75e9)


@dataclass(frozen=True, slots=True)
class Look:
    """What the edge model saw in a frame; doubtful: things that it is in two minds about, seen or not."""

    detections: Detections
    doubtful: Detections


class Verdict(Enum):
    """ANSWER: what the edge model saw stands. CARRY: pixels go, with what it saw. PIXELS: they go alone."""

    ANSWER = "answer"
    CARRY = "carry"
    PIXELS = "pixels"


@dataclass(frozen=True, slots=True)
class _Sample:
    condition: Condition
    audit: bool
    at_s: float


class Opinion:
    """Belongs to the camera's thread. Times are nanoseconds of the device's monotonic clock.

    epoch: counter of this run; model_sha256: of the edge model, empty when there is none.
    """

    def __init__(
        self,
        settings: DetectSettings,
        camera: str,
        *,
        epoch: int,
        model_sha256: str,
        random_: random.Random | None = None,
    ) -> None:
        self._settings, self._camera, self._epoch = settings, camera, epoch
        self._own = bytes.fromhex(model_sha256)
        self._agreement = Agreement(settings.agreement)
        self._random = random_ or random.Random()
        self._samples: OrderedDict[int, _Sample] = OrderedDict()
        self._compared_ns: dict[Condition, int] = {}
        self._ledger = Ledger()
        self._cloud = b""
        self._worth = 1.0
        self._looked_ns: int | None = None
        self._heard_ns: int | None = None
        self._looks = {it: EDGE_LOOKS.labels(camera, it.value) for it in Verdict}
        self.sure = False
        # Of answers that would have stood; replaced whole, as others read it.
        self.audits = device_pb2.EdgeAudits()

    @property
    def agreement(self) -> Agreement:
        """What is known of how far the models agree."""
        return self._agreement

    def wants(self, now_ns: int) -> bool:
        """Whether to look at a frame that would be sent."""
        if self._settings.answers == "off" or not self._own or self._same_model:
            return False
        busy = self._worth >= _WORTH and len(self._samples) < _DEAF and self._ledger.pays
        return busy or self._looked_ns is None or now_ns - self._looked_ns >= _PROBE_S * 1e9

    def judge(self, look: Look, sequence: int, now_ns: int, *, must_send: bool) -> Verdict:
        """What comes of a look at a frame that would be sent; must_send: its pixels go in any case."""
        self._looked_ns = now_ns
        condition = Condition.of(len(look.detections), len(look.doubtful))
        trust = self._agreement.trust(condition)
        self._worth += _NEWEST * ((trust is not Trust.UNSURE) - self._worth)
        stale = self._heard_ns is None or now_ns - self._heard_ns > _FRESH_S * 1e9
        audit = self._random.random() < self._settings.audit
        if trust is Trust.SURE and not (must_send or stale or audit):
            verdict = Verdict.ANSWER
        elif not audit and (trust is Trust.UNSURE or (trust is Trust.OPEN and self._soon(condition, now_ns))):
            verdict = Verdict.PIXELS
        else:
            verdict = Verdict.CARRY
            self._compared_ns[condition] = now_ns
            self._samples[sequence] = _Sample(condition, trust is Trust.SURE, now_ns / 1e9)
            while len(self._samples) > _REMEMBERED:
                self._samples.popitem(last=False)
        self._say(sure=trust is Trust.SURE)
        self._looks[verdict].inc()
        return verdict

    def sent(self, data_bytes: int, now_ns: int, *, keyframe: bool, carried: Detections | None) -> None:
        """A picture left, with what the edge model saw or without."""
        compared = edge_answer(carried).ByteSize() if carried is not None else None
        self._ledger.sent(data_bytes, now_ns, keyframe=keyframe, compared_bytes=compared)

    def answered(self, answer: Detections, now_ns: int) -> None:
        """An answer left in place of a picture."""
        self._ledger.answered(edge_answer(answer).ByteSize(), now_ns)

    def _soon(self, condition: Condition, now_ns: int) -> bool:
        last_ns = self._compared_ns.get(condition)
        return last_ns is not None and now_ns - last_ns < _COMPARED_EVERY_NS

    def heard(self, report: device_pb2.AnswerReport, now_ns: int) -> None:
        """Learn from what the cloud says of earlier frames."""
        if report.epoch_counter != self._epoch:
            return
        self._heard_ns = now_ns
        if report.model_prefix != self._cloud:
            # The samples on their way were compared with either model: none of them counts.
            self._agreement.reset()
            self._samples.clear()
            self._worth = 1.0
            self._cloud = report.model_prefix
            if self._same_model:
                _log.info("edge_answers_off", camera=self._camera, reason="the cloud runs the same model")
            return
        for frame in report.frames:
            sample = self._samples.pop(frame.sequence, None)
            if sample is None:
                continue
            f1 = frame_f1(frame.agreed, frame.extra, frame.missed)
            if sample.audit:
                self._count(frame)
            lost = self._agreement.observe(sample.condition, f1, sample.at_s, audit=sample.audit)
            if lost:
                _log.warning("edge_answers_doubted", camera=self._camera, condition=tuple(sample.condition))
        # What came before and is not among them was lost on the way.
        newest = max((frame.sequence for frame in report.frames), default=0)
        for sequence in [it for it in self._samples if it < newest]:
            del self._samples[sequence]

    def _count(self, frame: device_pb2.FrameAgreement) -> None:
        before = self.audits
        self.audits = device_pb2.EdgeAudits(
            frames=before.frames + 1,
            agreed=before.agreed + frame.agreed,
            extra=before.extra + frame.extra,
            missed=before.missed + frame.missed,
        )

    @property
    def _same_model(self) -> bool:
        """Whether the cloud runs the edge's own model: agreeing with itself proves nothing."""
        return bool(self._cloud) and self._own.startswith(self._cloud)

    def _say(self, *, sure: bool) -> None:
        if sure and not self.sure:
            self.sure = True
            _log.info("edge_answers_on", camera=self._camera)
