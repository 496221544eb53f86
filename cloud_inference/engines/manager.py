"""What runs beside Triton: it serves the model's ONNX form from the start, and a faster one as soon as there
is one.

Nothing waits for a build. Until the store has, or this node has built, what was wished for, requests are
answered by the ONNX form; a failure is one line and another try later.
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Final

import structlog

from cloud_inference import triton_repository
from cloud_inference.engines.cache import EngineStore, graph_path
from cloud_inference.engines.repository import LiveModel
from cloud_inference.engines.typed import Precision
from cloud_inference.errors import EngineFailed
from cloud_inference.triton import TritonModel
from cloud_inference.triton_repository import Form, Serving
from eyeline.errors import EyelineError
from eyeline_models.catalogue import ModelCard

_log = structlog.get_logger()

_FIRST_WAIT_S: Final = 5.0
_LONGEST_WAIT_S: Final = 600.0

# The bytes of a faster form of a model, or `EyelineError` when there is none yet.
Maker = Callable[[ModelCard], Awaitable[bytes]]


def graph_from(store: EngineStore, precision: Precision) -> Maker:
    """The published graph in a precision, for ONNX Runtime."""

    async def make(card: ModelCard) -> bytes:
        found = await asyncio.to_thread(store.get, graph_path(card.sha256, precision))
        if found is None:
            raise EngineFailed(
                f"nobody has published {card.name} in {precision}: cloud-inference engines convert"
            )
        return found.data

    return make


def plan_by(words: Sequence[str]) -> Maker:
    """A plan from the store or built here, by `cloud-inference engines build MODEL ...` with these options.

    In a process of its own: a builder takes gigabytes, and one that crashes takes nobody along.
    """

    async def make(card: ModelCard) -> bytes:
        with tempfile.TemporaryDirectory(prefix="eyeline-plan-") as folder:
            out = Path(folder) / "model.plan"
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "cloud_inference", "engines", "build", str(card.path)),
                *(*words, "--out", str(out)),
                stdout=asyncio.subprocess.DEVNULL,
                stderr=asyncio.subprocess.PIPE,
            )
            try:
                _, said = await process.communicate()
            except asyncio.CancelledError:
                process.kill()
                raise
            if process.returncode:
                lines = said.decode(errors="replace").strip().splitlines()
                status = f"engines build ended with exit status {process.returncode}"
                raise EngineFailed(lines[-1] if lines else status)
            return out.read_bytes()

    return make


async def keep_up(
    card: ModelCard,
    make: Maker,
    form: Form,
    *,
    url: str,
    root: Path,
    serving: Serving,
    first_wait_s: float = _FIRST_WAIT_S,
) -> None:
    """Go over to the faster form when there is one, then end.

    url: Triton's gRPC address; root: its repository, which has the ONNX form already.
    """
    model = triton_repository.of_card(card)
    async with TritonModel(url, model) as client, LiveModel(url, root, model, serving) as live:
        await client.wait_ready()
        wait_s, said = first_wait_s, ""
        while True:
            try:
                version = await live.switch(await make(card), form)
            except EyelineError as problem:
                if str(problem) != said:
                    said = str(problem)
                    _log.warning("engine_waiting", model=card.name, reason=said)
                await asyncio.sleep(wait_s)
                wait_s = min(wait_s * 2, _LONGEST_WAIT_S)
            else:
                _log.info("engine_serving", model=card.name, form=form, triton_version=version)
                return


async def serve(
    cards: Sequence[ModelCard], make: Maker, form: Form, *, url: str, root: Path, serving: Serving
) -> None:
    """Keep all of them up, then wait to be cancelled: a container that ends would be started again."""
    async with asyncio.TaskGroup() as group:
        for card in cards:
            group.create_task(keep_up(card, make, form, url=url, root=root, serving=serving))
        await asyncio.Event().wait()
