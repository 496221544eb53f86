"""Getting a published model: downloaded, its digest verified, and built into a served model."""

from __future__ import annotations

import hashlib
import http.client
import tempfile
import urllib.error
import urllib.request
from pathlib import Path

from eyeline_models.catalogue import ModelCard
from eyeline_models.errors import FetchFailed
from eyeline_models.importing import Wish, bring
from eyeline_models.releases import Release
from eyeline_models.served import Form

_CHUNK_BYTES = 1 << 20
_LARGEST_BYTES = 1 << 30


def fetch(
    release: Release,
    into: Path,
    *,
    accept_digest: str | None = None,
    timeout_s: float = 30.0,
    replace: bool = False,
) -> ModelCard:
    """Download, verify and build `release` in `into / release.name`.

    accept_digest: the sha256 that whoever fetches it vouches for, where the catalogue knows none. Raises
    `FetchFailed`, or another `ModelError` when what came is no model.
    """
    digest = release.sha256 or accept_digest
    if digest is None:
        raise FetchFailed(
            f"the catalogue knows no digest of {release.name}; get the sha256 of {release.url} "
            "from a source you trust and state it with --accept-digest",
            retryable=False,
        )
    if accept_digest is not None and accept_digest.lower() != digest.lower():
        raise FetchFailed(f"the catalogue says sha256 {digest} for {release.name}", retryable=False)
    with tempfile.TemporaryDirectory(prefix="eyeline-fetch-") as temporary:
        file = Path(temporary) / release.url.rpartition("/")[2]
        found = _download(release.url, file, timeout_s)
        if found != digest.lower():
            raise FetchFailed(
                f"{release.url} has sha256 {found}, not {digest}; nothing was kept", retryable=False
            )
        wish = Wish(
            name=release.name,
            form=Form(release.form),
            size=release.input_size,
            source=f"{release.source}, sha256 {found}",
            licence=release.licence,
            notes=release.notes,
        )
        return bring(file, wish, into, replace=replace)


def _download(url: str, file: Path, timeout_s: float) -> str:
    """Write what `url` names to `file`; its sha256."""
    digest, size = hashlib.sha256(), 0
    try:
        with urllib.request.urlopen(url, timeout=timeout_s) as answer, file.open("wb") as out:  # noqa: S310  # ours
            expected = int(answer.headers.get("Content-Length") or 0)
            while chunk := answer.read(_CHUNK_BYTES):
                size += len(chunk)
                if size > _LARGEST_BYTES:
                    raise FetchFailed(f"{url} is larger than {_LARGEST_BYTES} bytes", retryable=False)
                digest.update(chunk)
                out.write(chunk)
    except urllib.error.HTTPError as problem:
        problem.close()
        raise FetchFailed(f"{url} answers {problem.code} {problem.reason}") from None
    except (OSError, http.client.HTTPException) as problem:
        reason = getattr(problem, "reason", None) or problem
        raise FetchFailed(f"{url} cannot be reached ({reason}); fetching needs the internet") from None
    if expected and size != expected:
        raise FetchFailed(f"{url} broke off after {size} of {expected} bytes")
    return digest.hexdigest()
