"""Servers that are not there yet, or no longer, are waited for: what a rolling restart looks like to us."""

from __future__ import annotations

import asyncio
from pathlib import Path

import grpc
import pytest

from cloud_inference import cli
from cloud_inference.errors import ModelMissing, TritonUnavailable
from cloud_inference.hub import LocalHub
from cloud_inference.triton import TritonModel
from eyeline import bus
from eyeline.errors import BusError
from eyeline_models import catalogue
from tests.support.eventually import eventually


async def test_a_proxy_with_no_hub_behind_it_is_waited_for(hub: LocalHub) -> None:
    """It takes the connection and hangs up: that refuses nobody."""
    open_ = False
    refused = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal refused
        if not open_:
            refused += 1
            writer.close()
            return
        there, back = await asyncio.open_connection("127.0.0.1", hub.server.port)

        async def pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
            while data := await source.read(65536):
                sink.write(data)
            sink.close()

        await asyncio.gather(pump(reader, back), pump(there, writer))

    proxy = await asyncio.start_server(serve, "127.0.0.1", 0)
    url = f"nats://127.0.0.1:{proxy.sockets[0].getsockname()[1]}"
    creds = hub.tenant("acme").cloud
    try:
        with pytest.raises(BusError, match="cannot be reached") as caught:
            await bus.connect(url, name="once", creds_file=creds, wait=False)
        assert caught.value.retryable
        waiting = asyncio.create_task(bus.connect(url, name="patient", creds_file=creds))

        async def refused_again() -> bool:
            return refused >= 3

        await eventually(refused_again)
        open_ = True
        client = await asyncio.wait_for(waiting, 10)
        await client.close()
    finally:
        proxy.close()


@pytest.mark.parametrize(
    ("details", "expected"),
    [
        ("Request for unknown model: 'm' has no available versions", TritonUnavailable),
        ("Request for unknown model: 'm' is not found", ModelMissing),
    ],
)
def test_a_model_that_triton_is_unloading_is_away_not_missing(
    details: str, expected: type[Exception]
) -> None:
    model = TritonModel("127.0.0.1:1", catalogue.load("centernet-mobilenetv3"))
    problem = grpc.aio.AioRpcError(
        grpc.StatusCode.NOT_FOUND, grpc.aio.Metadata(), grpc.aio.Metadata(), details=details
    )
    assert type(model._error(problem)) is expected


def test_the_repository_command_writes_what_triton_loads(tmp_path: Path) -> None:
    cli.repository(out=tmp_path / "models", max_batch=8)
    folder = tmp_path / "models" / "centernet-mobilenetv3"
    assert {path.name for path in (folder / "1").iterdir()} == {"model.py", "model.onnx"}
    assert "max_batch_size: 8" in (folder / "config.pbtxt").read_text()
