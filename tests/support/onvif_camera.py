"""A small ONVIF camera on loopback: WS-Discovery by UDP and the few SOAP requests that a client needs.

It stands for what cannot be had in a test. It checks the password digest and its age as cameras do, on a
clock of its own.
"""

from __future__ import annotations

import base64
import hashlib
import re
import socket
import threading
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Self

_ENVELOPE = """<?xml version="1.0" encoding="UTF-8"?>
<e:Envelope xmlns:e="http://www.w3.org/2003/05/soap-envelope"
 xmlns:wsa="http://schemas.xmlsoap.org/ws/2004/08/addressing"
 xmlns:d="http://schemas.xmlsoap.org/ws/2005/04/discovery"
 xmlns:tds="http://www.onvif.org/ver10/device/wsdl"
 xmlns:trt="http://www.onvif.org/ver10/media/wsdl"
 xmlns:tt="http://www.onvif.org/ver10/schema">
<e:Header>{header}</e:Header><e:Body>{body}</e:Body></e:Envelope>"""
_SKEW = timedelta(hours=7)


class OnvifCamera:
    """Serves until the block is left. `target` is where to send a probe."""

    def __init__(self, *, user: str | None = None, password: str = "", profiles: int = 2) -> None:
        self.user, self.password, self.profiles = user, password, profiles
        self.requests: list[str] = []
        # Sent ahead of the honest answer, as a hostile neighbour would.
        self.forged: list[bytes] = []
        self._udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._udp.bind(("127.0.0.1", 0))
        self.target: tuple[str, int] = self._udp.getsockname()
        camera = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"])).decode()
                status, answer = camera.answer(body)
                self.send_response(status)
                self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002
                """Be quiet."""

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http_port = self._http.server_address[1]
        self._threads = [
            threading.Thread(target=self._http.serve_forever, args=(0.02,)),
            threading.Thread(target=self._discovery),
        ]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._http.shutdown()
        self._http.server_close()
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as waker:
            waker.sendto(b"stop", self.target)
        for thread in self._threads:
            thread.join(10)
        self._udp.close()

    def probe_match(self, message_id: str) -> bytes:
        """The answer to a probe."""
        return _ENVELOPE.format(
            header=f"<wsa:RelatesTo>{message_id}</wsa:RelatesTo>",
            body=(
                "<d:ProbeMatches><d:ProbeMatch><wsa:EndpointReference>"
                f"<wsa:Address>urn:uuid:camera-{self.http_port}</wsa:Address></wsa:EndpointReference>"
                "<d:Types>tds:Device</d:Types><d:Scopes>onvif://www.onvif.org/name/Front%20Door "
                "onvif://www.onvif.org/hardware/X1000</d:Scopes>"
                f"<d:XAddrs>http://10.9.8.7/onvif http://127.0.0.1:{self.http_port}/onvif/device</d:XAddrs>"
                "</d:ProbeMatch></d:ProbeMatches>"
            ),
        ).encode()

    def answer(self, body: str) -> tuple[int, bytes]:
        """Status and body for a SOAP request."""
        found = re.search(r"<(Get\w+) ", body)
        request = found[1] if found else ""
        self.requests.append(request)
        if request == "GetSystemDateAndTime":
            return 200, self._wrap(self._time())
        if not self._is_allowed(body):
            fault = "<e:Fault><e:Code><e:Value>e:Sender</e:Value><e:Subcode><e:Value>ter:NotAuthorized"
            return 400, self._wrap(fault + "</e:Value></e:Subcode></e:Code></e:Fault>")
        if request == "GetCapabilities":
            # An address that is only good inside the camera's own network.
            inner = "<tt:Media><tt:XAddr>http://192.168.254.9/onvif/media</tt:XAddr></tt:Media>"
            return 200, self._wrap(f"<tds:Capabilities>{inner}</tds:Capabilities>")
        if request == "GetProfiles":
            return 200, self._wrap("".join(self._profile(index) for index in range(self.profiles)))
        token = re.search(r"<ProfileToken>(\w+)</ProfileToken>", body)
        assert token is not None
        uri = f"rtsp://admin:leak@127.0.0.1:554/{token[1]}?a=1&amp;b=2"
        return 200, self._wrap(f"<trt:MediaUri><tt:Uri>{uri}</tt:Uri></trt:MediaUri>")

    def _is_allowed(self, body: str) -> bool:
        if self.user is None:
            return True
        found = re.search(
            r"<w:Username>(.*)</w:Username><w:Password [^>]*>(.*)</w:Password>"
            r"<w:Nonce [^>]*>(.*)</w:Nonce><u:Created>(.*)</u:Created>",
            body,
        )
        if found is None:
            return False
        user, digest, nonce, created = found.groups()
        plain = base64.b64decode(nonce) + created.encode() + self.password.encode()
        seen = hashlib.sha1(plain, usedforsecurity=False)
        age = datetime.now(UTC) + _SKEW - datetime.fromisoformat(created)
        right = base64.b64encode(seen.digest()).decode() == digest
        return user == self.user and right and abs(age) < timedelta(seconds=10)

    def _time(self) -> str:
        now = datetime.now(UTC) + _SKEW
        return (
            f"<tt:UTCDateTime><tt:Time><tt:Hour>{now.hour}</tt:Hour><tt:Minute>{now.minute}</tt:Minute>"
            f"<tt:Second>{now.second}</tt:Second></tt:Time><tt:Date><tt:Year>{now.year}</tt:Year>"
            f"<tt:Month>{now.month}</tt:Month><tt:Day>{now.day}</tt:Day></tt:Date></tt:UTCDateTime>"
        )

    def _profile(self, index: int) -> str:
        width = 640 * (index + 1)
        return (
            f'<trt:Profiles token="profile{index}"><tt:Name>p{index}</tt:Name><tt:Resolution>'
            f"<tt:Width>{width}</tt:Width><tt:Height>{width // 2}</tt:Height></tt:Resolution></trt:Profiles>"
        )

    def _discovery(self) -> None:
        while True:
            raw, sender = self._udp.recvfrom(65_535)
            found = re.search(rb"<a:MessageID>(.*)</a:MessageID>", raw)
            if found is None:
                return
            for forged in self.forged:
                self._udp.sendto(forged, sender)
            self._udp.sendto(self.probe_match(found[1].decode()), sender)

    def _wrap(self, body: str) -> bytes:
        return _ENVELOPE.format(header="", body=body).encode()
