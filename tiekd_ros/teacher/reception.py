"""What stands between gRPC and the servicer: requests are received with patience, and logged.

gRPC for Python gives a call its thread before the request is there, waits for it without end, and
answers bytes that are no message as an error of its own. Here a caller that does not send is cut
off, and garbage is an INVALID_ARGUMENT.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import grpc

_LOG = logging.getLogger(__name__)
_LONGEST_LOOK_S = 1.0
_VERDICT_S = 0.2  # in which gRPC ends a call whose message is too large
# So many refused requests have a line each in so much time; the others are counted.
_MOST_LINES, _LINES_EVERY_S = 20, 60.0


class Reception(grpc.ServerInterceptor):  # type: ignore[misc]
    """Receives each call's one request, hands it to the servicer and logs how that went."""

    def __init__(self, patience_s: float) -> None:
        """Cut callers off whose request is not there after `patience_s`; until `close`."""
        self._patience_s = patience_s
        self._lock = threading.Lock()
        self._receiving: set[_Awaited] = set()
        self._closed = threading.Event()
        self._refused = _Refused()
        threading.Thread(target=self._watch, name="teacher_reception", daemon=True).start()

    def close(self) -> None:
        """End the thread that watches callers, and tell of what was not told yet."""
        self._closed.set()
        self._refused.sum_up()

    def intercept_service(self, continuation: Any, handler_call_details: Any) -> Any:
        """Put the reception before a method of one request and one answer."""
        handler = continuation(handler_call_details)
        if handler is None or handler.request_streaming or handler.response_streaming:
            return handler
        name = handler_call_details.method.rpartition("/")[2]

        def receive(requests: Any, context: Any) -> Any:
            return self._logged(name, handler, requests, context)

        # As a stream of requests, which it is on the wire: so the method begins before the
        # request is there, and gets it as the bytes that came.
        return grpc.stream_unary_rpc_method_handler(
            receive, response_serializer=handler.response_serializer
        )

    def _logged(self, name: str, handler: Any, requests: Any, context: Any) -> Any:
        started_ns, peer = time.monotonic_ns(), context.peer()  # which an ended call forgets
        try:
            return self._answer(name, handler, requests, context)
        finally:
            gone = not context.is_active()
            done = grpc.StatusCode.CANCELLED if gone else grpc.StatusCode.OK
            code = context.code() or done
            level = logging.DEBUG if code is grpc.StatusCode.OK else logging.INFO
            if _LOG.isEnabledFor(logging.DEBUG) or (
                level > logging.DEBUG and _LOG.isEnabledFor(level) and self._refused.tell()
            ):
                facts = {
                    "method": name,
                    "code": code.name,
                    "peer": peer,
                    "ms": round((time.monotonic_ns() - started_ns) / 1e6, 1),
                    "details": _text(context.details()),
                }
                _LOG.log(level, "request", extra={"facts": facts})

    def _answer(self, name: str, handler: Any, requests: Any, context: Any) -> Any:
        with self._patience(context) as awaited:
            data: bytes | None = None
            with suppress(grpc.RpcError):  # where the call has ended while it waited
                data = next(requests, None)
        if data is None:
            # Whoever is ended has heard it, or does not listen: here it is for the log.
            if awaited.cut_off:
                context.abort(
                    grpc.StatusCode.DEADLINE_EXCEEDED,
                    f"{name} did not come within receive_timeout_s = {self._patience_s:g}",
                )
            if _has_ended(context):
                context.abort(
                    grpc.StatusCode.CANCELLED,
                    "the caller ended it, or its message was larger than max_message_mb",
                )
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"{name} came without a request")
        assert data is not None  # abort raises
        try:
            request = handler.request_deserializer(data)
        except Exception:  # protobuf's own type depends on how it was built
            context.abort(
                grpc.StatusCode.INVALID_ARGUMENT,
                f"{len(data)} bytes are no request of {name} in the Open Inference Protocol v2",
            )
        del data  # the message has its own copy
        try:
            return handler.unary_unary(request, context)
        except NotImplementedError:
            context.abort(grpc.StatusCode.UNIMPLEMENTED, f"this teacher server has no {name}")

    @contextmanager
    def _patience(self, context: Any) -> Iterator[_Awaited]:
        awaited = _Awaited(context, time.monotonic() + self._patience_s)
        with self._lock:
            self._receiving.add(awaited)
        try:
            yield awaited
        finally:
            with self._lock:
                self._receiving.remove(awaited)

    def _watch(self) -> None:
        while not self._closed.wait(min(_LONGEST_LOOK_S, self._patience_s / 4)):
            now = time.monotonic()
            self._refused.sum_up(now)
            with self._lock:
                late = [each for each in self._receiving if now > each.until]
            for each in late:
                each.cut_off = True  # before the thread that waits for it wakes up
                each.context.cancel()


class _Awaited:
    """A call whose request is not there yet."""

    def __init__(self, context: Any, until: float) -> None:
        self.context, self.until, self.cut_off = context, until, False


class _Refused:
    """Keeps a client that is refused again and again from filling the disk with log lines."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._until = 0.0
        self._count = 0

    def tell(self) -> bool:
        """Count one refused request; return whether it gets a line of its own."""
        now = time.monotonic()
        with self._lock:
            if now >= self._until and self._count <= _MOST_LINES:
                self._until, self._count = now + _LINES_EVERY_S, 0
            self._count += 1
            return self._count <= _MOST_LINES

    def sum_up(self, now: float = math.inf) -> None:
        """Tell how many got no line, where the time for that has come."""
        with self._lock:
            left = self._count - _MOST_LINES
            if now < self._until or left <= 0:
                return
            self._count = 0
        _LOG.info("%d more requests were refused or given up; debug tells of each", left)


def _has_ended(context: Any) -> bool:
    """Say whether the call has ended: the caller's doing, or gRPC's for its message's size."""
    ended = threading.Event()
    return not context.add_callback(ended.set) or ended.wait(_VERDICT_S)


def _text(details: Any) -> str:
    return details.decode(errors="replace") if isinstance(details, bytes) else str(details or "")
