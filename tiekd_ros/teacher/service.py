"""The Open Inference Protocol's methods, answered by one backend.

Apart from the server that listens, so that another host of gRPC services (Ray Serve) can
carry the same servicer. Method names are the protocol's.
"""

from __future__ import annotations

import logging
import secrets
import threading
import time
import traceback
from dataclasses import dataclass, replace
from typing import Any, NoReturn

import grpc
import numpy as np
from tritonclient.grpc import model_config_pb2, service_pb2, service_pb2_grpc

from tiekd_ros import __version__
from tiekd_ros.core.devices import cores
from tiekd_ros.core.errors import BadImageError
from tiekd_ros.core.images import RgbImage, check_whole, decode_image, read_image_size
from tiekd_ros.teacher.backend import Backend, check_request
from tiekd_ros.teacher.batcher import Batcher
from tiekd_ros.teacher.errors import (
    BackendRefusal,
    BadRequestError,
    BusyError,
    CallerGoneError,
    LateError,
    StoppingError,
)
from tiekd_ros.teacher.metrics import ServiceMetrics
from tiekd_ros.teacher.protocol import (
    MODEL_NAME,
    DepthAnswer,
    read_request,
    wanted_outputs,
    write_answer,
)
from tiekd_ros.teacher.settings import ServiceSettings

_LOG = logging.getLogger(__name__)

_ERROR_LOG_EVERY_S = 60.0
# A progressive JPEG has about ten. Each goes over the whole image again, and takes a few bytes:
# without a bound, a small file keeps a decoder busy for hours.
_MAX_SCANS = 100
_MAX_SIDE = 65_535  # JPEG's own; beyond it PNG's library only complains on standard error
_SCAN = b"\xff\xda"  # within a scan's data 0xff is followed by 0x00 or a restart marker
_BYTES_PER_PIXEL = 3
_NO_METRES = "robots refuse its labels; fit it to metres with align=FOLDER (--align)"
_MAX_STATUS_TEXT = 500  # a gRPC status travels in a header of limited size


class UnknownModelError(Exception):
    """The request names another model or version."""


class EmptyAnswerError(Exception):
    """The teacher's label has no known pixel: an overflow in its arithmetic, most likely."""


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
    EmptyAnswerError: grpc.StatusCode.INTERNAL,
}


@dataclass
class _LoggedError:
    mark: str
    until_s: float
    more: int = 0


class RateLimitedErrorLog:
    """Logs each kind of error once a minute, under a mark by which a caller can name it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # guards `_logged`
        self._logged: dict[str, _LoggedError] = {}

    def log(self, error: Exception) -> str:
        """Log an error, or count it where one of its kind was just logged.

        Returns:
            The mark under which the log has this one, or the one of its kind.
        """
        kind, now = type(error).__name__, time.monotonic()
        with self._lock:
            last = self._logged.get(kind)
            if last is not None and now < last.until_s:
                last.more += 1
                return last.mark
            entry = _LoggedError(secrets.token_hex(4), now + _ERROR_LOG_EVERY_S)
            self._logged[kind] = entry
        if last is not None:
            _log_count(kind, last)
        _LOG.error(
            "the teacher broke on request %s; the server goes on", entry.mark, exc_info=error
        )
        return entry.mark

    def close(self) -> None:
        """Log how many errors were only counted."""
        with self._lock:
            logged, self._logged = self._logged, {}
        for kind, entry in logged.items():
            _log_count(kind, entry)


def _log_count(kind: str, entry: _LoggedError) -> None:
    if entry.more:
        _LOG.error(
            "the teacher broke on %d more requests as on %s (%s)", entry.more, entry.mark, kind
        )


def admit_image(data: bytes, settings: ServiceSettings) -> tuple[int, int]:
    """Return the (width, height) of an encoded image that is small enough to be decoded.

    Raises:
        BadImageError: the bytes are neither JPEG nor PNG, or the header is damaged.
        BadRequestError: the image has too many bytes, pixels or scans, or is too long.
    """
    if len(data) > settings.max_image_mb << 20:
        raise BadRequestError(
            f"the encoded image has {len(data)} bytes, this server takes {settings.max_image_mb} "
            "MiB (max_image_mb); send a JPEG, or a smaller one"
        )
    width, height = read_image_size(data)
    if width * height > settings.max_pixels:
        raise BadRequestError(
            f"the image has {width}x{height} = {width * height} pixels, this server takes "
            f"{settings.max_pixels} (max_pixels); send a smaller one"
        )
    if max(width, height) > _MAX_SIDE:
        raise BadRequestError(
            f"the image has {width}x{height} pixels, no camera's has a side beyond {_MAX_SIDE}"
        )
    scans = 0 if data.startswith(b"\x89") else data.count(_SCAN)
    if scans > _MAX_SCANS:
        raise BadRequestError(
            f"the JPEG has {scans} scans, no camera writes more than {_MAX_SCANS}; send it as a "
            "baseline JPEG"
        )
    return width, height


class TeacherService(service_pb2_grpc.GRPCInferenceServiceServicer):  # type: ignore[misc]
    """Model `depth_teacher` with one backend; the rest of the protocol is UNIMPLEMENTED.

    Status codes: INVALID_ARGUMENT for a request or image that cannot be read or is too large,
    NOT_FOUND for another model, FAILED_PRECONDITION where the backend refuses the image,
    RESOURCE_EXHAUSTED when too many wait, DEADLINE_EXCEEDED when the deadline passes before its
    turn, CANCELLED when the caller is gone, UNAVAILABLE when the server is about to end, INTERNAL
    when the backend breaks or knows no pixel's depth.

    Of a method's context only `abort`, `time_remaining` and `is_active` are used.
    """

    def __init__(self, backend: Backend, settings: ServiceSettings) -> None:
        """Answer with `backend` until `close`."""
        self.metrics = ServiceMetrics(backend.identity, settings.max_batch)
        self.batcher = Batcher(backend, settings, self.metrics)
        self._backend = backend
        self._settings = settings
        # More would only take the cores from each other and from the backend.
        self._decoders = threading.BoundedSemaphore(cores())
        self._errors = RateLimitedErrorLog()
        self._stopping = False
        self._add_gauges()
        if not backend.identity.metric:
            _LOG.warning("%s is not metric: %s", backend.identity.name, _NO_METRES)

    @property
    def ready(self) -> bool:
        """True while requests are answered: not about to end, the backend not stuck nor broken."""
        stuck = self.batcher.busy_s() >= self._settings.stuck_after_s
        return not (self._stopping or stuck or self.batcher.broken)

    def set_stopping(self) -> None:
        """Answer from now on that the server is not ready; requests are still taken."""
        self._stopping = True

    def close(self, grace_s: float = 0.0) -> bool:
        """Take no more images, label those that wait for `grace_s` at most, refuse the rest.

        Returns:
            Whether the backend is at rest.
        """
        self.set_stopping()
        at_rest = self.batcher.close(grace_s)
        self._errors.close()
        return at_rest

    def ServerLive(self, request: Any, context: Any) -> Any:  # noqa: N802
        """Say that the process answers."""
        return service_pb2.ServerLiveResponse(live=True)

    def ServerReady(self, request: Any, context: Any) -> Any:  # noqa: N802
        """Say whether requests are answered; a backend is loaded before the server starts."""
        return service_pb2.ServerReadyResponse(ready=self.ready)

    def ModelReady(self, request: Any, context: Any) -> Any:  # noqa: N802
        """Say whether the model asked for is the one here, and answers."""
        return service_pb2.ModelReadyResponse(
            ready=self._serves(request.name, request.version) and self.ready
        )

    def ServerMetadata(self, request: Any, context: Any) -> Any:  # noqa: N802
        """Name the server and what it supports beyond the core protocol."""
        return service_pb2.ServerMetadataResponse(
            name="tiekd_teacher",
            version=__version__,
            extensions=["binary_tensor_data", "model_configuration", "parameters", "statistics"],
        )

    def ModelMetadata(self, request: Any, context: Any) -> Any:  # noqa: N802
        """Name the teacher (as platform and version) and describe its tensors."""
        self._require_model(request.name, request.version, context)
        tensor = service_pb2.ModelMetadataResponse.TensorMetadata
        identity = self._backend.identity
        return service_pb2.ModelMetadataResponse(
            name=MODEL_NAME,
            versions=[identity.version],
            platform=identity.name,
            inputs=[
                tensor(name="image", datatype="BYTES", shape=[1]),
                tensor(name="intrinsics", datatype="FP32", shape=[4]),
            ],
            outputs=[
                tensor(name="depth", datatype=self._settings.depth_type, shape=[-1, -1]),
                tensor(name="confidence", datatype="FP16", shape=[-1, -1]),
            ],
        )

    def ModelConfig(self, request: Any, context: Any) -> Any:  # noqa: N802
        """Describe the model; the parameters say who the teacher is and if it is metric."""
        self._require_model(request.name, request.version, context)
        pb = model_config_pb2
        depth_type = pb.TYPE_FP16 if self._settings.depth_type == "FP16" else pb.TYPE_FP32
        config = pb.ModelConfig(
            name=MODEL_NAME,
            backend="tiekd",
            input=[
                pb.ModelInput(name="image", data_type=pb.TYPE_STRING, dims=[1]),
                pb.ModelInput(name="intrinsics", data_type=pb.TYPE_FP32, dims=[4], optional=True),
            ],
            output=[
                pb.ModelOutput(name="depth", data_type=depth_type, dims=[-1, -1]),
                pb.ModelOutput(name="confidence", data_type=pb.TYPE_FP16, dims=[-1, -1]),
            ],
        )
        for key, text in self._backend.identity.as_parameters().items():
            config.parameters[key].string_value = text
        return service_pb2.ModelConfigResponse(config=config)

    def ModelStatistics(self, request: Any, context: Any) -> Any:  # noqa: N802
        """Return counts and durations since the start."""
        if request.name:
            self._require_model(request.name, request.version, context)
        return service_pb2.ModelStatisticsResponse(model_stats=[self.metrics.statistics()])

    def RepositoryIndex(self, request: Any, context: Any) -> Any:  # noqa: N802
        """List the one model there is."""
        index = service_pb2.RepositoryIndexResponse()
        index.models.add(
            name=MODEL_NAME,
            version=self._backend.identity.version,
            state="READY" if self.ready else "UNAVAILABLE",
        )
        return index

    def ModelInfer(self, request: Any, context: Any) -> Any:  # noqa: N802
        """Label one image."""
        started_s = time.monotonic()
        code, text = grpc.StatusCode.OK, ""
        try:
            response = self._answer(request, context)
        except tuple(STATUS_CODES) as error:
            code = next(code for kind, code in STATUS_CODES.items() if isinstance(error, kind))
            text = str(error)
            if code is grpc.StatusCode.INTERNAL:
                self._errors.log(error)
        except Exception as error:
            # The error's own text may name files of this machine: the caller does not get it.
            mark, kind = self._errors.log(error), type(error).__name__
            code = grpc.StatusCode.INTERNAL
            text = f"the teacher broke on this image ({kind}); see request {mark} in its log"
            # The failed frames may hold the image, and a ring of references hold that.
            traceback.clear_frames(error.__traceback__)
        self.metrics.add_request(code.name, time.monotonic() - started_s)
        if code is not grpc.StatusCode.OK:
            _abort(context, code, text)
        return response

    def ModelStreamInfer(self, request_iterator: Any, context: Any) -> NoReturn:  # noqa: N802
        """Refuse; by `abort`, for gRPC logs a traceback of whatever else is raised here."""
        _abort(context, grpc.StatusCode.UNIMPLEMENTED, "this teacher server has no streams")

    def _answer(self, message: Any, context: Any) -> Any:
        if not self._serves(message.model_name, message.model_version):
            raise UnknownModelError(self._unknown(message.model_name, message.model_version))
        wanted = wanted_outputs(message)
        answer, max_depth_side = self._label(message, context)
        if np.isnan(answer.depth).all():
            raise EmptyAnswerError("the teacher does not know the depth of a single pixel")
        started_s = time.monotonic()
        identity = self._backend.identity
        answer = answer.shrunk(max_depth_side)
        response = write_answer(answer, identity, self._settings.depth_type, wanted)
        response.id = message.id
        self.metrics.answer_bytes.inc(sum(map(len, response.raw_output_contents)))
        self.metrics.encode.observe(time.monotonic() - started_s)
        return response

    def _label(self, message: Any, context: Any) -> tuple[DepthAnswer, int]:
        """Return the backend's answer, and the longest side that is wanted of it."""
        request = read_request(message)
        width, height = admit_image(request.image, self._settings)
        check_request(self._backend, request, height, width)
        encoded = len(request.image)
        # The message too stays in memory until the answer: the server that calls this holds it.
        size = message.ByteSize() + encoded + width * height * _BYTES_PER_PIXEL
        with self.batcher.place(size) as release:
            # Outside the backend's threads: decoding one image overlaps with labelling another.
            image = self._decode(request.image, context)
            request = replace(request, image=b"")
            release(encoded)
            answer = self.batcher.submit(
                image,
                request,
                remaining_s=context.time_remaining(),
                is_active=context.is_active,
            )
        return answer, request.max_depth_side

    def _decode(self, data: bytes, context: Any) -> RgbImage:
        with self._decoders:
            remaining_s = context.time_remaining()
            if remaining_s is not None and remaining_s <= 0:
                raise LateError("no decoder came to this image before its deadline")
            if not context.is_active():
                raise CallerGoneError("the caller has given up")
            started_s = time.monotonic()
            check_whole(data)
            image = decode_image(data, as_stored=True)
            self.metrics.image_bytes.inc(len(data))
            self.metrics.decode.observe(time.monotonic() - started_s)
        return image

    def _add_gauges(self) -> None:
        batcher = self.batcher
        for name, text, value in (
            ("ready", "1 = requests are answered.", lambda: float(self.ready)),
            ("inside", "Requests that have a place.", lambda: batcher.inside),
            ("waiting", "Decoded images that wait for the backend.", lambda: batcher.waiting),
            ("held_bytes", "Memory of those inside.", lambda: batcher.held_bytes),
            ("places", "Requests that can have a place.", lambda: batcher.places),
            ("busy_seconds", "Time at the present batch.", batcher.busy_s),
        ):
            self.metrics.add_gauge(name, text, value)

    def _serves(self, name: str, version: str) -> bool:
        return name == MODEL_NAME and version in ("", self._backend.identity.version)

    def _unknown(self, name: str, version: str) -> str:
        asked = f"{name!r} version {version!r}" if version else repr(name)
        return (
            f"unknown model {asked}: this server has {MODEL_NAME!r} version "
            f"{self._backend.identity.version!r}"
        )

    def _require_model(self, name: str, version: str, context: Any) -> None:
        if not self._serves(name, version):
            _abort(context, grpc.StatusCode.NOT_FOUND, self._unknown(name, version))


def _abort(context: Any, code: grpc.StatusCode, text: str) -> NoReturn:
    context.abort(code, " ".join(text.split())[:_MAX_STATUS_TEXT])
    raise AssertionError("abort raises")  # pragma: no cover
