"""Starting the real tritonserver on this machine, without a container.

`.ci/install-triton` lays it out from its wheel; `find_triton` finds it.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import secrets
import signal
import socket
import sys
import sysconfig
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import find_libpython
import grpc
import psutil
import structlog
from tritonclient.grpc import service_pb2, service_pb2_grpc

from cloud_inference import triton_repository
from cloud_inference.triton_repository import Served, Serving
from eyeline.errors import ServerFailed
from eyeline.process import Child

_log = structlog.get_logger()

HOME_VARIABLE = "EYELINE_TRITON_HOME"
_POLL_S = 0.05
_BIND_TRIES = 3


@dataclass(frozen=True, slots=True)
class Ports:
    """TCP ports; 0 takes a free one at the first start and keeps it for later ones."""

    grpc: int = 0
    http: int = 0
    metrics: int = 0


def find_triton() -> Path:
    """The folder that `.ci/install-triton` made; raises `ServerFailed`.

    `EYELINE_TRITON_HOME` if set, else `.triton` in the environment's folder, beside it, or in or above the
    working folder.
    """
    given = os.environ.get(HOME_VARIABLE)
    if given:
        candidates = [Path(given)]
    else:
        prefix, here = Path(sys.prefix), Path.cwd()
        candidates = [folder / ".triton" for folder in (prefix, prefix.parent, here, *here.parents)]
    for home in candidates:
        if (home / "bin" / "tritonserver").is_file():
            return home.resolve()
    where = given or "no .triton beside the environment or above this folder"
    raise ServerFailed(
        f"tritonserver is not installed ({where}): run .ci/install-triton, or set {HOME_VARIABLE}"
    )


def find_libpython_folder() -> Path:
    """The folder of the shared libpython that Triton's Python backend is linked to; raises `ServerFailed`."""
    version = f"{sys.version_info[0]}.{sys.version_info[1]}"
    name = f"libpython{version}.so.1.0"
    for candidate in find_libpython.candidate_paths():
        folder = Path(candidate).parent
        if folder.is_absolute() and (folder / name).is_file():
            return folder
    multiarch = sysconfig.get_config_var("MULTIARCH") or "x86_64-linux-gnu"
    for folder in (Path("/usr/lib") / multiarch, Path("/usr/lib64"), Path("/usr/lib")):
        if (folder / name).is_file():
            return folder
    raise ServerFailed(f"{name} is missing, which Triton needs: apt-get install libpython{version}")


class TritonServer:
    """One tritonserver as a child process, serving a generated repository.

    work_dir: gets `models/` and the log `triton.log`. cpus: cores it may use; None leaves it all. explicit:
    somebody loads other forms and versions while it runs (`engines.repository`). Python backends then come
    and go, and one that dies does not end it; and a version that is being loaded leaves the server ready.
    """

    def __init__(
        self,
        models: Sequence[Served],
        *,
        work_dir: Path,
        serving: Serving = Serving(),
        host: str = "127.0.0.1",
        ports: Ports = Ports(),
        exit_timeout_s: int = 10,
        cpus: Iterable[int] | None = None,
        inherit_output: bool = False,
        explicit: bool = False,
    ) -> None:
        self.name = "triton"
        self.models = list(models)
        self.host = host
        self.ports = ports
        self._serving = serving
        self._given = ports
        self._repository = work_dir / "models"
        self._work_dir = work_dir
        self._exit_timeout_s = exit_timeout_s
        self._explicit = explicit
        self._cpus = None if cpus is None else set(cpus)
        self._log = None if inherit_output else work_dir / "triton.log"
        self._child: Child | None = None
        # Tells our server apart from another one at the same address, and names its shared memory, so that
        # what a killed one leaves can be removed.
        self.id = f"eyeline-triton-{os.getpid()}-{secrets.token_hex(4)}"
        self._helpers: list[int] = []
        self._began_s = time.time()

    @property
    def url(self) -> str:
        """Where gRPC clients connect, `host:port`, known once it was started."""
        return f"{self.host}:{self.ports.grpc}"

    @property
    def http_url(self) -> str:
        """The HTTP endpoint."""
        return f"http://{self.host}:{self.ports.http}"

    @property
    def metrics_url(self) -> str:
        """Where Prometheus reads."""
        return f"http://{self.host}:{self.ports.metrics}/metrics"

    @property
    def repository(self) -> Path:
        """The folder of its models."""
        return self._repository

    @property
    def pid(self) -> int | None:
        """Process id while it runs."""
        return self._child.pid if self._child is not None else None

    def argv(self, home: Path) -> list[str]:
        """The command line."""
        shared = triton_repository.shared_memory_bytes(self.models, self._serving)
        return [
            str(home / "bin" / "tritonserver"),
            f"--model-repository={self._repository}",
            f"--backend-directory={home / 'backends'}",
            f"--cache-directory={home / 'caches'}",
            f"--backend-config=python,shm-default-byte-size={shared}",
            f"--backend-config=python,shm-region-prefix-name={self.id}-",
            f"--id={self.id}",
            f"--exit-timeout-secs={self._exit_timeout_s}",
            "--disable-auto-complete-config",
            "--allow-gpu-metrics=false",
            f"--grpc-address={self.host}",
            f"--grpc-port={self.ports.grpc}",
            f"--http-address={self.host}",
            f"--http-port={self.ports.http}",
            "--http-thread-count=2",
            f"--metrics-address={self.host}",
            f"--metrics-port={self.ports.metrics}",
            *(
                ("--model-control-mode=explicit", "--load-model=*", "--strict-readiness=false")
                if self._explicit
                else ()
            ),
        ]

    async def start(self, *, timeout_s: float = 60.0) -> str:
        """Write the repository, start, wait until every model is ready; returns the gRPC address.

        Raises `ServerFailed` with the end of its log.
        """
        home = find_triton()
        env = environment(home)
        try:
            triton_repository.write(self._repository, self.models, self._serving)
        except OSError as problem:
            raise ServerFailed(f"triton: {self._repository} cannot be written: {problem}") from None
        self._sweep()
        for attempt in range(_BIND_TRIES):
            self.ports = _filled(self.ports, self.host)
            if self._log is not None:
                self._log.unlink(missing_ok=True)
            self._child = Child(self.argv(home), name=self.name, env=env, log=self._log)
            self._began_s = time.time()
            pid = await self._child.start()
            if self._cpus is not None:
                os.sched_setaffinity(pid, self._cpus)
            try:
                async with asyncio.timeout(timeout_s):
                    if await self._ready():
                        if not self._explicit:
                            self._watch_helpers(pid)
                        return self.url
            except TimeoutError:
                await self.stop()
                raise ServerFailed(
                    f"triton was not ready in {timeout_s:g} s: {self._child.last_words()}"
                ) from None
            except BaseException:
                await self.stop()
                raise
            words = self._child.last_words(40)
            await self.stop()
            # Somebody took a port between our look and its bind; a given port is for the user to mend.
            if "in use" not in words or self._given.grpc or attempt == _BIND_TRIES - 1:
                raise ServerFailed(
                    f"triton did not start (exit status {self._child.returncode}): {_reason(words)}"
                )
            self.ports = self._given
        raise AssertionError("unreachable")

    async def _ready(self) -> bool:
        """Wait until it takes requests; False when it ended instead."""
        assert self._child is not None  # noqa: S101  # start() made it
        async with grpc.aio.insecure_channel(
            self.url,
            options=[
                ("grpc.initial_reconnect_backoff_ms", 50),
                ("grpc.max_reconnect_backoff_ms", 100),
                ("grpc.use_local_subchannel_pool", 1),
            ],
        ) as channel:
            stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
            while self._child.pid is not None:
                try:
                    who = await stub.ServerMetadata(service_pb2.ServerMetadataRequest(), timeout=1)
                    answer = await stub.ServerReady(service_pb2.ServerReadyRequest(), timeout=1)
                except grpc.aio.AioRpcError:
                    pass
                else:
                    if answer.ready and who.name == self.id:
                        return True
                await asyncio.sleep(_POLL_S)
        return False

    async def wait(self) -> int:
        """Wait until it ends; returns the exit status. Raises `ServerFailed` if it was never started.

        A Python backend that dies ends it: this Triton does not bring one back, and would refuse for ever.
        """
        if self._child is None:
            raise ServerFailed("triton was not started")
        return await self._child.wait()

    def _watch_helpers(self, pid: int) -> None:
        """End the server as soon as one of its Python backends has ended."""
        loop = asyncio.get_running_loop()
        for helper in psutil.Process(pid).children():
            with contextlib.suppress(ProcessLookupError):
                descriptor = os.pidfd_open(helper.pid)
                self._helpers.append(descriptor)
                loop.add_reader(descriptor, self._helper_ended)

    def _helper_ended(self) -> None:
        self._forget_helpers()
        if self._child is not None and self._child.pid is not None:
            _log.error("triton_backend_died", server=self.url)
            self._child.send(signal.SIGKILL)

    def _forget_helpers(self) -> None:
        for descriptor in self._helpers:
            asyncio.get_running_loop().remove_reader(descriptor)
            os.close(descriptor)
        self._helpers.clear()

    async def stop(self, grace_s: float | None = None) -> None:
        """Let requests in flight end, for at most the exit timeout, then stop it and its Python processes."""
        self._forget_helpers()
        if self._child is not None:
            status = await self._child.stop(self._exit_timeout_s + 5 if grace_s is None else grace_s)
            if status:
                self._sweep_folders()
        self._sweep()

    def _sweep(self) -> None:
        for left in Path("/dev/shm").glob(f"{self.id}-*"):  # noqa: S108  # where they are
            left.unlink(missing_ok=True)

    def _sweep_folders(self) -> None:
        """Remove the empty folder that the Python backend makes and leaves behind when it is killed.

        It is only used for packed environments, which we have none of.
        """
        # The backend knows no other place.
        for left in _orphans(Path("/tmp").glob("python_env_*"), self._began_s - 0.1):  # noqa: S108
            with contextlib.suppress(OSError):
                left.rmdir()


def _orphans(folders: Iterable[Path], since_s: float) -> list[Path]:
    """Of the Python backend's folders, ours since then that belong to no Triton which is alive.

    Nothing in a name says whose it is, and a Triton aborts at its end when its folder is gone: what one that
    is alive may have made, stays.
    """
    made: dict[Path, float] = {}
    for folder in folders:
        with contextlib.suppress(OSError):
            found = folder.stat()
            if found.st_uid == os.getuid() and found.st_mtime >= since_s:
                made[folder] = found.st_mtime
    alive = [it for it in psutil.process_iter(["name", "create_time"]) if it.info["name"] == "tritonserver"]
    began = min((it.info["create_time"] for it in alive), default=math.inf)
    # When a process began is known to some hundredths of a second.
    return [folder for folder, when in made.items() if when < began - 1]


def environment(home: Path, environ: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment tritonserver needs: its libraries, libpython, and numpy and onnxruntime of ours."""
    env = dict(os.environ if environ is None else environ)
    folders = [str(home / "lib"), str(find_libpython_folder()), env.get("LD_LIBRARY_PATH", "")]
    env["LD_LIBRARY_PATH"] = ":".join(folder for folder in folders if folder)
    packages = dict.fromkeys((sysconfig.get_path("platlib"), sysconfig.get_path("purelib")))
    env["PYTHONPATH"] = ":".join(packages)
    # The embedded interpreter takes the environment of the first `python3` on PATH for its own, and with some
    # builds of libpython that is all it looks at.
    env["PATH"] = ":".join((str(Path(sys.executable).parent), env.get("PATH", os.defpath)))
    env.pop("PYTHONHOME", None)
    # The graph's threads are set by its session; numpy needs none.
    env.setdefault("OMP_NUM_THREADS", "1")
    env.setdefault("OPENBLAS_NUM_THREADS", "1")
    return env


def _filled(ports: Ports, host: str) -> Ports:
    """Replace zeros by ports that are free now."""
    # All are held until the last is chosen, so that they differ.
    with contextlib.ExitStack() as held:

        def free() -> int:
            taken = held.enter_context(socket.create_server((host, 0)))
            return int(taken.getsockname()[1])

        return Ports(*(port or free() for port in (ports.grpc, ports.http, ports.metrics)))


def _reason(words: str) -> str:
    """The line of its log that says why, if there is one."""
    lines = words.split(" | ")
    telling = [line for line in lines if line.startswith(("E1", "E0", "error:")) or "Error:" in line]
    return telling[-1] if telling else " | ".join(lines[-3:])
