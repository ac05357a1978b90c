"""Which gRPC status a request that gets no label is answered with."""

from __future__ import annotations

import grpc

from tiekd_ros.errors import BadImageError
from tiekd_ros.teacher.errors import (
    BackendRefusal,
    BadRequestError,
    BusyError,
    CallerGoneError,
    LateError,
    StoppingError,
)


class UnknownModelError(Exception):
    """The request names another model or version."""


class BlindAnswerError(Exception):
    """The teacher's label says nothing: an overflow in its arithmetic, most likely."""


# The first that fits: the three before it are BusyErrors too.
STATUS_CODES: dict[type[Exception], grpc.StatusCode] = {
    BadRequestError: grpc.StatusCode.INVALID_ARGUMENT,
    BadImageError: grpc.StatusCode.INVALID_ARGUMENT,
    BackendRefusal: grpc.StatusCode.FAILED_PRECONDITION,
    UnknownModelError: grpc.StatusCode.NOT_FOUND,
    StoppingError: grpc.StatusCode.UNAVAILABLE,
    LateError: grpc.StatusCode.DEADLINE_EXCEEDED,
    CallerGoneError: grpc.StatusCode.CANCELLED,
    BusyError: grpc.StatusCode.RESOURCE_EXHAUSTED,
    BlindAnswerError: grpc.StatusCode.INTERNAL,
}


def status_code(error: Exception) -> grpc.StatusCode:
    """Return the status of an error of one of `STATUS_CODES`' types."""
    return next(code for kind, code in STATUS_CODES.items() if isinstance(error, kind))
