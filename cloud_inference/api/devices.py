"""The `Devices` service: what devices report, and what is wanted of them."""

from __future__ import annotations

import contextlib
from typing import Any

from grpc import StatusCode
from nats.js.api import RawStreamMsg
from nats.js.errors import KeyNotFoundError, KeyWrongLastSequenceError, NotFoundError
from nats.js.kv import KeyValue

from cloud_inference.api import tokens
from cloud_inference.api.auth import Authenticator
from cloud_inference.api.errors import Refusal, unary
from cloud_inference.api.tenants import TenantHub, Tenants
from cloud_inference.api.tokens import Kind, Position
from eyeline import subjects
from eyeline.errors import InvalidName
from eyeline.v1 import device_pb2, device_pb2_grpc

_PAGE_DEFAULT, _PAGE_MOST = 100, 1000
_MAX_CAMERAS = 256
# Of fields that are set.
_LIMITS = {"max_fps": (0.01, 240), "crf": (0, 51), "width_px": (64, 4096)}


class DevicesService(device_pb2_grpc.DevicesServicer):
    """Serves device status and desired configuration."""

    def __init__(self, tenants: Tenants, auth: Authenticator) -> None:
        self._tenants, self._auth = tenants, auth

    @unary
    async def ListDevices(  # noqa: N802
        self, request: device_pb2.ListDevicesRequest, context: Any
    ) -> device_pb2.ListDevicesResponse:
        """Every device that reported within a month, by site and name."""
        hub = self._tenants.hub(self._auth.caller(context).tenant)
        info = await hub.js.stream_info(subjects.STATUS, subjects_filter=subjects.status_subject("*", "*"))
        known = sorted(info.state.subjects or {})
        stream = tokens.identity(hub.name, subjects.STATUS)
        start = 0
        if request.page_token:
            start = tokens.decode(request.page_token, Kind.PAGE, stream).index
        end = start + min(request.page_size or _PAGE_DEFAULT, _PAGE_MOST)
        response = device_pb2.ListDevicesResponse()
        for subject in known[start:end]:
            with contextlib.suppress(NotFoundError):
                response.devices.append(await self._device(hub, *subject.split(".")[3:]))
        if end < len(known):
            response.next_page_token = tokens.encode(Kind.PAGE, stream, Position(0, end))
        return response

    @unary
    async def GetDevice(  # noqa: N802
        self, request: device_pb2.GetDeviceRequest, context: Any
    ) -> device_pb2.GetDeviceResponse:
        """One device."""
        hub = self._tenants.hub(self._auth.caller(context).tenant)
        site, name = _names(request.site, request.device)
        try:
            return device_pb2.GetDeviceResponse(device=await self._device(hub, site, name))
        except NotFoundError:
            raise Refusal(StatusCode.NOT_FOUND, f"no device {site}/{name} has reported") from None

    @unary
    async def SetDesiredConfig(  # noqa: N802
        self, request: device_pb2.SetDesiredConfigRequest, context: Any
    ) -> device_pb2.SetDesiredConfigResponse:
        """Replace what is wanted of a device."""
        hub = self._tenants.hub(self._auth.caller(context).tenant)
        site, name = _names(request.site, request.device)
        _check(request.desired)
        wanted = device_pb2.DesiredConfig(cameras=request.desired.cameras)
        bucket, key = await _bucket(hub), subjects.desired_key(site, name)
        try:
            if request.expected_revision:
                revision = await bucket.update(
                    key, wanted.SerializeToString(), last=request.expected_revision
                )
            else:
                revision = await bucket.put(key, wanted.SerializeToString())
        except KeyWrongLastSequenceError:
            raise Refusal(
                StatusCode.ABORTED,
                f"the desired configuration of {site}/{name} is no longer at revision "
                f"{request.expected_revision}: read it again",
            ) from None
        wanted.revision = revision
        return device_pb2.SetDesiredConfigResponse(desired=wanted)

    async def _device(self, hub: TenantHub, site: str, name: str) -> device_pb2.Device:
        """Raises `NotFoundError` when it never reported."""
        stored: RawStreamMsg = await hub.js.get_last_msg(
            subjects.STATUS, subjects.status_subject(site, name), direct=True
        )
        status = device_pb2.DeviceStatus.FromString(stored.data or b"")
        if stored.time is not None:
            status.stored_ns = int(stored.time.timestamp() * 1e9)
        device = device_pb2.Device(status=status)
        with contextlib.suppress(KeyNotFoundError):
            entry = await (await _bucket(hub)).get(subjects.desired_key(site, name))
            device.desired.ParseFromString(entry.value or b"")
            device.desired.revision = entry.revision or 0
        return device


async def _bucket(hub: TenantHub) -> KeyValue:
    return await hub.js.key_value(subjects.DESIRED)


def _names(site: str, device: str) -> tuple[str, str]:
    try:
        return subjects.check_token(site, "site"), subjects.check_token(device, "device")
    except InvalidName as problem:
        raise Refusal(StatusCode.INVALID_ARGUMENT, str(problem)) from None


def _check(desired: device_pb2.DesiredConfig) -> None:
    """Raise `Refusal` for what no agent would take."""
    if len(desired.cameras) > _MAX_CAMERAS:
        raise Refusal(
            StatusCode.INVALID_ARGUMENT,
            f"{len(desired.cameras)} cameras were named, at most {_MAX_CAMERAS} are allowed",
        )
    for camera in desired.cameras:
        try:
            subjects.check_token(camera.camera, "camera")
        except InvalidName as problem:
            raise Refusal(StatusCode.INVALID_ARGUMENT, str(problem)) from None
        given = {field.name: value for field, value in camera.ListFields()}
        for name, (low, high) in _LIMITS.items():
            if name in given and not low <= given[name] <= high:
                raise Refusal(
                    StatusCode.INVALID_ARGUMENT, f"camera {camera.camera}: {name} must be {low:g} to {high:g}"
                )
