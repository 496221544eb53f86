"""One camera's frame path: every presented frame is answered once, whatever fails on the way."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Sequence
from typing import Any

import av
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edge_agent.batch import MAX_ITEMS_BYTES, CameraIdentity, Moment
from edge_agent.config import AgentSettings
from edge_agent.encode import open_encoder
from edge_agent.errors import DetectFailed
from edge_agent.frame import Frame
from edge_agent.handoff import CaptureTime, Dropped
from edge_agent.opinion import Look
from edge_agent.pipeline import CameraPipeline
from edge_agent.plan import LinkState
from edge_agent.sample import Sampler, SampleSpec
from eyeline.envelope import encode_envelope, item_range, last_sequence
from eyeline.errors import EncodeFailed
from eyeline.ladder import Rung
from eyeline.v1 import detection_pb2, device_pb2
from eyeline.v1 import frame_pb2 as pb
from eyeline.values import Detections, Epoch
from tests.support.scenes import as_luma, background, picture, with_box

STEP_NS = 100_000_000
SCENE = background(64, 48)
STILL = picture(as_luma(SCENE))
MOVING = [picture(as_luma(with_box(SCENE, x, 10, (20, 20), 255))) for x in (5, 35)]
LARGER = picture(as_luma(background(96, 64)))


class FakeSource:
    """Frames from a list, captured every 100 ms."""

    def __init__(self) -> None:
        self.items: deque[Frame | Dropped] = deque()
        self.sequence = 0
        self.ended = False

    def time(self, sequence: int) -> tuple[int, int]:
        return 10**9 + sequence * STEP_NS, 10**18 + sequence * STEP_NS

    def present(self, shown: av.VideoFrame, *, opened: bool = False, behind: int = 0) -> None:
        self.sequence += 1
        self.items.append(Frame(self.sequence, *self.time(self.sequence), shown, opened, behind=behind))

    def drop(self, frames: int) -> None:
        first, last = self.sequence + 1, self.sequence + frames
        self.sequence = last
        times = CaptureTime(*self.time(first)), CaptureTime(*self.time(last))
        self.items.append(Dropped(first, last, *times, "overload"))

    def read(self, timeout_s: float) -> Frame | Dropped | None:  # noqa: ARG002
        return self.items.popleft() if self.items else None


class FakeSink:
    """Takes envelopes while it is open."""

    def __init__(self) -> None:
        self.open = True
        self.taken: list[pb.FrameEnvelope] = []

    def ready(self) -> bool:
        return self.open

    def offer(self, envelope: pb.FrameEnvelope) -> None:
        assert self.open
        self.taken.append(envelope)


class FakeEncoder:
    """Writes how many pictures it has coded since its keyframe."""

    def __init__(self, rung: Rung, shown: av.VideoFrame, troubles: deque[str]) -> None:
        self.picture_format = open_encoder(rung, shown).picture_format
        self.troubles = troubles
        self.since = -1

    def encode(self, shown: av.VideoFrame, *, keyframe: bool) -> bytes:  # noqa: ARG002
        trouble = self.troubles.popleft() if self.troubles else ""
        if trouble == "fail":
            raise EncodeFailed("out of luck")
        self.since = 0 if keyframe else self.since + 1
        assert self.since >= 0, "a fresh encoder starts with a keyframe"
        return b"x" * MAX_ITEMS_BYTES if trouble == "large" else b"%d" % self.since

    def close(self) -> None:
        self.since = -1_000_000


class FakeDetector:
    def __init__(self) -> None:
        self.looked: list[int] = []
        self.broken = False

    def look(self, frame: Frame) -> Look:
        self.looked.append(frame.sequence)
        if self.broken:
            raise DetectFailed("no memory")
        return Look(Detections.build([[1, 2, 3, 4]], [0.5], [0], ["person"]), Detections.empty())


class Rig:
    """A pipeline between fakes."""

    def __init__(self, *, real_encoder: bool = False, sampler: Any = None, **sections: Any) -> None:
        values = {
            "device": "box1",
            "cameras": [{"name": "gate", "source": "pattern:64x48@10"}],
            "encode": {"max_fps": 240, "width_px": 64, "batch_ms": 0} | sections.pop("encode", {}),
            "heartbeat_s": 1,
        }
        self.settings = AgentSettings.model_validate(values | sections)
        self.source, self.sink, self.detector = FakeSource(), FakeSink(), FakeDetector()
        self.link = LinkState()
        self.troubles: deque[str] = deque()
        model = detection_pb2.ModelRef(name="small", version="1", sha256="ab" * 32)
        identity = CameraIdentity("acme", "yard", "box1", "gate", Epoch(1, b"12345678"), model)
        encoders: Any = lambda rung, shown: FakeEncoder(rung, shown, self.troubles)  # noqa: E731
        self.pipeline = CameraPipeline(
            self.settings,
            identity,
            self.source,
            self.sink,
            detector=self.detector,
            sampler=sampler,
            link=lambda: self.link,
            clock=lambda: pb.ClockEstimate(offset_ns=3, uncertainty_ns=4),
            now=lambda: Moment(*self.source.time(self.source.sequence)),
            encoders=open_encoder if real_encoder else encoders,
        )

    def show(self, *pictures: av.VideoFrame, behind: int = 0) -> None:
        for shown in pictures:
            self.source.present(shown, behind=behind)
            self.pipeline.step(0)

    def finish(self) -> list[pb.FrameItem]:
        """All items, after checking what must hold of them in any case."""
        self.sink.open = True
        self.pipeline.close(1)
        check(self.sink.taken, self.source.sequence)
        return [item for envelope in self.sink.taken for item in envelope.items]


def check(envelopes: Sequence[pb.FrameEnvelope], frames: int) -> None:
    previous, expected = 0, 1
    chain_id, chain_index = 0, 0
    for envelope in envelopes:
        encode_envelope(envelope)
        assert envelope.previous_sequence == previous
        previous = last_sequence(envelope)
        for item in envelope.items:
            first, last = item_range(item)
            assert first == expected
            expected = last + 1
            if item.HasField("access_unit"):
                unit = item.access_unit
                if unit.keyframe:
                    assert unit.chain_id > chain_id
                    chain_id, chain_index = unit.chain_id, 0
                else:
                    assert (unit.chain_id, unit.chain_index) == (chain_id, chain_index + 1)
                    chain_index += 1
    assert expected == frames + 1


def words(items: Sequence[pb.FrameItem]) -> str:
    """Items as words: K a keyframe, P another picture, i idle, s skipped, or the reason of a drop."""
    told = []
    for item in items:
        first, last = item_range(item)
        if item.HasField("access_unit"):
            told.append("K" if item.access_unit.keyframe else "P")
        else:
            kind = {pb.RANGE_KIND_IDLE: "i", pb.RANGE_KIND_SKIPPED: "s"}.get(
                item.range.kind, item.range.reason
            )
            told.append(f"{kind}{last - first + 1}")
    return " ".join(told)


def test_a_calm_day() -> None:
    rig = Rig()
    rig.show(STILL, *[STILL] * 5, *MOVING, *MOVING, *[STILL] * 20)
    items = rig.finish()
    assert words(items) == "K i5 P P P P" + " P" * 10 + " i10"
    counts = rig.pipeline.counts()
    assert (counts.captured, counts.sent, counts.idle, counts.skipped, dict(counts.dropped)) == (
        30,
        15,
        15,
        0,
        {},
    )
    assert (counts.last_sequence, counts.size, counts.chains) == (30, (64, 48), 1)
    assert counts.rung == "h264 64px crf30 240fps"
    assert counts.capture_fps == pytest.approx(10)
    assert all(counts.stage_cpu_ns[stage] > 0 for stage in ("gate", "plan", "encode", "batch", "publish"))
    assert rig.sink.taken[0].clock.uncertainty_ns == 4


def test_what_is_over_the_rate_is_skipped() -> None:
    rig = Rig(encode={"max_fps": 5, "batch_ms": 10_000})
    rig.show(*[MOVING[n % 2] for n in range(20)])
    assert words(rig.finish()).split()[1:5] == ["s1", "P", "s1", "P"]


def test_heartbeats_flow_while_idle() -> None:
    rig = Rig(heartbeat_s=0.5)
    rig.show(*[STILL] * 40)
    assert len(rig.sink.taken) in range(6, 9)
    rig.finish()


def test_delivery_that_takes_nothing_drops_before_the_encoder() -> None:
    rig = Rig()
    rig.show(STILL, *MOVING)
    rig.sink.open = False
    rig.show(*MOVING * 5)
    rig.sink.open = True
    rig.show(*MOVING)
    items = rig.finish()
    # What the sink had no room for was made already; everything after was dropped, and a new chain follows.
    assert words(items) == "K P P overload10 K P"
    assert rig.pipeline.counts().dropped == {"overload": 10}


def test_full_spool_is_told_apart() -> None:
    rig = Rig()
    rig.show(STILL, *MOVING)
    rig.link = LinkState(fill=0.97)
    rig.show(*MOVING)
    rig.link = LinkState()
    rig.show(*MOVING)
    assert words(rig.finish()) == "K P P spool_full2 K P"


def test_a_long_jam_stays_small() -> None:
    rig = Rig()
    rig.show(STILL)
    rig.sink.open = False
    for n in range(3_000):
        # Alternating answers cannot merge.
        rig.show(MOVING[0] if n // 30 % 2 else STILL)
    assert rig.pipeline._builder.waiting < 600
    rig.finish()


def test_capture_losses_are_answered_and_what_they_showed_is_looked_for() -> None:
    rig = Rig()
    rig.show(STILL, STILL)
    rig.source.drop(7)
    rig.pipeline.step(0)
    rig.show(STILL, STILL)
    assert words(rig.finish()) == "K i1 overload7 P i1"
    assert rig.pipeline.counts().dropped == {"overload": 7}


def test_source_that_leaves_out_or_repeats_numbers() -> None:
    rig = Rig()
    rig.show(STILL)
    rig.source.sequence = 4
    rig.show(STILL)
    rig.source.items.append(Frame(2, *rig.source.time(2), STILL))
    rig.pipeline.step(0)
    rig.show(STILL)
    assert words(rig.finish()) == "K capture_gap3 P i1"


def test_failing_encoder_is_retried_with_back_off_and_costs_no_frame_its_answer() -> None:
    rig = Rig(heartbeat_s=60)
    rig.show(STILL)
    rig.troubles.extend(["fail", "fail"])
    rig.show(*[MOVING[n % 2] for n in range(60)])
    items = rig.finish()
    # 1 s after the first failure, 2 s after the second.
    assert words(items).startswith("K encoder_failed30 K P P")
    assert not rig.troubles


def test_picture_that_fits_no_envelope() -> None:
    rig = Rig()
    rig.show(STILL)
    rig.troubles.extend(["", "large"])
    rig.show(*MOVING, *MOVING)
    assert words(rig.finish()) == "K P frame_too_large1 K P"


def test_detector_looks_at_its_rate_and_its_failure_costs_no_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("random.Random.random", lambda _: 0.5)  # no audits
    rig = Rig(detect={"max_fps": 2})
    rig.show(*[MOVING[n % 2] for n in range(20)])
    looked = list(rig.detector.looked)
    assert looked[0] == 1
    assert len(looked) == 4
    rig.detector.broken = True
    rig.show(*[MOVING[n % 2] for n in range(30)])
    # Retried after 1 s and then 2 s, not at every look.
    assert len(rig.detector.looked) - len(looked) in {2, 3}
    items = rig.finish()
    with_answer = [i.access_unit.sequence for i in items if i.access_unit.HasField("edge")]
    assert with_answer == looked[::2], "twice a second is no more to compare than once"
    assert words(items) == "K" + " P" * 49


def test_sample_and_edge_model_wait_while_frames_do() -> None:
    samples: list[Any] = []
    sampler = Sampler("gate", SampleSpec(Rung("h264", 64, 30, 80, 10.0, "low"), 2.0), samples.append)
    rig = Rig(sampler=sampler, detect={"max_fps": 10})
    rig.pipeline.ask_sample()
    rig.show(*MOVING * 5, behind=2)
    assert (sampler.taken, rig.detector.looked) == (0, [])
    rig.show(*MOVING * 15)
    assert (len(samples), bool(rig.detector.looked)) == (1, True)
    assert words(rig.finish()) == "K" + " P" * 39


def test_gate_that_fails_lets_frames_through(monkeypatch: pytest.MonkeyPatch) -> None:
    rig = Rig()

    def broken(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(rig.pipeline._gate, "look", broken)
    rig.show(STILL, STILL)
    assert words(rig.finish()) == "K P"


def test_demands_and_desires_arrive_from_outside() -> None:
    rig = Rig()
    rig.show(STILL, STILL)
    rig.pipeline.demand_keyframe()
    rig.show(STILL, STILL)
    rig.pipeline.desire(device_pb2.DesiredCamera(crf=40))
    rig.show(STILL, *MOVING)
    rig.pipeline.desire(device_pb2.DesiredCamera(paused=True))
    rig.show(*MOVING)
    rig.pipeline.desire(None)
    rig.show(*MOVING)
    assert words(rig.finish()) == "K i1 K i2 K P paused2 K P"


def test_another_picture_size_is_another_chain_and_format() -> None:
    rig = Rig(encode={"width_px": 416})
    rig.show(STILL, *MOVING, LARGER, LARGER)
    assert words(rig.finish()) == "K P P K i1"
    sizes = [e.format.source_width_px for e in rig.sink.taken if e.HasField("format")]
    assert sizes == [64, 64, 64, 96]


def test_real_encoder_makes_a_stream_that_decodes() -> None:
    rig = Rig(real_encoder=True, encode={"max_chain_frames": 10})
    rig.show(*[MOVING[n % 2] for n in range(25)])
    units = [item.access_unit for item in rig.finish()]
    decoder = av.CodecContext.create("h264", "r")
    decoder.thread_count = 1
    shown: list[Any] = []
    for unit in units:
        shown += decoder.decode(av.Packet(unit.data))
    shown += decoder.decode(None)
    assert len(shown) == 25
    assert [unit.sequence for unit in units if unit.keyframe] == [1, 11, 21]


def test_stills() -> None:
    rig = Rig(real_encoder=True, encode={"codec": "jpeg"})
    rig.show(STILL, *MOVING, *MOVING)
    assert words(rig.finish()) == "K K K K K"


def test_run_works_to_the_end_of_the_source_and_frees_its_thread() -> None:
    rig = Rig()
    for n in range(30):
        rig.source.present(MOVING[n % 2])

    class Ending(FakeSource):
        @property
        def ended(self) -> bool:  # type: ignore[override]
            return not rig.source.items

    rig.source.__class__ = Ending
    del rig.source.__dict__["ended"]
    thread = threading.Thread(target=rig.pipeline.run, args=(threading.Event(),))
    thread.start()
    thread.join(20)
    assert not thread.is_alive()
    check(rig.sink.taken, 30)


def test_run_stops_when_told_and_hands_over_the_rest() -> None:
    rig, stop = Rig(heartbeat_s=60), threading.Event()
    rig.source.present(STILL)
    rig.source.present(STILL)
    stop.set()
    rig.pipeline.run(stop)
    check(rig.sink.taken, 2)


EVENTS = st.one_of(
    st.tuples(st.sampled_from(["still", "move", "larger", "reopened"]), st.integers(1, 6)),
    st.tuples(st.just("lost"), st.integers(1, 50)),
    st.tuples(st.sampled_from(["jam", "flow", "full", "empty", "away", "back", "break"]), st.just(0)),
    st.tuples(
        st.sampled_from(["fail", "large", "demand", "pause", "resume", "crf", "deaf", "hears"]), st.just(0)
    ),
)


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    events=st.lists(EVENTS, min_size=1, max_size=40),
    max_fps=st.sampled_from([0.5, 3, 10, 240]),
    batch_ms=st.sampled_from([0, 250, 5_000]),
    max_chain_frames=st.sampled_from([1, 3, 300]),
    codec=st.sampled_from(["h264", "jpeg"]),
)
def test_every_presented_frame_is_answered_once(
    events: list[tuple[str, int]], max_fps: float, batch_ms: int, max_chain_frames: int, codec: str
) -> None:
    rig = Rig(
        encode={
            "max_fps": max_fps,
            "batch_ms": batch_ms,
            "max_chain_frames": max_chain_frames,
            "codec": codec,
        }
    )
    for what, count in events:
        match what:
            case "still" | "larger":
                rig.show(*[STILL if what == "still" else LARGER] * count)
            case "move":
                rig.show(*[MOVING[n % 2] for n in range(count)])
            case "reopened":
                rig.source.present(STILL, opened=True)
                rig.pipeline.step(0)
            case "lost":
                rig.source.drop(count)
                rig.pipeline.step(0)
            case "jam" | "flow":
                rig.sink.open = what == "flow"
            case "full" | "empty":
                rig.link = LinkState(fill=1.0 if what == "full" else 0.0)
            case "away" | "back":
                rig.link = LinkState(connected=what == "back")
            case "break":
                rig.link = LinkState(breaks=rig.link.breaks + 1)
            case "fail" | "large":
                rig.troubles.append(what)
            case "demand":
                rig.pipeline.demand_keyframe()
            case "pause" | "resume":
                rig.pipeline.desire(device_pb2.DesiredCamera(paused=what == "pause"))
            case "crf":
                rig.pipeline.desire(device_pb2.DesiredCamera(crf=33))
            case _:
                rig.detector.broken = what == "deaf"
    items = rig.finish()
    for item in items:
        if item.HasField("access_unit"):
            # No picture was coded and then lost between this one and its keyframe.
            assert int(item.access_unit.data) == item.access_unit.chain_index
            assert item.access_unit.chain_index < max_chain_frames
    counts = rig.pipeline.counts()
    dropped = sum(counts.dropped.values())
    assert counts.sent + counts.idle + counts.skipped + dropped == counts.captured == rig.source.sequence
    _idle_stands_on_a_picture(items)


def _idle_stands_on_a_picture(items: Sequence[pb.FrameItem]) -> None:
    """Of idle ranges, the frame before them was idle or sent: nothing unseen lies between."""
    before = None
    for item in items:
        if item.range.kind == pb.RANGE_KIND_IDLE:
            assert before is not None
            assert before.HasField("access_unit") or before.range.kind != pb.RANGE_KIND_DROPPED
        before = item


def test_luma_buffers_may_be_reused_by_the_decoder() -> None:
    rig = Rig()
    shown = picture(as_luma(SCENE))
    rig.show(shown)
    rows = np.frombuffer(shown.planes[0], np.uint8)
    before = rig.pipeline._gate._model
    assert before is not None
    mean = before._mean.copy()
    rows[:] = 0
    assert np.array_equal(before._mean, mean)
