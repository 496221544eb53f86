"""Writing an export: the format by its name, results as they come."""

from __future__ import annotations

import contextlib
import json
from collections import defaultdict
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from eyeline import show
from eyeline.errors import ConfigError
from eyeline.exports import coco, mot, parquet
from eyeline.values import Result


async def write(
    name: str, path: Path, results: AsyncIterator[Result], classes: frozenset[str] = frozenset()
) -> dict[str, int]:
    """Write `coco`, `mot`, `parquet` or `jsonl`; counts by name, `results` first. Raises `ConfigError`.

    Without any result, and when it fails, what was at that path stays as it is. classes: of mot alone.
    """
    match name:
        case "coco":
            found = [result async for result in results]
            return {"results": len(found), **(coco.write(path, found) if found else {})}
        case "mot":
            return await _mot(path, results, classes)
        case "parquet":
            with parquet.Writer(path) as writer:
                async for result in results:
                    writer.add([result])
                writer.keep = bool(writer.results)
            return {"results": writer.results, "rows": writer.rows}
        case _:
            return await _jsonl(path, results)


async def _mot(folder: Path, results: AsyncIterator[Result], classes: frozenset[str]) -> dict[str, int]:
    """A file a camera in a folder."""
    cameras: dict[str, list[Result]] = defaultdict(list)
    async for result in results:
        cameras[f"{result.site}-{result.camera}"].append(result)
    total: dict[str, int] = {"results": sum(map(len, cameras.values()))}
    if not cameras:
        return total
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as problem:
        raise ConfigError(f"{folder} must be a folder: {problem.strerror}") from None
    for camera, found in sorted(cameras.items()):
        for key, count in mot.write(folder / f"{camera}.txt", found, classes).items():
            total[key] = total.get(key, 0) + count
    return total


async def _jsonl(path: Path, results: AsyncIterator[Result]) -> dict[str, int]:
    written = 0
    part = path.with_name(path.name + ".part")
    try:
        with part.open("w", encoding="utf-8") as file:
            async for result in results:
                line: dict[str, Any] = show.result_object(result)
                file.write(json.dumps(line, separators=(",", ":")) + "\n")
                written += 1
        if written:
            part.replace(path)
    except OSError as problem:
        raise ConfigError(f"{path} cannot be written: {problem.strerror}") from None
    finally:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
    return {"results": written}
