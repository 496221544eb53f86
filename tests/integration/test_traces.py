"""A traced frame, from its capture to its subscriber, as a collector gets to see it."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from collections.abc import AsyncIterator
from typing import Any

import pytest

from cloud_inference import traces
from cloud_inference.api.server import serve
from cloud_inference.camera import Camera
from cloud_inference.config import TracesSettings
from cloud_inference.hub import LocalHub
from cloud_inference.ownership import Ownership
from cloud_inference.shares import Bus, Shared
from edge_agent.agent import _sampler
from eyeline.errors import ConfigError
from eyeline.traceparent import Traceparent
from eyeline.v1 import result_pb2, result_pb2_grpc
from tests.integration.test_worker import LEASE_S, SquareModel, answered, shared, tenant_bus
from tests.support import collector
from tests.support.api import BrightModel, bearer, channel, settings
from tests.support.cards import square_card
from tests.support.eventually import eventually
from tests.support.simulated import Device, publish


@contextlib.asynccontextmanager
async def working(bus: Bus, parts: Shared) -> AsyncIterator[None]:
    """A worker made of these parts."""
    ownership = Ownership(
        bus, "w1", lease_s=LEASE_S, work=lambda site, name: Camera(parts, bus, site, name).run()
    )
    task = asyncio.create_task(ownership.run())
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def test_from_capture_to_subscriber(hub: LocalHub) -> None:
    device, model = Device(), SquareModel()
    context = Traceparent.start()
    first, second, *rest = device.frames(4)
    for envelope in (first, second):
        envelope.traceparent = str(context)
    with collector.running() as receiver:
        chosen = TracesSettings(endpoint=receiver.endpoint)
        spans = traces.load(chosen)
        assert spans is not None
        api = settings(hub).model_copy(update={"traces": chosen})
        with shared(model) as plain:
            parts = dataclasses.replace(plain, traces=spans)
            async with (
                tenant_bus(hub) as bus,
                serve(api, BrightModel(), square_card()) as serving,
                channel(serving) as opened,
                working(bus, parts),
            ):
                hubs = serving.tenants.hubs
                await eventually(lambda: "acme" in hubs and hubs["acme"].ready)
                await publish(bus.js, [first, second, *rest])
                await answered(bus, device, 4)
                results = result_pb2_grpc.ResultsStub(opened).Subscribe(
                    result_pb2.SubscribeRequest(from_time_ns=1), metadata=bearer()
                )
                given = 0
                async for response in results:
                    given += len(response.results)
                    if given == 4:
                        break
                results.cancel()
        spans.close()
        await eventually(lambda: sum(name == "eyeline-api" for name, _ in receiver.spans) == 2)
    by_name: dict[str, list[Any]] = {}
    for service, span in receiver.spans:
        by_name.setdefault(f"{service}: {span.name}", []).append(span)
        assert span.trace_id == context.trace_id.to_bytes(16, "big")
        assert span.start_time_unix_nano <= span.end_time_unix_nano
    assert {name: len(found) for name, found in by_name.items()} == dict.fromkeys(
        [
            "eyeline-worker: frame",
            "eyeline-edge: publish",
            "eyeline-hub: deliver",
            "eyeline-hub: wait",
            "eyeline-worker: decode",
            "eyeline-worker: queue",
            "eyeline-triton: infer",
            "eyeline-worker: track and store",
            "eyeline-api: to subscriber",
        ],
        2,
    )
    ids = {span.span_id for _, span in receiver.spans}
    assert len(ids) == len(receiver.spans)
    # The one that the context names is the root, and every other hangs on one that is there.
    roots = [span for _, span in receiver.spans if not span.parent_span_id]
    assert [span.span_id for span in roots] == [context.span_id.to_bytes(8, "big")]
    assert {span.parent_span_id for _, span in receiver.spans if span.parent_span_id} <= ids


async def test_a_collector_that_is_away_costs_nothing_but_its_spans(hub: LocalHub) -> None:
    device, model = Device(), SquareModel()
    envelopes = device.frames(3)
    for envelope in envelopes:
        envelope.traceparent = str(Traceparent.start())
    with shared(model) as plain:
        spans = traces.load(TracesSettings(endpoint="http://127.0.0.1:9/v1/traces"))
        parts = dataclasses.replace(plain, traces=spans)
        async with tenant_bus(hub) as bus, working(bus, parts):
            await publish(bus.js, envelopes)
            results = await answered(bus, device, 3)
    assert all(result.provenance == result_pb2.PROVENANCE_CLOUD for result in results)


def test_how_many_are_traced() -> None:
    assert {_sampler(0.0)() for _ in range(100)} == {""}
    every = [Traceparent.parse(_sampler(1.0)()) for _ in range(100)]
    assert None not in every
    assert len({each.trace_id for each in every if each}) == 100
    some = [_sampler(0.5)() for _ in range(400)]
    assert 100 < sum(map(bool, some)) < 300


@pytest.mark.parametrize("text", ["", "00-0-0-01", f"00-{0:032x}-{1:016x}-01", f"ff-{1:032x}-{1:016x}-01"])
def test_a_broken_context_counts_as_none(text: str) -> None:
    assert Traceparent.parse(text) is None


def test_without_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(traces, "INSTALLED", False)
    assert traces.load(TracesSettings()) is None
    with pytest.raises(ConfigError, match="eyeline\\[traces\\]"):
        traces.load(TracesSettings(endpoint="http://collector:4318/v1/traces"))
