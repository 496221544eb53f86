"""The seam to the engine builders: TensorRT 10 and 11, and TensorRT for RTX, through one Python API.

All are used strongly typed: precision is in the graph (see `typed`), never a builder flag, which TensorRT 11
has no more. What differs is told apart by what the module has, not by its version: timing caches, and
building ahead of time for another compute capability, which only TensorRT for RTX does (and without a GPU at
that).
"""

from __future__ import annotations

import ctypes
import importlib
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple

from cloud_inference.errors import EngineFailed

HOME_VARIABLE: Final = "EYELINE_TENSORRT_RTX_HOME"
Kind = Literal["tensorrt", "tensorrt-rtx"]
_RTX_LIBRARIES: Final = ("libtensorrt_rtx.so.1", "libtensorrt_onnxparser_rtx.so.1")
_MAJOR, _MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_*


class Capability(NamedTuple):
    """Compute capability of a GPU."""

    major: int
    minor: int

    def __str__(self) -> str:
        return f"{self.major}.{self.minor}"

    @classmethod
    def parse(cls, text: str) -> Capability:
        """Of "8.9"; raises `EngineFailed`."""
        major, _, minor = text.partition(".")
        if not (major.isdigit() and minor.isdigit()):
            raise EngineFailed(f"compute capability {text!r} must be such as 8.9")
        return cls(int(major), int(minor))


@dataclass(frozen=True, slots=True)
class Profile:
    """Batch sizes that the engine takes, and the one it is tuned for."""

    least: int = 1
    best: int = 8
    most: int = 32

    def __post_init__(self) -> None:
        if not 1 <= self.least <= self.best <= self.most <= 1024:
            raise EngineFailed(f"batch {self}: needs 1 <= least <= best <= most <= 1024")

    def __str__(self) -> str:
        return f"{self.least}-{self.best}-{self.most}"


@dataclass(frozen=True, slots=True)
class Built:
    """A serialized engine, and the timing cache as it is now (None where the runtime has none)."""

    plan: bytes
    timing_cache: bytes | None


class Runtime:
    """One builder, loaded. A build may take minutes and all of a core: not for an event loop."""

    def __init__(self, kind: Kind, module: Any) -> None:
        self.kind: Kind = kind
        self.version = str(module.__version__)
        self._trt = module

    def __str__(self) -> str:
        return f"{'TensorRT for RTX' if self.kind == 'tensorrt-rtx' else 'TensorRT'} {self.version}"

    def build(
        self,
        graph: bytes,
        profile: Profile,
        *,
        capability: Capability | None = None,
        timing_cache: bytes | None = None,
        tell: Callable[[str], None] = lambda _: None,
    ) -> Built:
        """An engine for the served graph, an ONNX file's bytes.

        capability: of the GPU it is for; None is the GPU here. Raises `EngineFailed` with the builder's own
        words.
        """
        trt = self._trt
        logger = _logger(trt, tell)
        builder = trt.Builder(logger)
        if builder is None:
            raise EngineFailed(f"{self} cannot start: {logger.last or 'no CUDA device'}")
        network = builder.create_network(_typed_flag(trt))
        parser = trt.OnnxParser(network, logger)
        if not parser.parse(graph):
            said = "; ".join(" ".join(parser.get_error(i).desc().split()) for i in range(parser.num_errors))
            raise EngineFailed(f"{self} does not take the graph: {said[:300]}")
        config = builder.create_builder_config()
        images = network.get_input(0)
        _, *rest = images.shape
        shapes = builder.create_optimization_profile()
        shapes.set_shape(
            images.name, *((batch, *rest) for batch in (profile.least, profile.best, profile.most))
        )
        if config.add_optimization_profile(shapes) < 0:
            raise EngineFailed(f"{self} does not take batches of {profile}: {logger.last}")
        self._aim(config, capability)
        cache = self._timing(config, timing_cache)
        plan = builder.build_serialized_network(network, config)
        if plan is None:
            raise EngineFailed(f"{self} cannot build the engine: {logger.last or 'it does not say why'}")
        kept = config.get_timing_cache() if cache else None
        return Built(bytes(plan), None if kept is None else bytes(kept.serialize()))

    def _aim(self, config: Any, capability: Capability | None) -> None:
        """Build for that GPU, where the runtime can do it for another than the one here."""
        if capability is None:
            return
        known = getattr(self._trt, "ComputeCapability", None)
        if known is None:
            here = capability_here()
            if here != capability:
                raise EngineFailed(
                    f"{self} only builds for the GPU it runs on ({here or 'none here'}), not for "
                    f"{capability}: "
                    "build on such a node"
                )
            return
        wanted = getattr(known, f"SM{capability.major}{capability.minor}", None)
        if wanted is None:
            names = (name[2:] for name in dir(known) if name.startswith("SM"))
            can = ", ".join(f"{name[:-1]}.{name[-1]}" for name in sorted(names, key=int))
            raise EngineFailed(
                f"{self} does not build for compute capability {capability}; it does for {can}"
            )
        config.num_compute_capabilities = 1
        config.set_compute_capability(wanted, 0)

    def _timing(self, config: Any, timing_cache: bytes | None) -> bool:
        """Give the builder what it measured before; whether it keeps such a thing."""
        # TensorRT for RTX measures nothing ahead of time.
        if self.kind != "tensorrt" or not hasattr(config, "create_timing_cache"):
            return False
        for blob in (timing_cache or b"", b""):
            cache = config.create_timing_cache(blob)
            if cache is not None and config.set_timing_cache(cache, False):  # positional in C++
                return True
        return False


def _typed_flag(trt: Any) -> int:
    """Strongly typed, where that has to be said; it is the only kind in TensorRT 11."""
    flag = getattr(getattr(trt, "NetworkDefinitionCreationFlag", None), "STRONGLY_TYPED", None)
    return 0 if flag is None else 1 << int(flag)


def _logger(trt: Any, tell: Callable[[str], None]) -> Any:
    """A logger that keeps the last error and passes warnings on."""

    class Logger(trt.ILogger):  # type: ignore[misc]  # known when it is loaded
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.last = ""

        def log(self, severity: Any, text: str) -> None:
            line = " ".join(text.split())
            if severity in {trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR}:
                self.last = line[:300]
            if severity in {trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR, trt.ILogger.WARNING}:
                tell(line)

    return Logger()


def find(wanted: Kind | None = None) -> Runtime:
    """TensorRT if it is installed, else TensorRT for RTX; raises `EngineFailed` in one line when there is
    none.
    """
    reasons = []
    for kind, load in (("tensorrt", _tensorrt), ("tensorrt-rtx", _tensorrt_rtx)):
        if wanted not in {None, kind}:
            continue
        try:
            return Runtime(kind, load())  # type: ignore[arg-type]  # one of the two
        except ImportError as problem:
            reasons.append(f"{kind}: {problem}")
    raise EngineFailed(
        f"no engine builder is installed ({'; '.join(reasons)}): pip install 'eyeline[tensorrt]' on a "
        "machine with "
        "an NVIDIA GPU, or NVIDIA's TensorRT for RTX"
    )


def _tensorrt() -> Any:
    return importlib.import_module("tensorrt")


def _tensorrt_rtx() -> Any:
    """NVIDIA's own package, or its bindings and libraries in a folder."""
    home = os.environ.get(HOME_VARIABLE)
    if not home:
        return importlib.import_module("tensorrt_rtx")
    try:
        for name in _RTX_LIBRARIES:
            # Global, and by its full path: the bindings ask for it by its name, and find it loaded.
            ctypes.CDLL(str(Path(home) / "lib" / name), mode=ctypes.RTLD_GLOBAL)
    except OSError as problem:
        raise ImportError(str(problem)) from None
    if home not in sys.path:
        sys.path.append(home)
    return importlib.import_module("tensorrt_rtx_bindings")


def capability_here() -> Capability | None:
    """Compute capability of the first GPU, by the driver; None without one."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    device, value = ctypes.c_int(), ctypes.c_int()
    if driver.cuInit(0) or driver.cuDeviceGet(ctypes.byref(device), 0):
        return None
    found = []
    for attribute in (_MAJOR, _MINOR):
        if driver.cuDeviceGetAttribute(ctypes.byref(value), attribute, device):
            return None
        found.append(value.value)
    return Capability(*found)
