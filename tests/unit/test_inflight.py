"""As many requests in flight as the server answers promptly; places are handed out in turn."""

from __future__ import annotations

import asyncio

from cloud_inference.inflight import InFlight


async def test_places_are_bounded_and_go_in_turn() -> None:
    places = InFlight(2)
    order: list[int] = []

    async def work(number: int) -> None:
        await places.acquire()
        order.append(number)

    tasks = [asyncio.create_task(work(number)) for number in range(5)]
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert order == [0, 1]
    places.release()
    await asyncio.sleep(0)
    assert order == [0, 1, 2]
    tasks[3].cancel()
    await asyncio.gather(tasks[3], return_exceptions=True)
    places.release()
    await asyncio.gather(*tasks[:3], tasks[4])
    assert order == [0, 1, 2, 4]


async def test_one_that_gives_up_as_it_gets_its_place_passes_it_on() -> None:
    places = InFlight(1)
    await places.acquire()
    first, second = (asyncio.create_task(places.acquire()) for _ in range(2))
    await asyncio.sleep(0)
    places.release()
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    async with asyncio.timeout(1):
        await second


async def test_slow_answers_halve_it_once_a_round_and_quick_ones_win_it_back() -> None:
    places = InFlight(1000)
    for _ in range(100):
        await places.acquire()
    for _ in range(50):
        places.answered(2.0)
    assert places.limit == 70
    for _ in range(60):
        places.release()
    for _ in range(10_000):
        places.answered(0.1)
    assert places.limit == 70, "a limit that is not reached is not raised"
    for _ in range(30):
        await places.acquire()
    for _ in range(100):
        places.answered(0.1)
    assert places.limit > 70


async def test_one_place_is_left_whatever_happens() -> None:
    places = InFlight(1, target_s=0.0)
    for _ in range(20):
        places.failed(1e-9)
        await asyncio.sleep(0.001)
    assert places.limit == 1


async def test_it_begins_low_and_doubles_until_the_first_slow_answer() -> None:
    places = InFlight(100, first=16)
    assert places.limit == 16
    for _ in range(16):
        await places.acquire()
        places.answered(0.1)
    assert places.limit == 18, "one more for each answer, as far as the places there are get used"
    for _ in range(14):
        await places.acquire()
        places.answered(0.1)
    assert places.limit == 32
    places.answered(2.0)
    assert places.limit == 21
    assert InFlight(2, first=16).limit == 2
