"""The real API against a real hub, with a stand-in model, and results as a worker writes them."""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncIterator, Sequence
from typing import Any

import grpc
import numpy as np

from cloud_inference.api.server import Serving, serve
from cloud_inference.config import CloudSettings
from cloud_inference.hub import LocalHub
from cloud_inference.triton import Answer
from eyeline.subjects import result_subject
from eyeline.v1 import detection_pb2, frame_pb2, result_pb2
from tests.support.cards import square_card
from tests.support.eventually import eventually

EPOCH = frame_pb2.Epoch(counter=1, random_id=b"12345678")


class BrightModel:
    """Sees one square over the left half of every image; `problem` is raised instead when set."""

    problem: Exception | None = None

    async def infer(self, images: Any) -> Answer:
        if self.problem is not None:
            raise self.problem
        height, width = images.shape[1:3]
        rows = np.zeros((len(images), 10, 6), np.float32)
        rows[:, 0] = 0, 0, width / 2, height, 0.9, 0
        rows[:, 1] = 0, 0, width / 4, height, 0.3, 0
        return Answer(rows, np.full(len(images), 2, np.int32))


def settings(
    hub: LocalHub, *, port: int = 0, tokens: dict[str, str] | None = None, **api: Any
) -> CloudSettings:
    """Of an API for the tenants `acme` and `globex`, tokens `for-acme` and `for-globex`."""
    tenants = [{"name": name, "creds_file": str(hub.tenant(name).cloud)} for name in ("acme", "globex")]
    return CloudSettings.model_validate(
        {
            "hub": {"url": hub.url, "tenants": tenants},
            "api": {"port": port, "tokens": tokens or {"for-acme": "acme", "for-globex": "globex"}, **api},
        }
    )


@contextlib.asynccontextmanager
async def running_api(hub: LocalHub, model: Any = None, **options: Any) -> AsyncIterator[Serving]:
    """The API, once both tenants are connected."""
    async with serve(settings(hub, **options), model or BrightModel(), square_card()) as serving:
        await eventually(
            lambda: len(serving.tenants.hubs) == 2 and all(h.ready for h in serving.tenants.hubs.values())
        )
        yield serving


def bearer(token: str = "for-acme") -> tuple[tuple[str, str], ...]:
    return (("authorization", f"Bearer {token}"),)


@contextlib.asynccontextmanager
async def channel(serving: Serving) -> AsyncIterator[grpc.aio.Channel]:
    async with grpc.aio.insecure_channel(serving.address) as opened:
        yield opened


def result(
    sequence: int,
    *,
    last: int | None = None,
    camera: str = "gate",
    final: bool = True,
    captured_ns: int | None = None,
    objects: int = 1,
    lane: frame_pb2.Lane.ValueType = frame_pb2.LANE_UNSPECIFIED,
) -> result_pb2.Result:
    """A result as a worker makes it."""
    captured = time.time_ns() if captured_ns is None else captured_ns
    return result_pb2.Result(
        key=result_pb2.FrameKey(tenant="acme", site="yard", camera=camera, epoch=EPOCH, sequence=sequence),
        last_sequence=last or sequence,
        revision=1000 if final else 1,
        final=final,
        provenance=result_pb2.PROVENANCE_CLOUD if final else result_pb2.PROVENANCE_EDGE,
        detections=[
            detection_pb2.Detection(
                class_name="square", score=0.9, box=detection_pb2.Box(x1_px=1, y1_px=2, x2_px=3, y2_px=4)
            )
        ]
        * objects,
        times=result_pb2.StageTimes(captured_ns=captured, answered_ns=captured + 1_000_000),
        last_captured_ns=captured,
        device="box1",
        lane=lane,
        late=lane in {frame_pb2.LANE_BACKLOG, frame_pb2.LANE_OVERTAKEN},
    )


async def store(
    js: Any, results: Sequence[result_pb2.Result], checkpoint: result_pb2.Checkpoint | None = None
) -> int:
    """Store one batch of one camera; the stream sequence."""
    key = results[0].key
    batch = result_pb2.ResultBatch(schema_major=1, results=results, checkpoint=checkpoint)
    ack = await js.publish(result_subject(key.site, key.camera), batch.SerializeToString())
    return int(ack.seq)
