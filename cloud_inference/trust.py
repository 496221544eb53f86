"""Who belongs: the hub's operator, an account for each tenant, and one for each device that was enrolled.

One folder holds it all, private to its owner: whoever has it can make credentials. Nothing in it is needed by
a running hub, worker or API; only `enroll` and `revoke` use it, and a hub of this machine when it starts.

    release.seed                   key that signs releases
    operator.seed, system.seed     keys of the operator and of the system account
    tenants/NAME.json              keys of the accounts of tenant, audit log and devices; public keys of
                                   devices, and which of them are revoked

A device's own key is not kept here; only its credentials file has it.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from cloud_inference import nats_jwt
from cloud_inference.permissions import (
    audit_exports,
    device_imports,
    device_permissions,
    tenant_exports,
    tenant_imports,
)
from eyeline.creds import Creds, write_private
from eyeline.errors import ConfigError
from eyeline.nkey import Kind, NKey
from eyeline.subjects import check_token

_SYSTEM_USER_S = 120.0


class Trust:
    """The folder, made on first use; safe to use from several programs at a time."""

    def __init__(self, folder: Path) -> None:
        """Raises `ConfigError` when the folder cannot be used or was damaged."""
        self._folder = folder
        try:
            (folder / "tenants").mkdir(parents=True, exist_ok=True, mode=0o700)
            folder.chmod(0o700)
        except OSError as problem:
            raise ConfigError(f"{folder} cannot be used: {problem.strerror}") from None
        with self._locked():
            self._operator = self._key("operator", Kind.OPERATOR)
            self._system = self._key("system", Kind.ACCOUNT)

    @property
    def operator_jwt(self) -> str:
        """What a nats-server needs to check everything else."""
        return nats_jwt.operator(self._operator, self._system.public)

    @property
    def system_account(self) -> str:
        """Public key of the system account."""
        return self._system.public

    @property
    def tenants(self) -> list[str]:
        """Their names, sorted."""
        return sorted(path.stem for path in (self._folder / "tenants").glob("*.json"))

    def account_jwts(self, *, devices: bool = True) -> dict[str, str]:
        """The system's, every tenant's and every device's account, by public key, as they stand now."""
        system = nats_jwt.account(self._system, "SYS", signed_by=self._operator, jetstream=False)
        found = {self._system.public: system}
        for tenant in self.tenants:
            record = self._read(tenant)
            found |= self._accounts(tenant, record)
            if devices:
                found |= [self._device_account(tenant, record, name) for name in record["devices"]]
        return found

    def tenant_jwts(self, tenant: str) -> list[str]:
        """One tenant's account, and that of its audit log; raises `ConfigError` for an unknown tenant."""
        return list(self._accounts(tenant, self._read(tenant)).values())

    def device_jwt(self, tenant: str, site: str, device: str) -> str:
        """One device's account; raises `ConfigError` for an unknown one."""
        record = self._read(tenant)
        self._known(record, tenant, site, device)
        return self._device_account(tenant, record, f"{site}/{device}")[1]

    def system_creds(self) -> Creds:
        """A user of the system account, for a minute or two: it may tell servers of changed accounts."""
        key = NKey.generate(Kind.USER)
        jwt = nats_jwt.user(
            key.public,
            "trust",
            signed_by=self._system,
            account_key=self._system.public,
            expires_s=_SYSTEM_USER_S,
        )
        return Creds(jwt, key)

    def release_key(self) -> NKey:
        """The key that signs what devices are to run, made on first use; devices get its public half."""
        with self._locked():
            return self._key("release", Kind.OPERATOR)

    def add_tenant(self, name: str) -> bool:
        """Make a tenant's account unless it is there; whether it was made. Raises `InvalidName`."""
        check_token(name, "tenant")
        with self._locked():
            if self._path(name).exists():
                return False
            keys = {part: NKey.generate(Kind.ACCOUNT).seed for part in ("account", "audit")}
            self._write(name, {**keys, "devices": {}, "revoked": {}})
        return True

    def cloud_creds(self, tenant: str) -> Creds:
        """A new user for worker and API, who may do everything in the tenant's account."""
        record = self._read(tenant)
        account, key = NKey.from_seed(record["account"]), NKey.generate(Kind.USER)
        jwt = nats_jwt.user(
            key.public,
            f"{tenant}.cloud",
            signed_by=account,
            account_key=account.public,
        )
        return Creds(jwt, key, {"tenant": tenant})

    def enroll(
        self,
        tenant: str,
        site: str,
        device: str,
        *,
        names: Mapping[str, str] | None = None,
        ca: str = "",
        expires_s: float | None = None,
    ) -> Creds:
        """A new key for a device; older ones stay valid until they are revoked or expire.

        names: what else stands in the file, such as `hub`. Raises `InvalidName`, and `ConfigError` for an
        unknown tenant.
        """
        check_token(site, "site")
        check_token(device, "device")
        key, name = NKey.generate(Kind.USER), f"{site}/{device}"
        with self._locked():
            record = self._read(tenant)
            known = record["devices"].get(name) or {
                **{part: NKey.generate(Kind.ACCOUNT).seed for part in ("account", "signer")},
                "issued": [],
            }
            jwt = nats_jwt.device(
                key.public,
                f"{site}.{device}",
                signed_by=NKey.from_seed(known["signer"]),
                account_key=NKey.from_seed(known["account"]).public,
                expires_s=expires_s,
            )
            known["issued"].append({"key": key.public, "issued": int(time.time())})
            record["devices"][name] = known
            self._write(tenant, record)
        own = {"tenant": tenant, "site": site, "device": device, "release-key": self.release_key().public}
        return Creds(jwt, key, {**own, **(names or {})}, ca)

    def valid(self, tenant: str, site: str, device: str) -> list[str]:
        """Public keys of a device that are not revoked, the newest last; raises `ConfigError`."""
        record = self._read(tenant)
        issued = record["devices"].get(f"{site}/{device}", {}).get("issued", [])
        return [one["key"] for one in issued if one["key"] not in record["revoked"]]

    def enrolled(self, tenant: str, site: str, device: str) -> bool:
        """Whether the device ever got credentials."""
        return f"{site}/{device}" in self._read(tenant)["devices"]

    def revoke(self, tenant: str, site: str, device: str, *, keep_newest: bool = False) -> int:
        """Make a device's credentials void, all or all but the newest; how many that were.

        Running servers must be told: see `hub_admin.push`. Raises `ConfigError` for an unknown device.
        """
        with self._locked():
            record = self._read(tenant)
            self._known(record, tenant, site, device)
            keys = self.valid(tenant, site, device)
            void = keys[:-1] if keep_newest else keys
            # Far ahead, so that a clock set back does not let them in again: keys are never used twice.
            record["revoked"] |= dict.fromkeys(void, int(time.time()) + 10 * 365 * 86_400)
            self._write(tenant, record)
        return len(void)

    def _accounts(self, tenant: str, record: Mapping[str, Any]) -> dict[str, str]:
        """JWTs of a tenant's account and of its audit log's, by public key."""
        key, audit = NKey.from_seed(record["account"]), NKey.from_seed(record["audit"])
        log = nats_jwt.account(audit, f"{tenant}.audit", signed_by=self._operator, exports=audit_exports())
        own = nats_jwt.account(
            key,
            tenant,
            signed_by=self._operator,
            exports=tenant_exports(),
            imports=tenant_imports(audit.public),
        )
        # The log's first: the other imports from it.
        return {audit.public: log, key.public: own}

    def _device_account(self, tenant: str, record: Mapping[str, Any], name: str) -> tuple[str, str]:
        """Public key and JWT of a device's account."""
        known, (site, device) = record["devices"][name], name.split("/")
        key = NKey.from_seed(known["account"])
        issued = {one["key"] for one in known["issued"]}
        return key.public, nats_jwt.account(
            key,
            f"{tenant}.{site}.{device}",
            signed_by=self._operator,
            jetstream=False,
            imports=device_imports(NKey.from_seed(record["account"]).public, site, device),
            device_key=NKey.from_seed(known["signer"]).public,
            device_permissions=device_permissions(site, device),
            revoked={one: until for one, until in record["revoked"].items() if one in issued},
        )

    @staticmethod
    def _known(record: Mapping[str, Any], tenant: str, site: str, device: str) -> None:
        """Raises `ConfigError` for a device that was never enrolled."""
        if f"{site}/{device}" not in record["devices"]:
            known = ", ".join(sorted(record["devices"])) or "none"
            raise ConfigError(f"device {site}/{device} of {tenant} was never enrolled; known: {known}")

    def _path(self, tenant: str) -> Path:
        return self._folder / "tenants" / f"{check_token(tenant, 'tenant')}.json"

    def _read(self, tenant: str) -> dict[str, Any]:
        path = self._path(tenant)
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            known = ", ".join(self.tenants) or "none"
            raise ConfigError(f"tenant {tenant} is not known here; known: {known}") from None
        except (OSError, ValueError) as problem:
            raise ConfigError(f"{path} cannot be read ({problem}): restore it from a backup") from None
        if not isinstance(record, dict) or not {"account", "audit", "devices", "revoked"} <= set(record):
            raise ConfigError(f"{path} is damaged or of another version: restore it from a backup")
        return record

    def _write(self, tenant: str, record: Mapping[str, Any]) -> None:
        write_private(self._path(tenant), json.dumps(record, indent=2) + "\n")

    def _key(self, name: str, kind: Kind) -> NKey:
        path = self._folder / f"{name}.seed"
        try:
            return NKey.from_seed(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            key = NKey.generate(kind)
            write_private(path, key.seed + "\n")
            return key
        except (OSError, UnicodeDecodeError, ConfigError) as problem:
            raise ConfigError(f"{path} cannot be used ({problem}): restore it from a backup") from None

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """Alone among all programs; held for milliseconds."""
        descriptor = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)
