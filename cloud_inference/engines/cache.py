"""Where graphs and plans are kept: every node that is alike uses what the first one built.

A graph in its precision is the same for every GPU: it is calibrated and measured once, and its report lies
beside it. A plan's key says all that it depends on: the model's digest, the builder and its version, the
GPU's compute capability, the precision and the batch profile. Either is there once its JSON file is, which is
written last, and names the data by its digest: nodes that build the same at the same time never mix theirs.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import obstore
from obstore.exceptions import BaseError, NotFoundError
from obstore.store import LocalStore, S3Store

from cloud_inference.engines.tensorrt import Capability, Kind, Profile
from cloud_inference.engines.typed import Precision
from cloud_inference.errors import EngineFailed, StoreFailed
from eyeline.errors import ConfigError


@dataclass(frozen=True, slots=True)
class PlanKey:
    """All that a plan depends on. digest: sha256 of the served ONNX file; size: width and height in
    pixels.
    """

    digest: str
    kind: Kind
    version: str
    capability: Capability
    precision: Precision
    profile: Profile
    size: tuple[int, int]

    @property
    def path(self) -> str:
        """Where it lies in the store."""
        width, height = self.size
        where = f"engines/{self.digest}/{self.kind}-{self.version}/{self._gpu}"
        return f"{where}/{self.precision}/b{self.profile}-{width}x{height}"

    @property
    def timing_path(self) -> str:
        """Timings of kernels: good for every model with the same builder and GPU."""
        return f"timing/{self.kind}-{self.version}/{self._gpu}.cache"

    @property
    def _gpu(self) -> str:
        return f"sm{self.capability.major}{self.capability.minor}"


@dataclass(frozen=True, slots=True)
class Stored:
    """A plan or graph and what is known of it: how it was made, and what it costs in accuracy."""

    data: bytes
    about: dict[str, Any]


def graph_path(digest: str, precision: Precision) -> str:
    """Where the graph of a model in a precision lies. digest: sha256 of the served ONNX file."""
    return f"graphs/{digest}/{precision}"


class EngineStore:
    """Graphs and plans in a bucket or a folder. All raise `StoreFailed` when it is away or refuses."""

    def __init__(self, url: str) -> None:
        """url: `s3://BUCKET/PREFIX` (endpoint and credentials from AWS_* as every S3 client takes them), or a
        folder.

        Raises `ConfigError`.
        """
        self.url = url
        try:
            if url.startswith("s3://"):
                bucket, _, prefix = url.removeprefix("s3://").partition("/")
                # Plain HTTP is for an endpoint that says so.
                self._store: Any = S3Store(
                    bucket,
                    prefix=prefix or None,
                    client_options={"allow_http": True, "timeout": "60s", "connect_timeout": "5s"},
                    retry_config={"max_retries": 3},
                )
            elif "://" in url:
                raise ConfigError(f"store {url}: must be s3://BUCKET/PREFIX or a folder")
            else:
                self._store = LocalStore(Path(url).absolute(), mkdir=True)
        except (BaseError, ValueError) as problem:
            raise ConfigError(f"store {url}: {_line(problem)}") from None

    def get(self, path: str) -> Stored | None:
        """What lies at a plan's or graph's path, verified; None when nobody has put it there."""
        text = self._read(f"{path}/about.json")
        if text is None:
            return None
        try:
            about: dict[str, Any] = json.loads(text)
            wanted = about["sha256"]
        except (ValueError, KeyError, TypeError):
            raise EngineFailed(
                f"{self.url}/{path}/about.json is damaged: delete it, and build again"
            ) from None
        data = self._read(f"{path}/{wanted}")
        if data is None or hashlib.sha256(data).hexdigest() != wanted:
            raise EngineFailed(f"{self.url}/{path}/{wanted} is damaged: delete about.json, and build again")
        return Stored(data, about)

    def put(self, path: str, data: bytes, about: dict[str, Any]) -> Stored:
        """Keep a plan or graph; what is said of it is written last."""
        digest = hashlib.sha256(data).hexdigest()
        known = about | {"sha256": digest, "bytes": len(data)}
        self._write(f"{path}/{digest}", data)
        self._write(f"{path}/about.json", json.dumps(known, indent=1).encode())
        return Stored(data, known)

    def timings(self, key: PlanKey) -> bytes | None:
        """The timing cache of that builder on that GPU."""
        return self._read(key.timing_path)

    def put_timings(self, key: PlanKey, blob: bytes) -> None:
        """Keep the timing cache; the last writer's counts, and costs nobody more than time."""
        self._write(key.timing_path, blob)

    def list(self) -> dict[str, dict[str, Any]]:
        """What there is, by path."""
        try:
            entries = [str(entry["path"]) for batch in obstore.list(self._store) for entry in batch]
        except (BaseError, OSError) as problem:
            raise self._failed(problem) from None
        found = {}
        for path in sorted(entries):
            if path.endswith("/about.json"):
                text = self._read(path)
                found[path.removesuffix("/about.json")] = json.loads(text) if text else {}
        return found

    def _read(self, path: str) -> bytes | None:
        try:
            return bytes(obstore.get(self._store, path).bytes())
        except (NotFoundError, FileNotFoundError):
            return None
        except (BaseError, OSError) as problem:
            raise self._failed(problem) from None

    def _write(self, path: str, data: bytes) -> None:
        try:
            obstore.put(self._store, path, data)
        except (BaseError, OSError) as problem:
            raise self._failed(problem) from None

    def _failed(self, problem: Exception) -> StoreFailed:
        return StoreFailed(f"store {self.url}: {_line(problem)}")


def _line(problem: Exception) -> str:
    return " ".join(str(problem).split())[:240] or type(problem).__name__
