"""TLS on every hop: the hub over TCP and WebSocket, and the API with tokens or client certificates."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
import yaml

from cloud_inference import hub_admin, pki, streams
from cloud_inference.api.server import serve
from cloud_inference.config import ApiSettings, CloudSettings, StreamSettings
from cloud_inference.hub import LocalHub
from eyeline import Client, bus, creds, errors, subjects
from eyeline.errors import BusError, ConfigError
from tests.support.access import Issuer
from tests.support.api import BrightModel, result, running_api, store
from tests.support.cards import square_card
from tests.support.commands import run
from tests.support.deliveries import frames_of, stored_envelopes
from tests.support.eventually import eventually
from tests.support.programs import agent
from tests.support.servers import SITE, cloud_client, device_client, running_hub


@pytest.fixture
async def secure(tmp_path: Path) -> AsyncIterator[LocalHub]:
    """A hub with TLS, over TCP and WebSocket."""
    async with running_hub(tmp_path / "hub", tls=True, websocket_port=0) as running:
        yield running


async def connect(url: str, hub: LocalHub, **options: Any) -> Any:
    return await bus.connect(
        url,
        name="box1",
        creds_file=hub.tenant("acme").device(SITE, "box1").creds,
        inbox_prefix=subjects.device_inbox(SITE, "box1"),
        wait=False,
        **options,
    )


async def test_the_credentials_file_is_all_that_a_device_needs(secure: LocalHub) -> None:
    assert secure.url.startswith("tls://")
    cloud = await cloud_client(secure)
    await streams.ensure(cloud.jetstream(), StreamSettings())
    device = await device_client(secure)
    await device.jetstream().publish(subjects.frame_subject(SITE, "box1", "gate"), b"frame")
    transport = device._transport._io_writer  # type: ignore[union-attr]
    assert transport.get_extra_info("ssl_object").version() in {"TLSv1.2", "TLSv1.3"}
    for client in (cloud, device):
        await client.close()


async def test_websocket_and_tls_on_one_port(secure: LocalHub) -> None:
    assert secure.websocket_url is not None
    assert secure.websocket_url.startswith("wss://")
    cloud = await cloud_client(secure)
    await streams.ensure(cloud.jetstream(), StreamSettings())
    device = await connect(secure.websocket_url, secure)
    await device.jetstream().publish(subjects.frame_subject(SITE, "box1", "gate"), b"x" * 500_000)
    assert (await cloud.jetstream().stream_info(subjects.FRAMES)).state.messages == 1
    for client in (cloud, device):
        await client.close()


async def test_a_server_of_another_authority_is_refused(secure: LocalHub, tmp_path: Path) -> None:
    other = pki.ensure(tmp_path / "other", ["127.0.0.1"])
    for url in (secure.url, secure.websocket_url or ""):
        with pytest.raises(BusError, match=r"certificate verify failed|CERTIFICATE_VERIFY_FAILED"):
            await connect(url, secure, ca_file=other.ca)


async def test_a_certificate_for_another_name_is_refused(secure: LocalHub) -> None:
    with pytest.raises(BusError, match=r"(?i)verify.failed"):
        await connect(secure.url.replace("127.0.0.1", "127.1"), secure)


async def test_who_asks_for_tls_never_talks_without(hub: LocalHub, tmp_path: Path) -> None:
    """A server, or somebody in between, that offers none gets nothing."""
    received = bytearray()

    async def plain(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(
            b'INFO {"server_id":"x","version":"2.15.1","headers":true,"max_payload":1,"nonce":"n"}\r\n'
        )
        with contextlib.suppress(OSError):
            received.extend(await reader.read(65536))
        writer.close()

    ca = pki.ensure(tmp_path / "tls", ["127.0.0.1"]).ca
    server = await asyncio.start_server(plain, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        for scheme in ("tls", "nats"):
            with pytest.raises(BusError):
                await connect(f"{scheme}://127.0.0.1:{port}", hub, ca_file=ca)
    assert received
    assert b"CONNECT" not in received


async def test_who_does_not_speak_tls_is_not_let_in(secure: LocalHub) -> None:
    with pytest.raises(BusError):
        await connect(secure.url.replace("tls://", "nats://"), secure)


@pytest.mark.parametrize(
    "content", ["", "rubbish", "-----BEGIN CERTIFICATE-----\nAA\n-----END CERTIFICATE-----\n"]
)
async def test_an_authority_that_cannot_be_read_is_one_line(
    content: str, hub: LocalHub, tmp_path: Path
) -> None:
    ca = tmp_path / "ca.pem"
    with pytest.raises(ConfigError, match=r"ca\.pem cannot be read"):
        await connect("tls://127.0.0.1:1", hub, ca_file=ca)
    ca.write_text(content)
    with pytest.raises(ConfigError, match=r"ca\.pem holds no certificate"):
        await connect("tls://127.0.0.1:1", hub, ca_file=ca)


async def test_a_hub_that_others_reach_by_a_name(tmp_path: Path) -> None:
    """Devices are told the public name; programs beside the hub do not depend on it."""
    state = tmp_path / "hub"
    async with running_hub(state, host="0.0.0.0", public="hub.example", tls=True) as hub:  # noqa: S104
        assert hub.url == f"tls://hub.example:{hub.server.port}"
        tenant = hub.tenant("acme")
        assert creds.read(tenant.device(SITE, "box1").creds).names["hub"] == hub.url
        cloud = await bus.connect(hub.local_url, name="worker", creds_file=tenant.cloud, wait=False)
        await cloud.flush()
        await cloud.close()
        box3 = hub_admin.Device.parse(f"acme/{SITE}/box3")
        path, told = await hub_admin.enroll(state, box3)
        assert (creds.read(path).names["hub"], told) == (hub.url, True)  # by its local name
        assert await hub_admin.revoke(state, box3) == (1, True)
        certificate = ssl.PEM_cert_to_DER_cert((state / "tls" / "server.pem").read_text())
        assert b"hub.example" in certificate


@pytest.mark.timeout(90)
@pytest.mark.parametrize("websocket", [False, True])
async def test_an_agent_joins_with_one_file(secure: LocalHub, tmp_path: Path, websocket: bool) -> None:
    """`init --join FILE`, then `run`: over TLS, or over WebSocket on the one port that is open."""
    cloud = await cloud_client(secure)
    await streams.ensure(cloud.jetstream(), StreamSettings())
    join, _ = await hub_admin.enroll(
        tmp_path / "hub",
        hub_admin.Device.parse(f"acme/{SITE}/box7"),
        hub=secure.websocket_url if websocket else None,
        out=tmp_path / "box7.creds",
    )
    config = tmp_path / "edge" / "agent.yaml"
    init = await asyncio.create_subprocess_exec(
        *(
            sys.executable,
            "-m",
            "edge_agent",
            "init",
            "--join",
            str(join),
            "--config",
            str(config),
            "--no-test",
        ),
        *("--state-dir", str(tmp_path / "edge" / "state"), "--camera", "gate=pattern:64x48@10"),
        stdout=asyncio.subprocess.PIPE,
    )
    said, _ = await asyncio.wait_for(init.communicate(), 30)
    assert init.returncode == 0, said
    kept = config.parent / "secrets" / "hub.creds"
    assert kept.stat().st_mode & 0o777 == 0o600
    settings = yaml.safe_load(config.read_text())
    assert (settings["tenant"], settings["site"], settings["device"]) == ("acme", SITE, "box7")
    assert settings["hub"] == {"url": creds.read(join).names["hub"], "creds_file": str(kept)}
    assert creds.read(join).key.seed not in config.read_text() + said.decode()
    config.write_text(
        yaml.safe_dump(
            {**settings, "http": {"port": 0}, "detect": {"enabled": False}, "gate": {"enabled": False}}
        )
    )

    async def arrived() -> bool:
        return len(frames_of(await stored_envelopes(cloud))) > 5

    with agent(config) as running:
        await eventually(arrived, within_s=40)
        assert running.end() == 0, running.said
    await cloud.close()


# The API


@pytest.fixture
def files(tmp_path: Path) -> pki.Files:
    return pki.ensure(tmp_path / "tls", ["127.0.0.1"])


async def test_the_api_over_tls(hub: LocalHub, files: pki.Files, tmp_path: Path) -> None:
    issuer = Issuer(tmp_path)
    options = {"tls_cert": str(files.certificate), "tls_key": str(files.key)}
    async with running_api(hub, token_keys=[str(issuer.public)], **options) as serving:
        await store(serving.tenants.hubs["acme"].js, [result(1)])
        async with Client(serving.address, issuer.token(), tls=files.ca) as client:
            assert len(await client.latest()) == 1
        other = pki.ensure(tmp_path / "other", ["127.0.0.1"])
        for tls in (False, True, other.ca):
            async with Client(serving.address, issuer.token(), tls=tls) as client:
                with pytest.raises(errors.Unavailable, match="check the address, TLS"):
                    await client.latest()


async def test_client_certificates(hub: LocalHub, files: pki.Files, tmp_path: Path) -> None:
    issuer = Issuer(tmp_path)
    known = {"subject": "CN=dashboard,O=Acme", "tenant": "acme", "cameras": ["yard/gate"]}
    options = {
        "tls_cert": str(files.certificate),
        "tls_key": str(files.key),
        "client_ca": str(files.ca),
        "clients": [known],
        "token_keys": [str(issuer.public)],
    }

    def identity(found: pki.Files) -> grpc.ChannelCredentials:
        return grpc.ssl_channel_credentials(
            files.ca.read_bytes(), found.key.read_bytes(), found.certificate.read_bytes()
        )

    ours = pki.issue_client(tmp_path / "tls", tmp_path / "clients", "dashboard", "Acme")
    unknown = pki.issue_client(tmp_path / "tls", tmp_path / "clients", "stranger", "Acme")
    pki.ensure(tmp_path / "other", ["127.0.0.1"])
    forged = pki.issue_client(tmp_path / "other", tmp_path / "forged", "dashboard", "Acme")
    async with running_api(hub, **options) as serving:
        js = serving.tenants.hubs["acme"].js
        await store(js, [result(1)])
        await store(js, [result(1, camera="door")])
        async with Client(serving.address, tls=identity(ours)) as client:
            assert [found.camera for found in await client.latest()] == ["gate"]
            with pytest.raises(errors.PermissionDenied):
                await client.latest(["yard/door"])
            with pytest.raises(errors.PermissionDenied, match="'detect'"):
                await client.detect(b"image")
        # A token says who it is, whoever brings it.
        async with Client(serving.address, issuer.token(), tls=identity(unknown)) as client:
            assert len(await client.latest()) == 2
        async with Client(serving.address, tls=identity(unknown)) as client:
            with pytest.raises(errors.Unauthenticated, match=r"CN=stranger,O=Acme"):
                await client.latest()
        for nobody in (files.ca, identity(forged)):
            async with Client(serving.address, issuer.token(), tls=nobody) as client:
                with pytest.raises(errors.Unavailable):
                    await client.latest()


async def test_renewed_certificates_need_no_restart(hub: LocalHub, files: pki.Files, tmp_path: Path) -> None:
    issuer = Issuer(tmp_path)
    options = {"tls_cert": str(files.certificate), "tls_key": str(files.key)}
    other = pki.ensure(tmp_path / "other", ["127.0.0.1"])
    async with running_api(hub, token_keys=[str(issuer.public)], **options) as serving:

        async def works(ca: Path) -> bool:
            async with Client(serving.address, issuer.token(), tls=ca) as client:
                try:
                    await client.latest()
                except errors.Unavailable:
                    return False
                return True

        async with Client(serving.address, issuer.token(), tls=files.ca) as before:
            await before.latest()
            # Half a pair first: the old one stays in use.
            files.certificate.write_bytes(other.certificate.read_bytes())
            assert await works(files.ca)
            files.key.write_bytes(other.key.read_bytes())
            assert await works(other.ca)
            assert not await works(files.ca)
            await before.latest()  # an open connection goes on


async def test_the_command_line_with_a_certificate(hub: LocalHub, files: pki.Files, tmp_path: Path) -> None:
    ours = pki.issue_client(tmp_path / "tls", tmp_path / "clients", "dashboard", "Acme")
    options = {
        "tls_cert": str(files.certificate),
        "tls_key": str(files.key),
        "client_ca": str(files.ca),
        "clients": [{"subject": "CN=dashboard,O=Acme", "tenant": "acme"}],
    }
    async with running_api(hub, **options) as serving:
        await store(serving.tenants.hubs["acme"].js, [result(1)])
        asked = ["latest", "--server", serving.address, "--ca", files.ca, "--json"]
        identity = ["--cert", ours.certificate, "--key", ours.key]
        done = await run("eyeline", *identity, *asked)
        assert (done.status, "gate" in done.out) == (0, True), done.err
        without = await run("eyeline", *asked)
        assert without.status != 0
        half = await run("eyeline", "--cert", ours.certificate, *asked)
        assert "--cert and --key belong together" in half.err


@pytest.mark.parametrize(
    ("api", "why"),
    [
        ({"host": "0.0.0.0"}, "would serve everybody"),  # noqa: S104
        ({"tls_cert": "server.pem", "tls_key": "none"}, "none cannot be read"),
        ({"tls_cert": "server.key", "tls_key": "server.key"}, "cannot be used"),
        ({"tls_cert": "server.pem", "tls_key": "server.key", "client_ca": "server.key"}, "cannot be used"),
        ({"token_keys": ["none"]}, "none cannot be read"),
    ],
)
async def test_settings_that_cannot_work_are_one_line(
    api: dict[str, Any], why: str, files: pki.Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(files.ca.parent)
    settings = CloudSettings(api=ApiSettings.model_validate({"port": 0, **api}))
    with pytest.raises(ConfigError, match=why) as caught:
        async with serve(settings, BrightModel(), square_card()):
            pass
    assert "\n" not in str(caught.value)


# The authority


def test_certificates_are_kept_renewed_and_private(tmp_path: Path) -> None:
    first = pki.ensure(tmp_path, ["127.0.0.1", "hub.example"])
    before = first.certificate.read_bytes()
    assert pki.ensure(tmp_path, ["127.0.0.1"]).certificate.read_bytes() == before
    assert pki.ensure(tmp_path, ["other.example", "::1"]).certificate.read_bytes() != before
    for key in (first.key, tmp_path / "ca.key"):
        assert key.stat().st_mode & 0o777 == 0o600
    context = ssl.create_default_context(cafile=first.ca)
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    (tmp_path / "ca.key").write_text("rubbish")
    with pytest.raises(ConfigError, match="no usable certificate authority"):
        pki.ensure(tmp_path, ["127.0.0.1"])
