"""What comes from outside has a limit, and one clear error for each."""

from __future__ import annotations

import asyncio
import contextlib
import io
from typing import Any

import pytest
from grpc import StatusCode
from PIL import Image

from cloud_inference import metrics
from cloud_inference.api import errors
from cloud_inference.api.errors import Refusal, unary
from cloud_inference.api.inference import decode_image
from cloud_inference.api.limits import Limits
from cloud_inference.config import ApiSettings
from eyeline.envelope import MAX_NS, check_envelope
from eyeline.errors import BadEnvelope
from eyeline.v1 import detection_pb2, frame_pb2
from tests.wire.make_golden import frame_envelope


def test_streams_are_shared_out_by_tenant() -> None:
    limits = Limits(ApiSettings(max_streams=5), tenants=2)
    with contextlib.ExitStack() as held:
        for _ in range(2):
            held.enter_context(limits.stream("acme"))
        with pytest.raises(Refusal, match="2 subscriptions are open, at most 2") as caught:
            held.enter_context(limits.stream("acme"))
        assert caught.value.code == StatusCode.RESOURCE_EXHAUSTED
        held.enter_context(limits.stream("globex"))
        assert limits.open_streams == 3
    assert limits.open_streams == 0
    # A share of one's own, and all of them together.
    limits = Limits(ApiSettings(max_streams=3, max_streams_per_tenant=2), tenants=2)
    with contextlib.ExitStack() as held:
        for tenant in ("acme", "acme", "globex"):
            held.enter_context(limits.stream(tenant))
        with pytest.raises(Refusal, match="3 subscriptions are open, at most 3"):
            held.enter_context(limits.stream("globex"))


class Context:
    """Remembers how a call ended."""

    ended: tuple[Any, ...] = ()

    async def abort(self, *how: Any) -> None:
        self.ended = how


class Service:
    """A call that takes a while."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits

    @unary
    async def slow(self, request: Any, _context: Any) -> str:
        self.limits.admit("acme")
        await request.wait()
        return "done"


async def test_calls_of_a_tenant_at_a_time_and_a_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    service = Service(Limits(ApiSettings(max_calls_per_tenant=2), tenants=1))
    gate, contexts = asyncio.Event(), [Context() for _ in range(3)]
    calls = [asyncio.create_task(service.slow(gate, context)) for context in contexts]
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    gate.set()
    assert await asyncio.gather(*calls) == ["done", "done", None]
    assert contexts[2].ended[:2] == (
        StatusCode.RESOURCE_EXHAUSTED,
        "2 calls of yours are under way, at most 2 at a time",
    )
    assert await service.slow(gate, Context()) == "done"
    monkeypatch.setattr(errors, "LONGEST_CALL_S", 0.01)
    late = Context()
    await service.slow(asyncio.Event(), late)
    assert late.ended[0] == StatusCode.DEADLINE_EXCEEDED
    assert await service.slow(gate, Context()) == "done"


def picture(width: int, height: int, form: str = "PNG") -> bytes:
    made = io.BytesIO()
    Image.new("L", (width, height)).save(made, form, optimize=True)
    return made.getvalue()


def test_images_that_are_too_much() -> None:
    assert decode_image(picture(64, 64), 1 << 20).shape == (64, 64, 3)
    for data, why in (
        (b"", "no image"),
        (b"x" * 2000, "damaged"),
        (picture(10_000, 6_000), "60|million"),
        (picture(6_000, 6_000), "unpacks from"),
        (picture(64, 64) * 40, "bytes, at most"),
    ):
        with pytest.raises(Refusal, match=why) as caught:
            decode_image(data, 3000 if why.startswith("bytes") else 1 << 20)
        assert caught.value.code == StatusCode.INVALID_ARGUMENT


def test_envelopes_that_no_agent_makes() -> None:
    good = frame_envelope()
    check_envelope(good)
    unit = next(item for item in good.items if item.WhichOneof("item") == "access_unit").access_unit

    def refused(why: str, change: Any) -> None:
        made = frame_pb2.FrameEnvelope()
        made.CopyFrom(good)
        change(made)
        with pytest.raises(BadEnvelope, match=why) as caught:
            check_envelope(made)
        assert caught.value.reason == "invalid"

    def first(made: frame_pb2.FrameEnvelope) -> frame_pb2.AccessUnit:
        return next(item for item in made.items if item.WhichOneof("item") == "access_unit").access_unit

    def edge(**fields: Any) -> Any:
        found = detection_pb2.Detection(**fields)
        return lambda made: first(made).edge.detections.append(found)

    refused("no possible time", lambda made: setattr(first(made).capture, "wall_ns", MAX_NS + 1))
    refused("no possible time", lambda made: setattr(made.published, "monotonic_ns", MAX_NS + 1))
    refused("no time", lambda made: setattr(made.clock, "offset_ns", -MAX_NS - 1))
    refused("more than", lambda made: setattr(made, "rung", "x" * 201))
    refused("box that is none", edge(score=float("nan")))
    refused("box that is none", edge(box=detection_pb2.Box(x1_px=1e9)))
    refused("class that is none", edge(class_name="c" * 65))
    refused(
        "more than 16777216 pixels",
        lambda made: made.format.MergeFrom(
            frame_pb2.PictureFormat(coded_width_px=16_000, coded_height_px=16_000)
        ),
    )
    refused("outside any picture", lambda made: setattr(made.format, "pad_x_px", float("inf")))
    refused(
        "detections, at most",
        lambda made: first(made).edge.detections.extend([detection_pb2.Detection()] * 1001),
    )
    assert unit.sequence


def test_reasons_that_devices_make_up_fill_no_metric() -> None:
    labels = {metrics.reason_label("hostile", f"reason_{number}") for number in range(1000)}
    assert len(labels) == 33
    assert metrics.reason_label("hostile", "reason_3") == "reason_3"
    assert metrics.reason_label("another", "chain_gap") == "chain_gap"
