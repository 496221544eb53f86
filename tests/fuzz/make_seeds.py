"""Writes the seeds beside it, by hand: `python -m tests.fuzz.make_seeds`. Small, and one of each kind."""

from __future__ import annotations

import io
import struct
from fractions import Fraction
from pathlib import Path

import numpy as np
from PIL import Image

from eyeline import creds, releases
from eyeline.nkey import Kind, NKey
from eyeline.v1 import release_pb2
from tests.fuzz.targets import TARGETS
from tests.wire.make_golden import FOLDER as GOLDEN

SEEDS = Path(__file__).with_name("seeds")


def write(target: str, name: str, data: bytes) -> None:
    """One seed."""
    folder = SEEDS / target
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(data)


def envelopes() -> None:
    """The golden ones."""
    for path in GOLDEN.glob("frame_envelope*.bin"):
        write("envelope", path.name, path.read_bytes())


def fields() -> None:
    """Bytes of which fields are made: they say little by themselves."""
    for name, step in (("ascending", 1), ("steps", 7), ("high", 31)):
        write("fields", name, bytes(number * step % 256 for number in range(400)))


def pictures() -> None:
    """A few frames in each codec, and images in each format."""
    import av  # noqa: PLC0415

    random = np.random.default_rng(7)
    base = random.integers(0, 255, (48, 64, 3), np.uint8)
    for number, (name, codec) in enumerate(
        (
            ("h264", "libx264"),
            ("hevc", "libx265"),
            ("av1", "libsvtav1"),
            ("jpeg", "mjpeg"),
            ("webp", "libwebp"),
        )
    ):
        context = av.CodecContext.create(codec, "w")
        context.width, context.height = 64, 64
        context.pix_fmt = "yuvj420p" if name == "jpeg" else "yuv420p"
        context.time_base = Fraction(1, 10)
        context.options = {"tune": "zerolatency"} if name in {"h264", "hevc"} else {}
        packets = []
        for step in range(3):
            shown = np.roll(np.pad(base, ((0, 16), (0, 0), (0, 0))), step, 1)
            frame = av.VideoFrame.from_ndarray(shown, format="rgb24").reformat(format=context.pix_fmt)
            frame.pts = step
            packets += context.encode(frame)
        packets += context.encode(None)
        # 63 % 640 + 1 is 64.
        data = struct.pack(">BHH", number, 63, 63)
        for packet in packets[:3]:
            data += struct.pack(">H", packet.size) + bytes(packet)
        write("video", name, data)
    for form in ("JPEG", "PNG", "WEBP", "GIF"):
        made = io.BytesIO()
        Image.fromarray(base[:16, :16]).save(made, form)
        write("image", form.lower(), made.getvalue())


def texts() -> None:
    """Configurations, credentials, a release."""
    write("config", "agent.yaml", b"device: box1\ncameras: [{name: gate, source: 'pattern:64x64@5'}]\n")
    write(
        "config",
        "agent-full.yaml",
        b"""tenant: acme
site: yard
device: box1
hub: {url: "nats://hub:4222", creds_file: secrets/hub.creds}
spool: {max_bytes: 1073741824, fsync: 1s, order: live-first}
encode: {codec: h264, max_fps: 5, crf: 28}
cameras:
  - name: gate
    source: rtsp://192.0.2.7/stream1
    redact: {masks: [[[0, 0], [0.3, 0], [0.3, 0.4]]], blur: [person]}
""",
    )
    write(
        "config",
        "cloud.yaml",
        b"""hub: {url: "nats://hub:4222", tenants: [{name: acme, creds_file: acme.creds}]}
triton: {url: "triton:8001", model: yolox}
api: {port: 50051, token_keys: [key.pem], max_streams: 10}
""",
    )
    key = NKey(Kind.USER, bytes(range(32)))
    made = creds.Creds("e30.e30.e30", key, {"hub": "nats://hub:4222", "tenant": "acme"})
    write("credentials", "device.creds", made.text().encode())
    manifest = release_pb2.ReleaseManifest(schema_major=1, tenant="acme", target="yard/*", serial=1)
    write("release", "signed", releases.sign(manifest, NKey(Kind.OPERATOR, bytes(range(32))), b"a: 1"))


if __name__ == "__main__":
    envelopes()
    fields()
    pictures()
    texts()
    assert {path.name for path in SEEDS.iterdir()} == set(TARGETS)
