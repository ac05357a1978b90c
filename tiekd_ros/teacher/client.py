"""The robot's connection to a teacher server: one attempt a call, within a deadline.

A call that fails says in its error's type what to do. When to try again is the caller's affair:
`framelog.labeller` alone waits and repeats.
"""

from __future__ import annotations

import math
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from tritonclient.grpc import InferenceServerClient
from tritonclient.utils import InferenceServerException

from tiekd_ros.core import Closing
from tiekd_ros.core.errors import InvalidSettingError
from tiekd_ros.teacher.errors import (
    RelativeTeacherError,
    TeacherBusyError,
    TeacherDeniedError,
    TeacherError,
    TeacherFailedError,
    TeacherRefusedError,
    TeacherUnreachableError,
    WrongTeacherError,
)
from tiekd_ros.teacher.protocol import (
    MODEL_NAME,
    DepthAnswer,
    DepthRequest,
    TeacherIdentity,
    infer_arguments,
    read_answer,
)
from tiekd_ros.teacher.settings import ClientSettings
from tiekd_ros.teacher.tls import Credentials, read_credentials

__all__ = ["ClientSettings", "TeacherClient", "TrafficSnapshot"]

_WINDOW = 300  # answers
_BUSY_RETRY_S = 2.0
"""A full queue moves within seconds: no reason to wait for it as for a server that is away."""

_NO_ANSWER = frozenset(("UNAVAILABLE", "DEADLINE_EXCEEDED", "CANCELLED"))
_REFUSALS = frozenset(("INVALID_ARGUMENT", "FAILED_PRECONDITION", "OUT_OF_RANGE"))
_BREAKDOWNS = frozenset(("INTERNAL", "UNKNOWN", "DATA_LOSS", "ABORTED"))
_DENIALS = frozenset(("UNAUTHENTICATED", "PERMISSION_DENIED"))
# gRPC also reports a connection that broke off within an answer as INTERNAL or UNKNOWN, which
# must not count against the image.
_CUT_OFF = ("RST_STREAM", "Stream removed", "Socket closed", "Connection reset", "GOAWAY")
# In gRPC's words for certificates that do not do, and for a server without TLS; both come as
# UNAVAILABLE. "handshake" alone says nothing: a network that swallows everything has it too.
_NO_TLS = ("CERTIFICATE", "SSL_ERROR", "WRONG_VERSION_NUMBER", "Hostname Verification")
# gRPC reports a message over the size limit as RESOURCE_EXHAUSTED, with this in its text; a
# server that is merely busy does not say it.
_TOO_LARGE = "larger than max"


@dataclass(frozen=True)
class TrafficSnapshot:
    """Answers so far, and what the last 300 of them took; NaN where there is none yet."""

    answers: int
    round_trip_p50_s: float
    """From sending an image to having its answer, by a monotonic clock."""
    round_trip_p95_s: float
    bytes_up: float
    """Mean size of an encoded image as it was sent."""
    bytes_down: float
    """Mean size of an answer's message."""


class Traffic:
    """Counts answers; safe to use from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._answers = 0
        self._last: deque[tuple[float, int, int]] = deque(maxlen=_WINDOW)

    def add(self, round_trip_s: float, bytes_up: int, bytes_down: int) -> None:
        """Count one answer."""
        with self._lock:
            self._answers += 1
            self._last.append((round_trip_s, bytes_up, bytes_down))

    def snapshot(self) -> TrafficSnapshot:
        """Return the present state."""
        with self._lock:
            answers, last = self._answers, list(self._last)
        if not last:
            return TrafficSnapshot(answers, *(math.nan,) * 4)
        times, up, down = np.array(last, np.float64).T
        p50, p95 = np.percentile(times, (50, 95))
        return TrafficSnapshot(
            answers, float(p50), float(p95), float(up.mean()), float(down.mean())
        )


class _Connection:
    """One gRPC channel, which connects with its first call, and who answers on it."""

    def __init__(self, settings: ClientSettings, credentials: Credentials) -> None:
        name = credentials.server_name
        self.headers = credentials.headers
        self.identity: TeacherIdentity | None = None  # assigned whole, so no lock guards it
        self.client = InferenceServerClient(
            settings.url,
            creds=credentials.channel,
            channel_args=[
                ("grpc.max_send_message_length", settings.max_message_mb << 20),
                ("grpc.max_receive_message_length", settings.max_message_mb << 20),
                *([("grpc.ssl_target_name_override", name)] if name else []),
                # A new connection must not inherit a dead one from gRPC's shared pool.
                ("grpc.use_local_subchannel_pool", 1),
                # The teacher stands in the robot's own network, never behind a web proxy.
                ("grpc.enable_http_proxy", 0),
            ],
        )


class TeacherClient(Closing):
    """Asks one teacher server; safe to use from several threads.

    A connection serves until a call on it fails; the next call makes another, with token and
    certificates as they are then.
    """

    def __init__(
        self,
        settings: ClientSettings | None = None,
        *,
        allow_relative: bool = False,
        require_credentials: bool = True,
    ) -> None:
        """Prepare; nothing connects before the first call.

        Args:
            settings: where the teacher is.
            allow_relative: take answers of a teacher that does not say it is metric; for
                callers that scale them.
            require_credentials: refuse to begin without usable token and certificates. Else
                calls raise TeacherDeniedError until they can be used (see `obstacle`).

        Raises:
            InvalidSettingError: the settings name no teacher; or, where they are required, a
                token or certificate cannot be used, or the token would travel for everybody to
                read.
        """
        self.settings = settings or ClientSettings()
        if not self.settings.url:
            raise InvalidSettingError("url is empty: a client needs the teacher's host:port")
        if require_credentials:  # each connection reads them anew; they may be exchanged
            read_credentials(self.settings)
        self.traffic = Traffic()
        self._allow_relative = allow_relative
        self._lock = threading.Lock()  # guards all that follows
        self._closed = False
        self._current: _Connection | None = None
        # A replaced connection lives on until the calls on it have ended; close() ends those too.
        self._connections: weakref.WeakSet[_Connection] = weakref.WeakSet()

    def identity(self) -> TeacherIdentity:
        """Return who the teacher is, read once a connection.

        Raises:
            RelativeTeacherError: it does not say that its depth is metric, and
                `allow_relative` is off.
            WrongTeacherError: it is not the one that the settings pin.
            TeacherUnreachableError: no usable answer (TeacherDeniedError, TeacherBusyError).
        """
        connection = self._connect()
        return self._accept(connection, self._identify(connection))

    def ready(self) -> bool:
        """Say whether the teacher labels images now.

        Raises:
            TeacherUnreachableError: no usable answer.
        """
        connection = self._connect()
        is_ready = connection.client.is_model_ready
        return bool(self._call(connection, is_ready, model_name=MODEL_NAME))

    def obstacle(self) -> str:
        """Return what keeps token and certificates from being used now; empty = nothing."""
        try:
            read_credentials(self.settings)
        except InvalidSettingError as error:
            return str(error)
        return ""

    @property
    def known_teacher(self) -> TeacherIdentity | None:
        """Who answered last on this connection, without asking."""
        with self._lock:
            return None if self._current is None else self._current.identity

    def infer(self, request: DepthRequest) -> DepthAnswer:
        """Return the teacher's answer to one image, unchecked but for the protocol.

        Each of its calls, one or on a new connection two, lasts `timeout_s` at most.

        Raises:
            TeacherRefusedError: the teacher will not label this image.
            TeacherAnswerError: the answer breaks the protocol.
            RelativeTeacherError: the teacher is not metric, and `allow_relative` is off.
            WrongTeacherError: it is not the one that the settings pin.
            TeacherFailedError: the teacher broke on this request.
            TeacherDeniedError: token or certificates do not do.
            TeacherBusyError: the teacher is full.
            TeacherUnreachableError: no usable answer, or the client is closed.
        """
        connection = self._connect()
        known = self._accept(connection, self._identify(connection))
        started = time.monotonic()
        result = self._call(connection, connection.client.infer, **infer_arguments(request))
        message = result.get_response()
        round_trip_s = time.monotonic() - started
        self.traffic.add(round_trip_s, len(request.image), message.ByteSize())
        answer = read_answer(message)
        if answer.teacher is None:
            return replace(answer, teacher=known)
        connection.identity = answer.teacher  # another may have taken the server's place
        self._accept(connection, answer.teacher)
        return answer

    def close(self) -> None:
        """End all calls at once; later ones raise TeacherUnreachableError."""
        with self._lock:
            self._closed = True
            self._current = None
            connections = list(self._connections)
        for connection in connections:
            connection.client.close()

    def _connect(self) -> _Connection:
        with self._lock:
            self._require_open()
            if self._current is None:
                try:
                    credentials = read_credentials(self.settings)
                except InvalidSettingError as error:  # they were good when the client was made
                    raise TeacherDeniedError(str(error)) from error
                self._current = _Connection(self.settings, credentials)
                self._connections.add(self._current)
            return self._current

    def _drop(self, connection: _Connection) -> None:
        with self._lock:
            if self._current is connection:
                self._current = None

    def _require_open(self) -> None:
        if self._closed:
            raise TeacherUnreachableError("this teacher client is closed; make a new one")

    def _identify(self, connection: _Connection) -> TeacherIdentity:
        if connection.identity is not None:
            return connection.identity
        url = self.settings.url
        try:
            read_config = connection.client.get_model_config
            response = self._call(connection, read_config, model_name=MODEL_NAME)
        except TeacherRefusedError as error:
            raise TeacherUnreachableError(
                f"{url} does not say who it is ({error}); is it a depth teacher?"
            ) from error
        parameters = {key: value.string_value for key, value in response.config.parameters.items()}
        found = TeacherIdentity.from_parameters(parameters)
        if found is None:
            found = TeacherIdentity(f"unnamed teacher at {url}", "", metric=False)
        connection.identity = found
        return found

    def _accept(self, connection: _Connection, identity: TeacherIdentity) -> TeacherIdentity:
        """Return the identity if its labels may be taken; else drop the connection and raise.

        So its successor is asked anew.
        """
        url, pin = self.settings.url, self.settings.pin
        if not identity.metric and not self._allow_relative:
            self._drop(connection)
            raise RelativeTeacherError(
                f"the teacher {identity.name!r} at {url} does not say that its depth is in metres "
                "(parameter `metric` of its model configuration); use a metric teacher"
            )
        if pin and pin not in (identity.name, f"{identity.name} {identity.version}"):
            self._drop(connection)
            raise WrongTeacherError(
                f"the teacher at {url} is {identity.name!r} version {identity.version!r}, and "
                f"teacher.pin is {pin!r}: its labels are not taken; start the pinned one, or "
                "change teacher.pin"
            )
        return identity

    def _call(self, connection: _Connection, method: Callable[..., Any], **arguments: Any) -> Any:
        started = time.monotonic()
        try:
            return method(
                **arguments, headers=connection.headers, client_timeout=self.settings.timeout_s
            )
        except InferenceServerException as error:
            status = str(error.status()).removeprefix("StatusCode.")
            failure = self._failure(status, str(error.message()), time.monotonic() - started)
            cause: Exception = error
        except ValueError as error:  # grpc: the channel was closed in this moment
            failure, cause = self._no_answer(str(error), time.monotonic() - started), error
        with self._lock:
            self._require_open()
        is_lost = isinstance(failure, TeacherUnreachableError)
        if is_lost and not isinstance(failure, TeacherBusyError | TeacherFailedError):
            self._drop(connection)
        raise failure from cause

    def _failure(self, status: str, text: str, seconds: float) -> TeacherError:
        """Return the error that a gRPC status means."""
        url = self.settings.url
        if _TOO_LARGE in text:
            return TeacherRefusedError(
                f"a message is too large ({text}); send a smaller image or raise max_message_mb "
                "on both sides"
            )
        no_tls = self.settings.tls and any(word in text for word in _NO_TLS)
        if status == "UNAVAILABLE" and no_tls:
            return TeacherDeniedError(
                f"no TLS connection to {url}: {text}; see that teacher.tls is what the server "
                "has, that teacher.ca is its authority, and teacher.cert one that it takes"
            )
        if status == "RESOURCE_EXHAUSTED":
            return TeacherBusyError(
                f"the teacher at {url} has too much to do ({text})", retry_after_s=_BUSY_RETRY_S
            )
        is_cut_off = status in _BREAKDOWNS and any(word in text for word in _CUT_OFF)
        if status in _NO_ANSWER or is_cut_off:
            return self._no_answer(f"{status}: {text}", seconds)
        if status in _DENIALS:
            return TeacherDeniedError(
                f"{url} does not let this robot in ({status}: {text}); see teacher.token_file, or "
                "the environment variable TIEKD_TEACHER_TOKEN"
            )
        if status in _REFUSALS:
            return TeacherRefusedError(text)
        if status in _BREAKDOWNS:
            return TeacherFailedError(f"the teacher at {url} broke on a request: {text}")
        return TeacherUnreachableError(
            f"{url} answers {status}: {text}; it must serve the model {MODEL_NAME!r}"
        )

    def _no_answer(self, reason: str, seconds: float) -> TeacherUnreachableError:
        secured = "with" if self.settings.tls else "without"
        return TeacherUnreachableError(
            f"no answer from the teacher at {self.settings.url} ({secured} TLS) in {seconds:.1f} s "
            f"({reason}); is it running, and can this machine reach it?"
        )
