"""A backend that fails: who is told, what is kept in memory, and when a new start is called for."""

from __future__ import annotations

import contextlib
import gc
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton
from tritonclient.grpc import service_pb2
from tritonclient.utils import InferenceServerException

from helpers.children import wait_until
from helpers.teachers import METRIC, StubBackend, depth_request, picture, serving
from tiekd_ros.core.devices import cores
from tiekd_ros.teacher.backend import BackendRefusal
from tiekd_ros.teacher.batcher import Batcher
from tiekd_ros.teacher.errors import BusyError
from tiekd_ros.teacher.metrics import ServiceMetrics
from tiekd_ros.teacher.protocol import DepthRequest, infer_arguments
from tiekd_ros.teacher.server import TeacherServer
from tiekd_ros.teacher.service import TeacherService
from tiekd_ros.teacher.settings import ServiceSettings

SOON_S = 10.0
LABEL = np.ones((48, 64), np.float32)


@contextmanager
def batching(backend) -> Iterator[Batcher]:
    batcher = Batcher(backend, ServiceSettings(), ServiceMetrics(METRIC, 1))
    try:
        yield batcher
    finally:
        batcher.close(0.0)


def label(batcher: Batcher, remaining_s: float = SOON_S) -> None:
    image, request = picture(), DepthRequest(b"", None, 0, "")
    with batcher.place(image.nbytes):
        batcher.submit(image, request, remaining_s=remaining_s, is_active=lambda: True)


def fail(batcher: Batcher, times: int, kind: type[Exception] = ZeroDivisionError) -> None:
    for _ in range(times):
        with pytest.raises(kind):
            label(batcher)


def infer(client: triton.InferenceServerClient) -> None:
    client.infer(**infer_arguments(depth_request()), client_timeout=SOON_S)


class BreakingBackend:
    """Raises anew for each image."""

    identity = METRIC

    def infer(self, image, request):
        raise ZeroDivisionError("oops")


class DeadlyBackend:
    """Ends the thread that asks it."""

    identity = METRIC

    def infer(self, image, request):
        raise SystemExit


def test_what_broke_does_not_keep_its_image_until_a_collection():
    def ask(batcher: Batcher) -> weakref.ref:
        image = picture()
        request = DepthRequest(b"", None, 0, "")
        try:
            with batcher.place(image.nbytes):
                batcher.submit(image, request, remaining_s=None, is_active=lambda: True)
        except ZeroDivisionError:
            return weakref.ref(image)
        raise AssertionError("a label came")

    with batching(BreakingBackend()) as batcher:
        gc.disable()
        try:
            image = ask(batcher)
            wait_until(lambda: image() is None, SOON_S)
        finally:
            gc.enable()


def test_batches_that_break_one_after_the_other_mean_a_broken_backend_until_one_succeeds():
    backend = StubBackend(ZeroDivisionError("oops"))
    with batching(backend) as batcher:
        fail(batcher, 4)
        backend.answer = LABEL
        label(batcher)
        backend.answer = BackendRefusal("unknown image")
        fail(batcher, 9, BackendRefusal)
        backend.answer = ZeroDivisionError("oops")
        fail(batcher, 4)
        assert not batcher.broken
        fail(batcher, 1)
        assert batcher.broken
        backend.answer = LABEL
        label(batcher)
        assert not batcher.broken


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_thread_that_is_dead_means_a_broken_backend():
    with batching(DeadlyBackend()) as batcher:
        assert not batcher.broken
        with pytest.raises(BusyError):
            label(batcher, remaining_s=0.5)
        assert batcher.broken


def test_a_backend_that_breaks_on_every_image_makes_the_server_not_ready_until_it_does_not():
    backend = StubBackend(RuntimeError("CUDA error"))
    server = TeacherServer(backend)
    with triton.InferenceServerClient(f"127.0.0.1:{server.start()}") as client:
        for _ in range(5):
            assert server.healthy
            with pytest.raises(InferenceServerException, match="broke on this image"):
                infer(client)
        assert not server.healthy  # so that systemd's watchdog is not fed
        assert not client.is_server_ready()
        assert client.is_server_live()
        backend.answer = np.ones((48, 64), np.float32)
        infer(client)
        assert client.is_server_ready()
    server.stop(0.0)


def test_an_answer_without_a_known_pixel_is_the_teachers_fault(caplog):
    with (
        serving(StubBackend(np.full_like(LABEL, np.nan))) as url,
        triton.InferenceServerClient(url) as client,
        pytest.raises(InferenceServerException, match="single pixel") as raised,
    ):
        infer(client)
    assert raised.value.status() == "StatusCode.INTERNAL"
    (record,) = [each for each in caplog.records if each.levelname == "ERROR"]
    assert "single pixel" in str(record.exc_info[1])


class EndedError(Exception):
    """What `abort` raises."""


class Caller:
    """A gRPC context whose caller is there until it is not."""

    def __init__(self, remaining_s: float | None = None) -> None:
        self.there = True
        self.remaining_s = remaining_s
        self.code: grpc.StatusCode | None = None

    def time_remaining(self) -> float | None:
        return self.remaining_s

    def is_active(self) -> bool:
        return self.there

    def abort(self, code: grpc.StatusCode, details: str) -> None:
        self.code = code
        raise EndedError(details)


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"there": False}, grpc.StatusCode.CANCELLED),
        ({"remaining_s": 0.0}, grpc.StatusCode.DEADLINE_EXCEEDED),
    ],
    ids=["gone", "late"],
)
def test_an_image_whose_caller_left_while_it_waited_for_a_decoder_is_not_decoded(change, code):
    service, caller = TeacherService(StubBackend(), ServiceSettings()), Caller(SOON_S)
    tensor = infer_arguments(depth_request())["inputs"][0]
    message = service_pb2.ModelInferRequest(model_name="depth_teacher")
    message.inputs.append(tensor._get_tensor())
    message.raw_input_contents.append(tensor._get_content())

    def ask() -> None:
        with contextlib.suppress(EndedError):
            service.ModelInfer(message, caller)

    for _ in range(cores()):
        service._decoders.acquire()
    asking = threading.Thread(target=ask)
    asking.start()
    wait_until(lambda: service.batcher.inside)
    vars(caller).update(change)
    service._decoders.release()
    asking.join(SOON_S)
    assert caller.code is code
    assert service.metrics.statistics().inference_stats.compute_input.count == 0
    service.close()
