"""Engines by the real builder of TensorRT for RTX, on a CPU, kept in a real S3 server.

TensorRT 10 and 11 themselves need a GPU and are not run here.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cloud_inference.engines import build, tensorrt
from cloud_inference.engines.build import Wish
from cloud_inference.engines.cache import EngineStore, PlanKey
from cloud_inference.engines.tensorrt import Capability, Profile, Runtime
from cloud_inference.engines.typed import Precision
from cloud_inference.errors import EngineFailed, StoreFailed
from eyeline.errors import ConfigError
from eyeline_models import catalogue
from eyeline_models.forms import Form
from tests.support import s3, tensorrt_rtx
from tests.support.detectors import BUNDLED, FORMS, imported
from tests.support.s3 import S3

CLIP = Path(__file__).parents[2] / "benchmarks" / "clips" / "street.mp4"
ADA = Capability(8, 9)
PROFILE = Profile(1, 4, 8)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3]:
    with s3.running(tmp_path_factory.mktemp("s3")) as running:
        yield running


@pytest.fixture
def rtx(monkeypatch: pytest.MonkeyPatch, record_property: pytest.RecordProperty) -> Runtime:
    """The builder that runs in this test."""
    monkeypatch.setenv(tensorrt.HOME_VARIABLE, str(tensorrt_rtx.installed()))
    runtime = tensorrt.find("tensorrt-rtx")
    assert str(runtime).startswith("TensorRT for RTX 1.")
    record_property("engine builder", str(runtime))
    return runtime


def cli(*words: str, env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", "cloud_inference", "engines", *words]
    return subprocess.run(argv, env=env, capture_output=True, text=True, timeout=300, check=False)


@pytest.mark.parametrize("precision", [Precision.FP32, Precision.FP16])
@pytest.mark.parametrize("form", FORMS)
def test_every_form_is_parsed_and_built(
    form: Form, precision: Precision, rtx: Runtime, tmp_path: Path
) -> None:
    card = imported(form, tmp_path)
    graph = build.convert(build.onnx.load(card.path), precision).SerializeToString()
    built = rtx.build(graph, PROFILE, capability=ADA)
    assert len(built.plan) > 10_000
    # It measures nothing ahead of time.
    assert built.timing_cache is None


@pytest.mark.long
@pytest.mark.parametrize("precision", list(Precision))
@pytest.mark.parametrize("name", BUNDLED)
def test_bundled_models_are_built_in_every_precision(name: str, precision: Precision, rtx: Runtime) -> None:
    card = catalogue.load(name)
    pictures = build.accuracy.pictures([CLIP], 4)
    model = build.convert(
        build.onnx.load(card.path), precision, build.accuracy.prepared(card, pictures)
    ).SerializeToString()
    # Not for Turing (7.5): this builder has no float32 products there, which suppression is made of.
    for capability in (Capability(8, 0), ADA, Capability(12, 0)):
        assert len(rtx.build(model, Profile(1, 8, 32), capability=capability).plan) > 100_000


def test_the_second_node_of_a_kind_finds_the_plan_in_s3(
    rtx: Runtime, server: S3, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name, value in server.environ().items():
        monkeypatch.setenv(name, value)
    card = imported(Form.YOLOX, tmp_path)
    wish = Wish(Precision.FP32, PROFILE, capability=ADA)
    said: list[str] = []
    store = EngineStore(server.url)
    first = build.plan(card, wish, store, rtx, said.append)
    assert said[-1].startswith("built by TensorRT for RTX")
    # Another process, another node.
    second = build.plan(card, wish, EngineStore(server.url), rtx, said.append)
    assert said[-1].startswith("in the store already")
    assert second == first
    # Another GPU needs its own plan, from the same graph.
    other = Wish(Precision.FP32, PROFILE, capability=Capability(8, 6))
    build.plan(card, other, store, rtx, said.append)
    kept = sorted(path.split(card.sha256)[1] for path in store.list() if card.sha256 in path)
    assert kept == [
        "/fp32",
        f"/tensorrt-rtx-{rtx.version}/sm86/fp32/b1-4-8-64x64",
        f"/tensorrt-rtx-{rtx.version}/sm89/fp32/b1-4-8-64x64",
    ]
    with pytest.raises(
        EngineFailed, match=r"does not build for compute capability 9\.0; it does for 7\.5, 8\.0"
    ):
        build.plan(card, Wish(Precision.FP32, PROFILE, capability=Capability(9, 0)), store, rtx)

    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "another")
    with pytest.raises(StoreFailed, match="403") as caught:
        EngineStore(server.url).list()
    assert "\n" not in str(caught.value)
    assert "another" not in str(caught.value)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    with pytest.raises(StoreFailed) as caught:
        EngineStore(server.url).list()
    assert caught.value.retryable


def test_a_plan_that_was_damaged_is_never_served(tmp_path: Path) -> None:
    store = EngineStore(str(tmp_path / "store"))
    key = PlanKey("d" * 64, "tensorrt", "10.9.0", Capability(8, 9), Precision.FP16, PROFILE, (416, 416))
    assert key.path == f"engines/{'d' * 64}/tensorrt-10.9.0/sm89/fp16/b1-4-8-416x416"
    assert store.get(key.path) is None
    made = store.put(key.path, b"plan", {"model": "m"})
    assert store.get(key.path) == made
    (tmp_path / "store" / key.path / made.about["sha256"]).write_bytes(b"plam")
    with pytest.raises(EngineFailed, match=r"is damaged: delete about\.json"):
        store.get(key.path)
    store.put_timings(key, b"timings")
    assert store.timings(key) == b"timings"
    with pytest.raises(ConfigError, match="must be s3://BUCKET/PREFIX or a folder"):
        EngineStore("ftp://host/x")


def test_two_nodes_that_build_the_same_at_once_do_not_mix(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Builders are not deterministic: what one says of its plan must not stand beside the other's."""
    one, other = (EngineStore(str(tmp_path / "store")) for _ in range(2))
    write = one._write
    began: list[str] = []

    def slow(path: str, data: bytes) -> None:
        if path.endswith("/about.json") and not began:
            began.append(path)
            other.put("engines/x", b"plan of the other", {})
        write(path, data)

    monkeypatch.setattr(one, "_write", slow)
    one.put("engines/x", b"plan of the one", {})
    found = EngineStore(str(tmp_path / "store")).get("engines/x")
    assert found is not None
    assert found.data == b"plan of the one"


def test_the_command_builds_reports_and_refuses(tmp_path: Path) -> None:
    env = tensorrt_rtx.environ()
    store = str(tmp_path / "store")
    where = ("--store", store, "--compute-capability", "8.9", "--batch", "1..8")
    pictures = ("--pictures", str(CLIP), "--most-pictures", "8")
    made = cli("build", "blazeface-back", "--precision", "fp32", *where, env=env)
    assert made.returncode == 0, made.stderr
    assert "built by TensorRT for RTX" in made.stderr
    assert made.stdout.startswith("sha256:")
    listed = cli("list", "--store", store, env=env)
    assert "sm89/fp32/b1-8-8-256x256" in listed.stdout

    blind = cli("build", "blazeface-back", "--precision", "fp16", *where, env=env)
    assert (blind.returncode, blind.stderr.count("\n")) == (2, 1)
    assert "needs pictures like those of your cameras" in blind.stderr
    nothing = cli("convert", "blazeface-back", "--precision", "int8", "--store", store, *pictures, env=env)
    assert (nothing.returncode, nothing.stderr.count("\n")) == (2, 1), nothing.stderr
    assert "nothing" in nothing.stderr
    nobody = cli("build", "blazeface-back", "--precision", "fp32", "--store", store, env=env)
    assert "say for which one" in nobody.stderr
    env.pop(tensorrt.HOME_VARIABLE)
    without = cli("build", "blazeface-back", "--store", store, env=env)
    assert (without.returncode, without.stderr.count("\n")) == (2, 1)
    assert "no engine builder is installed" in without.stderr


@pytest.mark.long
def test_what_keeps_to_the_bound_is_published_with_its_report(tmp_path: Path) -> None:
    env = tensorrt_rtx.environ()
    store = str(tmp_path / "store")
    pictures = ("--store", store, "--pictures", str(CLIP), "--most-pictures", "24")
    for precision in ("fp16", "int8"):
        made = cli("convert", "centernet-mobilenetv3", "--precision", precision, *pictures, env=env)
        assert made.returncode == 0, made.stderr
        assert "against float32 on 12 held-out pictures" in made.stdout
    listed = cli("list", "--store", store, env=env).stdout
    assert "/fp16" in listed
    assert "/int8" in listed
