"""The `eyeline` command as a process, against scripted services over real gRPC."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from grpc import StatusCode

from eyeline.errors import InvalidRequest
from eyeline.moments import format_duration, format_moment, parse_moment
from eyeline.release import version
from eyeline.v1 import device_pb2, inference_pb2, result_pb2
from tests.support.eventually import eventually
from tests.support.fake_api import FakeApi, Fault, made_result, running_fake_api


@pytest.fixture
async def api() -> AsyncIterator[FakeApi]:
    async with running_fake_api() as running:
        yield running


@dataclass(frozen=True, slots=True)
class Done:
    """How a command ended."""

    status: int | None
    out: str
    err: str


async def start(*arguments: str, **environment: str) -> asyncio.subprocess.Process:
    """Start the command."""
    inherited = {key: value for key, value in os.environ.items() if not key.startswith("EYELINE_")}
    return await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "eyeline",
        *arguments,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={**inherited, "COLUMNS": "200", **environment},
    )


async def finish(process: asyncio.subprocess.Process) -> Done:
    """Its end; one that hangs is a failure."""
    async with asyncio.timeout(30):
        out, err = await process.communicate()
    assert b"Traceback" not in err
    return Done(process.returncode, out.decode(), err.decode())


async def run(*arguments: str, **environment: str) -> Done:
    """Run the command to its end."""
    return await finish(await start(*arguments, **environment))


async def test_latest_for_people(api: FakeApi) -> None:
    api.store(
        made_result(1), made_result(2, "door", provenance=result_pb2.PROVENANCE_DEGRADED, reason="chain_gap")
    )
    done = await run("latest", "--server", api.address)
    assert done.status == 0
    gate, door = done.out.splitlines()
    assert gate == "2025-10-09T08:53:21.000Z  yard/gate  #1  cloud  1 person  80 ms"
    assert "degraded  no answer: chain_gap" in door
    assert "\x1b" not in done.out


async def test_latest_for_programs(api: FakeApi) -> None:
    api.store(made_result(1), made_result(2, "door", last_sequence=9, revision=3, final=False))
    done = await run("latest", "yard/door", "--json", EYELINE_SERVER=api.address)
    (line,) = done.out.splitlines()
    found = json.loads(line)
    assert found["camera"] == "door"
    assert (found["sequence"], found["last_sequence"], found["revision"]) == (2, 9, 3)
    assert (found["final"], found["provenance"]) == (False, "CLOUD")
    assert found["detections"] == [
        {"class": "person", "class_id": 0, "score": 0.75, "box": [10, 20, 30, 60], "track_id": 7}
    ]
    assert found["resume_token"] == "t1"
    assert found["epoch"] == {"counter": 3, "random_id": "01" * 8}


async def test_names_cannot_drive_the_terminal(api: FakeApi) -> None:
    hostile = made_result(1, reason="[red]\x1b]0;title\x07\n", provenance=result_pb2.PROVENANCE_DEGRADED)
    hostile.detections[0].class_name = "\x1b[2Jcar"
    api.store(hostile)
    done = await run("latest", "--server", api.address)
    assert "\x1b" not in done.out
    assert len(done.out.splitlines()) == 1
    assert "[red]" in done.out


async def test_watch_count_and_resume(api: FakeApi) -> None:
    api.store(*(made_result(i) for i in range(1, 7)))
    done = await run(
        "watch", "--since", "2025-01-01T00:00:00Z", "--count", "3", "--json", "--server", api.address
    )
    assert done.status == 0
    assert [json.loads(line)["sequence"] for line in done.out.splitlines()] == [1, 2, 3]
    assert done.err == "to go on: eyeline watch --resume t2\n"
    done = await run("watch", "yard/gate", "--resume", "t2", "--count", "3", "--server", api.address)
    assert [line.split()[2] for line in done.out.splitlines()] == ["#4", "#5", "#6"]
    assert done.err.endswith("--resume t5\n")


async def test_watch_is_live_survives_a_restart_and_ends_on_interrupt(api: FakeApi) -> None:
    process = await start("watch", "--json", "--server", api.address)
    assert process.stdout is not None
    await eventually(lambda: api.subscribers == 1, within_s=20)
    api.store(made_result(1))
    assert json.loads(await process.stdout.readline())["sequence"] == 1
    await api.stop()
    api.store(made_result(2))
    await api.start()
    assert json.loads(await asyncio.wait_for(process.stdout.readline(), 20))["sequence"] == 2
    process.send_signal(signal.SIGINT)
    done = await finish(process)
    assert done.status == 130
    trouble, resume = done.err.splitlines()
    assert trouble.startswith(f"eyeline: {api.address}")
    assert trouble.endswith("trying again")
    assert resume == "to go on: eyeline watch --resume t1"


@pytest.mark.parametrize("form", [[], ["--json"]])
async def test_watch_is_quiet_when_nobody_reads_on(api: FakeApi, form: list[str]) -> None:
    reading, writing = os.pipe()
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "eyeline", "watch", "--server", api.address, *form,
        stdout=writing,
        stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    os.close(writing)
    await eventually(lambda: api.subscribers == 1, within_s=20)
    os.close(reading)
    api.store(made_result(1), made_result(2))
    done = await finish_quiet(process)
    assert done == (0, b"")


async def finish_quiet(process: asyncio.subprocess.Process) -> tuple[int | None, bytes]:
    """Exit status and standard error."""
    async with asyncio.timeout(30):
        _, err = await process.communicate()
    return process.returncode, err


async def test_watch_gap(api: FakeApi) -> None:
    api.store(*(made_result(i) for i in range(1, 7)))
    api.oldest = 4
    done = await run("watch", "--resume", "t0", "--count", "1", "--server", api.address)
    assert (done.status, done.out) == (4, "")
    assert "3 stored messages between" in done.err
    assert len(done.err.splitlines()) == 1
    done = await run("watch", "--resume", "t0", "--skip-gap", "--count", "2", "--server", api.address)
    assert done.status == 0
    assert [line.split()[2] for line in done.out.splitlines()] == ["#5", "#6"]
    assert "3 stored messages" in done.err


async def test_history(api: FakeApi) -> None:
    api.store(*(made_result(i) for i in range(1, 10)))
    times = ("--from", "2025-10-09T08:53:22Z", "--to", "2025-10-09T10:53:27+02:00")
    done = await run("history", "yard/gate", *times, "--json", "--server", api.address)
    assert [json.loads(line)["sequence"] for line in done.out.splitlines()] == [2, 3, 4, 5, 6]
    done = await run("history", "yard/gate", "--limit", "4", "--server", api.address)
    assert len(done.out.splitlines()) == 4
    done = await run("history", "yard/gate", "--from", "10m", "--server", api.address)
    assert (done.status, done.out, done.err) == (1, "", "no results of yard/gate in that time\n")


async def test_detect(api: FakeApi, tmp_path: Path) -> None:
    image = tmp_path / "photo.jpg"
    image.write_bytes(b"as it is")
    api.answer = inference_pb2.DetectResponse(
        detections=made_result(1).detections, width_px=768, height_px=576, infer_ns=30_000_000
    )
    done = await run("detect", str(image), "--server", api.address)
    assert done.status == 0
    assert "768x576 px, 1 person" in done.out
    assert "0.75" in done.out
    done = await run(
        "detect", str(image), str(image), "--json", "--min-score", "0.5", "--server", api.address
    )
    first, second = (json.loads(line) for line in done.out.splitlines())
    assert first == second
    assert first["image"] == str(image)
    assert first["image_size"] == [768, 576]
    assert api.asked("Detect")[-1].min_score == 0.5
    api.answer = inference_pb2.DetectResponse()
    assert (await run("detect", str(image), "--server", api.address)).status == 1
    missing = await run("detect", "none.jpg", "--server", api.address)
    assert (missing.status, missing.err) == (
        2,
        "eyeline: none.jpg cannot be read: No such file or directory\n",
    )


async def test_devices(api: FakeApi) -> None:
    nothing = await run("devices", "--server", api.address)
    assert (nothing.status, nothing.err) == (1, "no device has reported yet\n")
    status = device_pb2.DeviceStatus(site="yard", device="box1", hub_connected=True)
    status.cameras.add(
        camera="gate",
        state=device_pb2.CAMERA_STATE_LIVE,
        frames_captured=90,
        frames_dropped={"spool_full": 2},
    )
    status.cameras.add(camera="door", state=device_pb2.CAMERA_STATE_FAILED, message="no such file")
    api.devices = {
        ("yard", "box1"): device_pb2.Device(status=status),
        ("yard", "box2"): device_pb2.Device(status=device_pb2.DeviceStatus(site="yard", device="box2")),
    }
    done = await run("devices", "--server", api.address)
    assert done.status == 0
    for shown in ("yard/box1", "gate", "live", "90", "failed", "no such file", "yard/box2", "no cameras"):
        assert shown in done.out
    narrow = await run("devices", "--server", api.address, COLUMNS="60")
    assert max(len(line.rstrip()) for line in narrow.out.splitlines()) <= 60
    for shown in ("gate ", "live ", " 90 ", "door: no such file"):
        assert shown in narrow.out, narrow.out
    done = await run("devices", "yard/box1", "--json", "--server", api.address)
    found = json.loads(done.out)
    assert [camera["state"] for camera in found["cameras"]] == ["live", "failed"]
    assert found["cameras"][0]["frames_dropped"] == {"spool_full": 2}
    missing = await run("devices", "yard/box9", "--server", api.address)
    assert (missing.status, missing.out) == (1, "")
    assert "no device yard/box9" in missing.err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["latest", "--wrong"], "No such option: --wrong"),
        (["latest", "gate"], "must be SITE/CAMERA"),
        (["latest", "yard/ga te"], "must be 1 to 64 letters"),
        (["latest", "--server", "nowhere"], "must be HOST:PORT"),
        (["history"], "Missing argument 'SITE/CAMERA'"),
        (["history", "gate"], "must be SITE/CAMERA"),
        (["history", "yard/gate", "--from", "yesterday"], "'yesterday' is no time"),
        (["history", "yard/gate", "--from", "1m", "--to", "2m"], "--to must be later than --from"),
        (["export", "jsonl", "--from", "1m", "--to", "2m"], "--to must be later than --from"),
        (["export", "coco", "--class", "person"], "--class is for mot alone"),
        (["devices", "box1"], "must be SITE/DEVICE"),
        (["watch", "--count", "0"], "--count"),
        (["watch", "--since", "10m", "--resume", "t1"], "not both"),
        (["latest", "--ca", "no/such.pem"], "no/such.pem cannot be read"),
        (["look"], "No such command 'look'"),
    ],
)
async def test_wrong_usage_is_one_line(arguments: list[str], says: str) -> None:
    done = await run(*arguments)
    assert (done.status, done.out) == (2, "")
    assert says in done.err
    assert len(done.err.splitlines()) == 1


async def test_the_version() -> None:
    done = await run("--version")
    assert (done.status, done.out, done.err) == (0, f"eyeline {version()}\n", "")


async def test_wrong_resume_token(api: FakeApi) -> None:
    done = await run("watch", "--resume", "rubbish", "--server", api.address)
    assert (done.status, done.err) == (2, f"eyeline: {api.address}: this is no resume token of ours\n")


@pytest.mark.parametrize(
    ("code", "status"),
    [
        (StatusCode.UNAUTHENTICATED, 4),
        (StatusCode.PERMISSION_DENIED, 4),
        (StatusCode.INTERNAL, 4),
        (StatusCode.UNAVAILABLE, 3),
        (StatusCode.INVALID_ARGUMENT, 2),
    ],
)
async def test_refusals(api: FakeApi, code: StatusCode, status: int) -> None:
    api.fail("GetLatest", Fault(code, "because"))
    done = await run("latest", "--server", api.address)
    assert (done.status, done.out) == (status, "")
    assert f"{api.address}: because" in done.err
    assert len(done.err.splitlines()) == 1


async def test_token_from_the_environment(api: FakeApi) -> None:
    api.token = "s3cret"
    api.store(made_result(1))
    assert (await run("latest", "--server", api.address, EYELINE_TOKEN="s3cret")).status == 0
    refused = await run("latest", "--server", api.address, EYELINE_TOKEN="other1")
    assert refused.status == 4
    assert "other1" not in refused.err


async def test_unreachable_and_silent_servers(api: FakeApi) -> None:
    done = await run("latest", "--server", "127.0.0.1:1")
    assert (done.status, done.out) == (3, "")
    assert done.err.startswith("eyeline: 127.0.0.1:1 cannot be reached (connection refused)")
    done = await run("watch", "--wait", "0", "--server", "127.0.0.1:1")
    assert done.status == 3
    assert len(done.err.splitlines()) == 1
    api.hanging.add("GetLatest")
    assert (await run("latest", "--timeout", "0.2", "--server", api.address)).status == 3


async def test_help_tells_the_exit_statuses() -> None:
    done = await run("--help")
    assert done.status == 0
    for words in (
        "1 nothing found",
        "2 wrong usage",
        "3 the server",
        "4 the server refused",
        "130 interrupted",
    ):
        assert words in " ".join(done.out.split())
    bare = await run()
    assert (bare.status, bare.out) == (2, "")
    assert "Usage:" in bare.err


NOW = 1_760_000_000_123_456_789


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2025-10-09T08:53:20Z", 1_760_000_000_000_000_000),
        ("2025-10-09t08:53:20.123456789z", NOW),
        ("2025-10-09 10:53:20.5+02:00", 1_760_000_000_500_000_000),
        ("1970-01-01T00:00:00Z", 0),
        ("10m", NOW - 600_000_000_000),
        ("1h30m", NOW - 5_400_000_000_000),
        ("1.5s", NOW - 1_500_000_000),
        ("250ms", NOW - 250_000_000),
        ("2d", NOW - 172_800_000_000_000),
    ],
)
def test_moments(text: str, expected: int) -> None:
    assert parse_moment(text, NOW) == expected


@pytest.mark.parametrize(
    "text",
    ["", "now", "10", "m", "-10m", "2025-10-09", "2025-10-09T08:53:20", "2025-13-09T08:53:20Z", "9999999w",
     "1969-12-31T23:59:59Z", "9999-12-31T23:59:59Z", "2025-10-09T08:53:20+99:99", "\u0661\u0660m"],
)  # fmt: skip
def test_no_moments(text: str) -> None:
    with pytest.raises(InvalidRequest, match="is no time"):
        parse_moment(text, NOW)


def test_moments_and_durations_for_people() -> None:
    assert format_moment(NOW) == "2025-10-09T08:53:20.123Z"
    assert format_moment(0) == "-"
    assert format_moment(2**64 - 1).endswith("Z")
    shown = [format_duration(round(s * 1e9)) for s in (0.0834, 12.34, 150, 7200, 400_000, -0.002)]
    assert shown == ["83 ms", "12.3 s", "2 min", "2 h", "5 d", "-2 ms"]
