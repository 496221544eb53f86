"""The faults of one day in the life of a deployment, each as a scenario."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from signal import SIGCONT, SIGKILL, SIGSTOP, SIGTERM
from typing import Final

import numpy as np
import psutil
from nats.js.errors import APIError, NotFoundError

from benchmarks import faults_clock
from benchmarks.faults_proxy import Weather
from benchmarks.faults_rig import Rig, Scenario, until
from benchmarks.system import SITE
from eyeline import subjects
from eyeline.envelope import encode_envelope
from eyeline.errors import ServerFailed
from eyeline.v1 import frame_pb2

# Ten minutes' cut, shortened: it outlasts every time constant of delivery under ten minutes (the duplicate
# window of 120 s, claims that lapse after 60 s, keep-alives of 15 to 30 s, leases of 3 s); what lies between
# is only more of the same backlog.
SHORTENED_CUT_S: Final = 130.0
_DISK: Final = "48m"
_OVERLOAD: Final = 4
_OVERLOADED_S: Final = 36
_LOOK_S: Final = 0.02
# Unused time of a throttled program that it may still use.
_SAVED_S: Final = 0.5
# No camera is answered for so long, while the hub takes everything.
_AWAY_S: Final = 40
# A subscriber of a live picture can work with this.
_IN_TIME_MS: Final = 4000
_MOST_MB: Final = 600
_LIVE: Final = frame_pb2.LANE_LIVE


def _cut(seconds: float) -> Callable[[Rig], Awaitable[None]]:
    async def play(rig: Rig) -> None:
        await rig.at(6)
        rig.proxy.cut()
        await rig.at(6 + seconds)
        rig.proxy.restore()
        rig.restored()

    return play


async def _flap(rig: Rig) -> None:
    for turn in range(8):
        await rig.at(5 + 3 * turn)
        rig.proxy.cut()
        await asyncio.sleep(1.2)
        rig.proxy.tear()
        rig.proxy.restore()
        rig.restored()


async def _slow(rig: Rig) -> None:
    await rig.at(5)
    rig.proxy.weather = Weather(delay_s=0.3, bytes_per_s=25_000, loss=0.02)
    await rig.at(35)
    rig.proxy.weather = Weather()
    rig.restored()


def _killed(name: str) -> Callable[[Rig], Awaitable[None]]:
    async def play(rig: Rig) -> None:
        await rig.at(8)
        rig.signal(name, SIGKILL)
        rig.restored()

    return play


async def _worker_killed(rig: Rig) -> None:
    await rig.at(8)
    rig.signal(await rig.owner(), SIGKILL)
    rig.restored()


async def _worker_killed_in_backlog(rig: Rig) -> None:
    await _cut(10)(rig)
    # Both lanes are under way.
    await asyncio.sleep(0.7)
    rig.signal(await rig.owner(), SIGKILL)
    rig.restored()


async def _worker_stopped(rig: Rig) -> None:
    await rig.at(8)
    owner = await rig.owner()
    rig.signal(owner, SIGSTOP)
    rig.restored()
    await rig.at(16)
    rig.signal(owner, SIGCONT)


def _away(name: str) -> Callable[[Rig], Awaitable[None]]:
    async def play(rig: Rig) -> None:
        await rig.at(8)
        group = os.getpgid(rig.pid(name))  # Triton has helpers
        os.killpg(group, SIGSTOP)
        try:
            await rig.at(8 + _AWAY_S)
        finally:
            os.killpg(group, SIGCONT)
        rig.restored()

    return play


def _is_back(rig: Rig) -> str:
    """The live picture must come back; noted is how much of the outage was answered behind it."""
    assert rig.restored_ns is not None
    back = [it.received_ns for it in rig.heard if it.captured_ns >= rig.restored_ns and it.lane == _LIVE]
    if not back:
        return "the live picture did not come back"
    pile = [it for it in rig.heard if it.lane == frame_pb2.LANE_OVERTAKEN]
    rig.notes["overtaken_frames"] = sum(it.last - it.first + 1 for it in pile)
    rig.notes["overtaken_behind"] = sum(it.last - it.first + 1 for it in pile if it.received_ns > min(back))
    return ""


def _overtook(rig: Rig) -> str:
    """While workers are away nobody tells the device to send less: the pile is put off."""
    return _is_back(rig) or ("" if rig.notes["overtaken_frames"] else "nothing was overtaken")


async def _rebalanced(rig: Rig) -> None:
    """The new worker gets its share under load, and the rest when the old one is told to stop."""
    await rig.at(6)
    await rig.start_worker(2)
    end = time.monotonic() + 15
    owners: set[str] = set()
    while time.monotonic() < end and "worker2" not in owners:
        with contextlib.suppress(NotFoundError):  # on its way from one to the other
            owners |= {await rig.owner(camera) for camera in rig.cameras}
        await asyncio.sleep(0.2)
    rig.notes["owners"] = sorted(owners)
    await rig.at(16)
    rig.signal("worker", SIGTERM)
    rig.restored()


async def _packet_deleted(rig: Rig) -> None:
    await rig.at(8)
    # What the worker has on its way already would be answered all the same: it must never come to ask again.
    rig.signal("worker", SIGSTOP)
    sequence = (await rig.js.stream_info(subjects.FRAMES)).state.last_seq

    async def deleted() -> bool:
        """One that another one follows, so that the loss shows."""
        nonlocal sequence
        while sequence + 1 < (await rig.js.stream_info(subjects.FRAMES)).state.last_seq:
            sequence += 1
            message = await rig.js.get_msg(subjects.FRAMES, sequence)
            envelope = frame_pb2.FrameEnvelope.FromString(message.data or b"")
            units = [item.access_unit for item in envelope.items if item.HasField("access_unit")]
            if units and not any(unit.keyframe for unit in units):
                await rig.js.delete_msg(subjects.FRAMES, sequence)
                rig.notes["deleted"] = [unit.sequence for unit in units]
                return True
        return False

    await until(deleted, 10, "a packet to delete")
    rig.signal("worker", SIGKILL)
    rig.restored()


def _deletion_seen(rig: Rig) -> str:
    """The deleted frames must be answered, and must not pass for seen."""
    honest = {number for it in rig.heard if it.degraded == "lost" for number in range(it.first, it.last + 1)}
    missing = set(rig.notes["deleted"]) - honest
    return f"deleted frames {sorted(missing)} are not told as lost" if missing else ""


async def _agent_killed(rig: Rig) -> None:
    await rig.at(8)
    await rig.kill_agent(with_broker=False)
    rig.restored()
    await rig.start_agent()


async def _device_killed(rig: Rig) -> None:
    await rig.at(6)
    # With a backlog in the spool.
    rig.proxy.cut()
    await rig.at(10)
    await rig.kill_agent(with_broker=True)
    rig.proxy.restore()
    rig.restored()
    await rig.start_agent()


@contextlib.contextmanager
def small_disk(folder: Path) -> Iterator[None]:
    """A small disk of its own at `folder`; raises `ServerFailed` where nothing may be mounted."""
    folder.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={_DISK}", "none", str(folder)], capture_output=True, check=False
    )
    if done.returncode:
        raise ServerFailed("the full disk is a real one: run this as root, or allow mounting")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=False)


async def _disk_full(rig: Rig) -> None:
    await rig.at(6)
    filler = rig.agent_state / "filler"
    with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(1 << 16))
    await rig.at(14)
    filler.unlink()
    rig.restored()


async def _clock_jumps(rig: Rig) -> None:
    await rig.at(8)
    faults_clock.write(rig.state / "clock", 3630.0)
    await rig.at(16)
    faults_clock.write(rig.state / "clock", -30.0)
    rig.restored()


def _clock_program(state: Path) -> list[str]:
    # Half a minute wrong from the start.
    faults_clock.write(state / "clock", 30.0)
    return [sys.executable, "-m", "benchmarks.faults_clock", str(state / "clock")]


async def _slow_consumer(rig: Rig) -> None:
    await rig.at(4)
    rig.read_pause_s = 0.4
    # And one that reads nothing at all.
    stuck = rig.client.subscribe(since_ns=time.time_ns())
    await stuck.ready()
    try:
        await rig.at(18)
        rig.read_pause_s = 0.0
        rig.restored()
        await rig.at(22)
    finally:
        await stuck.aclose()


async def _overload(rig: Rig) -> None:
    """Triton gets a quarter of the time that the offered pictures need: it is stopped in between."""
    await rig.at(6)
    triton = psutil.Process(rig.pid("triton"))
    spent_s, pictures = _cpu_s(triton), rig.pictures()
    await rig.at(12)
    spent_s, pictures = _cpu_s(triton) - spent_s, rig.pictures() - pictures
    # The street never rests: every frame is offered, whatever the system made of it so far.
    offered = rig.recording.fps
    share = offered / _OVERLOAD * spent_s / max(pictures, 1)
    rig.notes.update(offered_per_s=offered, triton_share_of_a_core=round(share, 3))
    throttle = asyncio.create_task(_throttle(rig, share))
    try:
        await rig.at(12 + 4)
        before, began = rig.pictures(), time.monotonic()
        await rig.at(12 + 10)
        served = (rig.pictures() - before) / (time.monotonic() - began)
        rig.notes["served_per_s"] = round(served, 1)
        await rig.at(12 + _OVERLOADED_S)
    finally:
        throttle.cancel()
        await asyncio.gather(throttle, return_exceptions=True)
    rig.restored()


def _cpu_s(process: psutil.Process) -> float:
    """Processor time of a process and its helpers, in seconds."""
    times = [one.cpu_times() for one in (process, *process.children(recursive=True))]
    return sum(it.user + it.system for it in times)


async def _throttle(rig: Rig, share: float) -> None:
    """Let Triton, helpers included, use that share of a core: it is stopped while it is ahead of that.

    What it leaves unused is soon forgotten: saved up, it would serve twice as much for a while, then nothing.
    """
    triton = psutil.Process(rig.pid("triton"))
    group = os.getpgid(triton.pid)
    then_s, spent_s, left_s = time.monotonic(), _cpu_s(triton), 0.0
    try:
        while True:
            now_s, used_s = time.monotonic(), _cpu_s(triton)
            left_s = min(left_s + share * (now_s - then_s), share * _SAVED_S) - (used_s - spent_s)
            then_s, spent_s = now_s, used_s
            os.killpg(group, SIGSTOP if left_s < 0 else SIGCONT)
            await asyncio.sleep(_LOOK_S)
    finally:
        os.killpg(group, SIGCONT)


def _pressure_worked(rig: Rig) -> str:
    """By the last third of the overload, frames must be answered in time again, and memory be bounded."""
    assert rig.restored_ns is not None
    start = rig.restored_ns - _OVERLOADED_S / 3 * 1e9
    delays = [
        delay for it in rig.heard if start < it.captured_ns < rig.restored_ns for delay in it.delays_ms()
    ]
    p95 = float(np.percentile(delays, 95)) if delays else float("inf")
    rig.notes["p95_ms_in_the_last_third"] = round(p95)
    largest = max(used for name, used in rig.memory.items()) >> 20
    if p95 > _IN_TIME_MS:
        return f"p95 is {p95:.0f} ms in the last third of the overload"
    return "" if largest < _MOST_MB else f"a process grew to {largest} MB"


async def _corrupt(rig: Rig) -> None:
    chance = random.Random(7)
    await rig.at(5)
    nats = await rig.connect(as_device=True)
    try:
        subject = subjects.frame_subject(SITE, "edge", "cam1")
        info = await rig.js.stream_info(subjects.FRAMES)
        real = []
        for sequence in range(info.state.first_seq, info.state.last_seq + 1):
            with contextlib.suppress(NotFoundError, APIError):
                real.append((await rig.js.get_msg(subjects.FRAMES, sequence)).data or b"")
        bad = _corrupted(real, chance)
        rig.notes["corrupt"] = len(bad)
        for data in bad:
            await nats.publish(subject, data)
            await asyncio.sleep(0.05)
        await nats.flush()
        rig.restored()
    finally:
        await nats.close()

    async def set_aside() -> bool:
        rig.notes["set_aside"] = (await rig.js.stream_info(subjects.DEAD)).state.messages
        return int(rig.notes["set_aside"]) >= rig.notes["unusable"]

    rig.notes["unusable"] = len(bad) - len(real)
    await until(set_aside, 15, "the dead letters")


def _corrupted(real: list[bytes], chance: random.Random) -> list[bytes]:
    """Messages that must not be taken, and real ones that come again without their message id."""
    bad = [b"", chance.randbytes(40), chance.randbytes(20_000)]
    envelope = frame_pb2.FrameEnvelope.FromString(real[-1])
    bad += [real[-1][: len(real[-1]) // 2], real[-1][:-1]]
    for field, value in (("camera", "cam2"), ("site", "other"), ("tenant", "other"), ("schema_major", 9)):
        other = frame_pb2.FrameEnvelope()
        other.CopyFrom(envelope)
        setattr(other, field, value)
        bad.append(other.SerializeToString())
    gap = frame_pb2.FrameEnvelope()
    gap.CopyFrom(envelope)
    gap.ClearField("items")
    bad.append(gap.SerializeToString())
    again = []
    for data in real:
        # Their pixels are damaged on the way: they are answered already, and must stay so.
        copy = frame_pb2.FrameEnvelope.FromString(data)
        for item in copy.items:
            if item.HasField("access_unit"):
                item.access_unit.data = chance.randbytes(len(item.access_unit.data))
        again.append(encode_envelope(copy))
    mixed = [*bad, *again]
    chance.shuffle(mixed)
    return mixed


SCENARIOS: Final = (
    Scenario("steady", "nothing goes wrong: the measure of the others", lambda rig: rig.at(12), 14),
    Scenario("link_cut_10s", "the link is dead for 10 s", _cut(10), 26),
    Scenario(
        "link_cut_10min",
        f"the link is dead for {SHORTENED_CUT_S:g} s, for ten minutes: past every time constant of delivery",
        _cut(SHORTENED_CUT_S),
        SHORTENED_CUT_S + 16,
        settle_s=90,
    ),
    Scenario("flapping_link", "8 times 1.2 s dead, then all connections reset", _flap, 36),
    Scenario(
        "slow_link",
        "200 kbit/s and 300 ms each way for 30 s; 2 % of segments come a round trip late",
        _slow,
        42,
    ),
    Scenario("hub_killed", "SIGKILL of the hub", _killed("hub")),
    Scenario("worker_killed", "SIGKILL of the owner in mid-chain, of two workers", _worker_killed, workers=2),
    Scenario(
        "worker_killed_in_backlog",
        "SIGKILL of the owner while a backlog of 10 s follows an outage; two workers",
        _worker_killed_in_backlog,
        30,
        workers=2,
    ),
    Scenario(
        "worker_stopped",
        "SIGSTOP of the owner for 8 s, past its lease of 3 s, then SIGCONT; two workers",
        _worker_stopped,
        workers=2,
    ),
    Scenario(
        "workers_away",
        f"SIGSTOP of the only worker for {_AWAY_S} s while the camera and the hub go on, then SIGCONT",
        _away("worker"),
        8 + _AWAY_S + 16,
        check=_overtook,
    ),
    Scenario(
        "triton_away",
        f"SIGSTOP of Triton for {_AWAY_S} s while all else goes on, then SIGCONT",
        _away("triton"),
        8 + _AWAY_S + 16,
        check=_is_back,
    ),
    Scenario(
        "worker_added_and_stopped",
        "a second worker takes its share of eight cameras, then the first one ends in an orderly way",
        _rebalanced,
        28,
        cameras=8,
        fps=5,
        check=lambda rig: "" if "worker2" in rig.notes["owners"] else f"owners stayed {rig.notes['owners']}",
    ),
    Scenario(
        "packet_deleted",
        "one packet of a chain is deleted from the hub, before a worker (killed) gets it",
        _packet_deleted,
        policies=frozenset({"lost", "chain_gap"}),
        check=_deletion_seen,
    ),
    Scenario("triton_killed", "SIGKILL of Triton", _killed("triton")),
    Scenario("agent_killed", "SIGKILL of the agent, started again", _agent_killed, 20),
    Scenario(
        "device_killed",
        "SIGKILL of agent and local broker with a backlog of 4 s, started again",
        _device_killed,
        20,
    ),
    Scenario(
        "disk_full",
        f"the device's disk ({_DISK}) is full for 8 s",
        _disk_full,
        policies=frozenset({"spool_error"}),
        agent={"spool": {"max_bytes": 8 << 20}},
    ),
    Scenario(
        "clock_jump",
        "the device's clock is 30 s wrong, jumps an hour ahead, and back past the true time",
        _clock_jumps,
        program=_clock_program,
        check=lambda rig: (
            "" if rig.notes["off_schedule_ms"] < 200 else f"{rig.notes['off_schedule_ms']} ms off schedule"
        ),
    ),
    Scenario(
        "slow_consumer",
        "a subscriber takes 0.4 s an answer for 14 s, another one reads nothing",
        _slow_consumer,
    ),
    Scenario(
        "overload_4x",
        f"Triton can take a quarter of the pictures offered, for {_OVERLOADED_S} s",
        _overload,
        12 + _OVERLOADED_S + 16,
        agent={"encode": {"max_fps": 10}},
        check=_pressure_worked,
    ),
    Scenario("corrupt_messages", "unusable and repeated messages on the camera's own subject", _corrupt),
)
