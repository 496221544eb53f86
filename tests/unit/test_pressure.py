"""The cloud's complaints slow a camera down, and silence lets it go on."""

from __future__ import annotations

import pytest

from edge_agent.pressure import Pressure


class Cloud:
    """Tells a lag twice a second, and moves the clock."""

    def __init__(self) -> None:
        self.now_s = 100.0
        self.pressure = Pressure(lambda: self.now_s)

    def complain(self, *lags_s: float) -> None:
        for lag_s in lags_s:
            self.now_s += 0.5
            self.pressure.heard(lag_s)

    def quiet(self, seconds: float) -> None:
        for _ in range(round(seconds * 10)):
            self.now_s += 0.1
            assert 0 < self.pressure.share <= 1


def test_all_is_well_without_complaints() -> None:
    cloud = Cloud()
    cloud.quiet(30)
    assert (cloud.pressure.share, cloud.pressure.lag_s) == (1.0, 0.0)


def test_share_falls_while_the_wait_grows_and_rises_in_silence() -> None:
    cloud = Cloud()
    cloud.complain(*(0.6 + 0.4 * step for step in range(12)))
    cut = cloud.pressure.share
    assert cut < 0.2
    assert cloud.pressure.lag_s > 4
    cloud.quiet(5)
    assert cut < cloud.pressure.share < 0.5
    cloud.quiet(25)
    assert cloud.pressure.share == 1.0


def test_a_wait_that_shrinks_needs_no_further_cut() -> None:
    cloud = Cloud()
    cloud.complain(3, 3)
    cut = cloud.pressure.share
    cloud.complain(*(3 - 0.25 * step for step in range(1, 9)))
    assert cloud.pressure.share == cut < 1


def test_never_silent_for_good() -> None:
    cloud = Cloud()
    cloud.complain(*(1.0 + step for step in range(200)))
    assert 0 < cloud.pressure.share < 0.05


@pytest.mark.parametrize("complaints", [0, 12])
def test_the_backlog_goes_faster_only_while_nobody_complains(complaints: int) -> None:
    cloud = Cloud()
    rates = []
    for step in range(40):
        cloud.now_s += 0.25
        if step < 2 * complaints and step % 2:
            cloud.pressure.heard(1.0 + step)
        rates.append(cloud.pressure.backlog_fps())
    if complaints:
        assert min(rates) < 5 < rates[0]
    assert rates[-1] > 4 * min(rates)
    cloud.pressure.backlog_done()
    assert cloud.pressure.backlog_fps() <= 100
