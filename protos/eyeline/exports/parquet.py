"""Apache Parquet: a row a detection, and one without object for each result that has none."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final, Self

from eyeline.errors import ConfigError
from eyeline.optional import needed
from eyeline.values import Result

# Name, type and whether it may be empty. Times are UTC, boxes source pixels.
COLUMNS: Final = (
    ("site", "dictionary"),
    ("camera", "dictionary"),
    ("device", "dictionary"),
    ("epoch", "uint64"),
    ("epoch_id", "dictionary"),
    ("sequence", "uint64"),
    ("last_sequence", "uint64"),
    ("frames", "uint32"),
    ("revision", "uint32"),
    ("final", "bool"),
    ("provenance", "dictionary"),
    ("reason", "dictionary"),
    ("model", "dictionary"),
    ("model_version", "dictionary"),
    ("captured", "timestamp"),
    ("answered", "timestamp"),
    ("late", "bool"),
    ("source_width_px", "uint32"),
    ("source_height_px", "uint32"),
    ("coded_bytes", "uint32"),
    ("object", "uint32"),
    ("class", "dictionary"),
    ("class_id", "int32"),
    ("score", "float"),
    ("x1_px", "float"),
    ("y1_px", "float"),
    ("x2_px", "float"),
    ("y2_px", "float"),
    ("track_id", "uint64"),
)
_ROWS: Final = 50_000


class Writer:
    """Writes results as they come, in bounded memory; a context manager. Raises `ConfigError`.

    keep: False leaves what was at that path as it is.
    """

    def __init__(self, path: Path) -> None:
        self._pa, self._pq = needed("pyarrow", "export"), needed("pyarrow.parquet", "export")
        self._path, self._part = path, path.with_name(path.name + ".part")
        self._schema = self._pa.schema([self._field(*column) for column in COLUMNS])
        self._rows: list[tuple[Any, ...]] = []
        self.results = self.rows = 0
        self.keep = True
        try:
            self._file = self._pq.ParquetWriter(self._part, self._schema, compression="zstd")
        except OSError as problem:
            raise ConfigError(f"{path} cannot be written: {problem.strerror or problem}") from None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is None:
            self._flush()
        self._file.close()
        if kind is None and self.keep:
            self._part.replace(self._path)
        else:
            self._part.unlink(missing_ok=True)

    def add(self, results: Iterable[Result]) -> None:
        """Add results, in any order."""
        for result in results:
            self.results += 1
            self._rows += _rows(result)
            if len(self._rows) >= _ROWS:
                self._flush()

    def _flush(self) -> None:
        columns = list(zip(*self._rows, strict=True)) or [()] * len(COLUMNS)
        self.rows += len(self._rows)
        self._rows = []
        arrays = [
            self._pa.array(column, type=field.type)
            for column, field in zip(columns, self._schema, strict=True)
        ]
        self._file.write_table(self._pa.Table.from_arrays(arrays, schema=self._schema))

    def _field(self, name: str, kind: str) -> Any:
        pa = self._pa
        types = {
            "dictionary": pa.dictionary(pa.int32(), pa.string()),
            "timestamp": pa.timestamp("ns", tz="UTC"),
            "float": pa.float32(),
            "bool": pa.bool_(),
        }
        return pa.field(name, types.get(kind) or getattr(pa, kind)())


def _rows(result: Result) -> list[tuple[Any, ...]]:
    head = (
        result.site,
        result.camera,
        result.device,
        result.epoch.counter,
        result.epoch.random_id.hex(),
        result.sequence,
        result.last_sequence,
        result.frames,
        result.revision,
        result.final,
        result.provenance.name,
        result.reason or None,
        result.model or None,
        result.model_version or None,
        result.captured_ns or None,
        result.answered_ns or None,
        result.late,
        result.source_size[0] or None,
        result.source_size[1] or None,
        result.proto.coded_bytes or None,
    )
    found = result.detections
    if not len(found):
        return [(*head, *(None,) * (len(COLUMNS) - len(head)))]
    return [
        (
            *head,
            row,
            found.class_names[row],
            int(found.class_ids[row]),
            float(found.scores[row]),
            *found.boxes[row].tolist(),
            int(found.track_ids[row]) or None,
        )
        for row in range(len(found))
    ]
