"""When frames were captured, by the hub's clock."""

from __future__ import annotations

from eyeline.v1 import frame_pb2


def on_hub(when: frame_pb2.CaptureTime, envelope: frame_pb2.FrameEnvelope) -> int:
    """When it was by the hub's clock, in nanoseconds since the Unix epoch; 0 when that is unknown.

    The clock estimate holds for the moment at which the envelope was made, and the device's wall clock may
    have been set since the capture: so the way back to then goes over the monotonic clock.
    """
    made = envelope.published
    wall_ns = when.wall_ns
    if made.wall_ns and made.monotonic_ns and when.monotonic_ns:
        wall_ns = made.wall_ns - made.monotonic_ns + when.monotonic_ns
    if not wall_ns:
        return 0
    return max(0, wall_ns + envelope.clock.offset_ns)


def captured_span(envelope: frame_pb2.FrameEnvelope) -> tuple[int, int]:
    """When its first and its last frame were captured, as `on_hub`; both 0 when no frame says."""
    moments = []
    for item in envelope.items:
        if item.WhichOneof("item") == "access_unit":
            moments.append(on_hub(item.access_unit.capture, envelope))
        else:
            moments += [on_hub(it, envelope) for it in (item.range.first_capture, item.range.last_capture)]
    known = [moment for moment in moments if moment]
    return (min(known), max(known)) if known else (0, 0)
