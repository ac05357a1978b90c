"""The batcher: batches, waiting, refusals, memory, failures; every request ends."""

from __future__ import annotations

import contextlib
import gc
import threading
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton
from tritonclient.grpc import service_pb2
from tritonclient.utils import InferenceServerException

from helpers.batching import (
    LONG_MS,
    PATIENCE_S,
    Callers,
    GatedBackend,
    SingleBackend,
    in_the_backend,
    metres,
    waiting,
)
from helpers.children import wait_until
from helpers.strangers import infer, refusal
from helpers.teachers import METRIC, SilentBackend, StubBackend, depth_request, picture, serving
from tiekd_ros.core.devices import cores
from tiekd_ros.core.images import encode_png
from tiekd_ros.teacher.backend import BackendRefusal
from tiekd_ros.teacher.batcher import Batcher, QueuedRequest
from tiekd_ros.teacher.errors import BusyError, CallerGoneError, LateError, StoppingError
from tiekd_ros.teacher.metrics import ServiceMetrics
from tiekd_ros.teacher.protocol import DepthRequest, infer_arguments
from tiekd_ros.teacher.server import TeacherServer
from tiekd_ros.teacher.service import TeacherService
from tiekd_ros.teacher.settings import ServiceSettings


def test_what_waits_while_the_backend_is_busy_goes_together_and_each_gets_its_own():
    backend = GatedBackend()
    with Callers(backend, max_batch=4, batch_delay_ms=0.0) as callers:
        asked = [callers.ask(1)]
        in_the_backend(backend, 1)
        for number in (2, 3, 4):
            asked.append(callers.ask(number))
            waiting(callers, number - 1)
        backend.go.release(2)
        assert [metres(each) for each in asked] == [1, 2, 3, 4]
    assert backend.batches == [[1], [2, 3, 4]]
    counts = callers.metrics.statistics()
    assert {b.batch_size: b.compute_infer.count for b in counts.batch_stats} == {1: 1, 3: 1}
    assert counts.inference_count == 4
    assert counts.inference_stats.queue.count == counts.inference_stats.compute_infer.count == 4


def test_a_batch_is_never_larger_than_allowed_and_the_oldest_go_first():
    backend = GatedBackend()
    with Callers(backend, max_batch=2, batch_delay_ms=0.0) as callers:
        asked = [callers.ask(0)]
        in_the_backend(backend, 1)
        for number in range(1, 6):
            asked.append(callers.ask(number))
            waiting(callers, number)
        backend.go.release(4)
        assert [metres(each) for each in asked] == [0, 1, 2, 3, 4, 5]
    assert backend.batches == [[0], [1, 2], [3, 4], [5]]


def test_images_of_another_size_go_apart_and_wait_no_longer_for_that():
    backend = GatedBackend()
    with Callers(backend, max_batch=8, batch_delay_ms=0.0) as callers:
        asked = [callers.ask(0)]
        in_the_backend(backend, 1)
        for number, size in enumerate([(6, 8), (12, 16), (6, 8), (12, 16), (6, 10)], start=1):
            asked.append(callers.ask(number, size=size))
            waiting(callers, number)
        backend.go.release(4)
        assert [metres(each) for each in asked] == [0, 1, 2, 3, 4, 5]
    assert backend.batches == [[0], [1, 3], [2, 4], [5]]
    assert backend.sizes == [(6, 8), (6, 8), (12, 16), (6, 10)]


def test_an_idle_backend_waits_for_company_until_the_batch_is_full():
    backend = GatedBackend()
    backend.go.release(1)
    with Callers(backend, max_batch=3, batch_delay_ms=LONG_MS) as callers:
        asked = [callers.ask(number) for number in (1, 2)]
        waiting(callers, 2)
        assert backend.batches == []
        asked.append(callers.ask(3))
        assert sorted(metres(each) for each in asked) == [1, 2, 3]
    assert [sorted(batch) for batch in backend.batches] == [[1, 2, 3]]


def test_and_goes_alone_when_none_comes():
    backend = GatedBackend()
    backend.go.release(1)
    with Callers(backend, max_batch=3, batch_delay_ms=20.0) as callers:
        assert metres(callers.ask(1)) == 1


def test_a_backend_without_batches_gets_its_images_at_once_and_singly():
    backend = SingleBackend()
    backend.go.release(2)
    with Callers(backend, max_batch=8, batch_delay_ms=LONG_MS) as callers:
        assert [metres(callers.ask(number)) for number in (1, 2)] == [1, 2]
    assert backend.batches == [[1], [2]]


def test_several_workers_label_at_the_same_time():
    backend = GatedBackend()
    with Callers(backend, workers=2, max_batch=1) as callers:
        asked = [callers.ask(1), callers.ask(2)]
        in_the_backend(backend, 2)
        backend.go.release(2)
        assert sorted(metres(each) for each in asked) == [1, 2]


def test_one_bad_image_does_not_spoil_its_neighbours():
    backend = GatedBackend()
    backend.broken = {2}
    with Callers(backend, max_batch=3, batch_delay_ms=LONG_MS) as callers:
        asked = {number: callers.ask(number) for number in (1, 2, 3)}
        backend.go.release(10)
        assert metres(asked[1]) == 1
        assert metres(asked[3]) == 3
        with pytest.raises(BackendRefusal):
            asked[2].result(PATIENCE_S)
    assert callers.metrics.statistics().inference_count == 2


def test_when_all_places_are_taken_the_next_is_told_so_and_later_ones_get_in_again():
    backend = GatedBackend()
    with Callers(backend, max_batch=1, max_waiting=2) as callers:
        asked = [callers.ask(number) for number in (1, 2, 3)]
        with pytest.raises(BusyError, match="2 requests wait already"):
            callers.ask(4).result(PATIENCE_S)
        backend.go.release(4)
        assert sorted(metres(each) for each in asked) == [1, 2, 3]
        assert metres(callers.ask(5)) == 5
        assert callers.batcher.inside == 0


def test_images_that_fill_the_memory_keep_others_out_but_one_alone_always_comes_in():
    backend = GatedBackend()
    with Callers(backend, max_batch=1, max_waiting_mb=1) as callers:
        large = callers.ask(1, size=(1000, 1000))
        with pytest.raises(BusyError, match="may take 1 MiB together"):
            callers.ask(2).result(PATIENCE_S)
        backend.go.release(2)
        assert metres(large) == 1
        assert metres(callers.ask(3)) == 3


def test_what_is_past_its_deadline_never_reaches_the_backend():
    backend = GatedBackend()
    with Callers(backend, max_batch=1) as callers:
        first = callers.ask(1)
        in_the_backend(backend, 1)
        with pytest.raises(BusyError, match="before the request's deadline"):
            callers.ask(2, remaining_s=0.05).result(PATIENCE_S)
        last = callers.ask(3)
        backend.go.release(2)
        assert (metres(first), metres(last)) == (1, 3)
    assert backend.batches == [[1], [3]]


def test_a_caller_that_gave_up_frees_its_place_while_the_backend_is_busy():
    backend = GatedBackend()
    there = threading.Event()
    there.set()
    with Callers(backend, max_batch=1, max_waiting=1) as callers:
        first = callers.ask(1)
        in_the_backend(backend, 1)
        second = callers.ask(2, is_active=there.is_set)
        there.clear()
        with pytest.raises(BusyError, match="the caller has given up"):
            second.result(PATIENCE_S)
        third = callers.ask(3)
        backend.go.release(2)
        assert (metres(first), metres(third)) == (1, 3)
    assert backend.batches == [[1], [3]]


@pytest.mark.parametrize(
    ("left_s", "there", "reason"),
    [
        (PATIENCE_S, True, None),
        (PATIENCE_S, False, CallerGoneError),
        (0.2, False, LateError),  # its own clock for the deadline runs ahead
        (0.0, True, LateError),
    ],
)
def test_who_is_gone_a_moment_before_the_deadline_has_waited_for_it(left_s, there, reason):
    image = np.zeros((6, 8, 3), np.uint8)
    request = DepthRequest(b"", None, 0, "camera")
    one = QueuedRequest(image, request, (6, 8), 0, time.monotonic() + left_s, lambda: there)
    found = one.cancel_reason()
    assert found is None if reason is None else isinstance(found, reason)


def test_a_caller_that_gives_up_inside_a_batch_does_not_disturb_the_others():
    backend = GatedBackend()
    there = threading.Event()
    there.set()
    with Callers(backend, max_batch=2, batch_delay_ms=LONG_MS) as callers:
        gone, stays = callers.ask(1, is_active=there.is_set), callers.ask(2)
        in_the_backend(backend, 1)
        there.clear()
        with pytest.raises(BusyError):
            gone.result(PATIENCE_S)
        backend.go.release(1)
        assert metres(stays) == 2


def test_whatever_the_backend_raises_reaches_the_caller_and_the_next_is_served():
    backend = StubBackend(ZeroDivisionError("oops"))
    with Callers(backend) as callers:
        with pytest.raises(ZeroDivisionError, match="oops"):
            callers.ask(1).result(PATIENCE_S)
        backend.answer = np.ones((6, 8), np.float32)
        assert metres(callers.ask(2)) == 1


def test_how_long_the_backend_has_been_at_a_batch_is_known():
    backend = GatedBackend()
    with Callers(backend, max_batch=1) as callers:
        assert callers.batcher.busy_s() == 0
        asked = callers.ask(1)
        in_the_backend(backend, 1)
        wait_until(lambda: callers.batcher.busy_s() > 0.01)
        backend.go.release(1)
        metres(asked)
        wait_until(lambda: callers.batcher.busy_s() == 0)


def test_closing_labels_what_waits_and_takes_nothing_new():
    backend = GatedBackend()
    with Callers(backend, max_batch=1) as callers:
        asked = [callers.ask(number) for number in (1, 2)]
        backend.go.release(2)
        callers.batcher.close(PATIENCE_S)
        assert sorted(metres(each) for each in asked) == [1, 2]
        with pytest.raises(StoppingError):
            callers.ask(3).result(PATIENCE_S)


def test_closing_without_patience_refuses_what_waits():
    backend = GatedBackend()
    with Callers(backend, max_batch=1) as callers:
        first = callers.ask(1)
        in_the_backend(backend, 1)
        second = callers.ask(2)
        waiting(callers, 1)
        callers.batcher.close(0.0)
        with pytest.raises(StoppingError):
            second.result(PATIENCE_S)
        backend.go.release(1)
        assert metres(first) == 1


def test_of_many_callers_each_gets_its_own_label_exactly_once():
    backend = GatedBackend()
    backend.go.release(1000)
    with Callers(backend, max_batch=7, batch_delay_ms=1.0, workers=3) as callers:
        asked = {number: callers.ask(number, size=(6, 8 + number % 3)) for number in range(200)}
        assert {number: metres(each) for number, each in asked.items()} == {
            number: number for number in range(200)
        }
    labelled = sorted(number for batch in backend.batches for number in batch)
    assert labelled == list(range(200))


SOON_S = 10.0

MIB = 1 << 20


def noise(side: int) -> bytes:
    """Return a PNG that takes as many bytes encoded as decoded."""
    pixels = np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8)
    return encode_png(pixels)


def test_what_is_let_go_early_makes_room_and_all_is_given_back_in_the_end():
    batcher = Batcher(SilentBackend(), ServiceSettings(max_waiting_mb=3), ServiceMetrics(METRIC, 8))
    try:
        with batcher.place(2 * MIB) as let_go:
            with pytest.raises(BusyError), batcher.place(2 * MIB):
                pass
            let_go(MIB)
            assert batcher.held_bytes == MIB
            with batcher.place(2 * MIB):
                assert batcher.held_bytes == 3 * MIB
        assert batcher.held_bytes == 0
    finally:
        batcher.close()


def test_an_image_that_waits_is_held_decoded_and_as_its_message_and_no_third_time():
    backend, data = SilentBackend(), noise(400)
    server = TeacherServer(backend)
    url = f"127.0.0.1:{server.start()}"
    batcher = server._running.service.batcher
    asking = threading.Thread(target=infer, args=(url, data))
    try:
        asking.start()
        assert backend.asked.wait(SOON_S)
        decoded = 400 * 400 * 3
        assert decoded + len(data) <= batcher.held_bytes < decoded + len(data) + 1000
        backend.released.set()
        asking.join(SOON_S)
        assert backend.requests[0].image == b""
        wait_until(lambda: batcher.held_bytes == 0, SOON_S)
    finally:
        backend.released.set()
        server.stop(0.0)


def test_images_that_are_small_when_decoded_and_large_as_they_came_fill_the_memory_too():
    backend = SilentBackend()
    padded = encode_png(picture()) + bytes(3 * MIB)  # 9 kB of pixels
    with serving(backend, max_batch=1, max_waiting_mb=6) as url:
        asking = threading.Thread(target=infer, args=(url, padded))
        asking.start()
        assert backend.asked.wait(SOON_S)
        status, text = refusal(url, padded)
        assert status == "RESOURCE_EXHAUSTED"
        assert "max_waiting_mb" in text
        backend.released.set()
        asking.join(SOON_S)
        infer(url, padded)


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


def ask(client: triton.InferenceServerClient) -> None:
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
                ask(client)
        assert not server.healthy  # so that systemd's watchdog is not fed
        assert not client.is_server_ready()
        assert client.is_server_live()
        backend.answer = np.ones((48, 64), np.float32)
        ask(client)
        assert client.is_server_ready()
    server.stop(0.0)


def test_an_answer_without_a_known_pixel_is_the_teachers_fault(caplog):
    with (
        serving(StubBackend(np.full_like(LABEL, np.nan))) as url,
        triton.InferenceServerClient(url) as client,
        pytest.raises(InferenceServerException, match="single pixel") as raised,
    ):
        ask(client)
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
