"""One connection to a teacher server, and what its failures mean."""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from tritonclient.grpc import InferenceServerClient
from tritonclient.utils import InferenceServerException

from tiekd_ros.teacher.credentials import Credentials
from tiekd_ros.teacher.errors import (
    TeacherDeniedError,
    TeacherError,
    TeacherFailedError,
    TeacherRefusedError,
    TeacherUnreachableError,
)
from tiekd_ros.teacher.protocol import (
    MODEL_NAME,
    DepthAnswer,
    DepthRequest,
    TeacherIdentity,
    infer_arguments,
    message_size_options,
    read_answer,
)

_WINDOW = 300  # answers


@dataclass(frozen=True)
class TrafficSnapshot:
    """Answers so far, and what the last 300 of them took; NaN where there is none yet."""

    answers: int
    round_trip_p50_s: float
    """From sending an image to having its answer, by a monotonic clock; retries not counted."""
    round_trip_p95_s: float
    bytes_up: float
    """Mean size of an encoded image as it was sent."""
    bytes_down: float
    """Mean size of an answer's message."""


class Traffic:
    """Counts answers; safe to use from several threads."""

    def __init__(self) -> None:
        """Start at zero."""
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


_TRANSIENT = frozenset(("UNAVAILABLE", "DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED", "CANCELLED"))
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


class TransientError(TeacherError):
    """Worth another try at once; `busy` tells a full server from a lost connection."""

    def __init__(self, reason: str, *, busy: bool) -> None:
        """Carry the gRPC status and text as `reason`."""
        super().__init__(reason)
        self.busy = busy


class TeacherLink:
    """One gRPC channel of its own; the teacher's identity is read once a link."""

    def __init__(
        self,
        url: str,
        timeout_s: float,
        max_message_mb: int,
        credentials: Credentials | None = None,
        traffic: Traffic | None = None,
    ) -> None:
        """Prepare the channel; it connects with the first call.

        Args:
            url: the server's host:port.
            timeout_s: deadline of each call.
            max_message_mb: largest message of either direction.
            credentials: token and certificates.
            traffic: counts the answers.
        """
        credentials = credentials or Credentials()
        self._timeout_s = timeout_s
        self._url = url
        self._headers = credentials.headers
        self._is_secured = credentials.channel is not None
        self._traffic = traffic or Traffic()
        self._lock = threading.Lock()
        self._identity: TeacherIdentity | None = None
        name = credentials.server_name
        self._client = InferenceServerClient(
            url,
            creds=credentials.channel,
            channel_args=[
                *message_size_options(max_message_mb),
                *([("grpc.ssl_target_name_override", name)] if name else []),
                # A new link must not inherit a dead connection from gRPC's shared pool.
                ("grpc.use_local_subchannel_pool", 1),
                # The teacher stands in the robot's own network, never behind a web proxy.
                ("grpc.enable_http_proxy", 0),
            ],
        )

    def identity(self) -> TeacherIdentity:
        """Return who answers here, asked for once.

        Raises:
            TransientError, TeacherUnreachableError: no answer, or no `depth_teacher` there.
        """
        known = self.known
        return known if known is not None else self._read_identity()

    def ready(self) -> bool:
        """Say whether the teacher labels images now.

        Raises:
            TransientError, TeacherUnreachableError: no answer.
        """
        return bool(self._call(self._client.is_model_ready, model_name=MODEL_NAME))

    @property
    def known(self) -> TeacherIdentity | None:
        """Who answered last, as far as it is known without asking."""
        with self._lock:
            return self._identity

    def infer(self, request: DepthRequest) -> DepthAnswer:
        """Ask for one image and read the answer, unchecked but for the protocol.

        Raises:
            TransientError, TeacherUnreachableError (TeacherDeniedError, TeacherFailedError),
            TeacherRefusedError, TeacherAnswerError.
        """
        started = time.monotonic()
        result = self._call(self._client.infer, **infer_arguments(request))
        message = result.get_response()
        round_trip_s = time.monotonic() - started
        self._traffic.add(round_trip_s, len(request.image), message.ByteSize())
        answer = read_answer(message)
        if answer.teacher is not None:
            with self._lock:  # a server replaced unnoticed says so in its answers
                self._identity = answer.teacher
        return answer

    def close(self) -> None:
        """Cut the connection; calls that wait for an answer end at once."""
        self._client.close()

    def _read_identity(self) -> TeacherIdentity:
        try:
            response = self._call(self._client.get_model_config, model_name=MODEL_NAME)
        except TeacherRefusedError as error:
            raise TeacherUnreachableError(
                f"{self._url} does not say who it is ({error}); is it a depth teacher?"
            ) from error
        parameters = {key: value.string_value for key, value in response.config.parameters.items()}
        found = TeacherIdentity.from_parameters(parameters)
        if found is None:
            found = TeacherIdentity(f"unnamed teacher at {self._url}", "", metric=False)
        with self._lock:
            self._identity = found
        return found

    def _call(self, method: Callable[..., Any], **arguments: Any) -> Any:
        try:
            return method(**arguments, headers=self._headers, client_timeout=self._timeout_s)
        except InferenceServerException as error:
            raise self._meaning(error) from error
        except ValueError as error:  # grpc: the channel was closed in this moment
            raise TransientError(str(error), busy=False) from error

    def _meaning(self, error: InferenceServerException) -> TeacherError:
        status = str(error.status()).removeprefix("StatusCode.")
        text = str(error.message())
        if _TOO_LARGE in text:
            return TeacherRefusedError(
                f"a message is too large ({text}); send a smaller image or raise max_message_mb "
                "on both sides"
            )
        no_tls = self._is_secured and any(word in text for word in _NO_TLS)
        if status == "UNAVAILABLE" and no_tls:
            return TeacherDeniedError(
                f"no TLS connection to {self._url}: {text}; see that teacher.tls is what the "
                "server has, that teacher.ca is its authority, and teacher.cert one that it takes"
            )
        is_cut_off = status in _BREAKDOWNS and any(word in text for word in _CUT_OFF)
        if status in _TRANSIENT or is_cut_off:
            return TransientError(f"{status}: {text}", busy=status == "RESOURCE_EXHAUSTED")
        if status in _DENIALS:
            return TeacherDeniedError(
                f"{self._url} does not let this robot in ({status}: {text}); see "
                "teacher.token_file, or the environment variable TIEKD_TEACHER_TOKEN"
            )
        if status in _REFUSALS:
            return TeacherRefusedError(text)
        if status in _BREAKDOWNS:
            return TeacherFailedError(f"the teacher at {self._url} broke on a request: {text}")
        return TeacherUnreachableError(
            f"{self._url} answers {status}: {text}; it must serve the model {MODEL_NAME!r}"
        )
