"""The real tritonserver: batching, the client, and what goes wrong."""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
import os
import signal
import urllib.request
from collections.abc import AsyncIterator
from pathlib import Path

import av
import numpy as np
import pytest
import pytest_asyncio
from numpy.typing import NDArray
from tritonclient.grpc import service_pb2

from cloud_inference import triton_repository
from cloud_inference.errors import InferenceFailed, ModelMismatch, ModelMissing, TritonUnavailable
from cloud_inference.triton import Statistics, TritonModel
from cloud_inference.triton_repository import Served, Serving
from cloud_inference.triton_server import HOME_VARIABLE, Ports, TritonServer, find_triton
from eyeline.errors import ServerFailed
from eyeline.supervise import Supervisor
from tests.support.eventually import eventually
from tests.support.models import tiny_model
from tests.support.servers import RunningTriton, serving

CLIP = Path(__file__).parents[2] / "benchmarks" / "clips" / "street.mp4"

# One server for this file.
pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Served:
    return triton_repository.inspect("tiny", tiny_model(tmp_path_factory.mktemp("tiny") / "tiny.onnx"))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server(tiny: Served, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[TritonServer]:
    # A delay long enough that requests sent together do meet.
    how = Serving(max_batch=8, max_queue_delay_us=100_000)
    async with serving([tiny], tmp_path_factory.mktemp("triton"), how=how) as running:
        yield running


def images(count: int, model: Served, seed: int = 0) -> NDArray[np.uint8]:
    pixels = np.random.default_rng(seed).integers(0, 255, (count, model.height, model.width, 3), np.uint8)
    # Brightness tells them apart.
    return (pixels // (1 + np.arange(count).reshape(-1, 1, 1, 1))).astype(np.uint8)


def exported(server: TritonServer, metric: str) -> float:
    with urllib.request.urlopen(server.metrics_url, timeout=5) as answer:  # noqa: S310  # our own server
        lines = answer.read().decode().splitlines()
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(metric + "{"))


async def test_a_batch_is_one_run_and_gives_what_single_requests_give(
    server: TritonServer, tiny: Served
) -> None:
    batch = images(8, tiny)
    async with TritonModel(server.url, tiny) as model:
        await model.wait_ready()

        async def counted(requests: int) -> Statistics:
            """Triton counts a request a moment after it has answered."""

            async def there() -> Statistics | None:
                found = await model.statistics()
                return found if found.requests >= requests else None

            found: Statistics = await eventually(there)
            return found

        earlier = await model.statistics()
        alone = [await model.infer(image[None]) for image in batch]
        before = await counted(earlier.requests + 8)
        runs = exported(server, "eyeline_triton_ort_runs_total")
        together = await asyncio.gather(*(model.infer(image[None]) for image in batch))
        whole = await model.infer(batch)
        after = await counted(before.requests + 9)

    expected = batch.mean(axis=(1, 2, 3)) / 255
    for i in range(8):
        np.testing.assert_allclose(alone[i].boxes[0, 0], [0, 0, 48, 32, expected[i], 0], rtol=1e-4)
        np.testing.assert_array_equal(together[i].boxes, alone[i].boxes)
        np.testing.assert_array_equal(whole.boxes[i], alone[i].boxes[0])
        assert together[i].boxes.dtype == np.float32
        assert together[i].count.tolist() == [1]
        assert together[i].count.dtype == np.int32
    executions = after.executions - before.executions
    assert after.inferences - before.inferences == 16
    assert executions < 8
    assert after.mean_batch > 1
    assert after.compute_ns > before.compute_ns
    # Triton's metrics page is refreshed at each reading; the counter is ours, from inside the backend.
    assert exported(server, "eyeline_triton_ort_runs_total") - runs == executions
    assert exported(server, "eyeline_triton_ort_images_total") == after.inferences


async def test_many_requests_of_mixed_sizes_in_flight_each_get_their_own_answer(
    server: TritonServer, tiny: Served
) -> None:
    async with TritonModel(server.url, tiny, timeout_s=30) as model:
        batches = [images(1 + seed % 3, tiny, seed) for seed in range(60)]
        answers = await asyncio.gather(*(model.infer(batch) for batch in batches))
    for batch, answer in zip(batches, answers, strict=True):
        expected = batch.mean(axis=(1, 2, 3)) / 255
        np.testing.assert_allclose(answer.boxes[:, 0, 4], expected, rtol=1e-4)


async def test_shared_memory_gives_what_the_wire_gives(server: TritonServer, tiny: Served) -> None:
    batches = [images(1 + seed % 2, tiny, seed) for seed in range(40)]
    async with (
        TritonModel(server.url, tiny, shared_memory=0) as wire,
        TritonModel(server.url, tiny, shared_memory=3) as shared,
    ):
        await wire.wait_ready()
        await shared.wait_ready()
        assert [len(regions) for regions in await asyncio.gather(regions_of(wire), regions_of(shared))] == [
            1,
            1,
        ]
        # More in flight than there are places, and pairs, which do not fit one: those go by wire.
        answers = await asyncio.gather(*(shared.infer(batch) for batch in batches))
        for batch, answer in zip(batches, answers, strict=True):
            np.testing.assert_array_equal(answer.boxes, (await wire.infer(batch)).boxes)
        # A view that is not contiguous, as a crop of a larger picture.
        wide = np.concatenate([batches[0], batches[0]], axis=2)[:, :, 24:72]
        np.testing.assert_array_equal((await shared.infer(wide)).boxes, (await wire.infer(wide)).boxes)
        assert not list(Path("/dev/shm").glob(f"eyeline-{os.getpid()}-*"))
    async with TritonModel(server.url, tiny, shared_memory=0) as wire:
        assert await regions_of(wire) == []


async def test_the_log_does_not_grow_with_the_pictures(tiny: Served, tmp_path: Path) -> None:
    async with serving([tiny], tmp_path) as server, TritonModel(server.url, tiny) as model:
        log = tmp_path / "triton.log"
        await model.wait_ready()
        await model.infer(images(1, tiny))
        size = log.stat().st_size
        for seed in range(20):
            await model.infer(images(1 + seed % 2, tiny, seed))
        assert log.stat().st_size == size, log.read_text()[size:][:2000]


async def regions_of(model: TritonModel) -> list[str]:
    """What the server has open."""
    request = service_pb2.SystemSharedMemoryStatusRequest()
    return list((await model._stub.SystemSharedMemoryStatus(request)).regions)


async def test_a_missing_model_is_named(server: TritonServer, tiny: Served) -> None:
    async with TritonModel(server.url, dataclasses.replace(tiny, name="other")) as model:
        with pytest.raises(ModelMissing, match="does not serve model other") as caught:
            await model.wait_ready()
        assert not caught.value.retryable
        with pytest.raises(ModelMissing):
            await model.infer(images(1, tiny))


async def test_a_model_of_another_size_is_named(server: TritonServer, tiny: Served) -> None:
    async with TritonModel(server.url, dataclasses.replace(tiny, width=64)) as model:
        with pytest.raises(ModelMismatch, match=r"images must be UINT8 \[B, 32, 64, 3\], and is UINT8"):
            await model.wait_ready()
        with pytest.raises(InferenceFailed, match="Triton at"):
            await model.infer(np.zeros((1, 32, 64, 3), np.uint8))
    async with TritonModel(server.url, tiny) as model:
        for wrong in (np.zeros((1, 32, 64, 3), np.uint8), np.zeros((32, 48, 3), np.uint8)):
            with pytest.raises(InferenceFailed, match="takes uint8 images"):
                await model.infer(wrong)
        with pytest.raises(InferenceFailed, match="float32"):
            await model.infer(np.zeros((1, 32, 48, 3), np.float32))  # type: ignore[arg-type]


async def test_a_server_that_is_down_is_waited_for_and_may_come_back(tiny: Served, tmp_path: Path) -> None:
    server = TritonServer([tiny], work_dir=tmp_path, exit_timeout_s=2)
    await server.start()
    url = server.url
    async with TritonModel(url, tiny, timeout_s=2) as model:
        await model.wait_ready()
        await server.stop(grace_s=0)  # as a crash would
        with pytest.raises(TritonUnavailable) as caught:
            await model.infer(images(1, tiny))
        assert caught.value.retryable
        waiting = asyncio.create_task(model.wait_ready())
        await server.start()
        assert server.url == url
        await asyncio.wait_for(waiting, 20)
        assert (await model.infer(images(2, tiny))).count.tolist() == [1, 1]
        # The memory it shared with the first server is set up again with the second.
        assert (await model.infer(images(1, tiny))).count.tolist() == [1]
        assert len(await regions_of(model)) == 1
    await server.stop()
    assert server.pid is None
    assert not list(Path("/dev/shm").glob(f"{server.id}-*"))


async def test_a_python_backend_that_dies_ends_the_server_and_a_supervisor_brings_both_back(
    tiny: Served, tmp_path: Path
) -> None:
    server = TritonServer([tiny], work_dir=tmp_path, exit_timeout_s=2)
    async with Supervisor() as supervisor:
        await supervisor.start(server)
        assert server.pid is not None
        children = Path(f"/proc/{server.pid}/task/{server.pid}/children").read_text().split()
        stubs = [pid for pid in children if "python_backend_stub" in Path(f"/proc/{pid}/cmdline").read_text()]
        assert len(stubs) == 1
        os.kill(int(stubs[0]), signal.SIGKILL)

        await eventually(lambda: supervisor.restarts["triton"] == 1, within_s=30)
        async with TritonModel(server.url, tiny) as model:
            await model.wait_ready()
            assert (await model.infer(images(1, tiny))).count.tolist() == [1]


async def test_a_server_that_is_killed_takes_nothing_of_another_along(tiny: Served, tmp_path: Path) -> None:
    """A Triton aborts at its end when the folder of its Python backend is gone."""
    killed, other = (TritonServer([tiny], work_dir=tmp_path / name) for name in ("killed", "other"))
    await killed.start()
    await other.start()
    ended = asyncio.create_task(other.wait())
    await killed.stop(grace_s=0)
    await other.stop()
    assert await ended == 0


async def test_a_request_that_takes_too_long_is_retryable(server: TritonServer, tiny: Served) -> None:
    async with TritonModel(server.url, tiny, timeout_s=0.001) as model:
        with pytest.raises(TritonUnavailable, match=r"did not answer within 0\.001 s"):
            await model.infer(images(1, tiny))


async def test_a_port_in_use_is_one_line(server: TritonServer, tiny: Served, tmp_path: Path) -> None:
    taken = TritonServer([tiny], work_dir=tmp_path, ports=Ports(grpc=server.ports.grpc))
    with pytest.raises(ServerFailed, match="did not start") as caught:
        await taken.start()
    assert "\n" not in str(caught.value)


async def test_a_model_that_is_not_a_served_graph_is_one_line(tmp_path: Path) -> None:
    garbage = tmp_path / "garbage.onnx"
    garbage.write_bytes(b"not a graph")
    with pytest.raises(ModelMismatch, match="garbage"):
        triton_repository.inspect("garbage", garbage)
    with pytest.raises(ModelMismatch, match="cannot be read"):
        triton_repository.inspect("absent", tmp_path / "absent.onnx")


async def test_a_missing_installation_names_what_to_run(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv(HOME_VARIABLE, str(tmp_path))
    with pytest.raises(ServerFailed, match=r"\.ci/install-triton"):
        find_triton()


@pytest.mark.asyncio(loop_scope="session")
async def test_the_bundled_model_answers_for_real_pictures_alone_as_in_a_batch(triton: RunningTriton) -> None:
    with av.open(str(CLIP)) as clip:
        frames = [frame.to_ndarray(format="bgr24") for frame in itertools.islice(clip.decode(video=0), 4)]
    letterbox = triton.card.letterbox(frames[0].shape[1], frames[0].shape[0])
    pictures = np.stack([letterbox.apply(frame) for frame in frames])
    async with TritonModel(triton.url, triton.card) as model:
        await model.wait_ready()
        alone = [await model.infer(picture[None]) for picture in pictures]
        whole = await model.infer(pictures)
    assert whole.boxes.shape == (4, triton.card.max_detections, 6)
    for i, answer in enumerate(alone):
        assert answer.count[0] == whole.count[i] > 0
        np.testing.assert_allclose(answer.boxes[0], whole.boxes[i], atol=1e-2)
