"""How many bytes a connection has carried, as the kernel counts them.

`struct tcp_info` of Linux, linux/tcp.h: `tcpi_bytes_acked` at offset 120 and `tcpi_bytes_received` at 128,
both 64 bits, without TCP and IP headers. TLS and WebSocket framing are in them.
"""

from __future__ import annotations

import socket
import struct
from dataclasses import dataclass
from typing import Any, Final

_SENT_AT: Final = 120
_COUNTS: Final = struct.Struct("=QQ")


@dataclass(frozen=True, slots=True)
class WireBytes:
    """Bytes sent and received."""

    sent: int = 0
    received: int = 0

    def __add__(self, other: WireBytes) -> WireBytes:
        return WireBytes(self.sent + other.sent, self.received + other.received)


def count(client: Any) -> WireBytes:
    """Of the open connection of a NATS client; nothing where the kernel does not tell."""
    writer = getattr(getattr(client, "_transport", None), "_io_writer", None)
    sock = writer.get_extra_info("socket") if writer is not None else None
    if sock is None or not hasattr(socket, "TCP_INFO"):
        return WireBytes()
    try:
        info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
        return WireBytes(*_COUNTS.unpack_from(info, _SENT_AT))
    except (OSError, ValueError, struct.error):  # uvloop's closed sockets have descriptor -1
        return WireBytes()
