"""The Open Inference Protocol's methods, answered by one backend.

Apart from the server that listens, so that another host of gRPC services (Ray Serve) can
carry the same servicer. Method names are the protocol's.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NoReturn

import grpc
from tritonclient.grpc import model_config_pb2, service_pb2, service_pb2_grpc

from tiekd_ros import __version__
from tiekd_ros.errors import BadImageError
from tiekd_ros.images import RgbImage, decode_image
from tiekd_ros.settings import Settings, setting
from tiekd_ros.teacher.backend import Backend
from tiekd_ros.teacher.errors import BackendRefusal, BadRequestError
from tiekd_ros.teacher.image_size import read_image_size
from tiekd_ros.teacher.protocol import (
    MODEL_NAME,
    DepthAnswer,
    DepthRequest,
    read_request,
    wanted_outputs,
    write_answer,
)
from tiekd_ros.teacher.statistics import Statistics

_LOG = logging.getLogger(__name__)
_LONGEST_WAIT_S = 600.0  # for callers without a deadline
_LONGEST_TEXT = 500  # a gRPC status travels in a header of limited size


@dataclass(frozen=True)
class ServiceSettings(Settings):
    """How requests are answered."""

    workers: int = setting(
        1, "images that the backend labels at the same time", minimum=1, maximum=64
    )
    max_waiting: int = setting(
        16,
        "requests that may wait for a worker; more are told to come back",
        minimum=0,
        maximum=1024,
    )
    max_pixels: int = setting(
        16_000_000, "largest image that is decoded", unit="pixels", minimum=1, maximum=1 << 30
    )
    depth_type: str = setting(
        "FP16", "number type of the depth on the wire", choices=("FP16", "FP32")
    )


class _UnknownModelError(Exception):
    """The request names another model or version."""


class _BusyError(Exception):
    """No worker came free in time, or too many requests wait already."""


_CODES: dict[type[Exception], grpc.StatusCode] = {
    BadRequestError: grpc.StatusCode.INVALID_ARGUMENT,
    BadImageError: grpc.StatusCode.INVALID_ARGUMENT,
    BackendRefusal: grpc.StatusCode.FAILED_PRECONDITION,
    _UnknownModelError: grpc.StatusCode.NOT_FOUND,
    _BusyError: grpc.StatusCode.RESOURCE_EXHAUSTED,
}


class TeacherService(service_pb2_grpc.GRPCInferenceServiceServicer):  # type: ignore[misc]
    """Model `depth_teacher` with one backend; the rest of the protocol is UNIMPLEMENTED.

    Status codes: INVALID_ARGUMENT for a request or image that cannot be read or is too large,
    NOT_FOUND for another model, FAILED_PRECONDITION where the backend refuses the image,
    RESOURCE_EXHAUSTED when too many wait, INTERNAL when the backend breaks.
    """

    def __init__(self, backend: Backend, settings: ServiceSettings) -> None:
        """Answer with `backend`."""
        self._backend = backend
        self._settings = settings
        self._statistics = Statistics()
        self._places = threading.BoundedSemaphore(settings.workers + settings.max_waiting)
        self._workers = threading.BoundedSemaphore(settings.workers)

    def ServerLive(self, request: Any, context: Any) -> Any:  # noqa: N802
        """Say that the process answers."""
        return service_pb2.ServerLiveResponse(live=True)

    def ServerReady(self, request: Any, context: Any) -> Any:  # noqa: N802
        """Say that the server takes requests: a backend is loaded before the server starts."""
        return service_pb2.ServerReadyResponse(ready=True)

    def ModelReady(self, request: Any, context: Any) -> Any:  # noqa: N802
        """Say whether the model asked for is the one here."""
        return service_pb2.ModelReadyResponse(ready=self._serves(request.name, request.version))

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
        stats = self._statistics.message(MODEL_NAME, self._backend.identity.version)
        return service_pb2.ModelStatisticsResponse(model_stats=[stats])

    def ModelInfer(self, request: Any, context: Any) -> Any:  # noqa: N802
        """Label one image."""
        started_ns = time.monotonic_ns()
        succeeded = False
        try:
            response = self._answer(request, context)
            succeeded = True
        except tuple(_CODES) as error:
            code = next(code for kind, code in _CODES.items() if isinstance(error, kind))
            _abort(context, code, str(error))
        except Exception as error:
            _LOG.exception("the teacher broke on one request; the server goes on")
            _abort(context, grpc.StatusCode.INTERNAL, f"{type(error).__name__}: {error}")
        finally:
            self._statistics.add_request(succeeded, time.monotonic_ns() - started_ns)
        return response

    def _answer(self, message: Any, context: Any) -> Any:
        if not self._serves(message.model_name, message.model_version):
            raise _UnknownModelError(self._unknown(message.model_name, message.model_version))
        request = read_request(message)
        wanted = wanted_outputs(message)
        # Outside the worker's turn: decoding one image overlaps with labelling another.
        with self._place():
            image = self._decode(request)
            with self._worker(context):
                answer = self._label(image, request)
        identity = self._backend.identity
        response = write_answer(answer, identity, self._settings.depth_type, wanted)
        response.id = message.id
        return response

    def _label(self, image: RgbImage, request: DepthRequest) -> DepthAnswer:
        started_ns = time.monotonic_ns()
        answer = self._backend.infer(image, request)
        self._statistics.add_inference(time.monotonic_ns() - started_ns)
        return answer

    def _decode(self, request: DepthRequest) -> RgbImage:
        width, height = read_image_size(request.image)
        if width * height > self._settings.max_pixels:
            raise BadRequestError(
                f"the image has {width}x{height} = {width * height} pixels, this server takes "
                f"{self._settings.max_pixels} (max_pixels); send a smaller one"
            )
        return decode_image(request.image)

    @contextmanager
    def _place(self) -> Iterator[None]:
        if not self._places.acquire(blocking=False):
            raise _BusyError(
                f"{self._settings.max_waiting} requests wait already (max_waiting); try later"
            )
        try:
            yield
        finally:
            self._places.release()

    @contextmanager
    def _worker(self, context: Any) -> Iterator[None]:
        # A caller that gave up meanwhile must not cost the next one a worker.
        remaining_s = context.time_remaining()
        patience_s = _LONGEST_WAIT_S if remaining_s is None else min(remaining_s, _LONGEST_WAIT_S)
        if not self._workers.acquire(timeout=patience_s):
            raise _BusyError("no worker came free before the request's deadline; try later")
        try:
            if not context.is_active():
                raise _BusyError("the caller has given up")
            yield
        finally:
            self._workers.release()

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
    context.abort(code, " ".join(text.split())[:_LONGEST_TEXT])
    raise AssertionError("abort raises")  # pragma: no cover
