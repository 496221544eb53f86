"""The `Devices` service: what devices report, and what is wanted of them."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

from grpc import StatusCode
from nats.js.api import RawStreamMsg
from nats.js.errors import KeyNotFoundError, KeyWrongLastSequenceError, NotFoundError
from nats.js.kv import KeyValue

from cloud_inference.access import Grant
from cloud_inference.api import tokens
from cloud_inference.api.auth import Authenticator, require
from cloud_inference.api.errors import Refusal, unary
from cloud_inference.api.tenants import TenantHub, Tenants
from cloud_inference.api.tokens import Kind, Position
from eyeline import subjects
from eyeline.errors import InvalidName
from eyeline.v1 import device_pb2, device_pb2_grpc

_PAGE_DEFAULT, _PAGE_MOST = 100, 1000
_MAX_CAMERAS = 256
_MAX_MASKS = 100
_MAX_POINTS = 1000
# Zones, and lines, of one camera.
_MAX_COUNTED = 32
_MAX_NAME = 64
# Against others who write the same configuration.
_ATTEMPTS = 5
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
        """Every device that reported within a month, by site and name, of those that the caller may see."""
        caller = self._auth.caller(context, "read")
        hub = self._tenants.hub(caller.tenant)
        info = await hub.js.stream_info(subjects.STATUS, subjects_filter=subjects.status_subject("*", "*"))
        known = sorted(info.state.subjects or {})
        stream = tokens.identity(hub.name, subjects.STATUS)
        start = 0
        if request.page_token:
            start = tokens.decode(request.page_token, Kind.PAGE, stream).index
        end = start + min(request.page_size or _PAGE_DEFAULT, _PAGE_MOST)
        response = device_pb2.ListDevicesResponse()
        seen = 0  # of the caller's: a page token tells nothing of the others
        for subject in known:
            site, name = subject.split(".")[3:]
            if caller.everywhere and not start <= seen < end:
                seen += 1  # without reading it
                continue
            with contextlib.suppress(NotFoundError):
                device = await self._visible(hub, caller, site, name)
                if start <= seen < end:
                    response.devices.append(device)
                seen += 1
                if seen > end:
                    break
        if seen > end:
            response.next_page_token = tokens.encode(Kind.PAGE, stream, Position(0, end))
        return response

    @unary
    async def GetDevice(  # noqa: N802
        self, request: device_pb2.GetDeviceRequest, context: Any
    ) -> device_pb2.GetDeviceResponse:
        """One device."""
        caller = self._auth.caller(context, "read")
        hub = self._tenants.hub(caller.tenant)
        site, name = _names(request.site, request.device)
        try:
            return device_pb2.GetDeviceResponse(device=await self._visible(hub, caller, site, name))
        except NotFoundError:
            raise _unknown(site, name) from None

    @unary
    async def SetDesiredConfig(  # noqa: N802
        self, request: device_pb2.SetDesiredConfigRequest, context: Any
    ) -> device_pb2.SetDesiredConfigResponse:
        """Replace what is wanted of a device's cameras, as far as they are the caller's."""
        caller = self._auth.caller(context, "write")
        hub = self._tenants.hub(caller.tenant)
        site, name = _names(request.site, request.device)
        _check(request.desired)
        for camera in request.desired.cameras:
            require(caller, site, camera.camera)
        if not caller.covers(site, "*"):
            try:
                await self._visible(hub, caller, site, name)
            except NotFoundError:
                raise _unknown(site, name) from None
        bucket, key = await _bucket(hub), subjects.desired_key(site, name)
        for _ in range(_ATTEMPTS):
            stored, revision = await _desired(bucket, key)
            if request.expected_revision not in {0, revision}:
                break
            kept = [camera for camera in stored.cameras if not caller.covers(site, camera.camera)]
            wanted = device_pb2.DesiredConfig(
                cameras=[*kept, *request.desired.cameras], erasures=stored.erasures
            )
            await _record(hub, caller, (site, name), stored, wanted)
            try:
                new = await _put(bucket, key, wanted.SerializeToString(), revision)
            except KeyWrongLastSequenceError:
                continue  # somebody else was quicker
            _scoped(wanted.cameras, site, caller)
            del wanted.erasures[:]
            wanted.revision = new
            return device_pb2.SetDesiredConfigResponse(desired=wanted)
        raise Refusal(
            StatusCode.ABORTED,
            f"the desired configuration of {site}/{name} was changed meanwhile: read it again",
        )

    async def _visible(self, hub: TenantHub, caller: Grant, site: str, name: str) -> device_pb2.Device:
        """A device with the cameras that the caller may see; raises `NotFoundError` when that is none."""
        if not any(allowed in {"*", site} for allowed, _ in caller.cameras):
            raise NotFoundError
        device = await self._device(hub, site, name)
        if caller.covers(site, "*"):
            return device
        _scoped(device.status.cameras, site, caller)
        _scoped(device.desired.cameras, site, caller)
        if not device.status.cameras:
            raise NotFoundError
        return device

    async def _device(self, hub: TenantHub, site: str, name: str) -> device_pb2.Device:
        """Raises `NotFoundError` when it never reported."""
        stored: RawStreamMsg = await hub.js.get_last_msg(
            subjects.STATUS, subjects.status_subject(site, name), direct=True
        )
        status = device_pb2.DeviceStatus.FromString(stored.data or b"")
        if stored.time is not None:
            status.stored_ns = int(stored.time.timestamp() * 1e9)
        device = device_pb2.Device(status=status)
        desired, revision = await _desired(await _bucket(hub), subjects.desired_key(site, name))
        if revision:
            device.desired.CopyFrom(desired)
            del device.desired.erasures[:]  # the operator's, and told by `erase`
            device.desired.revision = revision
        return device


async def _bucket(hub: TenantHub) -> KeyValue:
    return await hub.js.key_value(subjects.DESIRED)


async def _desired(bucket: KeyValue, key: str) -> tuple[device_pb2.DesiredConfig, int]:
    """What is wanted, and its revision; nothing and 0 when nothing is."""
    try:
        entry = await bucket.get(key)
    except KeyNotFoundError:
        return device_pb2.DesiredConfig(), 0
    return device_pb2.DesiredConfig.FromString(entry.value or b""), entry.revision or 0


async def _put(bucket: KeyValue, key: str, value: bytes, revision: int) -> int:
    """Store it over that revision, 0 for none; raises `KeyWrongLastSequenceError`."""
    return await (bucket.update(key, value, last=revision) if revision else bucket.create(key, value))


async def _record(
    hub: TenantHub,
    caller: Grant,
    device: tuple[str, str],
    before: device_pb2.DesiredConfig,
    after: device_pb2.DesiredConfig,
) -> None:
    """Tell the audit log what is about to be wanted, changed masks apart; raises `BusError`."""
    old, new = ({it.camera: it for it in wanted.cameras} for wanted in (before, after))
    masks = {
        camera: [len(set_[camera].masks) if camera in set_ else 0 for set_ in (old, new)]
        for camera in sorted({*old, *new})
        if list(old[camera].masks if camera in old else ())
        != list(new[camera].masks if camera in new else ())
    }
    where = "/".join(device)
    if masks:
        named = [f"{device[0]}/{camera}" for camera in masks]
        await hub.audit.record(caller.who, "masks", named, device=where, before_after=masks)
    changed = [camera for camera in sorted({*old, *new}) if old.get(camera) != new.get(camera)]
    named = [f"{device[0]}/{camera}" for camera in changed]
    await hub.audit.record(caller.who, "desired", named, device=where)


def _scoped(cameras: Any, site: str, caller: Grant) -> None:
    """Take out of a repeated field what is not for the caller."""
    kept = [camera for camera in cameras if caller.covers(site, camera.camera)]
    del cameras[:]
    cameras.extend(kept)


def _unknown(site: str, name: str) -> Refusal:
    return Refusal(StatusCode.NOT_FOUND, f"no device {site}/{name} has reported")


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
        _check_drawn(camera)
        given = {field.name: value for field, value in camera.ListFields()}
        for name, (low, high) in _LIMITS.items():
            if name in given and not low <= given[name] <= high:
                raise Refusal(
                    StatusCode.INVALID_ARGUMENT, f"camera {camera.camera}: {name} must be {low:g} to {high:g}"
                )


def _check_drawn(camera: device_pb2.DesiredCamera) -> None:
    """Raise `Refusal` for masks and zones that are no polygons inside the picture, and for such lines."""
    drawn: dict[str, list[tuple[str, Sequence[device_pb2.MaskPoint]]]] = {
        "mask": [(it.name, it.points) for it in camera.masks],
        "zone": [(it.name, it.points) for it in camera.zones],
        "line": [(it.name, [it.start, it.end]) for it in camera.lines],
    }
    for kind, shapes in drawn.items():
        most = _MAX_MASKS if kind == "mask" else _MAX_COUNTED
        if len(shapes) > most:
            raise _bad(camera, f"{len(shapes)} {kind}s, at most {most} are allowed")
        for number, (name, points) in enumerate(shapes, 1):
            what = f"{kind} {number}"
            if kind != "line" and not 3 <= len(points) <= _MAX_POINTS:
                raise _bad(camera, f"{what} has {len(points)} points, 3 to {_MAX_POINTS} are allowed")
            if not all(0 <= value <= 1 for point in points for value in (point.x, point.y)):
                raise _bad(
                    camera, f"{what} has a point outside 0 to 1, which are fractions of width and height"
                )
            if len(name) > _MAX_NAME or not name.isprintable() or (kind != "mask" and not name.strip()):
                raise _bad(camera, f"{what} must be named with 1 to {_MAX_NAME} printable characters")
        names = [name for name, _ in shapes]
        if kind != "mask" and len(set(names)) < len(names):
            raise _bad(camera, f"two {kind}s have the same name")
    for line in camera.lines:
        if line.start == line.end:
            raise _bad(camera, f"line {line.name!r} starts where it ends")


def _bad(camera: device_pb2.DesiredCamera, problem: str) -> Refusal:
    return Refusal(StatusCode.INVALID_ARGUMENT, f"camera {camera.camera}: {problem}")
