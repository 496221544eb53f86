"""`cloud-inference triton`: tritonserver with a repository made from the catalogue, until asked to stop."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import structlog

from cloud_inference import triton_repository
from cloud_inference.triton_repository import Serving
from cloud_inference.triton_server import Ports, TritonServer
from eyeline.errors import ServerFailed
from eyeline_models import catalogue

_log = structlog.get_logger()


async def run(
    names: Sequence[str], *, state_dir: Path | None, host: str, ports: Ports, serving: Serving
) -> None:
    """Serve the named models until cancelled.

    state_dir: gets the repository; by default a temporary folder that goes with us. Raises `EyelineError`,
    also when the server ends by itself.
    """
    cards = [catalogue.load(name) for name in names]
    served = [triton_repository.of_card(card) for card in cards]
    with tempfile.TemporaryDirectory(prefix="eyeline-triton-") as temporary:
        server = TritonServer(
            served,
            work_dir=state_dir or Path(temporary),
            host=host,
            ports=ports,
            serving=serving,
            inherit_output=True,
        )
        try:
            await server.start()
            _log.info("triton_serving", grpc=server.url, http=server.http_url, models=[c.name for c in cards])
            raise ServerFailed(f"triton ended by itself with exit status {await server.wait()}")
        finally:
            await server.stop()
