"""A real Prometheus on what a cluster of processes exports, with the rules of the component monitoring."""

from __future__ import annotations

import contextlib
import json
import re
import subprocess
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from tests.support.debian import need
from tests.support.manifests import K8S

MONITORING = K8S / "components" / "monitoring"
_NAME = re.compile(r"\b(?:eyeline_|eyeline:|nv_|DCGM_|process_|up\b)[\w:]*")


def groups() -> list[dict[str, Any]]:
    """The rule groups."""
    return list(yaml.safe_load((MONITORING / "rules.yaml").read_text())["spec"]["groups"])


def rules() -> list[dict[str, Any]]:
    return [rule for group in groups() for rule in group["rules"]]


def dashboard_expressions() -> dict[str, list[str]]:
    """By `dashboard / panel`, with Grafana's variables as they are."""
    found: dict[str, list[str]] = {}
    for path in sorted((MONITORING / "dashboards").glob("*.json")):
        for panel in json.loads(path.read_text())["panels"]:
            if panel["type"] != "row":
                found[f"{path.stem} / {panel['title']}"] = [it["expr"] for it in panel["targets"]]
    return found


def metrics_in(expression: str) -> set[str]:
    """Names of metrics that an expression asks for; label names in `by` and `on` are none."""
    return set(_NAME.findall(re.sub(r"\{[^}]*\}", "", expression)))


class Prometheus:
    """A running server."""

    def __init__(self, url: str) -> None:
        self._url = url

    def get(self, path: str, **parameters: str) -> Any:
        """`data` of an answer of its API; raises AssertionError with what it said,
        and ConnectionError while it starts.
        """
        query = f"?{urllib.parse.urlencode(parameters)}" if parameters else ""
        try:
            with urllib.request.urlopen(f"{self._url}/api/v1/{path}{query}", timeout=10) as answer:  # noqa: S310  # ours
                said = json.load(answer)
        except urllib.error.HTTPError as problem:
            with problem:
                if problem.code == 503:
                    raise ConnectionError("it is starting") from None
                raise AssertionError(f"{parameters}: {problem.read().decode()}") from None
        assert said["status"] == "success", said
        return said["data"]

    def query(self, expression: str) -> list[Any]:
        """The vector that an expression gives now."""
        data = self.get("query", query=expression)
        return list(data["result"]) if data["resultType"] == "vector" else [data["result"]]

    def alerts(self) -> dict[str, str]:
        """State of every alert that is not inactive."""
        return {it["labels"]["alertname"]: it["state"] for it in self.get("alerts")["alerts"]}


@contextlib.contextmanager
def running(folder: Path, address: str, targets: Mapping[str, str]) -> Iterator[Prometheus]:
    """Scrapes each second. address: `host:port` to listen on; targets: `host:port` by job, as the operator
    would label them, in the namespace `eyeline`.
    """
    need("prometheus")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "rules.yaml").write_text(
        yaml.safe_dump({"groups": [{**it, "interval": "1s"} for it in groups()]})
    )
    jobs = [
        {
            "job_name": job,
            "static_configs": [{"targets": [target], "labels": {"namespace": "eyeline", "pod": f"{job}-0"}}],
        }
        for job, target in targets.items()
    ]
    config = {
        "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
        "rule_files": ["rules.yaml"],
        "scrape_configs": jobs,
    }
    (folder / "prometheus.yaml").write_text(yaml.safe_dump(config))
    arguments = [
        f"--config.file={folder}/prometheus.yaml",
        f"--storage.tsdb.path={folder}/data",
        f"--web.listen-address={address}",
    ]
    with (folder / "prometheus.log").open("wb") as log:
        process = subprocess.Popen(["prometheus", *arguments], stdout=log, stderr=log)
    try:
        yield Prometheus(f"http://{address}")
    finally:
        process.terminate()
        process.wait(20)
