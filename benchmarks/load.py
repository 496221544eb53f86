"""Frames in the hub before anybody answers them: the agent's own encoder and envelopes, without an agent."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
from nats.js import JetStreamContext

from edge_agent.config import EncodeSettings, RedactSettings
from edge_agent.encode import open_encoder
from edge_agent.frame import Frame
from edge_agent.plan import rung_of
from edge_agent.redact import Redactor
from eyeline.envelope import SCHEMA_MAJOR, encode_envelope, message_id
from eyeline.subjects import frame_subject
from eyeline.v1 import frame_pb2 as pb

_WINDOW = 64
_CHAIN = 300


@dataclass(frozen=True, slots=True)
class Coded:
    """A clip as the agent would send it with its default settings: one access unit a frame."""

    picture_format: pb.PictureFormat
    units: list[bytes]


def encode(clip: Path, frames: int) -> Coded:
    """The first frames of a clip, again from its start when it is shorter; a keyframe every 300."""
    rung, redactor = rung_of(EncodeSettings()), Redactor(RedactSettings())
    encoder = None
    units: list[bytes] = []
    while len(units) < frames:
        with av.open(str(clip)) as container:
            for picture in container.decode(video=0):
                if len(units) == frames:
                    break
                encoder = encoder or open_encoder(rung, picture)
                frame = Frame(len(units) + 1, time.monotonic_ns(), time.time_ns(), picture)
                units.append(encoder.encode(redactor.apply(frame), keyframe=len(units) % _CHAIN == 0))
    if encoder is None:
        raise ValueError("at least one frame is needed")
    encoder.close()
    return Coded(encoder.picture_format, units)


def envelopes(coded: Coded, camera: str, *, site: str, device: str, run: int) -> Iterator[pb.FrameEnvelope]:
    """One frame with pixels a message; `run` is the epoch."""
    for given, data in enumerate(coded.units):
        now = pb.CaptureTime(monotonic_ns=time.monotonic_ns(), wall_ns=time.time_ns())
        unit = pb.AccessUnit(
            sequence=given + 1,
            capture=now,
            chain_id=given // _CHAIN + 1,
            chain_index=given % _CHAIN,
            keyframe=given % _CHAIN == 0,
            data=data,
        )
        yield pb.FrameEnvelope(
            schema_major=SCHEMA_MAJOR,
            tenant="default",
            site=site,
            device=device,
            camera=camera,
            epoch=pb.Epoch(counter=run, random_id=b"benchmrk"),
            format=coded.picture_format,
            items=[pb.FrameItem(access_unit=unit)],
            published=now,
            lane=pb.LANE_LIVE,
            previous_sequence=given,
        )


async def fill(js: JetStreamContext, filled: Iterable[pb.FrameEnvelope]) -> int:
    """Store envelopes in the hub, many under way at a time; how many there were."""
    under_way: set[asyncio.Task[Any]] = set()
    count = 0
    for envelope in filled:
        count += 1
        subject = frame_subject(envelope.site, envelope.device, envelope.camera)
        sent = js.publish(subject, encode_envelope(envelope), headers={"Nats-Msg-Id": message_id(envelope)})
        under_way.add(asyncio.ensure_future(sent))
        if len(under_way) >= _WINDOW:
            done, under_way = await asyncio.wait(under_way, return_when=asyncio.FIRST_COMPLETED)
            for one in done:
                one.result()
    await asyncio.gather(*under_way)
    return count
