"""Subscriptions: reconnect, resume, gaps; against scripted services over real gRPC."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator

import pytest
from grpc import StatusCode

from eyeline import Backoff, Client, ResumeGapError, errors
from eyeline.subscription import Subscription
from eyeline.v1 import frame_pb2
from tests.support.eventually import eventually
from tests.support.fake_api import START_NS, FakeApi, Fault, made_result, running_fake_api

QUICK = Backoff(first_s=0.01, most_s=0.05)


@pytest.fixture
async def api() -> AsyncIterator[FakeApi]:
    async with running_fake_api() as running:
        yield running


@pytest.fixture
async def client(api: FakeApi) -> AsyncIterator[Client]:
    async with Client(api.address, backoff=QUICK) as made:
        yield made


async def take(subscription: Subscription, count: int) -> list[int]:
    """Sequences of the next results."""
    async with asyncio.timeout(20):
        return [(await anext(subscription)).sequence for _ in range(count)]


async def test_results_come_typed_and_in_order(api: FakeApi, client: Client) -> None:
    async with client.subscribe() as subscription:
        await subscription.ready()
        api.store(*(made_result(i) for i in range(1, 6)))
        first = await anext(subscription)
        assert (first.site, first.camera, first.sequence, first.final) == ("yard", "gate", 1, True)
        assert first.detections.boxes.tolist() == [[10, 20, 30, 60]]
        assert first.detections.class_names == ("person",)
        assert await take(subscription, 4) == [2, 3, 4, 5]
        assert subscription.resume_token == "t4"
        assert subscription.reconnects == 0
    await eventually(lambda: api.subscribers == 0, what="the stream's end")


async def test_late_answers_can_be_told_from_live_ones(api: FakeApi, client: Client) -> None:
    lanes = {1: frame_pb2.LANE_LIVE, 2: frame_pb2.LANE_BACKLOG, 3: frame_pb2.LANE_UNSPECIFIED}
    api.store(*(made_result(sequence, lane=lane) for sequence, lane in lanes.items()))
    async with client.subscribe(since_ns=1) as subscription, asyncio.timeout(20):
        assert [(await anext(subscription)).late for _ in lanes] == [False, True, False]


async def test_choice_of_cameras_and_finals_reaches_the_server(api: FakeApi, client: Client) -> None:
    api.store(made_result(1), made_result(2, "door"), made_result(3, "dock"), made_result(4, final=False))
    api.store(made_result(5))
    async with client.subscribe(["yard/gate", ("yard", "door")], since_ns=1, final_only=True) as subscription:
        assert await take(subscription, 3) == [1, 2, 5]
    (request,) = api.asked("Subscribe")
    assert [(c.site, c.camera) for c in request.cameras] == [("yard", "gate"), ("yard", "door")]


async def test_since_a_time(api: FakeApi, client: Client) -> None:
    api.store(*(made_result(i) for i in range(1, 6)))
    async with client.subscribe("yard/gate", since_ns=START_NS + 3_000_000_000) as subscription:
        assert await take(subscription, 3) == [3, 4, 5]


@pytest.mark.parametrize(
    "code",
    [
        StatusCode.OK,
        StatusCode.UNAVAILABLE,
        StatusCode.CANCELLED,
        StatusCode.RESOURCE_EXHAUSTED,
        StatusCode.DEADLINE_EXCEEDED,
    ],
)
async def test_broken_stream_goes_on_without_loss_or_duplicate(
    api: FakeApi, client: Client, code: StatusCode
) -> None:
    api.fail("Subscribe", Fault(code, after=1), Fault(code, after=3), Fault(StatusCode.UNAVAILABLE))
    async with client.subscribe(since_ns=1) as subscription:
        api.store(*(made_result(i) for i in range(1, 11)))
        assert await take(subscription, 10) == list(range(1, 11))
        assert subscription.reconnects == 2
    tokens = [request.resume_token for request in api.asked("Subscribe")]
    assert tokens == ["", "t0", "t3", "t3"]


async def test_restarted_server(api: FakeApi, client: Client) -> None:
    async with client.subscribe() as subscription:
        await subscription.ready()
        api.store(made_result(1))
        assert await take(subscription, 1) == [1]
        await api.stop()
        waiting = asyncio.create_task(take(subscription, 3))
        api.store(made_result(2), made_result(3))
        await api.start()
        await eventually(lambda: api.subscribers == 1, what="the reconnect")
        api.store(made_result(4))
        assert await waiting == [2, 3, 4]


@pytest.mark.parametrize("with_token", [True, False])
async def test_break_before_the_first_result_loses_nothing(with_token: bool) -> None:
    async with (
        running_fake_api(stands_with_token=with_token) as api,
        Client(api.address, backoff=QUICK) as client,
    ):
        api.store(made_result(1))
        async with client.subscribe() as subscription:
            await subscription.ready()
            await api.stop()
            now_s = (time.time_ns() - START_NS) // 1_000_000_000 + 1
            api.store(made_result(now_s), made_result(now_s + 1))
            await api.start()
            assert await take(subscription, 2) == [now_s, now_s + 1]


async def test_resume_of_another_client(api: FakeApi, client: Client) -> None:
    api.store(*(made_result(i) for i in range(1, 7)))
    async with client.subscribe(since_ns=1) as subscription:
        await take(subscription, 3)
        token = subscription.resume_token
    async with client.subscribe(resume=token) as subscription:
        assert await take(subscription, 3) == [4, 5, 6]


async def test_gap_is_an_error_that_names_it(api: FakeApi, client: Client) -> None:
    api.store(*(made_result(i) for i in range(1, 11)))
    api.oldest = 6
    with pytest.raises(ResumeGapError) as caught:
        await anext(client.subscribe(resume="t1"))
    gap = caught.value
    assert (gap.token_ns, gap.oldest_ns, gap.missing_messages) == (
        START_NS + 2_080_000_000,
        START_NS + 7_080_000_000,
        4,
    )
    assert not gap.retryable
    assert gap.status == "OUT_OF_RANGE"
    assert "4 stored messages between 2025-10-09T08:53:22.080Z and 2025-10-09T08:53:27.080Z" in str(gap)
    assert api.address in str(gap)


async def test_gap_may_be_passed_over(api: FakeApi, client: Client) -> None:
    api.store(*(made_result(i) for i in range(1, 11)))
    api.oldest = 6
    async with client.subscribe(resume="t1", on_gap="continue") as subscription:
        assert await take(subscription, 4) == [7, 8, 9, 10]
        assert [gap.missing_messages for gap in subscription.gaps] == [4]


async def test_gap_after_an_outage(api: FakeApi, client: Client) -> None:
    api.store(made_result(1), made_result(2))
    api.fail("Subscribe", Fault(StatusCode.UNAVAILABLE, after=2))
    subscription = client.subscribe(since_ns=1)
    assert await take(subscription, 2) == [1, 2]
    await eventually(lambda: api.subscribers == 0)
    api.store(made_result(3), made_result(4))
    api.oldest = 3
    with pytest.raises(ResumeGapError):
        await anext(subscription)


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (StatusCode.UNAUTHENTICATED, errors.Unauthenticated),
        (StatusCode.PERMISSION_DENIED, errors.PermissionDenied),
        (StatusCode.INVALID_ARGUMENT, errors.InvalidRequest),
        (StatusCode.INTERNAL, errors.ServerError),
    ],
)
async def test_final_failures_are_raised_at_once(
    api: FakeApi, client: Client, code: StatusCode, kind: type[errors.ApiError]
) -> None:
    api.store(made_result(1))
    api.fail("Subscribe", Fault(code, after=1))
    subscription = client.subscribe(since_ns=1)
    assert await take(subscription, 1) == [1]
    with pytest.raises(kind):
        await anext(subscription)
    assert len(api.asked("Subscribe")) == 1


async def test_given_up_wait_loses_nothing(api: FakeApi, client: Client) -> None:
    async with client.subscribe() as subscription:
        await subscription.ready()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(anext(subscription), 0.05)
        api.store(*(made_result(i) for i in range(1, 5)))
        assert await take(subscription, 4) == [1, 2, 3, 4]
    assert len(api.asked("Subscribe")) == 1


async def test_first_connection_may_have_a_limit() -> None:
    async with running_fake_api() as gone:
        address = gone.address
    async with Client(address, backoff=QUICK) as client:
        began = time.monotonic()
        with pytest.raises(errors.Unavailable, match="cannot be reached"):
            await anext(client.subscribe(connect_within_s=0.3))
        with pytest.raises(errors.Unavailable, match="connection refused"):
            await client.subscribe(connect_within_s=0.1).ready()
        assert time.monotonic() - began < 5


async def test_server_that_never_lets_it_stand(api: FakeApi) -> None:
    api.hanging.add("Subscribe")
    async with Client(api.address, timeout_s=0.1, backoff=QUICK) as client:
        with pytest.raises(errors.DeadlineExceeded, match="did not stand"):
            await anext(client.subscribe(connect_within_s=0.2))


async def test_closing_ends_a_waiting_reader(api: FakeApi, client: Client) -> None:
    subscription = client.subscribe()
    await subscription.ready()

    async def read() -> list[int]:
        return [result.sequence async for result in subscription]

    reader = asyncio.create_task(read())
    await eventually(lambda: subscription._reading is not None)
    await client.close()
    assert await reader == []
    assert [result async for result in subscription] == []
    await eventually(lambda: api.subscribers == 0)


def test_pauses_double_up_to_the_most_with_jitter() -> None:
    most = [Backoff(0.1, 5, lambda: 1.0).pause_s(attempt) for attempt in range(8)]
    least = [Backoff(0.1, 5, lambda: 0.0).pause_s(attempt) for attempt in range(8)]
    assert most == pytest.approx([0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5, 5])
    assert least == pytest.approx([pause / 2 for pause in most])
    assert Backoff(0.1, 5, lambda: 1.0).pause_s(10_000) == 5
