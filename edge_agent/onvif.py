"""Asking an ONVIF camera for the addresses of its streams (profile S: GetProfiles, GetStreamUri).

Requests carry a WS-UsernameToken with a password digest (OASIS Username Token Profile 1.0), dated by the
camera's own clock: many cameras refuse a token that seems old.
"""

from __future__ import annotations

import base64
import hashlib
import http.client
import secrets
import ssl
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from urllib.parse import urlsplit, urlunsplit
from xml.etree.ElementTree import Element
from xml.sax.saxutils import escape

from edge_agent import safe_xml
from edge_agent.discover import FoundCamera
from edge_agent.errors import SourceInvalid, SourceUnavailable

TIMEOUT_S = 5.0
_MAX_PROFILES = 16
_SOAP = "http://www.w3.org/2003/05/soap-envelope"
_DEVICE = "http://www.onvif.org/ver10/device/wsdl"
_MEDIA = "http://www.onvif.org/ver10/media/wsdl"
_SCHEMA = "http://www.onvif.org/ver10/schema"
_WSSE = "http://docs.oasis-open.org/wss/2004/01/oasis-200401-wss-wssecurity-secext-1.0.xsd"
_WSU = "http://docs.oasis-open.org/wss/2004/01/oasis-200401-wss-wssecurity-utility-1.0.xsd"
_TOKEN = "http://docs.oasis-open.org/wss/2004/01/oasis-200401-wss-username-token-profile-1.0"  # noqa: S105
_WORDS = "http://docs.oasis-open.org/wss/2004/01/oasis-200401-wss-soap-message-security-1.0"


@dataclass(frozen=True, slots=True)
class FoundStream:
    """One profile of a camera. uri: its RTSP address, without credentials; sizes in pixels, 0 if not told."""

    profile: str
    uri: str
    width: int
    height: int


def stream_uri(found: FoundCamera, user: str | None = None, password: str | None = None) -> str:
    """The RTSP address, without credentials, of the camera's largest stream; raises as `streams` does."""
    return streams(found, user, password)[0].uri


def streams(found: FoundCamera, user: str | None = None, password: str | None = None) -> list[FoundStream]:
    """The camera's streams, the largest first: one is there at least.

    Raises `SourceUnavailable` when the camera does not answer, `SourceInvalid` when it refuses the user or
    has no stream.
    """
    device = _Service(found.service_url, found.host)
    login = _Login(user, password, _clock_offset(device)) if user is not None else None
    capabilities = device.call(
        f'<GetCapabilities xmlns="{_DEVICE}"><Category>Media</Category></GetCapabilities>', login
    )
    section = next(capabilities.iter("Media"), None)
    address = safe_xml.text(section, "XAddr") if section is not None else None
    media = _Service(_at_same_host(address or found.service_url, found.service_url), found.host)
    profiles = list(media.call(f'<GetProfiles xmlns="{_MEDIA}"/>', login).iter("Profiles"))[:_MAX_PROFILES]
    offered = [stream for profile in profiles if (stream := _stream(media, profile, login)) is not None]
    if not offered:
        raise SourceInvalid(f"camera at {found.host}: it offers no RTSP stream")
    return sorted(offered, key=lambda stream: -stream.width * stream.height)


@dataclass(frozen=True, slots=True)
class _Login:
    user: str
    password: str | None
    clock_offset: timedelta

    def __repr__(self) -> str:
        return "_Login(…)"

    def header(self) -> str:
        nonce = secrets.token_bytes(16)
        created = (datetime.now(UTC) + self.clock_offset).strftime("%Y-%m-%dT%H:%M:%SZ")
        password = (self.password or "").encode()
        digest = hashlib.sha1(nonce + created.encode() + password, usedforsecurity=False).digest()
        return (
            f'<w:Security xmlns:w="{_WSSE}" xmlns:u="{_WSU}" s:mustUnderstand="1"><w:UsernameToken>'
            f"<w:Username>{escape(self.user)}</w:Username>"
            f'<w:Password Type="{_TOKEN}#PasswordDigest">{base64.b64encode(digest).decode()}</w:Password>'
            f'<w:Nonce EncodingType="{_WORDS}#Base64Binary">{base64.b64encode(nonce).decode()}</w:Nonce>'
            f"<u:Created>{created}</u:Created></w:UsernameToken></w:Security>"
        )


class _Service:
    """One SOAP address of a camera."""

    def __init__(self, url: str, host: str) -> None:
        self._parts = urlsplit(url)
        self._who = f"camera at {host}"

    def call(self, body: str, login: _Login | None) -> Element:
        header = login.header() if login is not None else ""
        envelope = (
            f'<?xml version="1.0" encoding="UTF-8"?><s:Envelope xmlns:s="{_SOAP}">'
            f"<s:Header>{header}</s:Header><s:Body>{body}</s:Body></s:Envelope>"
        )
        status, raw = self._post(envelope.encode())
        try:
            answer = safe_xml.parse(raw)
        except ValueError:
            answer = None
        refused = answer is not None and "NotAuthorized" in " ".join(safe_xml.texts(answer, "Value"))
        if refused or status in {401, 403}:
            raise SourceInvalid(f"{self._who}: it refuses the user or the password")
        if answer is None or status != 200:
            raise SourceUnavailable(f"{self._who}: its ONVIF service answers with an error (HTTP {status})")
        return answer

    def _post(self, content: bytes) -> tuple[int, bytes]:
        host, port = self._parts.hostname or "", self._parts.port
        connection: http.client.HTTPConnection
        if self._parts.scheme == "https":
            # Cameras sign their own certificates; the digest keeps the password safe.
            context = ssl._create_unverified_context()  # noqa: S323
            connection = http.client.HTTPSConnection(host, port, timeout=TIMEOUT_S, context=context)
        else:
            connection = http.client.HTTPConnection(host, port, timeout=TIMEOUT_S)
        path = urlunsplit(("", "", self._parts.path or "/", self._parts.query, ""))
        try:
            connection.request("POST", path, content, {"Content-Type": "application/soap+xml; charset=utf-8"})
            response = connection.getresponse()
            return response.status, response.read(safe_xml.MAX_BYTES + 1)
        except (OSError, http.client.HTTPException) as problem:
            reason = getattr(problem, "strerror", None) or type(problem).__name__
            raise SourceUnavailable(f"{self._who}: its ONVIF service does not answer ({reason})") from None
        finally:
            connection.close()


def _clock_offset(device: _Service) -> timedelta:
    """Camera's clock minus ours; zero when it does not tell."""
    try:
        answer = device.call(f'<GetSystemDateAndTime xmlns="{_DEVICE}"/>', None)
    except SourceInvalid:
        return timedelta()
    told = next(answer.iter("UTCDateTime"), None)
    if told is None:
        return timedelta()
    try:
        year, month, day, hour, minute, second = (
            int(safe_xml.text(told, tag) or "")
            for tag in ("Year", "Month", "Day", "Hour", "Minute", "Second")
        )
        theirs = datetime(year, month, day, hour, minute, second, tzinfo=UTC)
    except ValueError:
        return timedelta()
    return theirs - datetime.now(UTC)


def _stream(media: _Service, profile: Element, login: _Login | None) -> FoundStream | None:
    token = profile.get("token", "")
    answer = media.call(
        f'<GetStreamUri xmlns="{_MEDIA}"><StreamSetup><Stream xmlns="{_SCHEMA}">RTP-Unicast</Stream>'
        f'<Transport xmlns="{_SCHEMA}"><Protocol>RTSP</Protocol></Transport></StreamSetup>'
        f"<ProfileToken>{escape(token)}</ProfileToken></GetStreamUri>",
        login,
    )
    uri = safe_xml.text(answer, "Uri")
    if uri is None or not uri.lower().startswith(("rtsp://", "rtsps://")):
        return None
    resolution = next(profile.iter("Resolution"), None)
    width, height = (_size(resolution, "Width"), _size(resolution, "Height"))
    return FoundStream(safe_xml.text(profile, "Name") or token, _without_user(uri), width, height)


def _size(resolution: Element | None, tag: str) -> int:
    told = safe_xml.text(resolution, tag) if resolution is not None else None
    return int(told) if told is not None and told.isdecimal() else 0


def _without_user(uri: str) -> str:
    scheme, _, rest = uri.partition("://")
    place, slash, path = rest.partition("/")
    return f"{scheme}://{place.rpartition('@')[2]}{slash}{path}"


def _at_same_host(url: str, device_url: str) -> str:
    """The address with the device's own host: behind NAT cameras tell an inner one, and nobody else gets a
    token."""
    device = urlsplit(device_url)
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:
        return device_url
    if parts.hostname == device.hostname and parts.scheme in {"http", "https"}:
        return url
    return urlunsplit((device.scheme, device.netloc, parts.path, parts.query, ""))
