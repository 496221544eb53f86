"""One model on several real Tritons: shared out, and no request fails when one goes."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from cloud_inference import triton_repository
from cloud_inference.errors import ModelMissing, TritonTooSlow, TritonUnavailable
from cloud_inference.triton import TritonModel
from cloud_inference.triton_pool import TritonPool, resolve
from cloud_inference.triton_repository import Served, Serving
from cloud_inference.triton_server import TritonServer
from tests.support.eventually import eventually
from tests.support.models import tiny_model


@pytest.fixture
def tiny(tmp_path: Path) -> Served:
    return triton_repository.inspect("tiny", tiny_model(tmp_path / "tiny.onnx"))


def images(model: Served, light: int = 100) -> NDArray[np.uint8]:
    return np.full((1, model.height, model.width, 3), light, np.uint8)


@contextlib.asynccontextmanager
async def two(tiny: Served, folder: Path) -> AsyncIterator[list[TritonServer]]:
    servers = [TritonServer([tiny], work_dir=folder / str(number), exit_timeout_s=2) for number in (1, 2)]
    try:
        for server in servers:
            await server.start()
        yield servers
    finally:
        for server in servers:
            await server.stop()


async def requests_of(server: TritonServer, tiny: Served) -> int:
    async with TritonModel(server.url, tiny, shared_memory=0) as model:
        return (await model.statistics()).requests


async def test_no_request_fails_when_a_server_dies_and_it_gets_work_again_when_it_is_back(
    tiny: Served, tmp_path: Path
) -> None:
    async with (
        two(tiny, tmp_path) as (one, other),
        TritonPool([one.url, other.url], tiny, timeout_s=30) as pool,
    ):
        await pool.wait_ready()
        await eventually(lambda: len(pool.up) == 2)
        before = [await requests_of(server, tiny) for server in (one, other)]
        await asyncio.gather(*(pool.infer(images(tiny)) for _ in range(100)))
        asked = [await requests_of(it, tiny) - was for it, was in zip((one, other), before, strict=True)]
        assert sum(asked) == 100
        assert min(asked) >= 40
        assert (await pool.statistics()).requests == sum(before) + 100

        async def load() -> int:
            for _ in range(150):
                answer = await pool.infer(images(tiny))
                assert answer.count.tolist() == [1]
            return 150

        loads = [asyncio.create_task(load()) for _ in range(4)]
        await other.stop(grace_s=0)  # as a crash would
        assert sum(await asyncio.gather(*loads)) == 600
        assert pool.up == [one.url]
        await other.start()
        await eventually(lambda: len(pool.up) == 2, within_s=20)
        was = await requests_of(other, tiny)
        await asyncio.gather(*(pool.infer(images(tiny)) for _ in range(20)))
        assert await requests_of(other, tiny) > was
        await one.stop(grace_s=0)
        await other.stop(grace_s=0)
        with pytest.raises(TritonUnavailable):
            await pool.infer(images(tiny))
        with pytest.raises(TritonUnavailable):
            await pool.check()


async def test_servers_behind_a_name_come_and_go(tiny: Served, tmp_path: Path) -> None:
    async with two(tiny, tmp_path) as (one, other):
        addresses = [one.url]

        async def resolving(host: str, port: int) -> list[str]:
            assert (host, port) == ("triton.example", 8001)
            return list(addresses)

        pool = TritonPool("triton.example:8001", tiny, timeout_s=30, resolving=resolving, resolve_every_s=0.1)
        async with pool:
            await pool.wait_ready()
            assert pool.up == [one.url]
            addresses.append(other.url)
            await eventually(lambda: len(pool.up) == 2)
            addresses.remove(one.url)
            await eventually(lambda: pool.up == [other.url])
            await pool.infer(images(tiny))
            # Name servers fail: nobody is taken away for that.
            addresses.clear()
            await asyncio.gather(*(pool.infer(images(tiny)) for _ in range(50)))
            assert pool.up == [other.url]
    assert await resolve("localhost", 80) != []
    assert await resolve("no-such-host.invalid", 80) == []


async def test_a_server_without_the_model_is_left_out_and_two_without_are_told(
    tiny: Served, tmp_path: Path
) -> None:
    async with two(tiny, tmp_path) as (one, other):
        absent = dataclasses.replace(tiny, name="other")
        async with TritonPool([one.url, other.url], absent) as pool:
            with pytest.raises(ModelMissing):
                await pool.wait_ready()


async def test_what_nobody_waits_for_any_more_is_taken_out_of_tritons_queue(
    tiny: Served, tmp_path: Path
) -> None:
    # It waits for company a second long.
    serving = Serving(max_batch=8, max_queue_delay_us=1_000_000)
    server = TritonServer([tiny], work_dir=tmp_path / "triton", serving=serving, exit_timeout_s=2)
    await server.start()
    try:
        async with TritonPool(server.url, tiny) as pool:
            await pool.wait_ready()
            before = await requests_of(server, tiny)
            with pytest.raises(TritonTooSlow):
                await pool.infer(images(tiny), within_s=0.1)
            # The next one is answered, and Triton never ran the first.
            assert (await pool.infer(images(tiny), within_s=4)).count.tolist() == [1]
            assert await requests_of(server, tiny) - before == 1
    finally:
        await server.stop()
