"""CPU milliseconds per captured frame of the edge's frame path, by stage, beside baseline B2.

    python -m benchmarks.edge_cost [--video FILE] [--frames N] [--noise SIGMA] [--repeat N] [--out FILE]

Eyeline runs its real pipeline (gate, plan, detect, encode, batch; delivery takes everything at once), B2 is
libx264 veryfast zerolatency, CRF 28, on every frame at source size. Both get the same decoded pictures;
decoding them is told apart as `capture`. CPU time of the working thread; medians over the repeats.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections import deque
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
from av.video.frame import PictureType

from edge_agent import detect
from edge_agent.batch import CameraIdentity, Moment
from edge_agent.config import AgentSettings
from edge_agent.frame import Frame
from edge_agent.frame_metrics import STAGES
from edge_agent.pipeline import CameraPipeline
from edge_agent.seams import EdgeDetector
from eyeline.errors import EyelineError
from eyeline.v1 import frame_pb2 as pb
from eyeline.values import Epoch

CLIP = Path(__file__).parent / "clips" / "street.mp4"
# In memory at once.
CHUNK = 64


class _Source:
    def __init__(self) -> None:
        self.waiting: deque[Frame] = deque()
        self.ended = False

    def read(self, timeout_s: float) -> Frame | None:  # noqa: ARG002  # everything is here already
        return self.waiting.popleft() if self.waiting else None


class _Sink:
    def __init__(self) -> None:
        self.sent_bytes = 0
        self.messages = 0

    def ready(self) -> bool:
        return True

    def offer(self, envelope: pb.FrameEnvelope) -> None:
        self.sent_bytes += len(envelope.SerializeToString())
        self.messages += 1


def pictures(video: Path, frames: int, noise: float) -> Iterator[tuple[list[av.VideoFrame], float]]:
    """Chunks of decoded pictures and the CPU seconds that decoding them took."""
    random = np.random.default_rng(1)
    with av.open(str(video)) as container:
        stream = container.streams.video[0]
        stream.thread_type, stream.codec_context.thread_count = "SLICE", 1
        decoded = container.decode(stream)
        left = frames
        while left > 0:
            start = time.thread_time()
            chunk = [shown for shown, _ in zip(decoded, range(min(CHUNK, left)), strict=False)]
            spent = time.thread_time() - start
            if not chunk:
                return
            left -= len(chunk)
            yield [_noisy(shown, noise, random) for shown in chunk], spent


def _noisy(shown: av.VideoFrame, sigma: float, random: np.random.Generator) -> av.VideoFrame:
    if sigma <= 0:
        return shown
    bgr = shown.to_ndarray(format="bgr24").astype(np.float32)
    bgr += random.standard_normal(bgr.shape, np.float32) * np.float32(sigma)
    noisy = av.VideoFrame.from_ndarray(np.clip(bgr, 0, 255).astype(np.uint8), format="bgr24")
    return noisy.reformat(format="yuv420p")


def run_once(
    video: Path, frames: int, noise: float, detector: EdgeDetector | None, **encode: Any
) -> dict[str, float]:
    """One pass of Eyeline and B2 over the same pictures: milliseconds and bytes per captured frame."""
    settings = AgentSettings.model_validate(
        {"device": "bench", "cameras": [{"name": "clip", "source": str(video)}], "encode": encode}
    )
    source, sink = _Source(), _Sink()
    clock = [0]
    pipeline = CameraPipeline(
        settings,
        CameraIdentity("bench", "bench", "bench", "clip", Epoch(1, bytes(8))),
        source,
        sink,
        detector=detector,
        now=lambda: Moment(clock[0], clock[0]),
    )
    baseline: Any = None
    shown_frames, decode_s, b2_s, b2_bytes, whole_s = 0, 0.0, 0.0, 0, 0.0
    fps = 10
    for chunk, spent in pictures(video, frames, noise):
        decode_s += spent
        for shown in chunk:
            shown_frames += 1
            clock[0] = shown_frames * int(1e9 / fps)
            source.waiting.append(Frame(shown_frames, clock[0], clock[0], shown))
            start = time.thread_time()
            pipeline.step(0)
            whole_s += time.thread_time() - start
        baseline = baseline or _b2(chunk[0], fps)
        for shown in chunk:
            start = time.thread_time()
            # What the clip's own encoder chose is none of B2's business.
            shown.pts, shown.pict_type = None, PictureType.NONE
            b2_bytes += sum(packet.size for packet in baseline.encode(shown))
            b2_s += time.thread_time() - start
    pipeline.close()
    counts = pipeline.counts()
    per_frame = {f"{stage}_ms": counts.stage_cpu_ns[stage] / 1e6 / shown_frames for stage in STAGES}
    path = sum(per_frame[f"{stage}_ms"] for stage in ("gate", "plan", "encode"))
    return {
        "frames": shown_frames,
        "capture_ms": decode_s * 1e3 / shown_frames,
        **per_frame,
        "gate_plan_encode_ms": path,
        "eyeline_ms": whole_s * 1e3 / shown_frames,
        "b2_encode_ms": b2_s * 1e3 / shown_frames,
        "ratio_vs_b2": path / (b2_s * 1e3 / shown_frames),
        "sent_share": counts.sent / shown_frames,
        "eyeline_bytes": sink.sent_bytes / shown_frames,
        "b2_bytes": b2_bytes / shown_frames,
        "messages": sink.messages / shown_frames,
    }


def _b2(shown: av.VideoFrame, fps: int) -> Any:
    context: Any = av.CodecContext.create("libx264", "w")
    context.width, context.height, context.pix_fmt = shown.width, shown.height, "yuv420p"
    context.time_base, context.framerate, context.gop_size = Fraction(1, fps), Fraction(fps), 10 * fps
    context.thread_count = 1
    context.options = {"preset": "veryfast", "tune": "zerolatency", "crf": "28"}
    return context


def main(arguments: list[str] | None = None) -> int:
    """The command; returns its exit status."""
    parser = argparse.ArgumentParser(
        prog="benchmarks.edge_cost", description=(__doc__ or "").split("\n", 1)[0]
    )
    parser.add_argument("--video", type=Path, default=CLIP)
    parser.add_argument("--frames", type=int, default=300)
    parser.add_argument(
        "--noise", type=float, default=0.0, help="sigma of added sensor noise, in grey levels"
    )
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument(
        "--max-fps", type=float, default=2.0, help="frames with pixels a second, of 10 captured"
    )
    parser.add_argument("--no-detect", action="store_true", help="without the edge model")
    parser.add_argument("--out", type=Path, help="write the medians as JSON")
    options = parser.parse_args(arguments)
    cv2.setNumThreads(1)
    try:
        settings = AgentSettings.model_validate({"device": "b", "cameras": [{"name": "c", "source": "x"}]})
        detector = None if options.no_detect else detect.load(settings.detect)
        passes = [
            run_once(options.video, options.frames, options.noise, detector, max_fps=options.max_fps)
            for _ in range(options.repeat)
        ]
    except (EyelineError, av.error.FFmpegError) as problem:
        print(f"edge_cost: {problem}", file=sys.stderr)
        return 1
    medians = {name: statistics.median(run[name] for run in passes) for name in passes[0]}
    spread = {name: max(run[name] for run in passes) - min(run[name] for run in passes) for name in passes[0]}
    print(
        f"{options.video.name}, noise {options.noise:g}: median and spread of {len(passes)} runs, "
        "per captured frame"
    )
    for name, value in medians.items():
        print(f"  {name:22s} {value:10.3f}  ±{spread[name] / 2:.3f}")
    if options.out is not None:
        options.out.write_text(json.dumps(medians, indent=2) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
