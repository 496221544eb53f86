"""Custom resources against the schemas of their CRDs, which the npm packages `@kubernetes-models/*` carry.

TypeScript refuses what a type does not know (a misspelt key), the validators made from the schemas what a
value may not be.
"""

from __future__ import annotations

import functools
import json
import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from tests.support.debian import need
from tests.support.manifests import ROOT, Resource

CACHE = ROOT / ".cache" / "k8s-models"
PACKAGES = {
    "cert-manager.io": "cert-manager",
    "gateway.networking.k8s.io": "gateway-api",
    "keda.sh": "keda",
    "monitoring.coreos.com": "prometheus-operator",
}
_COMPILE = ("--strict", "--skipLibCheck", "--target", "es2022", "--module", "nodenext")


def is_custom(resource: Resource) -> bool:
    """Whether one of these packages knows its group."""
    return resource["apiVersion"].partition("/")[0] in PACKAGES


@functools.cache
def install() -> Path:
    """The folder with the packages; installs what is missing. Raises RuntimeError that says what to do."""
    if shutil.which("node") is None or shutil.which("npm") is None:
        need("nodejs", "npm")
    wanted = (ROOT / "tests" / "k8s" / "package.json").read_text(encoding="utf-8")
    # Written last, so that an install that broke off is done again.
    stamp = CACHE / "installed.json"
    if not stamp.exists() or stamp.read_text(encoding="utf-8") != wanted:
        CACHE.mkdir(parents=True, exist_ok=True)
        (CACHE / "package.json").write_text(wanted, encoding="utf-8")
        done = subprocess.run(
            ["npm", "install", "--no-package-lock", "--no-audit", "--no-fund", "--ignore-scripts"],
            cwd=CACHE,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            raise RuntimeError(f"npm install in {CACHE} failed: {done.stderr.strip()[-500:]}")
        stamp.write_text(wanted, encoding="utf-8")
    return CACHE


def problems(resources: Sequence[Resource], work: Path) -> list[str]:
    """What is wrong with them, one line each. work: an empty folder."""
    home = install()
    work.mkdir(parents=True, exist_ok=True)
    (work / "node_modules").symlink_to(home / "node_modules")
    (work / "package.json").write_text('{"type": "module"}')
    imports, checks = [], []
    for number, it in enumerate(resources):
        group, version = it["apiVersion"].split("/")
        kind, name = it["kind"], f"{it['kind']} {it['metadata']['name']}"
        module = f"@kubernetes-models/{PACKAGES[group]}/{group}/{version}/{kind}"
        imports.append(f'import {{ {kind} as Model{number} }} from "{module}";')
        body = json.dumps({key: value for key, value in it.items() if key not in {"apiVersion", "kind"}})
        checks.append(
            f"try {{ /* {name} */ new Model{number}({body}).validate(); }}"
            f" catch (problem) {{ console.log({json.dumps(name)} + ': ' + problem); }}"
        )
    (work / "check.ts").write_text("\n".join([*imports, *checks, ""]))
    compiled = subprocess.run(
        ["node", home / "node_modules/typescript/bin/tsc", *_COMPILE, "check.ts"],
        cwd=work,
        capture_output=True,
        text=True,
        check=False,
    )
    found = [line for line in compiled.stdout.splitlines() if line.strip()]
    if found:
        return found
    ran = subprocess.run(
        ["node", "check.js"], cwd=work, capture_output=True, text=True, check=False, env=dict(os.environ)
    )
    return [*ran.stdout.splitlines(), *([ran.stderr.strip()] if ran.returncode else [])]
