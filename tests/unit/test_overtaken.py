"""Live messages that are put off: promised to the overtaken lane, and claimed by no other."""

from __future__ import annotations

from cloud_inference.answered import Answered
from cloud_inference.consume import Intake, Kind, Source, Work
from cloud_inference.feed import StreamMessage
from cloud_inference.progress import Progress
from eyeline.v1 import frame_pb2, result_pb2
from tests.support.simulated import Device

BACKLOG, LIVE, OVERTAKEN = frame_pb2.LANE_BACKLOG, frame_pb2.LANE_LIVE, frame_pb2.LANE_OVERTAKEN


class Taken:
    """An intake, and messages of one device for it."""

    def __init__(self) -> None:
        self.device = Device()
        self.intake = Intake(tenant="acme", answered=Answered())
        self._sequence = 0

    def message(self, envelope: frame_pb2.FrameEnvelope) -> Source:
        self._sequence += 1
        data = envelope.SerializeToString()
        return self.intake.read(StreamMessage(self.device.subject, data, {}, self._sequence, 1, 0))

    def live(self, count: int = 1, *, keyframe_first: bool = False) -> list[Source]:
        return [self.message(it) for it in self.device.frames(count, keyframe_first=keyframe_first)]

    def late(self, source: Source) -> Source:
        """Put a live message off; what the late reader makes of it."""
        late = source.part(0, len(source.envelope.items), overtaken=True)
        self.intake.put_off(late)
        return late


def frames(work: list[Work]) -> list[tuple[Kind, int, int]]:
    return [(it.kind, it.first, it.last) for it in work if it.kind is not Kind.END]


def test_the_lane_goes_on_behind_what_is_put_off() -> None:
    taken = Taken()
    first, second, *_ = taken.live(2)
    taken.intake.work(first)
    handed = taken.intake.hand_over()
    late = taken.late(second)
    (fresh,) = taken.live(keyframe_first=True)
    # Nothing is taken for lost, in neither lane.
    assert frames(taken.intake.work(fresh)) == [(Kind.PIXELS, 3, 3)]
    taken.intake.take_up(handed)
    (work, end) = taken.intake.work(late)
    assert (work.kind, work.first, work.wanted) == (Kind.PIXELS, 2, True)
    assert work.keyframe_at == first.stream_sequence
    assert (end.kind, end.source.lane, end.source.late) == (Kind.END, OVERTAKEN, True)


def test_what_comes_again_is_left_to_the_overtaken_lane() -> None:
    taken = Taken()
    first, second, third = taken.live(3)
    taken.intake.work(first)
    handed = taken.intake.hand_over()
    late = [taken.late(second), taken.late(third)]
    assert frames(taken.intake.work(second)) == []
    assert not taken.intake.wants_pixels(second)
    backlog = frame_pb2.FrameEnvelope()
    backlog.CopyFrom(third.envelope)
    backlog.lane = BACKLOG
    assert [it.wanted for it in taken.intake.work(taken.message(backlog)) if it.kind is Kind.PIXELS] == [
        False
    ]
    taken.intake.take_up(handed)
    assert [frames(taken.intake.work(it)) for it in late] == [[(Kind.PIXELS, 2, 2)], [(Kind.PIXELS, 3, 3)]]


def test_no_lane_takes_for_lost_what_is_put_off() -> None:
    taken = Taken()
    first, second, third = taken.live(3)
    taken.intake.work(first)
    taken.late(second)
    taken.late(third)
    (missed, backlog) = (taken.device.envelope([taken.device.pixels()], lane=BACKLOG) for _ in range(2))
    assert missed.items[0].access_unit.sequence == 4
    # Its own message before it is lost, and only that.
    assert frames(taken.intake.work(taken.message(backlog))) == [(Kind.DROPPED, 4, 4), (Kind.PIXELS, 5, 5)]


def test_what_is_lost_amid_the_pile_is_told_in_the_overtaken_lane() -> None:
    taken = Taken()
    first, *rest = taken.live(4)
    taken.intake.work(first)
    handed = taken.intake.hand_over()
    late = [taken.late(it) for it in (rest[0], rest[2])]
    (fresh,) = taken.live(keyframe_first=True)
    assert frames(taken.intake.work(fresh)) == [(Kind.PIXELS, 5, 5)]
    taken.intake.take_up(handed)
    assert frames(taken.intake.work(late[0])) == [(Kind.PIXELS, 2, 2)]
    assert frames(taken.intake.work(late[1])) == [(Kind.DROPPED, 3, 3), (Kind.PIXELS, 4, 4)]


def test_a_message_is_split_at_its_keyframe() -> None:
    taken = Taken()
    device = taken.device
    taken.intake.work(taken.live()[0])
    handed = taken.intake.hand_over()
    items = [device.pixels(), device.range(3, frame_pb2.RANGE_KIND_SKIPPED), device.pixels(keyframe=True)]
    source = taken.message(device.envelope(items))
    start = taken.intake.fresh_start(source)
    assert start == 2
    late = source.part(0, start, overtaken=True)
    taken.intake.put_off(late)
    rest = source.part(start, 3, overtaken=False)
    assert len(source.envelope.items) == 3
    assert frames(taken.intake.work(rest)) == [(Kind.PIXELS, 6, 6)]
    taken.intake.take_up(handed)
    assert frames(taken.intake.work(late)) == [(Kind.PIXELS, 2, 2), (Kind.SKIPPED, 3, 5)]
    # It starts nothing afresh when it comes again.
    assert taken.intake.fresh_start(source) is None


def test_a_lane_that_no_device_may_use_is_the_live_one() -> None:
    taken = Taken()
    envelope = taken.device.frames(1)[0]
    for lane in (0, int(OVERTAKEN), 77):
        envelope.lane = lane  # type: ignore[assignment]
        assert taken.message(envelope).lane == LIVE


def test_the_hub_keeps_the_chain_that_was_handed_over() -> None:
    taken, progress = Taken(), Progress(result_pb2.Checkpoint(), "w1")
    first, second = taken.live(2)
    for work in taken.intake.work(first):
        if work.kind is not Kind.END:
            progress.note(work)
    progress.answered_through(first.stream_sequence)
    progress.hand_over(second, taken.intake.hand_over(), results_to=77, busy=False)
    taken.late(second)
    (fresh,) = taken.live(keyframe_first=True)
    for work in taken.intake.work(fresh):
        if work.kind is not Kind.END:
            progress.note(work)
    assert progress.keep_from(overtaken=True) == first.stream_sequence
    # A later pile does not make it forget an earlier one that is still under way.
    progress.hand_over(fresh, taken.intake.hand_over(), results_to=88, busy=True)
    assert progress.keep_from(overtaken=True) == first.stream_sequence
    stored = {it.lane: it.keyframe_stream_sequence for it in progress.checkpoint().lanes}
    assert stored == {LIVE: fresh.stream_sequence, OVERTAKEN: first.stream_sequence}


def left_at(progress: Progress) -> int:
    """Where the results lie that stood before the overtaken lane."""
    return {it.lane: it.results_stream_sequence for it in progress.checkpoint().lanes}[OVERTAKEN]


def test_what_stood_before_a_pile_is_remembered_until_it_is_answered() -> None:
    taken, progress = Taken(), Progress(result_pb2.Checkpoint(), "w1")
    first, second = taken.live(2)
    taken.intake.work(first)
    progress.hand_over(second, taken.intake.hand_over(), results_to=77, busy=False)
    assert left_at(progress) == 77
    # The next owner comes to the same pile with newer results.
    heir = Progress(progress.checkpoint(), "w2")
    heir.hand_over(second, taken.intake.hand_over(), results_to=99, busy=False)
    assert left_at(heir) == 77
    heir.caught_up()
    assert left_at(heir) == 0
    heir.hand_over(second, taken.intake.hand_over(), results_to=120, busy=False)
    assert left_at(heir) == 120
