"""How many bytes a connection has carried, as the kernel counts them.

`struct tcp_info` of Linux, linux/tcp.h: `tcpi_bytes_acked` at offset 120 and `tcpi_bytes_received` at 128,
both 64 bits, without TCP and IP headers. TLS and WebSocket framing are in them. `tcpi_data_segs_in` at 152
and `tcpi_data_segs_out` at 156 count the packets that carried them.
"""

from __future__ import annotations

import socket
import struct
from dataclasses import dataclass
from typing import Any, Final

_SENT_AT: Final = 120
_PACKETS_AT: Final = 152
_COUNTS: Final = struct.Struct("=QQ")
_PACKETS: Final = struct.Struct("=II")
# TCP and IP headers of a packet, and what it carries at most.
_HEADER_BYTES: Final = 40
_PACKET_BYTES: Final = 1400


@dataclass(frozen=True, slots=True)
class WireBytes:
    """Bytes sent and received, and packets both ways."""

    sent: int = 0
    received: int = 0
    packets: int = 0

    def __add__(self, other: WireBytes) -> WireBytes:
        return WireBytes(self.sent + other.sent, self.received + other.received, self.packets + other.packets)

    @property
    def total(self) -> int:
        """Bytes both ways, headers included."""
        data = self.sent + self.received
        return data + _HEADER_BYTES * max(self.packets, -(-data // _PACKET_BYTES))


def count(client: Any) -> WireBytes:
    """Of the open connection of a NATS client; nothing where the kernel does not tell."""
    writer = getattr(getattr(client, "_transport", None), "_io_writer", None)
    sock = writer.get_extra_info("socket") if writer is not None else None
    if sock is None or not hasattr(socket, "TCP_INFO"):
        return WireBytes()
    try:
        info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
        packets = sum(_PACKETS.unpack_from(info, _PACKETS_AT))
        sent, received = _COUNTS.unpack_from(info, _SENT_AT)
        return WireBytes(sent, received, packets)
    except (OSError, ValueError, struct.error):  # uvloop's closed sockets have descriptor -1
        return WireBytes()
