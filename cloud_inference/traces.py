"""Traces by OTLP: what a frame went through, from its capture to its subscriber, as spans.

The agent starts a trace for some of its envelopes (`trace_share`); their results carry the context and when
each stage was passed, on the hub's clock. So spans are made here, afterwards, and cost the stages nothing:
the device's as well, which needs no exporter. Needs the extra `traces`.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Final

from cloud_inference.config import TracesSettings
from eyeline.errors import ConfigError
from eyeline.traceparent import Traceparent
from eyeline.v1 import result_pb2

try:
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import ReadableSpan
    from opentelemetry.sdk.trace.export import BatchSpanProcessor
    from opentelemetry.trace import SpanContext, TraceFlags
except ImportError:
    INSTALLED = False
else:
    INSTALLED = True

# Name, what it ran on, and the stage times that it lies between.
_STAGES: Final = (
    ("publish", "edge", "captured_ns", "published_ns"),
    ("deliver", "hub", "published_ns", "hub_stored_ns"),
    ("wait", "hub", "hub_stored_ns", "consumed_ns"),
    ("decode", "worker", "consumed_ns", "decoded_ns"),
    ("queue", "worker", "decoded_ns", "infer_start_ns"),
    ("infer", "triton", "infer_start_ns", "infer_end_ns"),
    ("track and store", "worker", "infer_end_ns", "answered_ns"),
)
_REMEMBERED: Final = 1000


@dataclass(frozen=True, slots=True)
class Span:
    """What happened, in which part, from when to when (ns since the epoch)."""

    name: str
    part: str
    start_ns: int
    end_ns: int


def stages(times: result_pb2.StageTimes) -> Iterator[Span]:
    """Every stage that was passed."""
    for name, part, first, last in _STAGES:
        start_ns, end_ns = getattr(times, first), getattr(times, last)
        if start_ns and end_ns:
            yield Span(name, part, start_ns, end_ns)


class Traces:
    """Sends spans in batches, from a thread of its own; drops them when the collector is away."""

    def __init__(self, endpoint: str) -> None:
        self._processor = BatchSpanProcessor(OTLPSpanExporter(endpoint=endpoint, timeout=5))
        # Traces whose first picture was told: its span is the one that the context names.
        self._begun: dict[int, None] = {}

    def answered(self, results: Iterable[result_pb2.Result]) -> None:
        """Final results are stored: a span for each frame with pixels, and one for each stage in it."""
        for result in results:
            if result.provenance == result_pb2.PROVENANCE_CLOUD:
                self._answered(result)

    def _answered(self, result: result_pb2.Result) -> None:
        parent = Traceparent.parse(result.traceparent)
        if parent is None or not parent.sampled or not result.times.captured_ns:
            return
        first = parent.trace_id not in self._begun
        self._begun[parent.trace_id] = None
        if len(self._begun) > _REMEMBERED:
            del self._begun[next(iter(self._begun))]
        whole = parent if first else _child(parent)
        key = result.key
        about = {
            "eyeline.tenant": key.tenant,
            "eyeline.camera": f"{key.site}/{key.camera}",
            "eyeline.device": result.device,
            "eyeline.sequence": key.sequence,
            "eyeline.provenance": result_pb2.Provenance.Name(result.provenance).removeprefix("PROVENANCE_"),
            "eyeline.model": f"{result.model.name}:{result.model.version}",
            "eyeline.coded_bytes": result.coded_bytes,
        }
        times = result.times
        above = None if first else parent
        self._emit(Span("frame", "worker", times.captured_ns, times.answered_ns), whole, above, about)
        for span in stages(times):
            self._emit(span, _child(parent), whole, {})

    def delivered(self, result: result_pb2.Result, now_ns: int) -> None:
        """A subscriber was given the result."""
        parent = Traceparent.parse(result.traceparent)
        if parent is None or not parent.sampled or not result.times.answered_ns:
            return
        span = Span("to subscriber", "api", result.times.answered_ns, now_ns)
        self._emit(span, _child(parent), parent, {"eyeline.sequence": result.key.sequence})

    def close(self) -> None:
        """Send what waits."""
        self._processor.shutdown()  # type: ignore[no-untyped-call]

    def _emit(self, span: Span, own: Traceparent, above: Traceparent | None, about: dict[str, Any]) -> None:
        self._processor.on_end(
            ReadableSpan(
                span.name,
                _context(own),
                _context(above) if above is not None else None,
                Resource({"service.name": f"eyeline-{span.part}"}),
                attributes=about,
                start_time=span.start_ns,
                # Clocks differ by their uncertainty.
                end_time=max(span.start_ns, span.end_ns),
            )
        )


def _context(of: Traceparent) -> SpanContext:
    flags = TraceFlags(TraceFlags.SAMPLED)
    return SpanContext(of.trace_id, of.span_id, is_remote=False, trace_flags=flags)


def _child(parent: Traceparent) -> Traceparent:
    return Traceparent(parent.trace_id, secrets.randbits(64) or 1)


def load(settings: TracesSettings) -> Traces | None:
    """As configured: None without an endpoint; raises `ConfigError` when the extra is not installed."""
    if settings.endpoint is None:
        return None
    if not INSTALLED:
        raise ConfigError(
            "traces.endpoint is set, but OpenTelemetry is not installed: pip install 'eyeline[traces]'"
        )
    return Traces(settings.endpoint)
