"""Interceptors before the servicer: tokens, and a time limit for a request to arrive.

A token travels as the gRPC metadata `authorization: Bearer TOKEN` with every call. Several are
valid at once, so that robots can move to a new one before the old one goes. Only hashes of the
tokens stay in memory.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import math
import os
import stat
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import grpc

from tiekd_ros.core.errors import InvalidSettingError

SHORTEST_TOKEN = 16
"""Characters that a token has at least."""

TOKENS_VARIABLE = "TIEKD_TEACHER_TOKENS"
AUTHORIZATION = "authorization"
_LOG = logging.getLogger(__name__)
_SCHEME = "bearer "
_UNAUTHENTICATED_LOG_EVERY_S = 60.0
_LONGEST_CHECK_S = 1.0
_STATUS_WAIT_S = 0.2  # in which gRPC ends a call whose message is too large
# So many refused requests have a line each in so much time; the others are counted.
_MAX_LINES, _LINES_EVERY_S = 20, 60.0
REFUSAL = (
    "this teacher needs a token: send the metadata `authorization: Bearer TOKEN` with one that it "
    "knows"
)


class Tokens:
    """The tokens that a server takes; empty where it asks for none."""

    def __init__(self, file: str = "") -> None:
        """Read tokens; errors as `read_tokens`.

        Args:
            file: where they stand; empty: in the environment variable TIEKD_TEACHER_TOKENS.
        """
        self._digests = [_digest(token.encode()) for token in read_tokens(file, TOKENS_VARIABLE)]

    def accept(self, header: str) -> bool:
        """Say whether an `authorization` header carries one of the tokens.

        Takes the same time for every header of a length, whichever token it is or is not.
        """
        has_scheme = header[: len(_SCHEME)].lower() == _SCHEME
        offered = _digest(header[len(_SCHEME) :].strip().encode(errors="surrogatepass"))
        found = False
        for known in self._digests:
            found |= hmac.compare_digest(known, offered)
        return found and has_scheme

    def __len__(self) -> int:
        """Return how many tokens there are."""
        return len(self._digests)


def read_tokens(file: str, variable: str) -> list[str]:
    """Read tokens, one a line; empty lines and lines that begin with # do not count.

    Args:
        file: where they stand; only its owner and group may have access to it.
        variable: the environment variable that is read where no file is given.

    Returns:
        The tokens; none where there is neither a file nor the variable.

    Raises:
        InvalidSettingError: the source is there and cannot be used; never shows a token.
    """
    if file:
        text, source = _read_secret(Path(file)), f"the token file {file}"
    elif variable in os.environ:
        text, source = os.environ[variable], f"the environment variable {variable}"
    else:
        return []
    lines = [line.strip() for line in text.splitlines()]
    try:
        tokens = [_checked(line) for line in lines if line and not line.startswith("#")]
    except InvalidSettingError as error:
        raise InvalidSettingError(f"{source}: {error}") from error
    if not tokens:
        raise InvalidSettingError(
            f"{source} has no token; write one a line, at least {SHORTEST_TOKEN} characters, "
            "for example from `openssl rand -hex 32`"
        )
    return tokens


def authorization_of(metadata: Iterable[Any] | None) -> str:
    """Return a call's `authorization` header; empty where there is none, or more than one."""
    found = [value for key, value in metadata or () if key.lower() == AUTHORIZATION]
    return found[0] if len(found) == 1 and isinstance(found[0], str) else ""


def _digest(token: bytes) -> bytes:
    return hashlib.sha256(token).digest()


def _checked(token: str) -> str:
    if len(token) < SHORTEST_TOKEN:
        raise InvalidSettingError(
            f"a token has {len(token)} characters; use at least {SHORTEST_TOKEN}, for example "
            "from `openssl rand -hex 32`"
        )
    if not all("!" <= character <= "~" for character in token):
        raise InvalidSettingError(
            "a token has a space or a character outside ASCII, which a header does not carry; "
            "make one with `openssl rand -hex 32`"
        )
    return token


def _read_secret(path: Path) -> str:
    try:
        with path.open(encoding="utf-8") as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            if mode & stat.S_IRWXO:
                raise InvalidSettingError(
                    f"the token file {path} is open to everybody on this machine (mode "
                    f"{mode:03o}); close it: chmod 600 {path}"
                )
            return file.read()
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidSettingError(f"cannot read the token file {path}: {error}") from error


class TokenInterceptor(grpc.ServerInterceptor):  # type: ignore[misc]
    """Answers calls without a good token with UNAUTHENTICATED, before it reads what they send."""

    def __init__(self, tokens: Tokens, on_refused: Callable[[], object]) -> None:
        """Take calls that carry one of `tokens`; call `on_refused` for each of the others."""
        self._tokens = tokens
        self._on_refused = on_refused
        self._lock = threading.Lock()  # guards the two that follow
        self._unlogged = 0
        self._logged_s = -math.inf
        # A handler for a stream of requests begins before the first has come: a refused
        # caller's megabytes are never read.
        self._refusing = grpc.stream_unary_rpc_method_handler(self._refuse)

    def intercept_service(self, continuation: Any, handler_call_details: Any) -> Any:
        """Let the call through, or put the refusal in its place."""
        if self._tokens.accept(authorization_of(handler_call_details.invocation_metadata)):
            return continuation(handler_call_details)
        return self._refusing

    def _refuse(self, requests: Any, context: Any) -> None:
        self._on_refused()
        self._log(context.peer())
        context.abort(grpc.StatusCode.UNAUTHENTICATED, REFUSAL)

    def _log(self, peer: str) -> None:
        """Log calls seldom: a client that guesses tokens, or forgot one, asks often."""
        with self._lock:
            self._unlogged += 1
            if time.monotonic() - self._logged_s < _UNAUTHENTICATED_LOG_EVERY_S:
                return
            count, self._unlogged, self._logged_s = self._unlogged, 0, time.monotonic()
        _LOG.warning("%d call(s) without a valid token, the last from %s", count, peer)


class RequestTimeoutInterceptor(grpc.ServerInterceptor):  # type: ignore[misc]
    """Receives each call's one request within a time limit, and logs how the call ended.

    gRPC for Python gives a call its thread before the request is there, waits for it without end,
    and answers bytes that are no message as an error of its own. Here a caller that does not send
    is cut off, and garbage is an INVALID_ARGUMENT.
    """

    def __init__(self, timeout_s: float) -> None:
        """Cut calls off whose request is not there after `timeout_s`; until `close`."""
        self._timeout_s = timeout_s
        self._lock = threading.Lock()  # guards `_receiving`
        self._receiving: set[_PendingCall] = set()
        self._closed = threading.Event()
        self._refusals = _RefusalLog()
        threading.Thread(target=self._watch, name="teacher_receive", daemon=True).start()

    def close(self) -> None:
        """End the thread that watches calls, and log what was only counted so far."""
        self._closed.set()
        self._refusals.log_count()

    def intercept_service(self, continuation: Any, handler_call_details: Any) -> Any:
        """Put the time limit before a method of one request and one answer."""
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
                level > logging.DEBUG and _LOG.isEnabledFor(level) and self._refusals.has_line()
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
        with self._time_limit(context) as pending:
            data: bytes | None = None
            with suppress(grpc.RpcError):  # where the call has ended while it waited
                data = next(requests, None)
        if data is None:
            # A call that has ended does not carry this to its caller: it is for the log.
            if pending.cut_off:
                context.abort(
                    grpc.StatusCode.DEADLINE_EXCEEDED,
                    f"{name} did not come within receive_timeout_s = {self._timeout_s:g}",
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
    def _time_limit(self, context: Any) -> Iterator[_PendingCall]:
        pending = _PendingCall(context, time.monotonic() + self._timeout_s)
        with self._lock:
            self._receiving.add(pending)
        try:
            yield pending
        finally:
            with self._lock:
                self._receiving.remove(pending)

    def _watch(self) -> None:
        while not self._closed.wait(min(_LONGEST_CHECK_S, self._timeout_s / 4)):
            now = time.monotonic()
            self._refusals.log_count(now)
            with self._lock:
                late = [each for each in self._receiving if now > each.deadline_s]
            for each in late:
                each.cut_off = True  # before the thread that waits for it wakes up
                each.context.cancel()


class _PendingCall:
    """A call whose request is not there yet."""

    def __init__(self, context: Any, deadline_s: float) -> None:
        self.context, self.deadline_s, self.cut_off = context, deadline_s, False


class _RefusalLog:
    """Keeps a client that is refused again and again from filling the disk with log lines."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._until_s = 0.0
        self._count = 0

    def has_line(self) -> bool:
        """Count one refused request; return whether it gets a line of its own."""
        now = time.monotonic()
        with self._lock:
            if now >= self._until_s and self._count <= _MAX_LINES:
                self._until_s, self._count = now + _LINES_EVERY_S, 0
            self._count += 1
            return self._count <= _MAX_LINES

    def log_count(self, now: float = math.inf) -> None:
        """Log how many got no line, where the time for that has come."""
        with self._lock:
            left = self._count - _MAX_LINES
            if now < self._until_s or left <= 0:
                return
            self._count = 0
        _LOG.info("%d more requests were refused or given up; debug tells of each", left)


def _has_ended(context: Any) -> bool:
    """Say whether the call has ended: the caller's doing, or gRPC's for its message's size."""
    ended = threading.Event()
    return not context.add_callback(ended.set) or ended.wait(_STATUS_WAIT_S)


def _text(details: Any) -> str:
    return details.decode(errors="replace") if isinstance(details, bytes) else str(details or "")
