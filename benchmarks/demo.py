"""`make demo`: the whole system on this machine, a real clip through it, and what came of it.

    python -m benchmarks.demo [--video FILE] [--seconds 30] [--cameras 1] [--out build/demo]

Starts hub, Triton, worker, API, web page and the edge agent as separate processes, plays the clip in real
time, and writes `summary.json` and `annotated.mp4` into the output folder.
"""

from __future__ import annotations

import os
import signal

if __name__ == "__main__":
    # Nothing runs yet: while modules load, Ctrl-C just ends us.
    for _number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(_number, lambda number, _: os._exit(128 + number))

import argparse
import asyncio
import contextlib
import json
import shutil
import sys
import threading
import time
import webbrowser
from collections import Counter
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.live import Live
from rich.table import Table

from benchmarks import annotate, reference, score
from benchmarks.system import Agent, Cloud, triton_counters
from eyeline import Client, lock
from eyeline.errors import ConfigError, EyelineError
from eyeline.v1 import device_pb2
from eyeline.values import Detections, Provenance, Result
from eyeline_models import catalogue

CLIP = Path(__file__).with_name("clips") / "street.mp4"
_ANSWERS_WITHIN_S = 60.0


@dataclass(slots=True)
class Tally:
    """The answers of one camera: the newest revision of each frame."""

    by_frame: dict[int, Result] = field(default_factory=dict)
    delays_ms: list[float] = field(default_factory=list)
    twice: int = 0

    def add(self, result: Result, received_ns: int) -> None:
        """Count a final result; a frame that is answered twice is a defect, and counted."""
        if not result.final:
            return
        for sequence in range(result.sequence, result.last_sequence + 1):
            self.twice += sequence in self.by_frame
            self.by_frame[sequence] = result
        span = result.frames - 1
        last_ns = result.proto.last_captured_ns or result.captured_ns
        for step in range(result.frames):
            part = step / span if span else 0.0
            captured_ns = result.captured_ns + (last_ns - result.captured_ns) * part
            self.delays_ms.append((received_ns - captured_ns) / 1e6)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the demo; the exit status is 0 when every captured frame was answered exactly once."""
    parser = argparse.ArgumentParser(prog="make demo ARGS=...", description=__doc__.split("\n\n", 1)[0])
    parser.add_argument("--video", type=Path, default=CLIP, help="any video file (default: the street clip)")
    parser.add_argument("--seconds", type=float, default=30.0, help="how long to play it (default: 30)")
    parser.add_argument("--cameras", type=int, default=1, help="how many cameras play it (default: 1)")
    parser.add_argument("--out", type=Path, default=Path("build/demo"), help="where the results go")
    parser.add_argument(
        "--no-calibration", action="store_true", help="stay on the rung that the settings name"
    )
    parser.add_argument("--tls", action="store_true", help="encrypt every hop; the API asks for a token")
    options = parser.parse_args(argv)
    console = Console()
    if options.seconds <= 0 or not 1 <= options.cameras <= 64:
        parser.error("--seconds must be above 0, --cameras 1 to 64")
    try:
        return run(options, console)
    except EyelineError as problem:
        print(f"demo: {problem}", file=sys.stderr)
        return 2
    except _Stopped as stopped:
        # Python would let a further one kill it while it ends.
        _on_signals(signal.SIG_IGN)
        print("demo: stopped", file=sys.stderr)
        return 128 + stopped.number


class _Stopped(BaseException):
    """Ctrl-C or SIGTERM; `number` is the signal's."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def _stop_now(number: int, _frame: object) -> None:
    raise _Stopped(number)


def run(options: argparse.Namespace, console: Console) -> int:
    """Start everything, play, stop everything, and tell. Raises `EyelineError`."""
    _on_signals(_stop_now)
    clip = reference.open_clip(options.video)
    out: Path = options.out
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as problem:
        raise ConfigError(f"--out {out} cannot be written: {problem.strerror}") from None
    with lock.held(out, "demo", "wait for it, or give this one another --out"):
        return _run_in(options, clip, console)


def _run_in(options: argparse.Namespace, clip: reference.Clip, console: Console) -> int:
    """The same, with the folder to ourselves."""
    out: Path = options.out
    state = out / "state"
    try:
        shutil.rmtree(state, ignore_errors=True)
        state.mkdir()
    except OSError as problem:
        raise ConfigError(f"--out {out} cannot be written: {problem.strerror}") from None
    tallies = {f"cam{number}": Tally() for number in range(1, options.cameras + 1)}
    show = _Show(
        clip,
        options.seconds,
        state,
        console,
        tallies,
        time.monotonic(),
        options.tls,
        not options.no_calibration,
    )
    try:
        played = asyncio.run(_stoppable(_run_system(show)))
    finally:
        _on_signals(signal.SIG_IGN)
        shutil.rmtree(state, ignore_errors=True)
        _on_signals(_stop_now)
    console.print("asking the cloud model about the raw frames, for comparison ...")
    summary = _summarize(clip, played, tallies, played.triton["model"])
    (out / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
    _annotated(clip, out / "annotated.mp4", next(iter(tallies.values())))
    console.print(_table(summary))
    console.print(f"{out / 'summary.json'}   {out / 'annotated.mp4'}")
    complete = summary["results"] == summary["frames_captured"] and not summary["answered_twice"]
    if not complete:
        console.print("[red]not every captured frame has exactly one final answer[/red]")
    return 0 if complete else 1


def _on_signals(handler: Any) -> None:
    # A program that uses us from another thread keeps its own.
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, handler)


async def _stoppable(work: Coroutine[Any, Any, Played]) -> Played:
    """Do it; the first signal cancels it, and later ones wait with us until everything has stopped."""
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    assert task is not None
    asked: list[int] = []

    def ask(number: int) -> None:
        if not asked:
            task.cancel()
        asked.append(number)

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, ask, number)
    try:
        return await work
    except asyncio.CancelledError:
        raise _Stopped(asked[0] if asked else signal.SIGINT) from None
    finally:
        if asked:
            # What closes with the loop is not to be disturbed either.
            for number in (signal.SIGINT, signal.SIGTERM):
                loop.remove_signal_handler(number)
                signal.signal(number, signal.SIG_IGN)


async def _run_system(show: _Show) -> Played:
    async with Cloud(show.state / "cloud", tls=show.tls, web=True) as cloud:
        up_s = time.monotonic() - show.began_s
        how = ", with TLS" if show.tls else ""
        show.console.print(f"hub, Triton, worker, API and web page are up after {up_s:.1f} s{how}")
        _show_page(show, cloud)
        return await _play(show, cloud)


def _show_page(show: _Show, cloud: Cloud) -> None:
    """Say where the page is, and open it for somebody who sits in front of this machine."""
    url = str(cloud.endpoints["web"])
    show.console.print(f"watch it live: {url}")
    if show.tls:
        state = show.state / "cloud"
        show.console.print(f"log in with what this prints: cloud-inference token --state {state}")
    if show.console.is_terminal and (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        webbrowser.open(url)


@dataclass(frozen=True, slots=True)
class Played:
    """What the agent and Triton counted. bytes_sent: all that crossed the device's link, both ways."""

    captured: dict[str, int]
    sent: int
    bytes_sent: int
    triton: dict[str, Any]
    first_answer_s: float | None
    rungs: dict[str, str]
    why: dict[str, str]
    calibration_bytes: int


@dataclass(slots=True)
class _Show:
    """What is played, and what came back so far."""

    clip: reference.Clip
    seconds: float
    state: Path
    console: Console
    tallies: dict[str, Tally]
    began_s: float
    tls: bool = False
    calibrate: bool = True


async def _play(show: _Show, cloud: Cloud) -> Played:
    tallies = show.tallies
    before = await asyncio.to_thread(triton_counters, cloud)
    first_answer_s: float | None = None
    async with cloud.client() as client:
        camera = {"source": str(show.clip.path.absolute()), "realtime": True, "loop": True}
        # A short sample and few rungs, so that the profile comes while one looks on.
        agent = Agent(
            cloud,
            show.state / "agent",
            {name: {**camera, "calibrate": "auto" if show.calibrate else "off"} for name in tallies},
            settings={"calibration": {"seconds": 8, "kbit_s": 2000, "crfs": [30, 34, 38]}},
        )

        async def listen() -> None:
            nonlocal first_answer_s
            async for result in client.subscribe(since_ns=time.time_ns()):
                received_ns = time.time_ns()
                if first_answer_s is None:
                    first_answer_s = time.monotonic() - show.began_s
                if result.camera in tallies:
                    tallies[result.camera].add(result, received_ns)

        listener = asyncio.create_task(listen())
        try:
            async with agent:
                await _watch(show, client, agent)
                status = await agent.finish(client)
                captured = {camera.camera: camera.frames_captured for camera in status.cameras}
                await _settle(captured, tallies, listener)
        finally:
            listener.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await listener
        after = await asyncio.to_thread(triton_counters, cloud)
    inferences, executions = after.inferences - before.inferences, after.executions - before.executions
    return Played(
        captured=captured,
        sent=sum(camera.frames_sent for camera in status.cameras),
        bytes_sent=status.hub_bytes_sent + status.hub_bytes_received,
        triton={
            "inferences": inferences,
            "executions": executions,
            "mean_batch": round(inferences / executions, 3) if executions else 0.0,
            "model": cloud.model,
        },
        first_answer_s=first_answer_s,
        rungs={camera.camera: camera.rung for camera in status.cameras},
        why={camera.camera: _why(camera) for camera in status.cameras},
        calibration_bytes=sum(camera.calibration_bytes for camera in status.cameras),
    )


def _why(camera: device_pb2.CameraStatus) -> str:
    """Why the camera sat on its rung; while that is not calibration's doing, how far that has got."""
    held = not camera.calibration or camera.calibration.startswith("profile by")
    return camera.rung_reason if held else f"{camera.rung_reason}; {camera.calibration}"


async def _watch(show: _Show, client: Client, agent: Agent) -> None:
    """Show progress until the time is up."""
    end: float | None = None
    with Live(console=show.console, refresh_per_second=4, transient=True) as live:
        while end is None or time.monotonic() < end:
            agent.check()
            status = await agent.status(client)
            if end is None and status is not None and any(c.frames_captured for c in status.cameras):
                end = time.monotonic() + show.seconds
            table = Table(
                "camera", "state", "captured", "with pixels", "answered", "objects", "KB sent", "delay"
            )
            for camera in status.cameras if status is not None else ():
                tally = show.tallies[camera.camera]
                newest = tally.by_frame.get(max(tally.by_frame, default=0))
                recent = tally.delays_ms[-50:]
                table.add_row(
                    camera.camera,
                    camera.message or "live",
                    str(camera.frames_captured),
                    str(camera.frames_sent),
                    str(len(tally.by_frame)),
                    str(len(newest.detections)) if newest is not None else "-",
                    f"{camera.bytes_published / 1000:.0f}",
                    f"{np.median(recent):.0f} ms" if recent else "-",
                )
            live.update(table)
            await asyncio.sleep(0.5)


async def _settle(captured: dict[str, int], tallies: dict[str, Tally], listener: asyncio.Task[None]) -> None:
    """Wait until the last frames are answered; what is missing then shows in the summary."""
    end = time.monotonic() + _ANSWERS_WITHIN_S
    while time.monotonic() < end and not listener.done():
        if all(len(tallies[name].by_frame) >= count for name, count in captured.items()):
            return
        await asyncio.sleep(0.1)


def _summarize(clip: reference.Clip, played: Played, tallies: dict[str, Tally], model: str) -> dict[str, Any]:
    captured = sum(played.captured.values())
    results = sum(len(tally.by_frame) for tally in tallies.values())
    provenance = Counter(r.provenance.name for tally in tallies.values() for r in tally.by_frame.values())
    reasons = Counter(r.reason for tally in tallies.values() for r in tally.by_frame.values() if r.reason)
    delays = [delay for tally in tallies.values() for delay in tally.delays_ms]
    card = catalogue.load(model)
    longest = max(played.captured.values(), default=0)
    truth = list(reference.on_raw_frames(clip, longest, card))
    bands = score.Bands.of(card)
    counts, looked_at, answered, held = [], [], [], []
    for name, count in played.captured.items():
        standing = Detections.empty()
        for sequence, frame in enumerate(truth[:count], 1):
            result = tallies[name].by_frame.get(sequence)
            found = result.detections if result is not None else Detections.empty()
            counts.append(score.compare(frame, found, bands))
            if result is None or result.provenance is Provenance.DEGRADED:
                continue
            if result.provenance is Provenance.CLOUD:
                looked_at.append(counts[-1])
                standing = frame
            answered.append(counts[-1])
            held.append(score.compare(frame, standing, bands))
    accuracy = score.score(counts)
    jpeg = reference.jpeg_bytes_per_frame(clip)
    return {
        "video": clip.path.name,
        "cameras": len(played.captured),
        "frames_captured": captured,
        "frames_by_camera": played.captured,
        "frames_sent": played.sent,
        "results": results,
        "answered_twice": sum(tally.twice for tally in tallies.values()),
        "results_by_provenance": dict(provenance),
        "degraded_by_reason": dict(reasons),
        "bytes_sent": played.bytes_sent,
        # What was sent once, for calibration, counts as it would over an hour of the camera.
        "bytes_per_frame": round(
            (played.bytes_sent - played.calibration_bytes) / max(captured, 1)
            + played.calibration_bytes / max(len(played.captured), 1) / (clip.fps * 3600),
            1,
        ),
        "bytes_per_frame_with_calibration": round(played.bytes_sent / max(captured, 1), 1),
        "calibration_bytes": played.calibration_bytes,
        "jpeg_bytes_per_frame": round(jpeg, 1),
        "f1_vs_reference": round(accuracy.f1, 4),
        # Of the frames that the cloud model looked at: what coding costs, however many there were.
        "f1_cloud_frames": _f1(looked_at),
        # Of all but those that were given up, and said so; and what the model's own answers on raw frames
        # would give there, each held until it looked again.
        "f1_answered": _f1(answered),
        "f1_held": _f1(held),
        "f1_interval_95": [round(accuracy.f1_low, 4), round(accuracy.f1_high, 4)],
        "response_delay_ms": {
            f"p{share}": round(float(np.percentile(delays, share)), 1) if delays else None
            for share in (50, 95, 99)
        },
        "first_answer_s": round(played.first_answer_s, 1) if played.first_answer_s is not None else None,
        "triton": played.triton,
        "rungs": played.rungs,
        "rung_reasons": played.why,
    }


def _f1(counts: list[score.Counts]) -> float | None:
    return round(score.score(counts).f1, 4) if counts else None


def _annotated(clip: reference.Clip, path: Path, tally: Tally) -> None:
    def images() -> Any:
        count = min(len(tally.by_frame), clip.frames)
        for sequence, image in enumerate(reference.pictures(clip, count), start=1):
            annotate.draw_answer(image, tally.by_frame.get(sequence), sequence)
            yield image

    annotate.write_video(path, images(), clip.fps)


def _table(summary: dict[str, Any]) -> Table:
    captured, jpeg = summary["frames_captured"], summary["jpeg_bytes_per_frame"]
    delay, triton = summary["response_delay_ms"], summary["triton"]
    share = ", ".join(f"{count} {name}" for name, count in sorted(summary["results_by_provenance"].items()))
    table = Table(title="Eyeline, one run", show_header=False, title_style="bold")
    table.add_row("captured", f"{captured} frames by {summary['cameras']} camera(s)")
    table.add_row(
        "sent", f"{summary['frames_sent']} frames with pixels, {summary['bytes_sent'] / 1000:.0f} KB in all"
    )
    table.add_row("answered", f"{summary['results']} frames, each once: {share}")
    table.add_row(
        "bytes",
        f"{summary['bytes_per_frame']:.0f} a frame; a JPEG of each would be {jpeg:.0f}: "
        f"{jpeg / max(summary['bytes_per_frame'], 1):.0f} times as many",
    )
    table.add_row(
        "delay", f"capture to subscriber, ms: p50 {delay['p50']}, p95 {delay['p95']}, p99 {delay['p99']}"
    )
    low, high = summary["f1_interval_95"]
    table.add_row(
        "accuracy",
        f"F1 {summary['f1_vs_reference']:.3f} ({low:.3f} to {high:.3f}) "
        "against the cloud model on raw frames",
    )
    table.add_row(
        "Triton",
        f"{triton['inferences']} pictures in {triton['executions']} runs of {triton['model']}, "
        f"{triton['mean_batch']:.2f} a batch",
    )
    for rung, why in sorted({(summary["rungs"][name], why) for name, why in summary["rung_reasons"].items()}):
        table.add_row("rung", f"{rung}: {why}")
    if summary["calibration_bytes"]:
        once = summary["bytes_per_frame_with_calibration"]
        table.add_row(
            "calibration",
            f"{summary['calibration_bytes'] / 1000:.0f} KB, sent once and spread over an hour above; "
            f"with all of it in this run {once:.0f} bytes a frame",
        )
    return table


if __name__ == "__main__":
    sys.exit(main())
