"""What a cluster needs beside its manifests: Secrets with the hub's trust and everybody's credentials.

The trust folder stays where it is made; whoever has it can make credentials, and no pod ever gets it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from cloud_inference import access
from cloud_inference.hub import TRUST_FOLDER, cloud_file
from cloud_inference.local import PRIVATE_KEY, PUBLIC_KEY
from cloud_inference.trust import Trust
from eyeline import creds
from eyeline.errors import ConfigError

# Names that `deploy/k8s` refers to.
TRUST_SECRET = "eyeline-hub-trust"  # noqa: S105  # names, not what is in them
CREDS_SECRET = "eyeline-hub-creds"  # noqa: S105
API_SECRET = "eyeline-api-keys"  # noqa: S105
OPERATOR_FILE = "operator.conf"
# A Secret takes 1 MiB. Where the devices' accounts are more than this, the hub hears of them by `tell` alone.
_MOST_ACCOUNTS_BYTES = 700_000


def secrets(
    state_dir: Path,
    tenants: Sequence[str],
    *,
    hub: str,
    public: str | None = None,
    namespace: str | None = None,
) -> list[dict[str, Any]]:
    """The Secrets as Kubernetes resources; makes keys and accounts that are not there yet.

    hub: address of the hub inside the cluster; public: for devices, None for the same. Calling it again gives
    the same keys and credentials. Raises `ConfigError` and `InvalidName`.
    """
    if not tenants:
        raise ConfigError("name at least one --tenant")
    trust = Trust(state_dir / TRUST_FOLDER)
    for tenant in tenants:
        trust.add_tenant(tenant)
    accounts = trust.account_jwts()
    if not devices_fit(accounts):
        accounts = trust.account_jwts(devices=False)
    logins = {}
    for tenant in tenants:
        path = cloud_file(state_dir, tenant)
        found = creds.read(path) if path.exists() else trust.cloud_creds(tenant)
        names = {**found.names, "hub": hub, "public": public or hub}
        logins[f"{tenant}.creds"] = text = creds.Creds(found.jwt, found.key, names, found.ca).text()
        creds.write_private(path, text)
    access.ensure_key(state_dir / PRIVATE_KEY, state_dir / PUBLIC_KEY)
    return [
        _secret(
            TRUST_SECRET,
            {
                OPERATOR_FILE: operator_conf(trust),
                **{f"{key}.jwt": jwt for key, jwt in accounts.items() if key != trust.system_account},
            },
            namespace,
        ),
        _secret(CREDS_SECRET, logins, namespace),
        _secret(API_SECRET, {PUBLIC_KEY: (state_dir / PUBLIC_KEY).read_text(encoding="utf-8")}, namespace),
    ]


def devices_fit(accounts: Mapping[str, str]) -> bool:
    """Whether all these accounts' JWTs fit a Secret; else `tell` alone brings the devices' to the hub."""
    return sum(map(len, accounts.values())) <= _MOST_ACCOUNTS_BYTES


def operator_conf(trust: Trust) -> str:
    """The part of the hub's configuration that says whom it trusts; only the system account is preloaded."""
    system = trust.system_account
    values: dict[str, Any] = {
        "operator": trust.operator_jwt,
        "system_account": system,
        "resolver_preload": {system: trust.account_jwts()[system]},
    }
    return "".join(f"{key}: {json.dumps(value)}\n" for key, value in values.items())


def write(path: Path, resources: Sequence[Mapping[str, Any]]) -> None:
    """Write them as one YAML file that only its owner can read; raises `ConfigError`."""
    creds.write_private(path, yaml.safe_dump_all(resources, sort_keys=False))


def _secret(name: str, files: Mapping[str, str], namespace: str | None) -> dict[str, Any]:
    metadata: dict[str, Any] = {"name": name, "labels": {"app.kubernetes.io/part-of": "eyeline"}}
    if namespace is not None:
        metadata["namespace"] = namespace
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": metadata,
        "type": "Opaque",
        "stringData": {**files},
    }
