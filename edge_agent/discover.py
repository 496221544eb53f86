"""Finding cameras on the network: WS-Discovery, as ONVIF's core specification asks for it (chapter 7).

A probe goes out by UDP multicast on every interface, and cameras answer it. Answers are read with suspicion:
anybody on the network can send one. `edge_agent.onvif` asks a found camera for its streams.
"""

from __future__ import annotations

import select
import socket
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import unquote, urlsplit
from xml.etree.ElementTree import Element

import psutil

from edge_agent import safe_xml
from edge_agent.errors import SourceUnavailable

MULTICAST = ("239.255.255.250", 3702)
MAX_CAMERAS = 1000
# UDP loses messages; the second probe is answered by those that the first did not reach.
_PROBES = 2
_MAX_DATAGRAM = 65_535

_PROBE = """<?xml version="1.0" encoding="UTF-8"?>
<s:Envelope xmlns:s="http://www.w3.org/2003/05/soap-envelope"
 xmlns:a="http://schemas.xmlsoap.org/ws/2004/08/addressing"
 xmlns:d="http://schemas.xmlsoap.org/ws/2005/04/discovery"
 xmlns:n="http://www.onvif.org/ver10/network/wsdl">
<s:Header><a:MessageID>{message_id}</a:MessageID>
<a:To>urn:schemas-xmlsoap-org:ws:2005:04:discovery</a:To>
<a:Action>http://schemas.xmlsoap.org/ws/2005/04/discovery/Probe</a:Action></s:Header>
<s:Body><d:Probe><d:Types>n:NetworkVideoTransmitter</d:Types></d:Probe></s:Body></s:Envelope>"""


@dataclass(frozen=True, slots=True)
class FoundCamera:
    """A camera that answered.

    endpoint: its stable identity, a URN; host: where the answer came from; service_url: where it takes
    ONVIF requests; name, model: as it calls itself, perhaps empty.
    """

    endpoint: str
    host: str
    service_url: str
    name: str
    model: str


def discover(
    timeout_s: float = 3.0, *, targets: Sequence[tuple[str, int]] | None = None
) -> list[FoundCamera]:
    """Cameras that answer within `timeout_s`, sorted by host.

    targets: addresses to ask instead of the multicast group on every interface. Raises `SourceUnavailable`
    when no probe could be sent.
    """
    message_id = f"urn:uuid:{uuid.uuid4()}"
    probe = _PROBE.format(message_id=message_id).encode()
    sockets = _multicast_sockets() if targets is None else [(_socket(), target) for target in targets]
    try:
        return _ask(sockets, probe, message_id, timeout_s)
    finally:
        for used, _ in sockets:
            used.close()


def parse_answer(raw: bytes, host: str, message_id: str) -> list[FoundCamera]:
    """The cameras in one answer to the probe `message_id`; none when it is not one."""
    try:
        root = safe_xml.parse(raw)
    except ValueError:
        return []
    if safe_xml.text(root, "RelatesTo") != message_id:
        return []
    cameras = (_camera(match, host) for match in root.iter("ProbeMatch"))
    return [camera for camera in cameras if camera is not None]


def _ask(
    sockets: list[tuple[socket.socket, tuple[str, int]]], probe: bytes, message_id: str, timeout_s: float
) -> list[FoundCamera]:
    found: dict[str, FoundCamera] = {}
    deadline = time.monotonic() + timeout_s
    for number in range(_PROBES):
        if not _send(sockets, probe):
            raise SourceUnavailable("cameras cannot be looked for: no network takes a multicast message")
        until = deadline if number == _PROBES - 1 else time.monotonic() + timeout_s / _PROBES
        while (left := until - time.monotonic()) > 0 and len(found) < MAX_CAMERAS:
            ready, _, _ = select.select([used for used, _ in sockets], [], [], left)
            for used in ready:
                try:
                    raw, sender = used.recvfrom(_MAX_DATAGRAM)
                except OSError:
                    # An earlier probe was refused by its target.
                    continue
                for camera in parse_answer(raw, sender[0], message_id):
                    found.setdefault(camera.endpoint, camera)
    return sorted(found.values(), key=lambda camera: (camera.host, camera.endpoint))


def _send(sockets: list[tuple[socket.socket, tuple[str, int]]], probe: bytes) -> int:
    sent = 0
    for used, target in sockets:
        try:
            used.sendto(probe, target)
        except OSError:
            continue
        sent += 1
    return sent


def _socket() -> socket.socket:
    made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    made.setblocking(False)
    return made


def _multicast_sockets() -> list[tuple[socket.socket, tuple[str, int]]]:
    sockets = []
    for addresses in psutil.net_if_addrs().values():
        for entry in addresses:
            if entry.family is not socket.AF_INET or entry.address.startswith("127."):
                continue
            made = _socket()
            try:
                made.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton(entry.address))
                made.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_TTL, 1)
            except OSError:
                made.close()
                continue
            sockets.append((made, MULTICAST))
    return sockets


def _camera(match: Element, host: str) -> FoundCamera | None:
    services = (safe_xml.text(match, "XAddrs") or "").split()
    usable = [url for url in services if _host_of(url)]
    if not usable:
        return None
    # Of several addresses the one it answered from can surely be reached.
    service = next((url for url in usable if _host_of(url) == host), usable[0])
    scopes = (safe_xml.text(match, "Scopes") or "").split()
    endpoint = safe_xml.text(match, "Address") or service
    return FoundCamera(endpoint, host, service, _scope(scopes, "name"), _scope(scopes, "hardware"))


def _host_of(url: str) -> str | None:
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError:
        return None
    return host if parts.scheme in {"http", "https"} else None


def _scope(scopes: list[str], kind: str) -> str:
    start = f"onvif://www.onvif.org/{kind}/"
    value = next((unquote(scope[len(start) :]) for scope in scopes if scope.startswith(start)), "")
    return "".join(letter for letter in value if letter.isprintable())[:100]
