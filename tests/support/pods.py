"""Pods of rendered manifests, as processes of this machine.

Taken from the manifests: commands, arguments, environment, volumes, ConfigMaps and Secrets, probes, preStop
hooks, grace periods, services and ports. Each pod has a loopback address of its own, so ports stay what they
are, and so has each service, where a proxy spreads connections over the pods that are ready. What a kubelet
does by namespaces is done by writing: paths of mounts become paths in the pod's folder, names of services
their addresses, and 0.0.0.0 the pod's address, in commands, environment and configuration files.

Not covered: images (the programs are those of this environment), users, limits, network policies, volumes'
sizes.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Self

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from cloud_inference.triton_server import environment, find_triton
from tests.support.manifests import Resource, workloads

_numbers = itertools.count(1)
_PROBE_EVERY_S = 0.2


def _address() -> str:
    """A loopback address that no other test run uses."""
    number = next(_numbers)
    return f"127.{64 + os.getpid() % 128}.{os.getpid() // 128 % 250 + 1}.{number}"


class Forwarder:
    """A service: connections to one address, spread over those of ready pods."""

    def __init__(self, address: str, port: int, targets: Callable[[], list[tuple[str, int]]]) -> None:
        self._targets = targets
        self._turn = itertools.count()
        self._listener = socket.create_server((address, port))
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with client:
            targets = self._targets()
            if not targets:
                return
            try:
                server = socket.create_connection(targets[next(self._turn) % len(targets)], timeout=5)
            except OSError:
                return
            with server:
                server.settimeout(None)
                back = threading.Thread(target=_pump, args=(server, client), daemon=True)
                back.start()
                _pump(client, server)
                back.join()


def _pump(source: socket.socket, sink: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            sink.sendall(data)
    for end in (source, sink):
        with contextlib.suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)


class Cluster:
    """Every workload of an overlay. secrets: those the manifests refer to, by name: file name to text."""

    def __init__(
        self, resources: list[Resource], folder: Path, secrets: Mapping[str, Mapping[str, str]]
    ) -> None:
        self.resources, self.folder, self.secrets = resources, folder, secrets
        self.pods: list[Pod] = []
        self.addresses: dict[str, str] = {}
        self._forwarders: list[Forwarder] = []
        self._ordinal = itertools.count()

    def __enter__(self) -> Self:
        # Of a headless service, one address stands for those of its pods; a StatefulSet's have names.
        named = {it["spec"]["serviceName"] for it in workloads(self.resources) if it["kind"] == "StatefulSet"}
        for service in self.resources:
            if service["kind"] == "Service" and service["metadata"]["name"] not in named:
                self._serve(service)
        for workload in workloads(self.resources):
            if workload["kind"] == "StatefulSet":
                self.addresses |= {name: _address() for name in _stable_names(workload)}
        return self

    def __exit__(self, *_: object) -> None:
        for forwarder in self._forwarders:
            forwarder.close()
        for pod in self.pods:
            pod.kill()

    def _serve(self, service: Resource) -> None:
        name, address = service["metadata"]["name"], _address()
        self.addresses[name] = address
        wanted = service["spec"]["selector"].items()

        for port in service["spec"]["ports"]:

            def targets(target: str | int = port["targetPort"]) -> list[tuple[str, int]]:
                ready = [pod for pod in self.pods if pod.ready and wanted <= pod.labels.items()]
                return [(pod.address, pod.port(target)) for pod in ready]

            self._forwarders.append(Forwarder(address, port["port"], targets))

    def start(self, workload: Resource, name: str | None = None) -> Pod:
        """A pod of it; returns once it is started, not ready."""
        base = workload["metadata"]["name"]
        suffix = "0" if workload["kind"] == "StatefulSet" else f"x{next(self._ordinal)}"
        pod = Pod(self, workload, name or f"{base}-{suffix}")
        self.pods.append(pod)
        pod.start()
        return pod

    def start_each(self, workload: Resource) -> list[Pod]:
        """Every pod of a StatefulSet, together."""
        names = [it.partition(".")[0] for it in _stable_names(workload)]
        return [self.start(workload, name) for name in names]

    def start_all(self) -> None:
        """One pod of each workload, until all are ready."""
        for pod in [self.start(it) for it in workloads(self.resources)]:
            pod.wait_ready()

    def pod_of(self, workload: str) -> Pod:
        """Its pod that runs."""
        (found,) = [pod for pod in self.pods if pod.workload == workload and pod.running]
        return found

    def restart(self, workload: str) -> None:
        """A rolling restart, as its strategy says: the new pod first, where a surge is allowed."""
        (manifest,) = [it for it in workloads(self.resources) if it["metadata"]["name"] == workload]
        old = self.pod_of(workload)
        if manifest["spec"].get("strategy", {}).get("rollingUpdate", {}).get("maxSurge", 0):
            self.start(manifest).wait_ready()
            time.sleep(manifest["spec"].get("minReadySeconds", 0))  # what the field means
            old.stop()
        else:
            old.stop()
            self.start(manifest, old.name if manifest["kind"] == "StatefulSet" else None).wait_ready()


def _stable_names(workload: Resource) -> list[str]:
    """What the pods of a StatefulSet are called by each other."""
    name, spec = workload["metadata"]["name"], workload["spec"]
    return [f"{name}-{number}.{spec['serviceName']}" for number in range(spec["replicas"])]


class Pod:
    """One pod. Raises AssertionError with the end of its output when a container does not do as declared."""

    def __init__(self, cluster: Cluster, workload: Resource, name: str) -> None:
        self._cluster, self.name = cluster, name
        self.workload: str = workload["metadata"]["name"]
        self.namespace: str = workload["metadata"]["namespace"]
        template = workload["spec"]["template"]
        self.labels: dict[str, str] = template["metadata"]["labels"]
        self.spec: Any = template["spec"]
        self._claims = [it["metadata"]["name"] for it in workload["spec"].get("volumeClaimTemplates", [])]
        service = workload["spec"].get("serviceName")
        # A pod with a stable name that comes back is found where it was.
        self.address = cluster.addresses.get(f"{name}.{service}") or _address()
        self.folder = cluster.folder / "pods" / f"{name}-{next(_numbers)}"
        self.folder.mkdir(parents=True)
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._stopping = threading.Event()
        self.ready = False
        self.probed: set[str] = set()

    # Volumes and what is written in them

    def _volumes(self) -> dict[str, Path]:
        volumes = {}
        for volume in self.spec.get("volumes", []):
            name = volume["name"]
            path = self.folder / "volumes" / name
            if "hostPath" in volume:
                path = self._cluster.folder / "node" / volume["hostPath"]["path"].lstrip("/")
            path.mkdir(parents=True, exist_ok=True)
            for source in volume["projected"]["sources"] if "projected" in volume else [volume]:
                for file, text in self._files(source).items():
                    (path / file).write_text(self._local(text), encoding="utf-8")
                    (path / file).chmod(0o440)
            volumes[name] = path
        for claim in self._claims:
            volumes[claim] = self._cluster.folder / "claims" / self.name / claim
            volumes[claim].mkdir(parents=True, exist_ok=True)
        return volumes

    def _files(self, source: Mapping[str, Any]) -> Mapping[str, str]:
        if "configMap" in source:
            return dict(self._named("ConfigMap", source["configMap"]["name"])["data"])
        if "secret" in source:
            name = source["secret"].get("secretName") or source["secret"]["name"]
            return self._cluster.secrets[name]
        return {}

    def _named(self, kind: str, name: str) -> Resource:
        return next(
            it
            for it in self._cluster.resources
            if (it["kind"], it["metadata"]["name"], it["metadata"].get("namespace"))
            == (kind, name, self.namespace)
        )

    def _mounts(self, container: Mapping[str, Any], volumes: Mapping[str, Path]) -> None:
        for mount in container.get("volumeMounts", []):
            place = self.folder / mount["mountPath"].lstrip("/")
            source = volumes[mount["name"]]
            if "subPath" in mount:
                source /= mount["subPath"]
            place.parent.mkdir(parents=True, exist_ok=True)
            if not place.exists():
                place.symlink_to(source)

    def _local(self, text: str) -> str:
        """Paths, names and addresses as they are on this machine, in one pass."""
        mounts = {
            mount["mountPath"]
            for container in self._containers()
            for mount in container.get("volumeMounts", [])
        }
        folders = sorted(mounts, key=len, reverse=True)
        names = sorted(self._cluster.addresses, key=len, reverse=True)
        pattern = re.compile(
            rf"(?P<path>(?<![\w.-])(?:{'|'.join(map(re.escape, folders))})(?![\w-]))"
            r"|(?P<triton>/opt/tritonserver(?![\w-]))"
            rf"|(?<![\w.-])(?P<service>{'|'.join(map(re.escape, names))})(?:\.[a-z][a-z.-]*)?(?=:\d)"
            r"|(?P<all>0\.0\.0\.0)"
        )

        def here(match: re.Match[str]) -> str:
            if match["path"]:
                return f"{self.folder}{match['path']}"
            if match["triton"]:
                return str(find_triton())
            return self._cluster.addresses[match["service"]] if match["service"] else self.address

        return pattern.sub(here, text)

    # Containers

    def _containers(self) -> list[Any]:
        return [*self.spec.get("initContainers", []), *self.spec["containers"]]

    def _environment(self, container: Mapping[str, Any]) -> dict[str, str]:
        """What the container sets, over what its image has."""
        folder = Path(sys.executable).parent
        image = {"PATH": f"{folder}:/usr/bin:/bin", "HOME": str(self.folder), "LANG": "C.UTF-8"}
        if container["image"].startswith("eyeline-triton"):
            image = environment(find_triton(), image)
            image["PATH"] = f"{find_triton() / 'bin'}:{image['PATH']}"
        fields = {
            "metadata.name": self.name,
            "metadata.namespace": self.namespace,
            "status.podIP": self.address,
            "spec.nodeName": "node",
        }
        own: dict[str, str] = {}
        for source in container.get("envFrom", []):
            own |= self._named("ConfigMap", source["configMapRef"]["name"])["data"]
        for entry in container.get("env", []):
            reference = entry.get("valueFrom")
            own[entry["name"]] = (
                fields[reference["fieldRef"]["fieldPath"]] if reference else entry.get("value", "")
            )
        return image | {name: self._local(value) for name, value in own.items()}

    def _argv(self, words: list[str], env: Mapping[str, str]) -> list[str]:
        expanded = [re.sub(r"\$\((\w+)\)", lambda match: env[match[1]], word) for word in words]
        return [self._local(word) for word in expanded]

    def _run(self, container: Mapping[str, Any]) -> subprocess.Popen[bytes]:
        env = self._environment(container)
        with self._log(container["name"]).open("ab") as output:
            return subprocess.Popen(
                self._argv([*container["command"], *container.get("args", [])], env),
                cwd=self.folder,
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )

    def _log(self, container: str) -> Path:
        return self.folder / f"{container}.log"

    def said(self, container: str | None = None) -> str:
        """What a container wrote."""
        return self._log(container or self.spec["containers"][0]["name"]).read_text(errors="replace")

    def start(self) -> None:
        """Run the init containers, then start the others and probe them."""
        volumes = self._volumes()
        for container in self._containers():
            self._mounts(container, volumes)
        for container in self.spec.get("initContainers", []):
            status = self._run(container).wait(120)
            assert status == 0, f"{self.name}/{container['name']}: {status}: {self.said(container['name'])}"
        for container in self.spec["containers"]:
            self._processes[container["name"]] = self._run(container)
        threading.Thread(target=self._keep_probing, daemon=True).start()

    @property
    def running(self) -> bool:
        return bool(self._processes) and all(it.poll() is None for it in self._processes.values())

    def port(self, name: str | int) -> int:
        """A container's port by its name, or itself."""
        if isinstance(name, int):
            return name
        ports = [port for it in self.spec["containers"] for port in it.get("ports", [])]
        return int(next(port["containerPort"] for port in ports if port["name"] == name))

    # Probes

    def probe(self, declared: Mapping[str, Any]) -> bool:
        """Whether it succeeds now."""
        timeout_s = declared.get("timeoutSeconds", 1)
        if "grpc" in declared:
            request = health_pb2.HealthCheckRequest(service=declared["grpc"].get("service", ""))
            with grpc.insecure_channel(f"{self.address}:{declared['grpc']['port']}") as channel:
                try:
                    answer = health_pb2_grpc.HealthStub(channel).Check(request, timeout=timeout_s)
                except grpc.RpcError:
                    return False
            return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)
        get = declared["httpGet"]
        url = f"http://{self.address}:{self.port(get['port'])}{get['path']}"
        try:
            with urllib.request.urlopen(url, timeout=timeout_s) as answer:
                return bool(200 <= answer.status < 400)
        except (OSError, urllib.error.URLError):
            return False

    def _keep_probing(self) -> None:
        (container,) = self.spec["containers"]
        startup = container["startupProbe"]
        end = time.monotonic() + startup["periodSeconds"] * startup["failureThreshold"]
        while not self.probe(startup):
            if self._stopping.wait(_PROBE_EVERY_S) or time.monotonic() > end:
                return
        self.probed.add("startupProbe")
        while not self._stopping.wait(_PROBE_EVERY_S):
            for kind in ("readinessProbe", "livenessProbe"):
                good = self.probe(container[kind])
                if good:
                    self.probed.add(kind)
                if kind == "readinessProbe":
                    self.ready = good and not self._stopping.is_set()

    def wait_ready(self, within_s: float = 120) -> None:
        """Until it is ready, and every probe has succeeded."""
        end = time.monotonic() + within_s
        while not (self.ready and len(self.probed) == 3):
            assert self.running, f"{self.name} ended: {self.said()[-3000:]}"
            assert time.monotonic() < end, (
                f"{self.name}: {self.probed} in {within_s} s: {self.said()[-3000:]}"
            )
            time.sleep(0.05)

    # End

    def stop(self) -> None:
        """Out of the services, preStop, SIGTERM; it must be gone by itself within the grace period."""
        self._stopping.set()
        self.ready = False
        end = time.monotonic() + self.spec.get("terminationGracePeriodSeconds", 30)
        for container in self.spec["containers"]:
            process = self._processes[container["name"]]
            hook = container.get("lifecycle", {}).get("preStop")
            if hook:
                env = self._environment(container)
                subprocess.run(self._argv(hook["exec"]["command"], env), env=env, check=True, timeout=30)
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(signal.SIGTERM)
            try:
                status = process.wait(max(0.1, end - time.monotonic()))
            except subprocess.TimeoutExpired:
                raise AssertionError(
                    f"{self.name} outlived its grace period: {self.said()[-2000:]}"
                ) from None
            # 1: nats-server's own after a lame duck, once it has let everybody go.
            assert status in ({0, 1} if hook else {0}), f"{self.name}: {status}: {self.said()[-2000:]}"

    def kill(self) -> None:
        """Whatever is left."""
        self._stopping.set()
        for process in self._processes.values():
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait(10)


@contextlib.contextmanager
def running(
    resources: list[Resource], folder: Path, secrets: Mapping[str, Mapping[str, str]]
) -> Iterator[Cluster]:
    """All of them, ready."""
    with Cluster(resources, folder, secrets) as cluster:
        cluster.start_all()
        yield cluster
