"""Triton goes over to another form while it serves: real Triton, real S3.

A TensorRT plan cannot run on this CPU. What is switched to here is another ONNX graph, by the very calls that
put a plan in place; only the file and the platform in the configuration differ.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np
import onnx
import pytest

from cloud_inference import triton_repository
from cloud_inference.engines import manager
from cloud_inference.engines.cache import EngineStore, graph_path
from cloud_inference.engines.repository import LiveModel
from cloud_inference.engines.tensorrt import HOME_VARIABLE
from cloud_inference.engines.typed import Precision, convert
from cloud_inference.errors import EngineFailed
from cloud_inference.triton import TritonModel
from cloud_inference.triton_repository import Served, Serving
from cloud_inference.triton_server import TritonServer
from eyeline_models.forms import Form
from tests.support import s3
from tests.support.detectors import imported
from tests.support.eventually import eventually
from tests.support.models import tiny_model


class Load:
    """Asks without a pause until told to stop, and keeps what came."""

    def __init__(self, model: TritonModel, served: Served) -> None:
        self._model = model
        self._image = np.full((1, served.height, served.width, 3), 51, np.uint8)
        self.scores: list[float] = []
        self.checks = 0
        self._on = True

    async def run(self) -> None:
        while self._on:
            answer = await self._model.infer(self._image)
            self.scores.append(round(float(answer.boxes[0, 0, 4]), 3))

    async def watch(self) -> None:
        """Ready all the time: in a cluster, a server that is not gets no requests."""
        while self._on:
            await self._model.check()
            self.checks += 1

    def stop(self) -> None:
        self._on = False


async def test_no_request_fails_while_the_form_changes(tmp_path: Path) -> None:
    served = triton_repository.inspect("tiny", tiny_model(tmp_path / "one.onnx"))
    # It says another score, so that the two can be told apart.
    other = tiny_model(tmp_path / "two.onnx", scale=2).read_bytes()
    serving = Serving(max_batch=4)
    server = TritonServer([served], work_dir=tmp_path, serving=serving, exit_timeout_s=2, explicit=True)
    await server.start()
    try:
        async with (
            TritonModel(server.url, served) as model,
            LiveModel(server.url, server.repository, served, serving) as live,
        ):
            await model.wait_ready()
            load = Load(model, served)
            async with asyncio.timeout(60), asyncio.TaskGroup() as group:
                for _ in range(4):
                    group.create_task(load.run())
                watching = group.create_task(load.watch())
                assert await live.switch(other, "onnx") == 2
                watching.cancel()
                asked = len(load.scores)
                # Not a graph, and a plan that no TensorRT is here for: the one that serves goes on.
                for data, form in ((b"no graph", "onnx"), (b"no plan", "plan")):
                    with pytest.raises(EngineFailed, match="does not load tiny"):
                        await live.switch(data, form)  # type: ignore[arg-type]
                    assert live.version == 2
                    assert 'backend: "python"' in (server.repository / "tiny" / "config.pbtxt").read_text()
                await eventually(lambda: len(load.scores) > asked + 50)
                load.stop()
            # First the one, then the other, and nothing but them.
            assert load.scores[0] == 0.2
            assert set(load.scores) == {0.2, 0.4}
            assert load.scores[-1] == 0.4
            assert [it.name for it in (server.repository / "tiny").glob("[0-9]*")] == ["2"]
            await model.check()
    finally:
        await server.stop()


async def test_the_manager_serves_at_once_and_goes_over_when_the_graph_is_published(tmp_path: Path) -> None:
    card = imported(Form.YOLOX, tmp_path)
    served = triton_repository.of_card(card)
    server = TritonServer([served], work_dir=tmp_path / "triton", exit_timeout_s=2, explicit=True)
    await server.start()
    try:
        with s3.running(tmp_path / "s3") as store, pytest.MonkeyPatch.context() as patched:
            for name, value in store.environ().items():
                patched.setenv(name, value)
            engines = EngineStore(store.url)
            async with TritonModel(server.url, served) as model, asyncio.timeout(60):
                await model.wait_ready()
                load = Load(model, served)
                async with asyncio.TaskGroup() as group:
                    for _ in range(2):
                        group.create_task(load.run())
                    keeping = group.create_task(
                        manager.keep_up(
                            card,
                            manager.graph_from(engines, Precision.FP16),
                            "onnx",
                            url=server.url,
                            root=server.repository,
                            serving=Serving(),
                            first_wait_s=0.2,
                        )
                    )
                    # Nobody has published it: answers come all the same.
                    await eventually(lambda: len(load.scores) > 50)
                    assert not keeping.done()
                    graph = convert(onnx.load(card.path), Precision.FP16).SerializeToString()
                    engines.put(graph_path(card.sha256, Precision.FP16), graph, {"model": card.name})
                    await keeping
                    asked = len(load.scores)
                    await eventually(lambda: len(load.scores) > asked + 20)
                    load.stop()
            assert (server.repository / card.name / "2" / "model.onnx").read_bytes() == graph
            assert not (server.repository / card.name / "1").exists()
    finally:
        await server.stop()


async def test_a_builder_that_cannot_build_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(HOME_VARIABLE, raising=False)
    card = imported(Form.YOLOX, tmp_path)
    make = manager.plan_by(("--store", str(tmp_path / "store"), "--precision", "fp16"))
    with pytest.raises(EngineFailed, match=r"^no engine builder is installed"):
        await make(card)
