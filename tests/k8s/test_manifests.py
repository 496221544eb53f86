"""Every overlay and component renders, is valid, and agrees with the programs. The quick part."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from cloud_inference import cluster, hub, pki, triton_repository
from cloud_inference import config as cloud_config
from cloud_inference.triton_repository import Serving
from edge_agent import config as edge_config
from eyeline import nats_server
from eyeline_models import catalogue
from tests.support import crds
from tests.support.manifests import (
    K8S,
    OVERLAYS,
    Resource,
    find,
    kustomize,
    overlay,
    overlay_text,
    pod_spec,
    workloads,
)

COMPONENTS = sorted(path.name for path in (K8S / "components").iterdir())


def invalid(resources: list[Resource]) -> list[str]:
    """What Kubernetes would refuse; a kind that no schema is known for is refused too."""
    found = []
    for it in resources:
        if crds.is_custom(it):
            continue
        try:
            kubernetes_validate.validate(it, kubernetes_validate.latest_version(), strict=True)
        except (kubernetes_validate.ValidationError, kubernetes_validate.SchemaNotFoundError) as problem:
            found.append(f"{it['kind']} {it['metadata']['name']}: {problem.message}")
    return found


@pytest.mark.parametrize("name", OVERLAYS)
def test_overlays_are_valid(name: str, tmp_path: Path) -> None:
    resources = overlay(name)
    assert invalid(resources) == []
    custom = [it for it in resources if crds.is_custom(it)]
    if custom:
        assert crds.problems(custom, tmp_path / "crds") == []


def used_by_overlays() -> set[str]:
    return {
        Path(component).name
        for name in OVERLAYS
        for component in yaml.safe_load((K8S / "overlays" / name / "kustomization.yaml").read_text()).get(
            "components", []
        )
    }


def with_components(folder: Path, *names: str) -> list[Resource]:
    """The base with these components."""
    k8s = Path(os.path.relpath(K8S, folder))
    (folder / "kustomization.yaml").write_text(
        yaml.safe_dump(
            {"resources": [f"{k8s}/base"], "components": [f"{k8s}/components/{name}" for name in names]}
        )
    )
    return list(yaml.safe_load_all(kustomize(folder)))


NEEDS = {"canary-engines": ["engines", "canary"]}


@pytest.mark.parametrize("name", sorted(set(COMPONENTS) - used_by_overlays()))
def test_other_components_render_on_the_base(name: str, tmp_path: Path) -> None:
    assert invalid(with_components(tmp_path, *NEEDS.get(name, []), name)) == []


@pytest.mark.parametrize("order", [("engines", "canary"), ("canary", "engines")])
def test_a_candidate_and_plans_go_together(order: tuple[str, str], tmp_path: Path) -> None:
    """Each changes the containers it means, whatever else is in the pod."""
    resources = with_components(tmp_path, "gpu", *order, "canary-engines", "images")
    assert invalid(resources) == []
    pod = pod_spec(find(resources, "Deployment", "eyeline-triton"))
    loader, engines = pod["initContainers"]
    candidate = "--model=$(EYELINE_CANDIDATE)"
    assert loader["name"] == "model-loader"
    assert loader["args"][0] == "repository"
    assert "--model=centernet-mobilenetv3" in loader["args"]
    assert candidate in loader["args"]
    assert engines["restartPolicy"] == "Always"
    assert engines["args"].count("--model=centernet-mobilenetv3") == engines["args"].count(candidate) == 1
    assert [sorted(it)[0] for it in engines["envFrom"]] == ["secretRef", "configMapRef"]
    for container in (loader, engines):
        assert container["image"].endswith(":0.1.0")
        assert "/candidates" in [it["mountPath"] for it in container["volumeMounts"]]


def test_mistakes_are_found(tmp_path: Path) -> None:
    good = find(overlay("prod-gpu"), "ScaledObject", "eyeline-worker")
    misspelt = {**good, "spec": {**good["spec"], "minReplcaCount": 1}}
    wrong = {**good, "spec": {**good["spec"], "triggers": "all"}}
    assert any("minReplcaCount" in line for line in crds.problems([misspelt], tmp_path / "1"))
    assert crds.problems([wrong], tmp_path / "2")
    worker = find(overlay("dev"), "Deployment", "eyeline-worker")
    assert invalid([{**worker, "spec": {**worker["spec"], "replcas": 1}}])
    assert invalid([{"apiVersion": "v9", "kind": "Unheard", "metadata": {"name": "of"}}])


# What the programs say


def containers(name: str) -> list[tuple[Resource, Any]]:
    return [
        (workload, container)
        for workload in workloads(overlay(name))
        for container in [*pod_spec(workload).get("initContainers", []), *pod_spec(workload)["containers"]]
    ]


@pytest.mark.parametrize("name", OVERLAYS)
def test_every_pod_is_confined_and_bounded(name: str) -> None:
    for workload, container in containers(name):
        where, pod = f"{workload['metadata']['name']}/{container['name']}", pod_spec(workload)
        assert pod["securityContext"]["runAsNonRoot"] is True, where
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}, where
        assert pod["automountServiceAccountToken"] is False, where
        own = container["securityContext"]
        assert own["readOnlyRootFilesystem"] is True, where
        assert own["allowPrivilegeEscalation"] is False, where
        assert own["capabilities"] == {"drop": ["ALL"]}, where
        for kind in ("requests", "limits"):
            assert {"cpu", "memory", "ephemeral-storage"} <= set(container["resources"][kind]), where
    for workload in workloads(overlay(name)):
        for container in pod_spec(workload)["containers"]:
            assert {"startupProbe", "readinessProbe", "livenessProbe"} <= set(container)


@pytest.mark.parametrize("name", OVERLAYS)
def test_references_lead_somewhere(name: str) -> None:
    """ConfigMaps exist, ports have names, budgets and policies find pods, Secrets are ones that are made."""
    resources = overlay(name)
    maps = {it["metadata"]["name"] for it in resources if it["kind"] == "ConfigMap"}
    known = {cluster.TRUST_SECRET, cluster.CREDS_SECRET, cluster.API_SECRET}
    known |= {it["spec"]["secretName"] for it in resources if it["kind"] == "Certificate"}
    known.add("eyeline-edge-creds")  # by hand: see the README
    text = overlay_text(name)
    for workload in workloads(resources):
        for volume in pod_spec(workload).get("volumes", []):
            if "configMap" in volume:
                assert volume["configMap"]["name"] in maps
            if "secret" in volume:
                assert volume["secret"]["secretName"] in known
    labels = [it["spec"]["template"]["metadata"]["labels"] for it in workloads(resources)]
    for it in resources:
        selector = it.get("spec", {}).get("selector", {})
        if it["kind"] == "Service":
            named = [lab for lab in labels if selector.items() <= lab.items()]
            assert named, it["metadata"]["name"]
        if it["kind"] == "PodDisruptionBudget":
            assert any(selector["matchLabels"].items() <= lab.items() for lab in labels)
    assert "registry" not in text


@pytest.mark.parametrize("name", ["dev", "prod-gpu", "prod-mig"])
def test_the_cloud_takes_its_configuration(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    resources = overlay(name)
    for variables in ("eyeline-cloud-env", "eyeline-web-env"):
        for key, value in find(resources, "ConfigMap", variables)["data"].items():
            monkeypatch.setenv(key, value)
    file = tmp_path / "cloud.yaml"
    file.write_text(find(resources, "ConfigMap", "eyeline-cloud-config")["data"]["cloud.yaml"])
    settings = cloud_config.load(file)
    worker = pod_spec(find(resources, "Deployment", "eyeline-worker"))["containers"][0]
    api = pod_spec(find(resources, "Deployment", "eyeline-api"))["containers"][0]
    web = pod_spec(find(resources, "Deployment", "eyeline-web"))["containers"][0]
    assert [it["containerPort"] for it in worker["ports"]] == [settings.http.worker_port]
    assert {it["containerPort"] for it in api["ports"]} == {settings.api.port, settings.http.api_port}
    assert {it["containerPort"] for it in web["ports"]} == {settings.web.port, settings.http.web_port}
    for container in (api, web):
        mounts = [it["mountPath"] for it in container["volumeMounts"]]
        for used in (settings.api.token_keys[0], settings.hub.tenants[0].creds_file, settings.hub.ca_file):
            assert used is None or any(used.is_relative_to(mount) for mount in mounts), used
    # Browsers come by HTTPS to a gateway, which comes to the page; the page to the API.
    assert settings.web.behind_tls_proxy
    assert settings.web.api == f"eyeline-api:{settings.api.port}"
    servers = find(resources, "StatefulSet", "eyeline-nats")["spec"]["replicas"]
    assert settings.hub.streams.replicas == servers
    url = str(settings.hub.url)
    assert url.startswith("tls://") == (name != "dev")
    assert url.endswith("eyeline-nats:4222")


def test_the_agent_takes_its_configuration(tmp_path: Path) -> None:
    file = tmp_path / "edge-agent.yaml"
    file.write_text(find(overlay("dev"), "ConfigMap", "eyeline-edge-config")["data"]["edge-agent.yaml"])
    settings = edge_config.load(file)
    assert (settings.tenant, settings.site, settings.device) == ("default", "dev", "edge")


def test_the_hub_is_configured_as_ours_is() -> None:
    ours = hub.config_text(hub.HubConfig("", "", "", Path("/data/jetstream"), Path("/data/accounts")))
    theirs = (K8S / "base" / "nats.conf").read_text()
    for key in ("max_payload", "ping_interval", "ping_max", "write_deadline", "domain", "sync_interval"):
        (mine,) = re.findall(rf'"?{key}"?: ("?\w+"?)', ours)
        (other,) = re.findall(rf"\b{key}: (\"?\w+\"?)", theirs)
        assert mine == other, key


@pytest.mark.parametrize("name", ["dev", "prod-gpu"])
def test_nats_server_takes_the_configuration(name: str, tmp_path: Path) -> None:
    """With cluster, TLS and WebSocket, too, as far as `nats-server -t` looks."""
    config, trust = tmp_path / "etc/nats/config", tmp_path / "etc/nats/trust"
    certificate = pki.ensure(tmp_path / "etc/nats/tls", ["eyeline-nats"])
    config.mkdir(parents=True)
    trust.mkdir()
    made = cluster.secrets(tmp_path / "state", ["default"], hub="nats://eyeline-nats:4222")
    for file, text in made[0]["stringData"].items():
        (trust / file).write_text(text)
    files = {"tls.crt": certificate.certificate, "tls.key": certificate.key, "ca.crt": certificate.ca}
    for file, text in find(overlay(name), "ConfigMap", "eyeline-nats-config")["data"].items():
        local = re.sub(r'"/(data|run)/', rf'"{tmp_path}/\1/', text)
        for secret, path in files.items():
            local = local.replace(f"/etc/nats/tls/{secret}", str(path))
        (config / file).write_text(local)
    command = [nats_server.find_nats_server(), "-t", "-c", config / "nats.conf"]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env={**os.environ, "POD_NAME": "eyeline-nats-0"}
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_triton_has_the_shared_memory_that_a_full_batch_needs() -> None:
    served = triton_repository.of_card(catalogue.load(cloud_config.TritonSettings().model))
    for name in ("dev", "prod-gpu"):
        pod = pod_spec(find(overlay(name), "Deployment", "eyeline-triton"))
        arguments = [*pod["initContainers"][0]["args"], *pod["containers"][0]["args"]]
        found = dict(re.findall(r"--([\w-]+)=(?:python,shm-default-byte-size=)?(\S+)", " ".join(arguments)))
        needed = triton_repository.shared_memory_bytes([served], Serving(max_batch=int(found["max-batch"])))
        assert int(found["backend-config"]) >= needed, name


def test_secrets_are_the_same_when_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = cluster.secrets(
        tmp_path / "state", ["acme", "globex"], hub="nats://hub:4222", namespace="eyeline"
    )
    again = cluster.secrets(
        tmp_path / "state", ["acme", "globex"], hub="nats://hub:4222", namespace="eyeline"
    )
    assert invalid(first) == []
    creds, again_creds = (it[1]["stringData"] for it in (first, again))
    assert creds == again_creds
    assert set(creds) == {"acme.creds", "globex.creds"}
    # Both accounts with those of their audit logs, and not the system's: that one is preloaded.
    accounts = [file for file in first[0]["stringData"] if file.endswith(".jwt")]
    assert len(accounts) == 4
    # With the devices that were enrolled, as long as they fit.
    trust = cluster.Trust(tmp_path / "state" / "trust")
    trust.enroll("acme", "yard", "box1")
    names = ["acme", "globex"]
    for most, count in ((cluster._MOST_ACCOUNTS_BYTES, 5), (9000, 4)):
        monkeypatch.setattr(cluster, "_MOST_ACCOUNTS_BYTES", most)
        more = cluster.secrets(tmp_path / "state", names, hub="nats://hub:4222", namespace="eyeline")
        assert len([file for file in more[0]["stringData"] if file.endswith(".jwt")]) == count
        assert cluster.devices_fit(trust.account_jwts()) == (count == 5)
    cluster.write(tmp_path / "secrets.yaml", first)
    assert (tmp_path / "secrets.yaml").stat().st_mode & 0o077 == 0
