"""A real S3-compatible server, SeaweedFS, that checks credentials."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.support.cameras import wait_for
from tests.support.programs import some_free_ports

ACCESS_KEY, SECRET_KEY = "eyeline-test", "not-a-secret"


@dataclass(frozen=True, slots=True)
class S3:
    """A running server with one bucket."""

    endpoint: str
    bucket: str

    @property
    def url(self) -> str:
        """Of the bucket, with a prefix."""
        return f"s3://{self.bucket}/test"

    def environ(self, secret_key: str = SECRET_KEY) -> dict[str, str]:
        """What every S3 client takes."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": ACCESS_KEY,
            "AWS_SECRET_ACCESS_KEY": secret_key,
            "AWS_REGION": "us-east-1",
        }


@contextlib.contextmanager
def running(folder: Path, bucket: str = "eyeline") -> Iterator[S3]:
    """Started in a folder of its own, on free ports."""
    folder.mkdir(parents=True, exist_ok=True)
    identity = {
        "name": "test",
        "credentials": [{"accessKey": ACCESS_KEY, "secretKey": SECRET_KEY}],
        "actions": ["Admin", "Read", "Write", "List"],
    }
    (folder / "s3.json").write_text(json.dumps({"identities": [identity]}))
    ports = some_free_ports(8)
    names = ("master.port", "master.port.grpc", "volume.port", "volume.port.grpc")
    names += ("filer.port", "filer.port.grpc", "s3.port", "s3.port.grpc")
    weed = Path(sys.executable).with_name("weed")
    with (folder / "weed.log").open("wb") as log:
        process = subprocess.Popen(
            [
                *(str(weed), "server", f"-dir={folder}", "-ip=127.0.0.1", "-s3", "-master.telemetry=false"),
                *(
                    "-s3.port.iceberg=0",
                    "-s3.port.lance=0",
                    "-volume.max=100",
                    "-master.volumeSizeLimitMB=64",
                    f"-s3.config={folder / 's3.json'}",
                ),
                *(f"-{name}={port}" for name, port in zip(names, ports, strict=True)),
            ],
            stdout=log,
            stderr=log,
        )
    filer, endpoint = f"http://127.0.0.1:{ports[4]}", f"http://127.0.0.1:{ports[6]}"

    def ready() -> bool:
        assert process.poll() is None, (folder / "weed.log").read_text()[-2000:]
        try:
            made = urllib.request.Request(f"{filer}/buckets/{bucket}/", method="POST")  # noqa: S310  # ours
            with contextlib.suppress(urllib.error.HTTPError):  # a conflict: it was made the time before
                urllib.request.urlopen(made, timeout=2).close()  # noqa: S310  # ours
            with urllib.request.urlopen(f"{endpoint}/healthz", timeout=2):  # noqa: S310  # ours
                return True
        except OSError:
            return False

    try:
        wait_for(ready, 60, "the S3 server")
        yield S3(endpoint, bucket)
    finally:
        process.kill()
        process.wait(10)
