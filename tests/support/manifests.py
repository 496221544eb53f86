"""What `kubectl kustomize` makes of `deploy/k8s`."""

from __future__ import annotations

import functools
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
K8S = ROOT / "deploy" / "k8s"
OVERLAYS = ("dev", "prod-gpu", "prod-mig", "edge")

Resource = dict[str, Any]


def kustomize(folder: Path) -> str:
    """The rendered text; raises RuntimeError with what kustomize said."""
    binary = Path(sys.executable).with_name("kubectl")
    done = subprocess.run([binary, "kustomize", folder], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(done.stderr.strip())
    return done.stdout


@functools.cache
def overlay_text(name: str) -> str:
    return kustomize(K8S / "overlays" / name)


def overlay(name: str) -> list[Resource]:
    """The resources of an overlay, afresh for each caller."""
    return list(yaml.safe_load_all(overlay_text(name)))


def workloads(resources: list[Resource]) -> list[Resource]:
    """What has pods."""
    return [it for it in resources if it["kind"] in {"Deployment", "StatefulSet", "DaemonSet"}]


def pod_spec(workload: Resource) -> Any:
    return workload["spec"]["template"]["spec"]


def find(resources: list[Resource], kind: str, name: str) -> Resource:
    """The resource of that name, with or without the hash that kustomize appends."""
    for it in resources:
        named = it["metadata"]["name"]
        if it["kind"] == kind and (named == name or named.rpartition("-")[0] == name):
            return it
    raise KeyError(f"{kind} {name}")
