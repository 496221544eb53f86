"""Refusals: a gRPC status with one line for a person, and details for a program.

UNAUTHENTICATED     no token or certificate, or one that is not known, not for us, or expired
PERMISSION_DENIED   the caller's scope does not cover this camera or method, whether it exists or not
INVALID_ARGUMENT    a request, token or image that can never be answered
NOT_FOUND           no such device, or a model that is not served
OUT_OF_RANGE        a resume token whose results are no longer kept; detail `ResumeGap`
ABORTED             a desired configuration changed since it was read
RESOURCE_EXHAUSTED  too many streams or calls of the caller's tenant at a time
UNIMPLEMENTED       stored results of a newer schema: the API is older than the worker
UNAVAILABLE         the hub or the inference server is away; try again
DEADLINE_EXCEEDED   the caller's deadline, or none given and the answer took too long
INTERNAL            a defect of ours
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from typing import Any, Final, TypeVar

import nats.errors
import structlog
from google.protobuf import any_pb2
from google.protobuf.message import Message
from google.rpc import status_pb2
from grpc import StatusCode
from grpc_status import rpc_status
from nats.js.errors import APIError

from cloud_inference.api.metrics import REFUSALS
from eyeline.errors import EyelineError

_log = structlog.get_logger()

R = TypeVar("R")

# A call without a deadline of its own does not wait for ever.
LONGEST_CALL_S: Final = 60.0
# What a unary call gives back when it ends.
HELD: Final[ContextVar[contextlib.ExitStack | None]] = ContextVar("held", default=None)


class Refusal(Exception):
    """Ends a call with a status."""

    def __init__(self, code: StatusCode, message: str, detail: Message | None = None) -> None:
        super().__init__(message)
        self.code, self.detail = code, detail


def _refusal(problem: BaseException) -> Refusal:
    """The status of any failure; a defect is logged and tells the caller nothing of our inside."""
    match problem:
        case Refusal():
            return problem
        case EyelineError() if problem.retryable:
            return Refusal(StatusCode.UNAVAILABLE, str(problem))
        case EyelineError():
            return Refusal(StatusCode.INVALID_ARGUMENT, str(problem))
        case TimeoutError() | nats.errors.Error() | APIError():
            return Refusal(StatusCode.UNAVAILABLE, "the hub does not answer; try again")
        case _:
            _log.error("api_defect", exc_info=problem)
            return Refusal(StatusCode.INTERNAL, "an internal error, which our log describes")


async def _end(context: Any, refusal: Refusal) -> None:
    REFUSALS.labels(refusal.code.name.lower()).inc()
    code, _ = refusal.code.value
    status = status_pb2.Status(code=code, message=str(refusal))
    if refusal.detail is not None:
        packed = any_pb2.Any()
        packed.Pack(refusal.detail)
        status.details.append(packed)
    metadata = rpc_status.to_status(status).trailing_metadata if refusal.detail is not None else ()
    await context.abort(refusal.code, str(refusal), metadata)


def unary(method: Callable[..., Awaitable[R]]) -> Callable[..., Awaitable[R]]:
    """A unary method of a servicer, whose failures become statuses."""

    @functools.wraps(method)
    async def wrapped(self: Any, request: Any, context: Any) -> Any:
        scope = asyncio.timeout(LONGEST_CALL_S)
        try:
            with contextlib.ExitStack() as held:
                HELD.set(held)
                async with scope:
                    return await method(self, request, context)
        except Exception as problem:  # noqa: BLE001  # mapped, and defects logged
            late = Refusal(StatusCode.DEADLINE_EXCEEDED, f"no answer in {LONGEST_CALL_S:g} s")
            await _end(context, late if scope.expired() else _refusal(problem))

    return wrapped


def streaming(method: Callable[..., Awaitable[None]]) -> Callable[..., Awaitable[None]]:
    """A method that writes its responses to the context, whose failures become statuses."""

    @functools.wraps(method)
    async def wrapped(self: Any, request: Any, context: Any) -> None:
        try:
            await method(self, request, context)
        except Exception as problem:  # noqa: BLE001  # mapped, and defects logged
            await _end(context, _refusal(problem))

    return wrapped
