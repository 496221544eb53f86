"""From a gRPC status to our errors: the one place that knows both."""

from __future__ import annotations

import re
from typing import Any, Final

import grpc
from google.protobuf.message import DecodeError
from google.rpc import status_pb2
from grpc import StatusCode

from eyeline import errors
from eyeline.moments import format_moment
from eyeline.v1 import result_pb2

# StatusCode -> error, and what to do about it. OUT_OF_RANGE with a `ResumeGap` detail is a ResumeGapError.
ERRORS: Final[dict[StatusCode, tuple[type[errors.ApiError], str]]] = {
    StatusCode.CANCELLED: (
        errors.Unavailable,
        "the server ended the call, as it does when it stops; try again",
    ),
    StatusCode.UNKNOWN: (errors.ServerError, "look into the server's log"),
    StatusCode.INVALID_ARGUMENT: (errors.InvalidRequest, ""),
    StatusCode.DEADLINE_EXCEEDED: (errors.DeadlineExceeded, "try again, or allow more time"),
    StatusCode.NOT_FOUND: (errors.NotFound, ""),
    StatusCode.ALREADY_EXISTS: (errors.Conflict, "read it again, then retry"),
    StatusCode.PERMISSION_DENIED: (errors.PermissionDenied, "ask for a token that allows it"),
    StatusCode.RESOURCE_EXHAUSTED: (errors.ResourceExhausted, "try again later, with less at a time"),
    StatusCode.FAILED_PRECONDITION: (errors.InvalidRequest, ""),
    StatusCode.ABORTED: (errors.Conflict, "read it again, then retry"),
    StatusCode.OUT_OF_RANGE: (errors.InvalidRequest, ""),
    StatusCode.UNIMPLEMENTED: (errors.ServerError, "the server does not offer this; update it"),
    StatusCode.INTERNAL: (errors.ServerError, "look into the server's log"),
    StatusCode.UNAVAILABLE: (errors.Unavailable, ""),
    StatusCode.DATA_LOSS: (errors.ServerError, "look into the server's log"),
    StatusCode.UNAUTHENTICATED: (errors.Unauthenticated, "give a token that the server knows"),
}
_DETAILS_KEY: Final = "grpc-status-details-bin"
_MAX_MESSAGE: Final = 300
# What gRPC itself says when no connection comes about; all else comes from the server.
_NO_CONNECTION = re.compile(
    r"failed to connect|connections? to all|name resolution|dns |socket closed|goaway|connection reset|"
    r"keepalive|ping timeout|handshake|ssl_error|broken pipe|end of tcp stream|endpoint clos|recvmsg|"
    r"tcp stream shutdown|transport clos|endpoint read failed|cancelling all calls",
    re.IGNORECASE,
)
_CAUSE = re.compile(
    r"connection refused|connection reset|network is unreachable|no route to host|timed? ?out|"
    r"certificate verify failed|wrong version number|domain name not found|name resolution|socket closed",
    re.IGNORECASE,
)


def from_rpc(problem: grpc.RpcError, address: str) -> errors.ApiError:
    """The error of a failed call; its one line names the server and what to do."""
    code = problem.code()
    said = one_line(problem.details() or "")
    if code is StatusCode.OUT_OF_RANGE and (gap := _resume_gap(problem)) is not None:
        return gap_error(gap, said, address)
    kind, advice = ERRORS.get(code, (errors.ServerError, f"status {code}"))
    name = code.name if isinstance(code, StatusCode) else str(code)
    if code is StatusCode.UNAVAILABLE and (not said or _NO_CONNECTION.search(said)):
        cause = _CAUSE.search(said)
        why = f" ({cause.group().lower()})" if cause else ""
        line = f"{address} cannot be reached{why}: check the address, TLS, and that the API runs there"
    else:
        line = f"{address}: {said or name.lower()}"
        if advice:
            line += f"; {advice}"
    return kind(line, status=name, server_message=said)


def one_line(text: str) -> str:
    """Printable, on one line, and not too long."""
    clean = "".join(character if character.isprintable() else " " for character in text)
    return " ".join(clean.split())[:_MAX_MESSAGE]


def _resume_gap(problem: grpc.RpcError) -> result_pb2.ResumeGap | None:
    metadata: Any = problem.trailing_metadata()
    for key, value in metadata or ():
        if key == _DETAILS_KEY and isinstance(value, bytes):
            try:
                status = status_pb2.Status.FromString(value)
                for detail in status.details:
                    gap = result_pb2.ResumeGap()
                    if detail.Unpack(gap):
                        return gap
            except DecodeError:
                return None
    return None


def gap_error(gap: result_pb2.ResumeGap, said: str, address: str) -> errors.ResumeGapError:
    count = f"{gap.missing_messages} stored messages" if gap.missing_messages else "results"
    line = (
        f"{address}: {count} between {_when(gap.token_time_ns)} and {_when(gap.oldest_time_ns)}"
        " are no longer kept; go on from the oldest kept, or from a time"
    )
    return errors.ResumeGapError(
        line,
        server_message=said,
        token_ns=gap.token_time_ns,
        oldest_ns=gap.oldest_time_ns,
        missing_messages=gap.missing_messages,
    )


def _when(ns: int) -> str:
    return format_moment(ns) if ns else "an unknown time"
