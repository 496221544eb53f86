"""Messages from templates: `$name` or `${name}` stands for a part of the result, `$$` for a dollar sign."""

from __future__ import annotations

import json
import string
from collections.abc import Callable
from typing import Any, Final

from eyeline import show
from eyeline._status import one_line
from eyeline.errors import ConfigError
from eyeline.moments import format_moment
from eyeline.v1 import result_pb2
from eyeline.values import Result

PARTS: Final[dict[str, Callable[[Result], Any]]] = {
    "site": lambda r: r.site,
    "camera": lambda r: r.camera,
    "device": lambda r: r.device,
    "epoch": lambda r: r.epoch.counter,
    "sequence": lambda r: r.sequence,
    "last_sequence": lambda r: r.last_sequence,
    "frames": lambda r: r.frames,
    "revision": lambda r: r.revision,
    "final": lambda r: r.final,
    "late": lambda r: r.late,
    "provenance": lambda r: r.provenance.name,
    "reason": lambda r: r.reason,
    "model": lambda r: r.model,
    "captured": lambda r: format_moment(r.captured_ns),
    "captured_ns": lambda r: r.captured_ns,
    "answered_ns": lambda r: r.answered_ns,
    "delay_ms": lambda r: round((r.answered_ns - r.captured_ns) / 1e6, 1) if r.captured_ns else None,
    "count": lambda r: len(r.detections),
    "summary": lambda r: show.summary(r.detections),
    "classes": lambda r: sorted(set(r.detections.class_names)),
    "detections": lambda r: show.detection_objects(r.detections),
    "result": show.result_object,
}


_SAMPLE: Final = Result.from_proto(
    result_pb2.Result(
        key=result_pb2.FrameKey(site="site", camera="camera", sequence=1),
        provenance=result_pb2.PROVENANCE_CLOUD,
        times=result_pb2.StageTimes(captured_ns=1, answered_ns=2),
    )
)


class Template(string.Template):
    """A text with places for parts of a result; raises `ConfigError` for one that there is not.

    In JSON (`as_json`), texts are escaped for the inside of quotes, and everything else is a JSON value.
    """

    idpattern = r"(?a:[_a-z][_a-z0-9]*)"

    def __init__(self, text: str, *, as_json: bool = True) -> None:
        super().__init__(text)
        self._as_json = as_json
        if not self.is_valid():
            raise ConfigError(f"template {text[:60]!r}: a lone '$' must be written '$$'")
        for name in self.get_identifiers():
            if name not in PARTS:
                raise ConfigError(f"template: there is no ${name}; there are: {', '.join(sorted(PARTS))}")

    def check_json(self) -> None:
        """Raises `ConfigError` for a template that makes no JSON of a result."""
        try:
            json.loads(self.render(_SAMPLE))
        except ValueError as problem:
            raise ConfigError(
                f"template: no JSON comes of it ({problem}); texts need quotes, as in "
                '{"camera": "$camera", "count": $count}; --text is for plain text'
            ) from None

    def render(self, result: Result) -> str:
        """The text for a result."""
        return self.substitute({name: self._text(PARTS[name](result)) for name in self.get_identifiers()})

    def _text(self, value: Any) -> str:
        if isinstance(value, str):
            clean = one_line(value)
            return json.dumps(clean)[1:-1] if self._as_json else clean
        return json.dumps(value, separators=(",", ":"))
