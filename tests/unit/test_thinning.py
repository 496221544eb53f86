"""Live pictures that are left out: none while the model keeps up, else no more than needed."""

from __future__ import annotations

import pytest

from cloud_inference.thinning import BEHIND_S, Thinning

RUN = "box", 1


def newest_waits_s(*, every_s: float, place_s: float, pictures: int = 400) -> tuple[list[float], int]:
    """Pictures and places at the model come evenly: delays of those taken, and how many are not."""
    thinning, now, delays, left_out = Thinning(), 0.0, [], 0
    for number in range(pictures):
        came = number * every_s
        now = max(now, came)
        behind = min(pictures, int(now / every_s) + 1) - number - 1
        if thinning.leaves_out(behind, RUN):
            left_out += 1
            continue
        thinning.waited(place_s)
        thinning.looked_at(RUN)
        now += place_s
        delays.append(now - came)
    return delays, left_out


def test_nothing_is_left_out_while_the_model_keeps_up() -> None:
    delays, left_out = newest_waits_s(every_s=0.1, place_s=0.09)
    assert left_out == 0
    assert max(delays) < 0.1


@pytest.mark.parametrize("times", [1.5, 4.0, 20.0])
def test_the_delay_is_bounded_however_much_comes(times: float) -> None:
    delays, left_out = newest_waits_s(every_s=0.1, place_s=0.1 * times)
    assert max(delays[50 // round(times) :]) < BEHIND_S + 0.2 * times
    # And no more is left out than the model cannot take.
    assert left_out / 400 == pytest.approx(1 - 1 / times, abs=0.06)


def test_a_pile_alone_is_no_overload() -> None:
    thinning = Thinning()
    for _ in range(10):
        thinning.waited(0.001)
    thinning.looked_at(RUN)
    assert not thinning.leaves_out(1000, RUN)


def test_one_long_wait_is_an_outage_and_several_are_an_overload() -> None:
    thinning = Thinning()
    thinning.looked_at(RUN)
    for _ in range(2):
        thinning.waited(5.0)
    assert not thinning.leaves_out(50, RUN)
    thinning.waited(5.0)
    assert thinning.leaves_out(1, RUN)
    for _ in range(3):
        thinning.waited(0.001)
    assert not thinning.leaves_out(50, RUN)


def test_what_has_nothing_before_it_is_looked_at() -> None:
    thinning = Thinning()
    for _ in range(5):
        thinning.waited(5.0)
    assert not thinning.leaves_out(50, RUN)
    thinning.looked_at(RUN)
    assert thinning.leaves_out(50, RUN)
    assert not thinning.leaves_out(50, ("box", 2)), "a device that was started again"
    thinning.lost()
    assert not thinning.leaves_out(50, RUN)
