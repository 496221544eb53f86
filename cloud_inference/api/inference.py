"""The `Inference` service: one image, answered by the model that answers for cameras."""

from __future__ import annotations

import asyncio
import io
import time
import warnings
from collections import defaultdict
from typing import Any

import numpy as np
from grpc import StatusCode
from numpy.typing import NDArray
from PIL import Image, ImageOps

from cloud_inference.api import metrics
from cloud_inference.api.auth import Authenticator
from cloud_inference.api.errors import Refusal, unary
from cloud_inference.infer import Model
from eyeline.v1 import detection_pb2, inference_pb2, inference_pb2_grpc
from eyeline_models.catalogue import OWN, ModelCard, detections

MAX_PIXELS = 50_000_000
_FORMATS = ("JPEG", "PNG", "WEBP")
# Decoded images in memory, of all tenants and of one.
_AT_ONCE = 4
_AT_ONCE_OF_TENANT = 2
# A picture that unpacks to more bytes for each of its own is refused, if it is large at all.
MAX_RATIO = 1000
_LARGE_BYTES = 16 << 20


class InferenceService(inference_pb2_grpc.InferenceServicer):
    """Answers for single images."""

    def __init__(self, model: Model, card: ModelCard, auth: Authenticator, *, max_image_bytes: int) -> None:
        self._model, self._card, self._auth = model, card, auth
        self._max_image_bytes = max_image_bytes
        # Decoded images are large: only so many are in memory at a time.
        self._slots = asyncio.Semaphore(_AT_ONCE)
        self._tenant_slots: defaultdict[str, asyncio.Semaphore] = defaultdict(
            lambda: asyncio.Semaphore(_AT_ONCE_OF_TENANT)
        )

    @unary
    async def Detect(  # noqa: N802
        self, request: inference_pb2.DetectRequest, context: Any
    ) -> inference_pb2.DetectResponse:
        """Objects in the image, in its own pixels."""
        caller = self._auth.caller(context, "detect")
        if request.model not in {"", self._card.name}:
            raise Refusal(
                StatusCode.NOT_FOUND, f"model {request.model[:80]!r} is not served here; {self._card.name} is"
            )
        if not 0 <= request.min_score < 1:
            raise Refusal(StatusCode.INVALID_ARGUMENT, "min_score must be at least 0 and below 1")
        with metrics.DETECT_SECONDS.time():
            async with self._tenant_slots[caller.tenant], self._slots:
                image = await asyncio.to_thread(decode_image, request.image, self._max_image_bytes)
                letterbox = self._card.letterbox(image.shape[1], image.shape[0])
                fitted = await asyncio.to_thread(letterbox.apply, image)
            began = time.perf_counter_ns()
            answer = await self._model.infer(fitted[None])
            infer_ns = time.perf_counter_ns() - began
        found = detections(
            self._card,
            answer.boxes[0],
            int(answer.count[0]),
            letterbox,
            thresholds=request.min_score or OWN,
        )
        return inference_pb2.DetectResponse(
            detections=found.to_proto(),
            model=detection_pb2.ModelRef(
                name=self._card.name, version=self._card.version, sha256=self._card.sha256
            ),
            width_px=image.shape[1],
            height_px=image.shape[0],
            infer_ns=infer_ns,
        )


def decode_image(data: bytes, max_bytes: int) -> NDArray[np.uint8]:
    """A JPEG, PNG or WebP as uint8 [H, W, 3] BGR, turned as its EXIF says; raises `Refusal`.

    Sizes are checked before anything is decoded.
    """
    if not data:
        raise Refusal(StatusCode.INVALID_ARGUMENT, "the request has no image")
    if len(data) > max_bytes:
        raise Refusal(
            StatusCode.INVALID_ARGUMENT, f"the image has {len(data)} bytes, at most {max_bytes} are allowed"
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of Pillow, about sizes that we check ourselves
            with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
                _check_size(image.width, image.height, len(data))
                turned = ImageOps.exif_transpose(image).convert("RGB")
    except Refusal:
        raise
    except Exception:  # noqa: BLE001  # Pillow's plugins raise whatever a hostile file provokes
        raise Refusal(
            StatusCode.INVALID_ARGUMENT, "the image is damaged, or neither JPEG, PNG nor WebP"
        ) from None
    return np.ascontiguousarray(np.asarray(turned)[:, :, ::-1])


def _check_size(width: int, height: int, coded_bytes: int) -> None:
    if width * height > MAX_PIXELS:
        raise Refusal(
            StatusCode.INVALID_ARGUMENT,
            f"the image has {width}x{height} pixels, at most {MAX_PIXELS // 1_000_000} million are allowed",
        )
    unpacked = width * height * 3
    if unpacked > _LARGE_BYTES and unpacked > coded_bytes * MAX_RATIO:
        raise Refusal(
            StatusCode.INVALID_ARGUMENT,
            f"the image unpacks from {coded_bytes} to {unpacked} bytes, at most {MAX_RATIO} times as many "
            "are allowed",
        )
