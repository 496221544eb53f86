"""The client SDK, for asyncio. `eyeline.blocking` is its twin for threads.

async with Client("host:50051", token="...") as client:
    async for result in client.subscribe(["yard/gate"]):
        print(result.camera, result.sequence, len(result.detections))

Every failure is one of `eyeline.errors.ApiError`, or `InvalidName` for a name that cannot be one.
"""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self, TypeVar

import grpc
import grpc.aio

from eyeline import _image
from eyeline._image import Image
from eyeline._status import from_rpc
from eyeline.errors import ConfigError, InvalidRequest
from eyeline.subjects import check_token
from eyeline.subscription import Backoff, OnGap, Subscription
from eyeline.v1 import (
    device_pb2,
    device_pb2_grpc,
    inference_pb2,
    inference_pb2_grpc,
    result_pb2,
    result_pb2_grpc,
    still_pb2,
    still_pb2_grpc,
    system_pb2,
    system_pb2_grpc,
)
from eyeline.values import ImageAnswer, Result, Still

# "site/camera", or the two apart.
Camera = str | tuple[str, str]


@dataclass(frozen=True, slots=True)
class ClientCertificate:
    """Who we are, for a server that asks for certificates: PEM files. ca: to trust; None: the usual ones."""

    certificate: Path
    key: Path
    ca: Path | None = None


# False: none; True: the usual authorities; a file with the authority's certificate; a certificate of our own
# with it; or gRPC credentials.
Tls = bool | Path | ClientCertificate | grpc.ChannelCredentials

DEFAULT_TIMEOUT_S: Final = 10.0
_MAX_RECEIVE_BYTES: Final = 64 << 20

R = TypeVar("R")


class Client:
    """Reads answers, asks about images, and looks after devices.

    address: "host:port". token: bearer token, for servers that ask for one. tls: True for a server with a
    public certificate, or a file with the certificate of its authority. timeout_s: how long a call may take,
    unless it says otherwise itself. backoff: pauses between a subscription's attempts to reconnect.

    Connects on the first call; use it as an async context manager, or call `close`.
    """

    def __init__(
        self,
        address: str,
        token: str | None = None,
        *,
        tls: Tls = False,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        backoff: Backoff | None = None,
    ) -> None:
        self.address = _checked_address(address)
        self._metadata = _authorization(token)
        self._credentials = _credentials(tls)
        self._timeout_s = timeout_s
        self._backoff = backoff or Backoff()
        self._channel: grpc.aio.Channel | None = None
        self._closed = False
        self._subscriptions: weakref.WeakSet[Subscription] = weakref.WeakSet()

    def __repr__(self) -> str:
        return f"Client({self.address!r})"

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """End every call and the connection."""
        self._closed = True
        for subscription in list(self._subscriptions):
            await subscription.aclose()
        channel, self._channel = self._channel, None
        if channel is not None:
            await channel.close()

    def subscribe(
        self,
        cameras: Camera | Iterable[Camera] | None = None,
        *,
        since_ns: int | None = None,
        resume: str | None = None,
        final_only: bool = False,
        live_only: bool = False,
        on_gap: OnGap = "raise",
        connect_within_s: float | None = None,
    ) -> Subscription:
        """Results as they are stored, over as many connections as it takes, until closed.

        cameras: None for all. since_ns: from this storage time, nanoseconds since the Unix epoch; resume:
        right after the result with this `resume_token`; from now without either. final_only: no provisional
        results; live_only: none that are late. on_gap: when results after the last one seen are gone: "raise"
        `ResumeGapError`, or "continue" behind them. connect_within_s: raise what stood in the way
        when the first connection takes longer; None waits for as long as it takes. Later connections are
        always waited for.
        """
        if since_ns is not None and resume:
            raise InvalidRequest("a subscription starts from a time or after a token, not both")
        if on_gap not in {"raise", "continue"}:
            raise InvalidRequest(f"on_gap must be 'raise' or 'continue', not {on_gap!r}")
        request = result_pb2.SubscribeRequest(
            cameras=_cameras(cameras), final_only=final_only, live_only=live_only
        )
        if since_ns is not None:
            request.from_time_ns = _ns(since_ns, "since_ns")
        elif resume:
            request.resume_token = resume
        subscription = Subscription(
            lambda asked: self._results().Subscribe(asked, metadata=self._metadata),
            request,
            address=self.address,
            on_gap=on_gap,
            stand_within_s=self._timeout_s,
            connect_within_s=connect_within_s,
            backoff=self._backoff,
        )
        self._subscriptions.add(subscription)
        return subscription

    async def latest(
        self, cameras: Camera | Iterable[Camera] | None = None, *, timeout_s: float | None = None
    ) -> list[Result]:
        """The newest result of each camera; cameras: None for all."""
        request = result_pb2.GetLatestRequest(cameras=_cameras(cameras))
        response = await self._ask(self._results().GetLatest, request, timeout_s)
        return [Result.from_proto(message) for message in response.results]

    async def history(
        self,
        site: str,
        camera: str,
        from_ns: int = 0,
        to_ns: int = 0,
        *,
        page_size: int = 500,
        timeout_s: float | None = None,
    ) -> AsyncIterator[Result]:
        """One camera's stored results, the highest revision of each, page by page.

        from_ns, to_ns: capture time, nanoseconds since the Unix epoch; from is included, to is not; 0 means
        open. timeout_s: for each page.
        """
        request = result_pb2.ListResultsRequest(
            camera=_camera((site, camera)),
            from_time_ns=_ns(from_ns, "from_ns"),
            to_time_ns=_ns(to_ns, "to_ns"),
            page_size=page_size,
        )
        while True:
            response = await self._ask(self._results().ListResults, request, timeout_s)
            for message in response.results:
                yield Result.from_proto(message)
            if not response.next_page_token:
                return
            request.page_token = response.next_page_token

    async def detect(
        self, image: Image, model: str = "", min_score: float = 0.0, *, timeout_s: float | None = None
    ) -> ImageAnswer:
        """What a model sees in one image.

        image: a JPEG, PNG or WebP as bytes or as a file, or pixels, uint8 [H, W, 3] BGR. model: empty for the
        one that answers for cameras. min_score: 0 for each class's own threshold.
        """
        data = await asyncio.to_thread(_image.to_bytes, image)
        request = inference_pb2.DetectRequest(image=data, model=model, min_score=min_score)
        stub: inference_pb2_grpc.InferenceAsyncStub = inference_pb2_grpc.InferenceStub(self._connection())
        return ImageAnswer.from_proto(await self._ask(stub.Detect, request, timeout_s))

    async def still(
        self,
        site: str,
        camera: str,
        *,
        annotated: bool = False,
        width_px: int = 0,
        timeout_s: float | None = None,
    ) -> Still:
        """What a camera shows now: its newest picture that has an answer; raises `NotFound` without pictures.

        annotated: draw the answer in. width_px: scale the picture to it; 0 leaves the size it was sent at.
        """
        request = still_pb2.GetStillRequest(
            camera=_camera((site, camera)), annotated=annotated, width_px=width_px
        )
        stub: still_pb2_grpc.StillsAsyncStub = still_pb2_grpc.StillsStub(self._connection())
        return Still.from_proto(await self._ask(stub.GetStill, request, timeout_s))

    async def devices(self, *, timeout_s: float | None = None) -> list[device_pb2.Device]:
        """All devices, with what each last reported and what is wanted of it. timeout_s: for each page."""
        request = device_pb2.ListDevicesRequest(page_size=1000)
        found: list[device_pb2.Device] = []
        while True:
            response = await self._ask(self._devices().ListDevices, request, timeout_s)
            found.extend(response.devices)
            if not response.next_page_token:
                return found
            request.page_token = response.next_page_token

    async def device(self, site: str, device: str, *, timeout_s: float | None = None) -> device_pb2.Device:
        """One device; raises `NotFound`."""
        request = device_pb2.GetDeviceRequest(
            site=check_token(site, "site"), device=check_token(device, "device")
        )
        return (await self._ask(self._devices().GetDevice, request, timeout_s)).device

    async def set_desired(
        self,
        site: str,
        device: str,
        cameras: Iterable[device_pb2.DesiredCamera],
        *,
        expected_revision: int = 0,
        timeout_s: float | None = None,
    ) -> device_pb2.DesiredConfig:
        """Replace what is wanted of a device's cameras; what was stored, with its revision.

        expected_revision: as read before; raises `Conflict` when it has changed since. 0 writes regardless.
        """
        request = device_pb2.SetDesiredConfigRequest(
            site=check_token(site, "site"),
            device=check_token(device, "device"),
            desired=device_pb2.DesiredConfig(cameras=cameras),
            expected_revision=expected_revision,
        )
        return (await self._ask(self._devices().SetDesiredConfig, request, timeout_s)).desired

    async def system(self, *, timeout_s: float | None = None) -> system_pb2.GetSystemResponse:
        """How the cloud side is, and what the caller may do, as far as the caller may know."""
        stub: system_pb2_grpc.SystemAsyncStub = system_pb2_grpc.SystemStub(self._connection())
        return await self._ask(stub.GetSystem, system_pb2.GetSystemRequest(), timeout_s)

    async def _ask(self, method: Callable[..., Awaitable[R]], request: Any, timeout_s: float | None) -> R:
        """One unary call with a deadline; raises one of our errors."""
        limit_s = self._timeout_s if timeout_s is None else timeout_s
        try:
            return await method(request, timeout=limit_s, metadata=self._metadata)
        except grpc.RpcError as problem:
            raise from_rpc(problem, self.address) from None

    def _results(self) -> result_pb2_grpc.ResultsAsyncStub:
        return result_pb2_grpc.ResultsStub(self._connection())

    def _devices(self) -> device_pb2_grpc.DevicesAsyncStub:
        return device_pb2_grpc.DevicesStub(self._connection())

    def _connection(self) -> grpc.aio.Channel:
        if self._closed:
            raise InvalidRequest("this client is closed; make a new one")
        if self._channel is None:
            options = _options(self.address)
            if self._credentials is None:
                self._channel = grpc.aio.insecure_channel(self.address, options)
            else:
                self._channel = grpc.aio.secure_channel(self.address, self._credentials, options)
        return self._channel


def _options(address: str) -> list[tuple[str, Any]]:
    options: list[tuple[str, Any]] = [
        ("grpc.max_receive_message_length", _MAX_RECEIVE_BYTES),
        # A dead peer behind a quiet subscription is noticed.
        ("grpc.keepalive_time_ms", 30_000),
        ("grpc.keepalive_timeout_ms", 10_000),
        ("grpc.http2.max_pings_without_data", 0),
        # gRPC's own pauses would go up to two minutes.
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.min_reconnect_backoff_ms", 1_000),
        ("grpc.max_reconnect_backoff_ms", 2_000),
    ]
    if address.rpartition(":")[0] in {"localhost", "127.0.0.1", "[::1]"}:
        options.append(("grpc.enable_http_proxy", 0))
    return options


def _checked_address(address: str) -> str:
    host, colon, port = address.rpartition(":")
    if not host or not colon or "/" in address or not port.isdecimal() or not 0 < int(port) < 65536:
        raise ConfigError(f"server address {address[:200]!r} must be HOST:PORT, such as 127.0.0.1:50051")
    return address


def _authorization(token: str | None) -> tuple[tuple[str, str], ...]:
    if not token:
        return ()
    if not (token.isascii() and token.isprintable()):
        raise ConfigError("the token must be printable ASCII on one line")
    return (("authorization", f"Bearer {token}"),)


def _credentials(tls: Tls) -> grpc.ChannelCredentials | None:
    if tls is False:
        return None
    if tls is True:
        return grpc.ssl_channel_credentials()
    if isinstance(tls, Path | ClientCertificate):
        own = isinstance(tls, ClientCertificate)
        paths = (
            (tls.ca, tls.key, tls.certificate) if isinstance(tls, ClientCertificate) else (tls, None, None)
        )
        try:
            ca, key, certificate = (path.read_bytes() if path is not None else None for path in paths)
        except OSError as problem:
            what = "TLS file" if own else "certificate"
            raise ConfigError(f"{what} {problem.filename} cannot be read: {problem.strerror}") from None
        return grpc.ssl_channel_credentials(ca, key, certificate)
    return tls


def _cameras(cameras: Camera | Iterable[Camera] | None) -> list[result_pb2.CameraRef]:
    if cameras is None:
        return []
    if isinstance(cameras, str):
        return [_camera(cameras)]
    named = [_camera(camera) for camera in cameras]
    if not named:
        # An empty list would mean all cameras on the wire, which is not what an empty choice asks for.
        raise InvalidRequest("no camera is named; leave the cameras out for all of them")
    return named


def _camera(camera: Camera) -> result_pb2.CameraRef:
    if isinstance(camera, str):
        site, slash, name = camera.partition("/")
        if not slash:
            raise InvalidRequest(f"camera {camera[:80]!r} must be SITE/CAMERA, such as yard/gate")
    else:
        site, name = camera
    return result_pb2.CameraRef(site=check_token(site, "site"), camera=check_token(name, "camera"))


def _ns(value: int, what: str) -> int:
    if not 0 <= value < 2**63:
        raise InvalidRequest(f"{what} {value} must be nanoseconds since the Unix epoch")
    return value
