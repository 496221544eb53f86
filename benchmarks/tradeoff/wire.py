"""What a message costs on the wire: NATS client protocol, and TCP/IP headers as B2 pays for RTP/UDP/IP."""

from __future__ import annotations

from eyeline.envelope import encode_envelope, message_id
from eyeline.subjects import FRAMES, HUB_DOMAIN, control_subject, device_inbox, frame_subject
from eyeline.v1 import device_pb2
from eyeline.v1 import frame_pb2 as pb

# Of IPv4 and TCP (or RTP, UDP and IPv4), for every segment that is started.
HEADER_BYTES = 40
SEGMENT_BYTES = 1_400
# After the device's inbox prefix: nats-py's subscription (22 letters) and request tokens.
_REPLY_TOKENS = "." + "n" * 22 + "." + "t" * 8


def framed(size: int) -> int:
    """Bytes of a piece of data with the headers of the segments that carry it."""
    return size + HEADER_BYTES * -(-size // SEGMENT_BYTES)


def control_bytes(site: str, device: str, request: device_pb2.ControlRequest) -> int:
    """Of a worker's request on its way to the device, in bytes."""
    payload = request.SerializeToString()
    return framed(len(f"MSG {control_subject(site, device)} 1 {len(payload)}\r\n\r\n") + len(payload))


def envelope_bytes(envelope: pb.FrameEnvelope, stream_sequence: int) -> int:
    """Of publishing it as the agent's forwarder does, and of the hub's acknowledgement, in bytes."""
    payload = encode_envelope(envelope)
    subject = frame_subject(envelope.site, envelope.device, envelope.camera)
    reply = device_inbox(envelope.site, envelope.device) + _REPLY_TOKENS
    headers = (
        f"NATS/1.0\r\nNats-Msg-Id: {message_id(envelope)}\r\nNats-Expected-Stream: {FRAMES}\r\n\r\n".encode()
    )
    total = len(headers) + len(payload)
    publish = f"HPUB {subject} {reply} {len(headers)} {total}\r\n"
    acknowledgement = f'{{"stream":"{FRAMES}","domain":"{HUB_DOMAIN}","seq":{stream_sequence}}}'
    message = f"MSG {reply} 1 {len(acknowledgement)}\r\n{acknowledgement}\r\n"
    return framed(len(publish) + total + 2) + framed(len(message))
