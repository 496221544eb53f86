"""Everything a user can get wrong, and everything that can be away or break: one line each, nothing lost."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Collection, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import find_libpython
import numpy as np
import onnx
import psutil
import pytest
import yaml
from nats.aio.client import Client as NatsClient

from cloud_inference import triton_server
from cloud_inference.hub import HubOptions, LocalHub, config_text
from eyeline import BlockingClient, bus, subjects
from eyeline.errors import EyelineError, ServerFailed
from eyeline.nats_server import find_nats_server
from eyeline.v1 import device_pb2, frame_pb2
from eyeline.values import Provenance, Result
from eyeline_models import catalogue
from tests.support.cameras import RtspServer, wait_for
from tests.support.models import tiny_model
from tests.support.programs import (
    Program,
    Running,
    agent,
    agent_file,
    http_get,
    lives,
    local_system,
    metric,
    module,
    seed,
    some_free_ports,
)
from tests.support.simulated import Device, publish

# Found nowhere but in what holds it.
SECRET = "Zwiebel7kuchen"
SITE = "yard"


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with local_system(tmp_path_factory.mktemp("system"), ["box1", "box2", "box3", "box4"]) as running:
        yield running
        assert "Traceback" not in running.program.said


@pytest.fixture
def client(system: Running) -> Iterator[BlockingClient]:
    with BlockingClient(system.endpoints["api"]) as opened:
        yield opened


def clip(path: Path, frames: int) -> Path:
    """A small video with something that moves."""
    with av.open(str(path), "w") as file:
        stream = file.add_stream("libx264", rate=20)
        stream.width, stream.height, stream.pix_fmt = 128, 96, "yuv420p"
        for number in range(frames):
            image = np.full((96, 128, 3), 60, np.uint8)
            image[30:60, 2 * number : 2 * number + 24] = 230
            frame = av.VideoFrame.from_ndarray(image, format="bgr24").reformat(format="yuv420p")
            frame.pts, frame.time_base = number, Fraction(1, 20)
            file.mux(stream.encode(frame))
        file.mux(stream.encode(None))
    return path


def finals(client: BlockingClient, camera: str) -> dict[int, Result]:
    """The final results of a camera, by frame; each is there once."""
    found: dict[int, Result] = {}
    for result in client.history(SITE, camera):
        if result.final:
            for sequence in range(result.sequence, result.last_sequence + 1):
                assert sequence not in found, f"{camera} {sequence} was answered twice"
                found[sequence] = result
    return found


def all_answered(client: BlockingClient, camera: str, frames: int, within_s: float = 20) -> dict[int, Result]:
    wait_for(lambda: len(finals(client, camera)) >= frames, within_s, f"{frames} answers of {camera}")
    found = finals(client, camera)
    assert sorted(found) == list(range(1, frames + 1))
    return found


def status_of(client: BlockingClient, device: str) -> device_pb2.DeviceStatus:
    try:
        return client.device(SITE, device).status
    except EyelineError:
        return device_pb2.DeviceStatus()


def camera_of(client: BlockingClient, device: str, camera: str) -> device_pb2.CameraStatus:
    found = [it for it in status_of(client, device).cameras if it.camera == camera]
    return found[0] if found else device_pb2.CameraStatus()


# What a user gets wrong before anything runs


def bad_model(folder: Path, what: str) -> Path:
    """A model whose card is fine and whose graph is not."""
    folder.mkdir()
    graph = folder / "model.onnx"
    if what == "not ONNX":
        graph.write_bytes(b"this is no model")
    else:
        tiny_model(graph)
    if what == "other inputs":
        model = onnx.load(graph)
        model.graph.input[0].name = model.graph.node[0].input[0] = "picture"
        onnx.save(model, graph)
    card = yaml.safe_load((catalogue.load("centernet-mobilenetv3").path.parent / "card.yaml").read_text())
    sha256 = subprocess.run(["sha256sum", graph], capture_output=True, text=True, check=True).stdout.split()[
        0
    ]
    card |= {"name": "mine", "file": "model.onnx", "sha256": sha256}
    (folder / "card.yaml").write_text(yaml.safe_dump(card))
    return folder


def test_mistakes_are_one_line_with_status_2(tmp_path: Path) -> None:
    def settings(name: str, **values: Any) -> str:
        path = tmp_path / f"{name}.yaml"
        camera = {"name": "gate", "source": f"rtsp://viewer:{SECRET}@127.0.0.1:1/x"}
        base: dict[str, Any] = {"device": "box", "state_dir": str(tmp_path / name), "cameras": [camera]}
        path.write_text(yaml.safe_dump({**base, **values}))
        return str(path)

    def cloud(name: str, **values: Any) -> str:
        path = tmp_path / f"{name}.yaml"
        tenant = {"name": "default", "user": "cloud", "password": SECRET}
        path.write_text(yaml.safe_dump({"hub": {"tenants": [tenant]}, **values}))
        return str(path)

    (tmp_path / "broken.yaml").write_text("device: box\ncameras: [\n")
    (tmp_path / "bytes.yaml").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "file").touch()
    run = ("edge_agent", "run", "--config")
    card = bad_model(tmp_path / "not-onnx", "not ONNX")
    other = bad_model(tmp_path / "other", "other inputs")
    small = bad_model(tmp_path / "small", "another size")
    local = ("--hub-port", "0", "--api-port", "0", "--state")
    nowhere = {"EYELINE_TRITON_HOME": str(tmp_path / "nowhere")}
    with contextlib.ExitStack() as held:
        taken = held.enter_context(socket.create_server(("127.0.0.1", 0))).getsockname()[1]
        cases: list[tuple[tuple[str, ...], str, dict[str, str]]] = [
            ((*run, settings("key", cmaeras=[])), "unknown key 'cmaeras'; did you mean 'cameras'?", {}),
            (
                (*run, settings("inner", cameras=[{"name": "a", "source": "x", "passwrd": SECRET}])),
                "unknown key 'cameras.0.passwrd'; did you mean 'password'?",
                {},
            ),
            ((*run, settings("kind", hub={"password": [SECRET]})), "hub.password must be text", {}),
            ((*run, str(tmp_path / "broken.yaml")), "broken.yaml is not YAML at line 3", {}),
            ((*run, str(tmp_path / "bytes.yaml")), "bytes.yaml is not YAML", {}),
            ((*run, str(tmp_path / "none.yaml")), "none.yaml cannot be read: No such file", {}),
            (
                (*run, settings("state", state_dir=str(tmp_path / "file"))),
                "give the agent a folder it owns",
                {},
            ),
            (
                (*run, settings("port", http={"port": taken})),
                f"http.port {taken} on 127.0.0.1 cannot be used",
                {},
            ),
            (
                (*run, settings("secret", hub={"password_file": str(tmp_path / "no")})),
                f"hub: {tmp_path / 'no'} cannot be read: No such file",
                {},
            ),
            (
                ("cloud_inference", "worker", "--config", cloud("worker", http={"worker_port": taken})),
                f"http.worker_port {taken} on 127.0.0.1 cannot be used",
                {},
            ),
            (
                ("cloud_inference", "api", "--config", cloud("api", api={"port": taken})),
                f"api.port {taken} on 127.0.0.1 cannot be used",
                {},
            ),
            (
                (
                    "cloud_inference",
                    "api",
                    "--config",
                    cloud("page", api={"port": 0}, http={"api_port": taken}),
                ),
                f"http.api_port {taken} on 127.0.0.1 cannot be used",
                {},
            ),
            (
                ("cloud_inference", "worker", "--config", cloud("model", triton={"model": "centernet"})),
                "no model is named 'centernet'; did you mean 'centernet-mobilenetv3'?",
                {},
            ),
            (("cloud_inference", "triton", "--model", str(card)), "cannot be read as ONNX", {}),
            (("cloud_inference", "triton", "--model", str(other)), "needs images uint8 [B,H,W,3]", {}),
            (("cloud_inference", "triton", "--model", str(small)), "48x32, and its card says 416x416", {}),
            (("cloud_inference", "local", *local, str(tmp_path / "file")), "cannot be used for state", {}),
            (("cloud_inference", "local", *local, str(tmp_path / "s")), ".ci/install-triton", nowhere),
            (("benchmarks.demo", "--out", str(tmp_path / "demo")), ".ci/install-triton", nowhere),
            (("benchmarks.demo", "--out", str(tmp_path / "file" / "x")), "cannot be written", {}),
        ]
        running: list[tuple[Program, str]] = []
        # A few at a time: each is a second of a processor.
        for index, (command, expected, env) in enumerate(cases):
            if index >= 4:
                running[index - 4][0].wait()
            program = Program(module(*command), tmp_path / f"said-{index}", env)
            running.append((held.enter_context(program), expected))
        for (program, expected), (command, *_) in zip(running, cases, strict=True):
            status, said = program.wait(), program.said
            assert "Traceback" not in said
            assert SECRET not in said
            # Beside the events of a part that came up first.
            lines = [line for line in said.splitlines() if not line.startswith("{")]
            assert (status, len(lines)) == (2, 1), (command, said)
            assert expected in lines[0]
    assert not (tmp_path / "demo" / "state").exists()


def test_a_missing_libpython_is_named_with_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(find_libpython, "candidate_paths", lambda: iter(()))
    monkeypatch.setattr(sys, "version_info", (3, 99, 0))
    with pytest.raises(ServerFailed) as caught:
        triton_server.find_libpython_folder()
    assert str(caught.value) == (
        "libpython3.99.so.1.0 is missing, which Triton needs: apt-get install libpython3.99"
    )


# Cameras


@pytest.mark.timeout(90)
def test_bad_cameras_beside_a_good_one(system: Running, client: BlockingClient, tmp_path: Path) -> None:
    text = tmp_path / "notes.mp4"
    text.write_text("not a video\n" * 50)
    (tmp_path / "empty").mkdir()
    good = clip(tmp_path / "good.mp4", 40)
    box = system.device("box1")
    with RtspServer(user="viewer", password="right") as locked, RtspServer(fps=10) as street:
        port = street.port
        sources: dict[str, dict[str, Any]] = {
            "good": {"source": str(good), "realtime": False},
            "street": {"source": street.url, "stall_timeout_s": 2},
            "missing": {"source": str(tmp_path / "none.mp4")},
            "text": {"source": str(text)},
            "empty": {"source": str(tmp_path / "empty")},
            "refused": {"source": f"rtsp://viewer:{SECRET}@127.0.0.1:1/x?password={SECRET}"},
            "locked": {"source": locked.url, "user": "viewer", "password": SECRET},
            "scheme": {"source": f"ftp://viewer:{SECRET}@127.0.0.1/x"},
            "badport": {"source": f"rtsp://viewer:{SECRET}@camera:port/x"},
        }
        config = agent_file(
            tmp_path / "edge",
            system.endpoints["hub"],
            box,
            cameras=[{"name": name, **camera} for name, camera in sources.items()],
            detect={"model": str(bad_model(tmp_path / "model", "other inputs"))},
        )
        with agent(config) as edge:
            expected = {
                "missing": "none.mp4: no such file",
                "text": "notes.mp4: this is not a video file",
                "empty": "no readable image in this folder",
                "refused": "rtsp://127.0.0.1:1/x: connection refused; is the camera on",
                "locked": "the camera refuses the user or the password",
                "scheme": "ftp:// cannot be opened; give an rtsp:// address",
                "badport": "is not an address: give rtsp://HOST[:PORT]/PATH",
            }
            edge.until("camera_state", camera="street", state="live")
            for name, words in expected.items():
                wait_for(
                    lambda name=name, words=words: words in camera_of(client, "box1", name).message,  # type: ignore[misc]
                    15,
                    f"{name}: {words}",
                )
                assert len(edge.events("camera_state", camera=name)) == 1, "said once"
            assert "is no served model" in edge.until("edge_model_failed")["reason"]
            all_answered(client, "good", 40)
            status, page = edge.get("readyz")
            assert (status, page.startswith("no picture from: ")) == (503, True)

            # A camera that vanishes is told, and goes on with the next number when it is back.
            seen = camera_of(client, "box1", "street").last_sequence
            street.vanish()
            lost = edge.until("camera_state", camera="street", state="reconnecting", within_s=15)
            assert street.url in lost["message"]
            with RtspServer(port=port, fps=10):
                edge.until("camera_state", camera="street", state="live", count=2, within_s=20)
                wait_for(
                    lambda: camera_of(client, "box1", "street").last_sequence > seen + 5, 15, "frames again"
                )
            pages = [edge.get("metrics")[1], edge.get("healthz")[1], page]
            said_by_device = status_of(client, "box1").SerializeToString()
            assert edge.end() == 0
            last = camera_of(client, "box1", "street").last_sequence
            all_answered(client, "street", last)
            assert "Traceback" not in edge.said
    for secret in (SECRET, seed(box)):
        texts = [edge.said, *pages, system.program.said]
        assert not [text for text in texts if secret in text]
        assert secret.encode() not in said_by_device
        logs = list(system.state.glob("*.log"))
        assert len(logs) >= 2
        assert not [path for path in logs if secret.encode() in path.read_bytes()]
        holders = [path for path in (tmp_path / "edge" / "state").rglob("*") if path.is_file()]
        assert holders
        assert not [path for path in holders if secret.encode() in path.read_bytes()]


@pytest.mark.timeout(60)
def test_a_wrong_hub_password_is_said_once_and_frames_are_kept(system: Running, tmp_path: Path) -> None:
    box = system.device("box2")
    cameras = [{"name": "kept", "source": "pattern:64x48@10"}]
    config = agent_file(
        tmp_path / "edge",
        system.endpoints["hub"],
        box,
        cameras=cameras,
        detect={"model": "centernet-mobilenetv2"},
        hub={"url": system.endpoints["hub"], "user": "box2"},
    )
    with agent(config, password=SECRET) as edge:
        refused = edge.until("link_refused")
        assert refused["reason"].endswith("it does not know this user and password; check them")
        assert "did you mean 'centernet-mobilenetv3'?" in edge.until("edge_model_failed")["reason"]
        # Tried again and again, and told once.
        wait_for(lambda: spooled(edge) > 10, 20, "kept")
        pages = edge.get("metrics")[1] + edge.get("readyz")[1]
        second = agent_file(tmp_path / "second", system.endpoints["hub"], box, cameras=cameras)
        with agent(second, "--state-dir", str(tmp_path / "edge" / "state")) as other:
            assert other.wait() == 2
            assert other.said.startswith("edge-agent: another agent runs with state_dir ")
            assert other.said.count("\n") == 1
        assert edge.end(signal.SIGINT) == 130
        assert len(edge.events("link_refused")) == 1
        assert edge.events("agent_stopped")[0]["kept_messages"] > 10
        assert "Traceback" not in edge.said
        assert SECRET not in edge.said + pages + system.program.said
    # With its credentials everything that was kept arrives.
    right = agent_file(tmp_path / "edge", system.endpoints["hub"], box, cameras=cameras)
    with agent(right) as edge, BlockingClient(system.endpoints["api"]) as client:
        wait_for(lambda: len([*client.history(SITE, "kept")]) > 10, 20, "answers")
        assert edge.end() == 0


def twins(system: Running, folder: Path, device: str, camera: str) -> Program:
    box = system.device(device)
    cameras = [{"name": camera, "source": "pattern:64x48@5"}]
    config = agent_file(folder, system.endpoints["hub"], box, cameras=cameras)
    return agent(config)


def spooled(edge: Program) -> float:
    return metric(edge.get("metrics")[1], "eyeline_edge_spool_messages_count")


@pytest.mark.timeout(60)
def test_two_devices_with_the_same_camera(system: Running, client: BlockingClient, tmp_path: Path) -> None:
    with twins(system, tmp_path / "first", "box3", "twice") as first:
        first.until("camera_claimed")
        with twins(system, tmp_path / "other", "box4", "twice") as other:
            words = "camera twice of site yard is published by device box3: give one of the two another name"
            assert other.until("camera_claimed_elsewhere")["reason"] == words
            wait_for(lambda: camera_of(client, "box4", "twice").message == words, 10, "told in the status")
            assert camera_of(client, "box4", "twice").state == device_pb2.CAMERA_STATE_FAILED
            wait_for(lambda: spooled(other) > 2, 10, "its frames are kept")
            for program in (first, other):
                assert program.end() == 0
                assert "Traceback" not in program.said
    assert other.events("agent_stopped")[0]["kept_messages"] > 2
    assert len(other.events("camera_claimed_elsewhere")) == 1
    last = camera_of(client, "box3", "twice").last_sequence
    assert {result.proto.device for result in all_answered(client, "twice", last).values()} == {"box3"}


@pytest.mark.long
def test_a_copy_of_a_device_takes_its_camera_over(
    system: Running, client: BlockingClient, tmp_path: Path
) -> None:
    """Its name, its password, another folder: the later one has the camera, and the earlier one says so."""
    with twins(system, tmp_path / "first", "box3", "cloned") as first:
        first.until("camera_claimed")
        wait_for(lambda: len([*client.history(SITE, "cloned")]) > 5, 20, "answers")
        with twins(system, tmp_path / "clone", "box3", "cloned") as clone:
            taken = first.until("camera_claimed_elsewhere")
            assert taken["reason"] == "another agent named box3 took this camera over"
            wait_for(lambda: spooled(first) > 2, 10, "its frames are kept")
            for program in (first, clone):
                assert program.end() == 0
                assert "Traceback" not in program.said
    assert first.events("agent_stopped")[0]["kept_messages"] > 2
    by_run: dict[bytes, list[int]] = {}
    for result in client.history(SITE, "cloned"):
        if result.final:
            numbers = range(result.sequence, result.last_sequence + 1)
            by_run.setdefault(result.proto.key.epoch.random_id, []).extend(numbers)
    assert len(by_run) == 2
    for sequences in by_run.values():
        assert sorted(sequences) == list(range(1, len(sequences) + 1)), "each once"


# Messages


async def _as_user(system: Running, user: dict[str, str], **options: Any) -> NatsClient:
    return await bus.connect(
        system.endpoints["hub"],
        name="test",
        creds_file=Path(user["creds"]),
        wait=False,
        **options,
    )


async def test_unusable_messages_are_set_aside_and_counted(system: Running, client: BlockingClient) -> None:
    device = Device(tenant="default", site=SITE, device="box2", camera="noisy")
    good = device.frames(1)[0].SerializeToString()
    spoilt = {
        "corrupt": b"garbage \xff\xfe" * 9,
        "newer_schema": frame_pb2.FrameEnvelope(schema_major=9).SerializeToString(),
        "too_large": good + b"\0" * 950_000,
        "wrong_subject": device.frames(1)[0].SerializeToString().replace(b"box2", b"box3"),
    }
    box = await _as_user(system, system.device("box2"), inbox_prefix=subjects.device_inbox(SITE, "box2"))
    cloud = await _as_user(system, system.tenant)
    worker = system.endpoints["metrics"]["worker"]
    try:
        before = (await asyncio.to_thread(http_get, worker))[1]
        for data in spoilt.values():
            await box.jetstream().publish(device.subject, data)
        fresh = Device(tenant="default", site=SITE, device="box2", camera="noisy", counter=2)
        await publish(box.jetstream(), fresh.frames(3))

        def answered() -> bool:
            return len([it for it in client.history(SITE, "noisy") if it.proto.key.epoch.counter == 2]) == 3

        await asyncio.to_thread(wait_for, answered, 20, "the good ones behind them")
        page = (await asyncio.to_thread(http_get, worker))[1]
        for reason in spoilt:
            name = "eyeline_cloud_dead_letters_total"
            added = metric(page, name, reason=reason) - metric(before, name, reason=reason)
            assert added == 1, reason
        js = cloud.jetstream()
        last = (await js.stream_info(subjects.DEAD)).state.last_seq
        aside = [await js.get_msg(subjects.DEAD, last - index) for index in reversed(range(len(spoilt)))]
        assert [(message.headers or {})["Eyeline-Reason"] for message in aside] == list(spoilt)
        assert [message.data for message in aside] == list(spoilt.values())
        assert {message.subject for message in aside} == {subjects.dead_subject(SITE, "box2", "noisy")}
    finally:
        await box.close()
        await cloud.close()


# What is away, and comes


@pytest.mark.timeout(100)
def test_everything_waits_for_hub_and_triton_and_survives_the_hub(tmp_path: Path) -> None:
    hub_port, triton_port, api_port = some_free_ports(3)
    made = LocalHub({"default": [(SITE, "box1")]}, tmp_path, HubOptions(port=hub_port))
    made.prepare()
    tenant = made.tenant("default")
    hub_file = tmp_path / "hub.conf"
    hub_file.write_text(config_text(made.config))
    hub_url, triton_url = f"nats://127.0.0.1:{hub_port}", f"127.0.0.1:{triton_port}"
    cloud_file = tmp_path / "cloud.yaml"
    user = {"name": "default", "creds_file": str(tenant.cloud)}
    cloud_file.write_text(
        yaml.safe_dump(
            {
                "hub": {"url": hub_url, "tenants": [user]},
                "triton": {"url": triton_url},
                "api": {"port": api_port},
                "http": {"worker_port": 0, "api_port": 0},
            }
        )
    )
    box = {"site": SITE, "device": "box1", "creds": str(tenant.devices[0].creds)}
    edge_file = agent_file(
        tmp_path / "edge",
        hub_url,
        box,
        cameras=[{"name": "gate", "source": "pattern:64x48@10"}],
    )

    def start_hub() -> Program:
        argv = [str(find_nats_server()), "-c", str(hub_file), "-a", "127.0.0.1", "-p", str(hub_port)]
        return Program(argv, tmp_path / "hub.log")

    with contextlib.ExitStack() as held:
        worker, api = (
            held.enter_context(
                Program(
                    module("cloud_inference", name, "--config", str(cloud_file)), tmp_path / f"{name}.log"
                )
            )
            for name in ("worker", "api")
        )
        edge = held.enter_context(agent(edge_file))
        client = held.enter_context(BlockingClient(f"127.0.0.1:{api_port}"))
        assert triton_url in worker.until("triton_waiting")["reason"]
        assert api.until("nats_waiting")["server"] == hub_url
        assert edge.until("nats_waiting")["server"] == hub_url
        assert worker.get("readyz") == (503, "waiting for the inference server\n")
        assert api.get("readyz") == (503, "waiting for the hub\n")
        # The agent works all the same.
        wait_for(lambda: spooled(edge) > 5, 20, "kept")
        assert edge.get("readyz") == (200, "ok\n")

        hub = held.enter_context(start_hub())
        api.until("api_ready")
        edge.until("link_up", link="hub")
        ports = ["--grpc-port", str(triton_port), "--http-port", "0", "--metrics-port", "0"]
        triton = held.enter_context(
            Program(module("cloud_inference", "triton", *ports), tmp_path / "triton.log")
        )
        worker.until("worker_ready", within_s=30)
        wait_for(lambda: len(finals(client, "gate")) > 10, 20, "answers")
        for program in (worker, api, edge):
            for event in ("nats_waiting", "triton_waiting"):
                assert len(program.events(event)) <= 1, program.said

        hub.send(signal.SIGKILL)
        hub.wait()
        for program in (worker, api, edge):
            program.until("nats_disconnected")
        known = spooled(edge)
        wait_for(lambda: spooled(edge) > known + 5, 20, "kept")
        held.enter_context(start_hub())
        edge.until("link_up", link="hub", count=2)
        api.until("nats_reconnected")
        before = len(finals(client, "gate"))
        wait_for(lambda: len(finals(client, "gate")) > before + 10, 30, "answers again")
        assert edge.end() == 0
        last = camera_of(client, "box1", "gate").last_sequence
        all_answered(client, "gate", last)
        assert [worker.end(), api.end(), triton.end()] == [0, 0, 0]
        for program in (worker, api, edge):
            assert "Traceback" not in program.said
            assert seed(box) not in program.said
            assert seed({"creds": str(tenant.cloud)}) not in program.said


@pytest.mark.timeout(90)
def test_a_killed_local_system_comes_back_at_once_and_alone(tmp_path: Path) -> None:
    (hub_port,) = some_free_ports(1)
    arguments = ("local", "--state", str(tmp_path / "cloud"), "--hub-port", str(hub_port), "--api-port", "0")
    with Program(module("cloud_inference", *arguments), tmp_path / "first") as first:
        wait_for(lambda: any(tmp_path.glob("cloud/hub.ports/*")), 30, "the hub")
        before = first.descendants()
        first.send(signal.SIGKILL)
        assert first.wait() == -signal.SIGKILL
    with Program(module("cloud_inference", *arguments), tmp_path / "second") as second:
        second.until("local_ready", within_s=40)
        with Program(module("cloud_inference", *arguments), tmp_path / "third") as third:
            assert third.wait() == 2
            assert third.said == (
                f"another local system runs in {tmp_path / 'cloud'}: "
                "stop it, or give this one a --state of its own\n"
            )
        assert (tmp_path / "cloud" / "endpoints.json").exists()
        assert second.end() == 0
        assert "Traceback" not in second.said
    wait_for(lambda: not any(lives(it) for it in before), 20, "the first one's children end")


# A full disk


class SmallDisk:
    """A folder on a disk that can be filled: a small tmpfs as root, else a disk that only the agent sees."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.argv: list[str] | None = None
        self._ballast = folder / "ballast"
        self._told = folder.with_name("free-bytes")
        folder.mkdir()
        self._mounted = os.geteuid() == 0 and self._mount()
        if not self._mounted:
            self._told.write_text(str(1 << 30))
            self.argv = [sys.executable, "-c", _OWN_DISK, str(self._told)]

    def _mount(self) -> bool:
        command = ["mount", "-t", "tmpfs", "-o", "size=80m", "tmpfs", str(self.folder)]
        # A container's root may not.
        return subprocess.run(command, capture_output=True, check=False).returncode == 0

    def fill(self) -> None:
        if not self._mounted:
            self._told.write_text(str(1 << 20))
            return
        with self._ballast.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, shutil.disk_usage(self.folder).free)

    def clear(self) -> None:
        self._ballast.unlink(missing_ok=True)
        if not self._mounted:
            self._told.write_text(str(1 << 30))

    def close(self) -> None:
        if self._mounted:
            subprocess.run(["umount", "-l", str(self.folder)], check=True)


_OWN_DISK = """
import shutil, sys
from pathlib import Path
told = Path(sys.argv.pop(1))
usage = shutil.disk_usage
shutil.disk_usage = lambda path: usage(path)._replace(free=int(told.read_text() or 0))
from edge_agent.cli import main
main()
"""


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[SmallDisk]:
    disk = SmallDisk(tmp_path / "disk")
    try:
        yield disk
    finally:
        disk.close()


@pytest.mark.timeout(60)
def test_a_full_disk(system: Running, client: BlockingClient, small_disk: SmallDisk, tmp_path: Path) -> None:
    box = system.device("box1")
    cameras = [{"name": "disk", "source": "pattern:64x48@10"}]
    config = agent_file(
        tmp_path / "edge",
        system.endpoints["hub"],
        box,
        cameras=cameras,
        state_dir=str(small_disk.folder / "state"),
    )
    with agent(config, argv=small_disk.argv) as edge:
        wait_for(lambda: len(finals(client, "disk")) > 5, 20, "answers")
        small_disk.fill()
        problem = edge.until("spool_problem")["reason"]
        assert problem.startswith("disk full: under ")
        wait_for(
            lambda: camera_of(client, "box1", "disk").frames_dropped["spool_error"] > 10,
            15,
            "told with reason",
        )
        assert camera_of(client, "box1", "disk").message == problem
        assert edge.get("readyz") == (503, problem + "\n")
        page = edge.get("metrics")[1]
        assert (
            metric(page, "eyeline_edge_delivery_lost_frames_count", camera="disk", reason="spool_error") > 0
        )
        small_disk.clear()
        edge.until("frames_kept_again")
        edge.until("spool_works_again")
        reached = camera_of(client, "box1", "disk").last_sequence
        wait_for(lambda: max(finals(client, "disk")) > reached + 10, 20, "it goes on")
        assert edge.end() == 0
        assert len(edge.events("spool_problem")) == 1
        assert len(edge.events("frames_dropped", reason="spool_error")) == 1
        assert "Traceback" not in edge.said
    last = camera_of(client, "box1", "disk").last_sequence
    found = all_answered(client, "disk", last)
    degraded = [it for it in found.values() if it.provenance is Provenance.DEGRADED]
    # A busy machine drops some of a camera in real time.
    assert {it.reason for it in degraded} <= {"spool_error", "overload"}
    assert 10 < sum(it.reason == "spool_error" for it in degraded) < last


# Ctrl-C


def left_by(out: Path, demo: Program, descendants: dict[int, psutil.Process]) -> list[str]:
    """Processes, shared memory and folders that are still there."""
    found = [str(process) for process in descendants.values() if lives(process)]
    commands = [" ".join(process.info["cmdline"] or ()) for process in psutil.process_iter(["cmdline"])]
    found += [command for command in commands if str(out) in command]
    found += [str(path) for path in Path("/dev/shm").glob(f"eyeline-triton-{demo.pid}-*")]
    return found


def backend_folders() -> set[Path]:
    """What Triton's Python backend leaves when it is killed; another Triton here has one of its own."""
    found = set()
    for path in Path("/tmp").glob("python_env_*"):
        with contextlib.suppress(FileNotFoundError):  # that other's, just now
            if path.stat().st_uid == os.getuid():
                found.add(path)
    return found


def others(ours: Collection[int]) -> bool:
    """Whether there is a tritonserver that is not ours: what is left may be its."""
    alive = psutil.process_iter(["name"])
    return any(it.info["name"] == "tritonserver" and it.pid not in ours for it in alive)


# A file that is there then, and a word in it.
MOMENTS = {
    "loading": ("", ""),
    "hub": ("cloud/hub.conf", ""),
    "triton": ("cloud/triton.log", ""),
    "worker": ("cloud/worker.log", ""),
    "agent": ("agent/agent.log", ""),
    "playing": ("agent/agent.log", '"live"'),
}


def reached(out: Path, demo: Program, moment: str) -> bool:
    """Whether the demo has come so far."""
    assert demo.running, demo.said
    name, word = MOMENTS[moment]
    if not name:
        # Its modules are loading: numpy is mapped, nothing is started.
        return "numpy" in Path(f"/proc/{demo.pid}/maps").read_text()
    try:
        return word in (out / "state" / name).read_text()
    except OSError:
        return False


def stop_demo(tmp_path: Path, moment: str, number: int, status: int, *, twice: bool = False) -> None:
    out, before = tmp_path / "demo", backend_folders()
    with Program(module("benchmarks.demo", "--out", str(out)), tmp_path / "said") as demo:
        wait_for(lambda: reached(out, demo, moment), 30, moment)
        descendants = {it.pid: it for it in demo.descendants()}
        beside = others(descendants)
        demo.send(number, group=True)
        if twice:
            demo.send(number, group=True)
        assert demo.wait(30) == status, demo.said
        assert "Traceback" not in demo.said
        assert demo.said.endswith("demo: stopped\n") or moment == "loading"
        wait_for(lambda: not left_by(out, demo, descendants), 10, "nothing is left")
    assert not (out / "state").exists()
    assert beside or others(descendants) or not backend_folders() - before


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    ("moment", "number", "status", "twice"),
    [
        ("loading", signal.SIGINT, 130, False),
        ("triton", signal.SIGTERM, 143, False),
        ("playing", signal.SIGINT, 130, True),
    ],
)
def test_ctrl_c_leaves_nothing(tmp_path: Path, moment: str, number: int, status: int, twice: bool) -> None:
    stop_demo(tmp_path, moment, number, status, twice=twice)


@pytest.mark.long
@pytest.mark.parametrize("moment", list(MOMENTS))
@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize("twice", [False, True])
def test_a_signal_at_every_stage_leaves_nothing(
    tmp_path: Path, moment: str, number: int, status: int, twice: bool
) -> None:
    stop_demo(tmp_path, moment, number, status, twice=twice)


@pytest.mark.timeout(60)
def test_children_die_with_a_demo_that_is_killed(tmp_path: Path) -> None:
    out = tmp_path / "demo"
    with Program(module("benchmarks.demo", "--out", str(out)), tmp_path / "said") as demo:
        wait_for(lambda: reached(out, demo, "playing"), 30, "it plays")
        descendants = {it.pid: it for it in demo.descendants()}
        assert len(descendants) >= 6
        with Program(module("benchmarks.demo", "--out", str(out)), tmp_path / "second") as second:
            assert second.wait() == 2
            words = f"demo: another demo runs in {out}: wait for it, or give this one another --out\n"
            assert second.said == words
        reached(out, demo, "playing")
        demo.send(signal.SIGKILL)
        assert demo.wait() == -signal.SIGKILL
        wait_for(lambda: not left_by(out, demo, descendants), 20, "nothing is left")
