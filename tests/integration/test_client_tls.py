"""The client over TLS, with certificates made for the test by Debian's openssl."""

from __future__ import annotations

import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest

from eyeline import Client, errors
from tests.support.debian import need
from tests.support.fake_api import FakeApi, made_result, running_fake_api


def make_certificate(folder: Path, name: str) -> tuple[Path, Path]:
    """A key and a certificate of 127.0.0.1 that signs itself."""
    need("openssl")
    key, certificate = folder / f"{name}.key", folder / f"{name}.pem"
    subject = ["-subj", f"/CN={name}", "-addext", "subjectAltName=IP:127.0.0.1", "-days", "2"]
    files = ["-keyout", str(key), "-out", str(certificate)]
    kind = ["-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    subprocess.run(["openssl", "req", *kind, *subject, *files], check=True, capture_output=True)
    return key, certificate


@pytest.fixture
async def api(tmp_path: Path) -> AsyncIterator[FakeApi]:
    key, certificate = make_certificate(tmp_path, "server")
    credentials = grpc.ssl_server_credentials([(key.read_bytes(), certificate.read_bytes())])
    async with running_fake_api(credentials=credentials, token="s3cret") as running:
        running.store(made_result(1))
        yield running


async def test_certificate_that_is_trusted(api: FakeApi, tmp_path: Path) -> None:
    async with Client(api.address, "s3cret", tls=tmp_path / "server.pem") as client:
        assert len(await client.latest()) == 1
        assert (await anext(client.subscribe(since_ns=1))).sequence == 1


async def test_what_is_not_trusted_is_refused_in_one_line(api: FakeApi, tmp_path: Path) -> None:
    _, other = make_certificate(tmp_path, "other")
    for tls in (other, True, False):
        async with Client(api.address, "s3cret", tls=tls) as client:
            with pytest.raises(errors.Unavailable, match="check the address, TLS") as caught:
                await client.latest()
            assert "\n" not in str(caught.value)
    assert api.calls == []
