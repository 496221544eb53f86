"""Published models from a server on this machine: verified, built, or one line that says why not."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from eyeline_models.errors import BadModel, FetchFailed, ModelError
from eyeline_models.fetching import fetch
from eyeline_models.releases import RELEASES, Release
from tests.support.models_networks import constant_network, yolox_values


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        if self.path == "/short.onnx":
            self.send_response(200)
            self.send_header("Content-Length", "1000")
            self.end_headers()
            self.wfile.write(b"x" * 10)
            self.close_connection = True
        else:
            super().do_GET()


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Path]:
    """A folder that a web server shows; `release` below names its files."""
    folder = tmp_path / "www"
    folder.mkdir()
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    (folder / "port").write_text(str(server.server_address[1]))
    constant_network(folder / "yolox_s.onnx", {"output": yolox_values(640, 640, 80)}, size=(640, 640))
    try:
        yield folder
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def release(served: Path, file: str = "yolox_s.onnx") -> Release:
    port = (served / "port").read_text()
    return replace(RELEASES["yolox-s"], url=f"http://127.0.0.1:{port}/{file}")


def digest_of(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def refused(
    wanted: Release, into: Path, *parts: str, kind: type[ModelError] = FetchFailed, **options: Any
) -> ModelError:
    with pytest.raises(kind) as caught:
        fetch(wanted, into, **options)
    message = str(caught.value)
    assert "\n" not in message
    for part in parts:
        assert part in message
    assert not into.exists() or not list(into.iterdir())
    return caught.value


def test_a_release_is_fetched_verified_and_built(served: Path, tmp_path: Path) -> None:
    digest = digest_of(served / "yolox_s.onnx")
    card = fetch(release(served), tmp_path / "models", accept_digest=digest)
    assert (card.name, card.form, card.input_size, len(card.classes)) == ("yolox-s", "yolox", (640, 640), 80)
    assert card.licence == "Apache-2.0"
    assert digest in card.source
    known = fetch(replace(release(served), sha256=digest), tmp_path / "others")
    assert known.sha256 == card.sha256


def test_a_digest_must_be_known_or_stated(served: Path, tmp_path: Path) -> None:
    problem = refused(release(served), tmp_path / "models", "no digest of yolox-s", "--accept-digest")
    assert not problem.retryable


def test_another_digest_keeps_nothing(served: Path, tmp_path: Path) -> None:
    found = digest_of(served / "yolox_s.onnx")
    refused(release(served), tmp_path / "models", found, "0" * 64, "nothing was kept", accept_digest="0" * 64)
    known = replace(release(served), sha256=found)
    refused(known, tmp_path / "models", found, "yolox-s", accept_digest="0" * 64)


def test_servers_that_do_not_answer_as_they_should(served: Path, tmp_path: Path) -> None:
    missing = refused(release(served, "none.onnx"), tmp_path / "models", "404", accept_digest="0" * 64)
    assert missing.retryable
    refused(release(served, "short.onnx"), tmp_path / "models", "10 of 1000", accept_digest="0" * 64)
    (served / "junk.onnx").write_bytes(b"junk")
    digest = digest_of(served / "junk.onnx")
    refused(
        release(served, "junk.onnx"), tmp_path / "models", "not an ONNX", kind=BadModel, accept_digest=digest
    )


def test_no_internet(served: Path, tmp_path: Path) -> None:
    unreachable = replace(RELEASES["yolox-s"], url="http://127.0.0.1:9/yolox_s.onnx")
    problem = refused(
        unreachable, tmp_path / "models", "cannot be reached", "internet", accept_digest="0" * 64
    )
    assert problem.retryable
    nameless = replace(RELEASES["yolox-s"], url="http://models.invalid/yolox_s.onnx")
    refused(nameless, tmp_path / "models", "models.invalid", "cannot be reached", accept_digest="0" * 64)
