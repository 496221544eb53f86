"""Which live messages are put off after an outage of the cloud's own, and where the live lane goes on."""

from __future__ import annotations

from cloud_inference.piled import FRESH_S, PILED_S, Look, Message, Piled

OLD_S, NEW_S = PILED_S + 1, FRESH_S / 2


def message(
    sequence: int, waited_s: float, *, start: int | None = None, pixels: bool = True, in_time: bool = False
) -> Message:
    return Message(sequence, 3, waited_s, wants_pixels=pixels, fresh_start=start, in_time=in_time)


def test_what_waited_for_a_take_over_is_answered_in_order() -> None:
    piled = Piled[str]()
    assert piled.look(message(1, PILED_S), caught_up=True) == Look(0)
    assert not piled.is_on
    assert piled.stretch_of(1) is None


def test_a_pile_is_put_off_up_to_a_fresh_keyframe() -> None:
    piled = Piled[str]()
    assert piled.look(message(4, OLD_S), caught_up=True) == Look(3, begins=True)
    piled.begun("decoder")
    # An old keyframe is no fresh picture, nor is a new picture of an old chain.
    assert piled.look(message(5, OLD_S, start=0), caught_up=False) == Look(3)
    assert piled.look(message(8, NEW_S), caught_up=False) == Look(3)
    assert piled.is_on
    # What comes before the keyframe in its message belongs to what was before.
    assert piled.look(message(9, NEW_S, start=2), caught_up=False) == Look(2)
    assert not piled.is_on
    assert piled.look(message(10, NEW_S), caught_up=False) == Look(0)
    assert piled.stretch_of(3) is None
    stretch = piled.stretch_of(4)
    assert stretch is not None
    assert (stretch.first, stretch.last, stretch.items, stretch.handed) == (4, 9, 2, "decoder")
    assert piled.stretch_of(7) is stretch
    assert piled.stretch_of(9) is stretch
    assert piled.stretch_of(10) is None


def test_a_message_that_begins_with_its_keyframe_is_not_split() -> None:
    piled = Piled[str]()
    piled.look(message(4, OLD_S), caught_up=True)
    assert piled.look(message(6, NEW_S, start=0), caught_up=False) == Look(0)
    stretch = piled.stretch_of(4)
    assert stretch is not None
    assert (stretch.last, stretch.items) == (4, None)
    assert piled.stretch_of(6) is None


def test_once_all_is_answered_the_live_lane_goes_on_without_a_keyframe() -> None:
    piled = Piled[str]()
    piled.look(message(4, OLD_S), caught_up=True)
    assert piled.look(message(5, OLD_S), caught_up=True) == Look(3)
    assert piled.look(message(6, NEW_S), caught_up=True) == Look(0, rejoins=True)
    assert not piled.is_on


def test_what_costs_nothing_or_must_come_in_order_begins_no_pile() -> None:
    piled = Piled[str]()
    assert piled.look(message(1, OLD_S, pixels=False), caught_up=True) == Look(0)
    assert piled.look(message(2, OLD_S, in_time=True), caught_up=True) == Look(0)
    assert not piled.is_on
    piled.look(message(3, OLD_S), caught_up=True)
    # Once the picture before is put off, what stands on it is so too.
    assert piled.look(message(4, OLD_S, pixels=False), caught_up=False) == Look(3)


def test_a_second_pile_before_the_first_is_answered() -> None:
    piled = Piled[str]()
    piled.look(message(1, OLD_S), caught_up=True)
    piled.begun("first")
    piled.look(message(3, NEW_S, start=0), caught_up=False)
    piled.look(message(7, OLD_S), caught_up=False)
    piled.begun("second")
    piled.look(message(9, OLD_S), caught_up=False)
    found = [piled.stretch_of(sequence) for sequence in (1, 3, 6, 7, 9)]
    assert [it.handed if it is not None else None for it in found] == [
        "first",
        None,
        None,
        "second",
        "second",
    ]
