"""Frames in the hub before anybody answers them: the agent's own encoder and envelopes, without an agent."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
from nats.js import JetStreamContext

from edge_agent.config import EncodeSettings
from edge_agent.encode import open_encoder
from edge_agent.plan import Rung
from eyeline.envelope import SCHEMA_MAJOR, encode_envelope, message_id
from eyeline.subjects import frame_subject
from eyeline.v1 import frame_pb2 as pb

_WINDOW = 64


def envelopes(
    clip: Path, camera: str, frames: int, *, site: str, device: str, run: int
) -> Iterator[pb.FrameEnvelope]:
    """One frame with pixels a message, the clip again from the start when it is shorter; `run` is the epoch."""
    rung = Rung.of(EncodeSettings())
    encoder = None
    given = 0
    while given < frames:
        with av.open(str(clip)) as container:
            for picture in container.decode(video=0):
                if given == frames:
                    break
                encoder = encoder or open_encoder(rung, picture)
                index = given % 300
                now = pb.CaptureTime(monotonic_ns=time.monotonic_ns(), wall_ns=time.time_ns())
                given += 1
                unit = pb.AccessUnit(
                    sequence=given,
                    capture=now,
                    chain_id=(given - 1) // 300 + 1,
                    chain_index=index,
                    keyframe=index == 0,
                    data=encoder.encode(picture, keyframe=index == 0),
                )
                yield pb.FrameEnvelope(
                    schema_major=SCHEMA_MAJOR,
                    tenant="default",
                    site=site,
                    device=device,
                    camera=camera,
                    epoch=pb.Epoch(counter=run, random_id=b"benchmrk"),
                    format=encoder.picture_format,
                    items=[pb.FrameItem(access_unit=unit)],
                    published=now,
                    lane=pb.LANE_LIVE,
                    previous_sequence=given - 1,
                )


async def fill(js: JetStreamContext, filled: Iterator[pb.FrameEnvelope]) -> int:
    """Store envelopes in the hub, many under way at a time; how many there were."""
    under_way: set[asyncio.Task[Any]] = set()
    count = 0
    for envelope in filled:
        count += 1
        subject = frame_subject(envelope.site, envelope.device, envelope.camera)
        sent = js.publish(subject, encode_envelope(envelope), headers={"Nats-Msg-Id": message_id(envelope)})
        under_way.add(asyncio.ensure_future(sent))
        if len(under_way) >= _WINDOW:
            _, under_way = await asyncio.wait(under_way, return_when=asyncio.FIRST_COMPLETED)
    await asyncio.gather(*under_way)
    return count
