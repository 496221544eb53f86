"""A second language works from the .proto files alone: a Node client subscribes, resumes, handles errors."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from grpc import StatusCode

from cloud_inference.hub import LocalHub
from tests.support.api import result, running_api, store
from tests.support.fake_api import FakeApi, Fault, made_result, running_fake_api
from tests.support.node import NodeClient

pytestmark = pytest.mark.timeout(300)  # the first run installs its packages


@pytest.fixture
async def api() -> AsyncIterator[FakeApi]:
    async with running_fake_api() as running:
        yield running


async def test_subscribes_and_resumes(api: FakeApi) -> None:
    first = await NodeClient.start(api.address, "subscribe", "3")
    assert await first.line() == {"stands": True}
    api.store(*(made_result(i) for i in range(1, 7)))
    status, results = await first.finish()
    assert status == 0
    assert [result["sequence"] for result in results] == ["1", "2", "3"]
    assert results[0] == {
        "camera": "yard/gate",
        "sequence": "1",
        "last_sequence": "1",
        "final": True,
        "provenance": "PROVENANCE_CLOUD",
        "captured_ns": "1760000001000000000",
        "classes": ["person"],
        "boxes": [[10, 20, 30, 60]],
        "resume_token": "t0",
    }
    second = await NodeClient.start(api.address, "subscribe", "3", results[-1]["resume_token"])
    status, lines = await second.finish()
    assert status == 0
    assert [line["sequence"] for line in lines if "sequence" in line] == ["4", "5", "6"]


async def test_handles_errors(api: FakeApi) -> None:
    api.fail("GetLatest", Fault(StatusCode.UNAVAILABLE, "the hub is away; try again"))
    status, lines = await (await NodeClient.start(api.address, "latest", "yard/gate")).finish()
    assert (status, lines) == (1, [{"error": "UNAVAILABLE", "message": "the hub is away; try again"}])
    api.token = "s3cret"
    status, lines = await (await NodeClient.start(api.address, "subscribe", "1")).finish()
    assert (status, lines) == (1, [{"error": "UNAUTHENTICATED", "message": "this token is not known"}])
    api.store(made_result(1))
    status, lines = await (
        await NodeClient.start(api.address, "latest", "yard/gate", token="s3cret")
    ).finish()
    assert (status, [line["sequence"] for line in lines]) == (0, ["1"])


async def test_reads_what_a_gap_is(api: FakeApi) -> None:
    api.store(*(made_result(i) for i in range(1, 7)))
    api.oldest = 4
    status, lines = await (await NodeClient.start(api.address, "subscribe", "1", "t0")).finish()
    assert status == 1
    assert lines == [
        {
            "error": "OUT_OF_RANGE",
            "message": "no longer kept",
            "oldest_time_ns": "1760000005080000000",
            "missing_messages": "3",
        }
    ]


async def test_against_the_real_api(hub: LocalHub) -> None:
    async with running_api(hub) as serving:
        js = serving.tenants.hubs["acme"].js
        first = await NodeClient.start(serving.address, "subscribe", "2", token="for-acme")
        assert await first.line() == {"stands": True}
        await store(js, [result(1), result(2), result(3)])
        status, results = await first.finish()
        assert (status, [line["sequence"] for line in results]) == (0, ["1", "2"])
        await store(js, [result(4)])
        token = results[-1]["resume_token"]
        second = await NodeClient.start(serving.address, "subscribe", "2", token, token="for-acme")
        assert await second.line() == {"stands": True}
        assert [line["sequence"] for line in (await second.finish())[1]] == ["3", "4"]
        refused = await NodeClient.start(serving.address, "subscribe", "1", "rubbish", token="for-acme")
        status, lines = await refused.finish()
        assert (status, lines[0]["error"]) == (1, "INVALID_ARGUMENT")
        stranger = await NodeClient.start(serving.address, "latest", "yard/gate", token="nobody")
        status, lines = await stranger.finish()
        assert (status, lines[0]["error"]) == (1, "UNAUTHENTICATED")
