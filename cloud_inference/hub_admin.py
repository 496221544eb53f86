"""Enrolling and revoking devices, while the hub runs."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import nats.errors

from cloud_inference.hub import (
    ACCOUNTS_FOLDER,
    ENDPOINTS_FILE,
    TLS_FOLDER,
    TRUST_FOLDER,
    cloud_file,
    device_file,
)
from cloud_inference.trust import Trust
from eyeline import bus, creds
from eyeline.errors import BusError, ConfigError

_PUSH_S = 5.0


@dataclass(frozen=True, slots=True)
class Device:
    """A device by its whole name."""

    tenant: str
    site: str
    name: str

    @classmethod
    def parse(cls, text: str) -> Device:
        """`TENANT/SITE/DEVICE`; raises `ConfigError`."""
        parts = text.split("/")
        if len(parts) != 3 or not all(parts):
            raise ConfigError(f"{text!r} must be TENANT/SITE/DEVICE, such as default/yard/box1")
        return cls(*parts)


async def enroll(
    state_dir: Path,
    device: Device,
    *,
    hub: str | None = None,
    ca: Path | None = None,
    out: Path | None = None,
    expires_s: float | None = None,
    new_tenant: bool = False,
) -> tuple[Path, bool]:
    """Write credentials for a device; returns their file, and whether a hub was told. Older ones stay valid.

    hub, ca: how the device reaches the hub; None takes what a hub of this machine said last. out: None takes
    a file in the state folder. new_tenant: make an account for a tenant that is not known yet. The running
    hub of this machine is told, else the one at `hub`; one that is not there now lets the device in once
    `tell` was called. Raises `ConfigError`, `InvalidName`.
    """
    trust = _trust(state_dir)
    if new_tenant:
        trust.add_tenant(device.tenant)
    known = _known(state_dir)
    address = hub or known.public
    if address is None:
        raise ConfigError("no hub ran with this --state yet: give its address with --hub")
    authority = _authority(ca) or known.ca
    found = trust.enroll(
        device.tenant,
        device.site,
        device.name,
        names={"hub": address},
        ca=authority if address.startswith(("tls://", "wss://")) else "",
        expires_s=expires_s,
    )
    path = out or device_file(state_dir, device.tenant, device.site, device.name)
    creds.write_private(path, found.text())
    try:
        return path, await _tell(trust, device, state_dir, None if _runs_here(state_dir) else hub, authority)
    except BusError:
        return path, False


async def revoke(
    state_dir: Path,
    device: Device,
    *,
    hub: str | None = None,
    ca: Path | None = None,
    keep_newest: bool = False,
) -> tuple[int, bool]:
    """Make a device's credentials void and cut its connections; how many, and whether a hub was told.

    hub, ca: address of the running hub, and the authority of its certificate; None takes that of this
    machine, which need not run: it counts from its next start on. Raises `ConfigError`, and `BusError` when
    the hub cannot be told.
    """
    trust, authority = _trust(state_dir), _authority(ca)
    count = trust.revoke(device.tenant, device.site, device.name, keep_newest=keep_newest)
    try:
        return count, await _tell(trust, device, state_dir, hub, authority)
    except BusError as problem:
        raise BusError(
            "the device stays in until the hub is told: revoke it again, with --hub for one elsewhere "
            f"({problem})",
            retryable=problem.retryable,
        ) from None


async def tell(state_dir: Path, *, hub: str | None = None, ca: Path | None = None) -> int:
    """Tell a hub of every tenant and device, as after it lost its disks; how many accounts that were.

    Raises `ConfigError`, `BusError`.
    """
    trust, known = _trust(state_dir), _known(state_dir)
    address = hub or known.local
    if address is None:
        raise ConfigError("no hub ran with this --state yet: give its address with --hub")
    accounts = [jwt for key, jwt in trust.account_jwts().items() if key != trust.system_account]
    await push(address, trust, accounts, _authority(ca) or known.ca)
    return len(accounts)


async def push(url: str, trust: Trust, accounts: Iterable[str], ca: str) -> None:
    """Tell the running servers how accounts, given as their JWTs, stand; raises `BusError`."""
    system = trust.system_creds()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "system.creds"
        creds.write_private(path, creds.Creds(system.jwt, system.key, ca=ca).text())
        client = await bus.connect(url, name="trust", creds_file=path, wait=False)
        try:
            for account in accounts:
                answer = await client.request("$SYS.REQ.CLAIMS.UPDATE", account.encode(), timeout=_PUSH_S)
                said = json.loads(answer.data)
                if "error" in said or said.get("data", {}).get("code") != 200:
                    raise BusError(
                        f"the hub at {url} refused the change: {said.get('error', said)}", retryable=False
                    )
        except (nats.errors.Error, TimeoutError, ValueError) as problem:
            raise BusError(f"the hub at {url} did not take the change: {problem}; try again") from None
        finally:
            await client.close()


async def _tell(trust: Trust, device: Device, state_dir: Path, hub: str | None, authority: str = "") -> bool:
    """Tell of a device's account, and of its tenant's; whether there was a hub to tell."""
    known = _known(state_dir)
    address = hub or known.local
    if address is None:
        return False
    accounts = [
        *trust.tenant_jwts(device.tenant),
        trust.device_jwt(device.tenant, device.site, device.name),
    ]
    try:
        await push(address, trust, accounts, authority or known.ca)
    except BusError:
        # One of this machine reads them when it starts; one elsewhere, as in a cluster, has to be told.
        if hub is None and (state_dir / ACCOUNTS_FOLDER).is_dir() and not _runs_here(state_dir):
            return False
        raise
    return True


def _runs_here(state_dir: Path) -> bool:
    return (state_dir / ENDPOINTS_FILE).exists()


def _authority(ca: Path | None) -> str:
    """What is in the file; raises `ConfigError`."""
    if ca is None:
        return ""
    try:
        return ca.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as problem:
        raise ConfigError(f"--ca {ca} cannot be read: {problem}") from None


def _trust(state_dir: Path) -> Trust:
    if not (state_dir / TRUST_FOLDER).is_dir():
        raise ConfigError(f"no hub was made in {state_dir} yet: give --state, or start cloud-inference local")
    return Trust(state_dir / TRUST_FOLDER)


@dataclass(frozen=True, slots=True)
class _Known:
    """The hub of this machine, as it said when it last started: for devices, for us, and its authority."""

    public: str | None = None
    local: str | None = None
    ca: str = ""


def _known(state_dir: Path) -> _Known:
    ca = state_dir / TLS_FOLDER / "ca.pem"
    for tenant in Trust(state_dir / TRUST_FOLDER).tenants:
        path = cloud_file(state_dir, tenant)
        if path.exists():
            names = creds.read(path).names
            authority = ca.read_text(encoding="utf-8") if ca.exists() else ""
            return _Known(names.get("public"), names.get("hub"), authority)
    return _Known()
