"""A second language works from the .proto files alone: a Node client subscribes, resumes, handles errors."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from grpc import StatusCode

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
