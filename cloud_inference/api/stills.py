"""The `Stills` service: what a camera shows now, as a JPEG."""

from __future__ import annotations

import asyncio
from typing import Any

import cv2
import numpy as np
from grpc import StatusCode
from numpy.typing import NDArray

from cloud_inference import draw
from cloud_inference.api import metrics
from cloud_inference.api.auth import Authenticator, require
from cloud_inference.api.errors import Refusal, unary
from cloud_inference.api.tenants import Tenants
from cloud_inference.stills import Look, Stills
from eyeline import subjects
from eyeline.errors import InvalidName
from eyeline.v1 import detection_pb2, result_pb2, still_pb2, still_pb2_grpc
from eyeline.values import Result

_MOST_WIDTH = 4096
_QUALITY = 88
# Pictures are large: only so many are worked on at a time.
_AT_ONCE = 4
_WAIT_S = 5.0


class StillsService(still_pb2_grpc.StillsServicer):
    """Serves pictures of cameras."""

    def __init__(self, tenants: Tenants, auth: Authenticator, stills: Stills) -> None:
        self._tenants, self._auth, self._stills = tenants, auth, stills
        self._slots = asyncio.Semaphore(_AT_ONCE)

    @unary
    async def GetStill(  # noqa: N802
        self, request: still_pb2.GetStillRequest, context: Any
    ) -> still_pb2.GetStillResponse:
        """The newest picture of a camera, with its answer drawn in if asked for."""
        caller = self._auth.caller(context, "read")
        try:
            site = subjects.check_token(request.camera.site, "site")
            camera = subjects.check_token(request.camera.camera, "camera")
        except InvalidName as problem:
            raise Refusal(StatusCode.INVALID_ARGUMENT, str(problem)) from None
        require(caller, site, camera)
        if request.width_px and not 16 <= request.width_px <= _MOST_WIDTH:
            raise Refusal(StatusCode.INVALID_ARGUMENT, f"width_px must be 16 to {_MOST_WIDTH}, or 0")
        hub = self._tenants.hub(caller.tenant)
        await hub.audit.viewed(caller.who, "view", [f"{site}/{camera}"])
        async with self._slots, asyncio.timeout(_WAIT_S):
            look = await self._stills.look(hub.name, hub.connection, hub.js, site, camera)
            if look is None:
                raise Refusal(
                    StatusCode.NOT_FOUND,
                    f"no picture of {site}/{camera} is kept: it sends none, or was not heard of for long",
                )
            await hub.audit.viewed(caller.who, "view", [f"{site}/{camera}"])
            metrics.STILLS.inc()
            return await asyncio.to_thread(_response, request, look, hub.name, (site, camera))


def _response(
    request: still_pb2.GetStillRequest, look: Look, tenant: str, name: tuple[str, str]
) -> still_pb2.GetStillResponse:
    of = look.still.of
    image, shows = draw.unpadded(look.still.image, of.picture)
    image = _scaled(image, request.width_px)
    if request.annotated:
        answer = Result.from_proto(look.answer) if look.answer is not None else None
        image = draw.annotated(image, shows, answer, of.captured_ns)
    done, jpeg = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, _QUALITY])
    assert done  # noqa: S101  # a picture that was decoded can be encoded
    return still_pb2.GetStillResponse(
        image=jpeg.tobytes(),
        width_px=image.shape[1],
        height_px=image.shape[0],
        shows=detection_pb2.Box(x1_px=shows[0], y1_px=shows[1], x2_px=shows[2], y2_px=shows[3]),
        key=result_pb2.FrameKey(
            tenant=tenant, site=name[0], camera=name[1], epoch=of.epoch, sequence=of.unit.sequence
        ),
        device=of.device,
        captured_ns=of.captured_ns,
        answer=look.answer,
        latest=look.latest,
    )


def _scaled(image: NDArray[np.uint8], width: int) -> NDArray[np.uint8]:
    if not width or width == image.shape[1]:
        return image
    height = max(1, round(image.shape[0] * width / image.shape[1]))
    smaller = width < image.shape[1]
    scaled = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA if smaller else cv2.INTER_CUBIC)
    return np.asarray(scaled, np.uint8)
