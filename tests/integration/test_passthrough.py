"""Packets of a real RTSP camera decode elsewhere to the pictures that they came with."""

from __future__ import annotations

from itertools import islice
from typing import Any

import numpy as np
import pytest

from cloud_inference.decode import ChainDecoder
from edge_agent.config import CameraSettings
from edge_agent.own import OwnPicture, own_format
from edge_agent.sources import open_source
from eyeline.v1 import frame_pb2 as pb
from tests.support.cameras import RtspServer

pytestmark = pytest.mark.timeout(60)


def test_rtsp_packets_decode_elsewhere() -> None:
    with RtspServer(fps=10) as server:
        source = open_source(CameraSettings(name="cam", source=server.url, hardware_decode="off"))
        decoder, chain, index, compared = ChainDecoder(), 0, 0, 0
        try:
            for shot in islice(source.shots(), 25):
                own = shot.own
                assert isinstance(own, OwnPicture), own
                chain, index = (chain + 1, 0) if own.keyframe else (chain, index + 1)
                if not chain:
                    continue
                unit = pb.AccessUnit(
                    sequence=1, chain_id=chain, chain_index=index, keyframe=own.keyframe, data=own.data
                )
                shown: Any = decoder.decode(unit, own_format(own, shot.picture))
                kept: Any = shot.picture
                assert np.abs(shown.astype(int) - kept.to_ndarray(format="bgr24")).mean() < 1
                compared += 1
        finally:
            source.close()
        assert chain >= 2
        assert compared >= 15
