"""Envelopes with made-up data, and delivery against a real hub."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from nats.aio.client import Client

from cloud_inference.hub import LocalHub
from edge_agent.config import AgentSettings, CameraSettings, HubSettings, SpoolSettings
from eyeline.envelope import item_range
from eyeline.subjects import FRAMES
from eyeline.v1 import frame_pb2 as pb
from eyeline.values import Epoch

SITE = "yard"


class Camera:
    """Numbers frames and puts them into envelopes, one frame each, as a pipeline does."""

    def __init__(
        self, name: str, epoch: Epoch, *, tenant: str = "acme", device: str = "box1", size: int = 500
    ) -> None:
        self.name, self.epoch, self.size = name, epoch, size
        self._tenant, self._device = tenant, device
        self.sequence = 0
        self._previous = 0
        self._chain = 0
        self._index = 0

    def frame(self, *, keyframe: bool = False, size: int | None = None) -> pb.FrameEnvelope:
        """The next frame with pixels."""
        self.sequence += 1
        if keyframe or not self._chain:
            self._chain, self._index = self._chain + 1, 0
        else:
            self._index += 1
        unit = pb.AccessUnit(
            sequence=self.sequence,
            capture=self._now(),
            chain_id=self._chain,
            chain_index=self._index,
            keyframe=self._index == 0,
            gate_reason=pb.GATE_REASON_MOTION,
            data=self.sequence.to_bytes(4, "big") * ((size or self.size) // 4),
        )
        return self._envelope(pb.FrameItem(access_unit=unit))

    def idle(self, count: int) -> pb.FrameEnvelope:
        """The next `count` frames as an idle range."""
        first, self.sequence = self.sequence + 1, self.sequence + count
        now = self._now()
        return self._envelope(
            pb.FrameItem(
                range=pb.FrameRange(
                    first_sequence=first,
                    last_sequence=self.sequence,
                    first_capture=now,
                    last_capture=now,
                    kind=pb.RANGE_KIND_IDLE,
                    gate_reason=pb.GATE_REASON_IDLE,
                )
            )
        )

    def _envelope(self, item: pb.FrameItem) -> pb.FrameEnvelope:
        envelope = pb.FrameEnvelope(
            schema_major=1,
            tenant=self._tenant,
            site=SITE,
            device=self._device,
            camera=self.name,
            epoch=self.epoch.to_proto(),
            items=[item],
            lane=pb.LANE_LIVE,
            previous_sequence=self._previous,
            published=self._now(),
        )
        if item.WhichOneof("item") == "access_unit":
            envelope.format.CopyFrom(
                pb.PictureFormat(
                    codec=pb.CODEC_H264,
                    coded_width_px=128,
                    coded_height_px=96,
                    source_width_px=128,
                    source_height_px=96,
                    scale_x=1,
                    scale_y=1,
                )
            )
        self._previous = item_range(item)[1]
        return envelope

    @staticmethod
    def _now() -> pb.CaptureTime:
        return pb.CaptureTime(monotonic_ns=time.monotonic_ns(), wall_ns=time.time_ns())


def settings(
    hub: LocalHub,
    state_dir: Path,
    *,
    device: str = "box1",
    cameras: tuple[str, ...] = ("gate",),
    **spool: Any,
) -> AgentSettings:
    """Settings of an agent at a test hub."""
    return AgentSettings(
        tenant="acme",
        site=SITE,
        device=device,
        state_dir=state_dir,
        hub=HubSettings(url=hub.url, creds_file=hub.tenant("acme").device(SITE, device).creds),
        spool=SpoolSettings(**spool),
        cameras=tuple(CameraSettings(name=name, source="pattern:64x48@5") for name in cameras),
    )


async def stored_envelopes(client: Client) -> list[pb.FrameEnvelope]:
    """Everything in the hub's FRAMES stream, in stream order."""
    js = client.jetstream()
    info = await js.stream_info(FRAMES)
    found = []
    for sequence in range(max(1, info.state.first_seq), info.state.last_seq + 1):
        message = await js.get_msg(FRAMES, sequence)
        found.append(pb.FrameEnvelope.FromString(message.data or b""))
    return found


def frames_of(envelopes: list[pb.FrameEnvelope], lane: int | None = None) -> list[int]:
    """Sequences that envelopes answer for, in their order; of one lane, or of all."""
    return [
        sequence
        for envelope in envelopes
        if lane is None or envelope.lane == lane
        for item in envelope.items
        for sequence in range(item_range(item)[0], item_range(item)[1] + 1)
    ]
