"""The batcher: batches, waiting, refusals, memory, failures; every request ends."""

from __future__ import annotations

import contextlib
import gc
import threading
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from unittest.mock import Mock

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException

from helpers.attacks import message
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
from tiekd_ros.teacher.batcher import Batcher, QueuedRequest
from tiekd_ros.teacher.errors import (
    BackendRefusal,
    BusyError,
    CallerGoneError,
    LateError,
    StoppingError,
)
from tiekd_ros.teacher.metrics import ServiceMetrics
from tiekd_ros.teacher.protocol import DepthRequest, infer_arguments
from tiekd_ros.teacher.server import TeacherServer
from tiekd_ros.teacher.service import TeacherService
from tiekd_ros.teacher.settings import ServiceSettings


def ask_behind_one(callers, backend, sizes) -> list:
    """Ask for 0, and while it is with the backend for 1, 2, ... of these sizes."""
    asked = [callers.ask(0)]
    in_the_backend(backend, 1)
    for number, size in enumerate(sizes, start=1):
        asked.append(callers.ask(number, size=size))
        waiting(callers, number)
    return asked


@pytest.mark.parametrize(
    ("max_batch", "sizes", "batches"),
    [
        (4, [(6, 8)] * 3, [[0], [1, 2, 3]]),
        (2, [(6, 8)] * 5, [[0], [1, 2], [3, 4], [5]]),
        (8, [(6, 8), (12, 16), (6, 8), (12, 16), (6, 10)], [[0], [1, 3], [2, 4], [5]]),
    ],
    ids=["all that wait", "no more than allowed", "one size"],
)
def test_what_waits_for_a_busy_backend_goes_together_oldest_first(max_batch, sizes, batches):
    backend = GatedBackend()
    with Callers(backend, max_batch=max_batch, batch_delay_ms=0.0) as callers:
        asked = ask_behind_one(callers, backend, sizes)
        backend.go.release(4)
        assert [metres(each) for each in asked] == list(range(len(asked)))
    assert backend.batches == batches
    assert backend.sizes[0] == (6, 8)
    assert backend.sizes[1:] == [sizes[batch[0] - 1] for batch in batches[1:]]
    counts = callers.metrics.statistics()
    assert [b.batch_size for b in counts.batch_stats] == sorted({len(each) for each in batches})
    assert counts.execution_count == len(batches)
    assert counts.inference_count == len(asked)
    stats = counts.inference_stats
    assert stats.queue.count == stats.compute_infer.count == len(asked)


def test_an_idle_backend_waits_until_the_batch_is_full_or_the_delay_is_over():
    backend = GatedBackend()
    backend.go.release(1)
    with Callers(backend, max_batch=3, batch_delay_ms=LONG_MS) as callers:
        asked = [callers.ask(number) for number in (1, 2)]
        waiting(callers, 2)
        assert backend.batches == []
        asked.append(callers.ask(3))
        assert sorted(metres(each) for each in asked) == [1, 2, 3]
    assert [sorted(batch) for batch in backend.batches] == [[1, 2, 3]]
    backend.go.release(1)
    with Callers(backend, max_batch=3, batch_delay_ms=20.0) as callers:
        assert metres(callers.ask(1)) == 1


def test_without_batches_images_go_singly_at_once_and_to_each_worker():
    single = SingleBackend()
    single.go.release(2)
    with Callers(single, max_batch=8, batch_delay_ms=LONG_MS) as callers:
        assert [metres(callers.ask(number)) for number in (1, 2)] == [1, 2]
    assert single.batches == [[1], [2]]
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


@pytest.mark.parametrize(
    ("settings", "size", "words"),
    [
        ({"max_waiting": 1}, (6, 8), "1 requests wait already"),
        ({"max_waiting_mb": 1}, (1000, 1000), "may take 1 MiB together"),  # one always gets in
    ],
)
def test_where_there_is_no_place_the_next_is_told_so_and_later_ones_get_in(settings, size, words):
    backend = GatedBackend()
    with Callers(backend, max_batch=1, **settings) as callers:
        asked = [callers.ask(1, size=size)]
        if "max_waiting" in settings:
            asked.append(callers.ask(2))
        with pytest.raises(BusyError, match=words):
            callers.ask(3).result(PATIENCE_S)
        backend.go.release(3)
        assert sorted(metres(each) for each in asked) == [1, 2][: len(asked)]
        wait_until(lambda: callers.batcher.inside == 0)
        assert metres(callers.ask(4)) == 4


def test_who_is_late_or_gone_frees_its_place_and_never_reaches_the_backend():
    backend, there = GatedBackend(), threading.Event()
    there.set()
    with Callers(backend, max_batch=1, max_waiting=1) as callers:
        first = callers.ask(1)
        in_the_backend(backend, 1)
        with pytest.raises(BusyError, match="before the request's deadline"):
            callers.ask(2, remaining_s=0.05).result(PATIENCE_S)
        gone = callers.ask(3, is_active=there.is_set)
        there.clear()
        with pytest.raises(BusyError, match="the caller has given up"):
            gone.result(PATIENCE_S)
        last = callers.ask(4)
        backend.go.release(2)
        assert (metres(first), metres(last)) == (1, 4)
    assert backend.batches == [[1], [4]]


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
    one = QueuedRequest(image, REQUEST, (6, 8), 0, time.monotonic() + left_s, lambda: there)
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


def test_closing_labels_what_waits_within_its_grace_and_takes_nothing_new():
    backend = GatedBackend()
    with Callers(backend, max_batch=1) as callers:
        asked = [callers.ask(number) for number in (1, 2)]
        backend.go.release(2)
        callers.batcher.close(PATIENCE_S)
        assert sorted(metres(each) for each in asked) == [1, 2]
        with pytest.raises(StoppingError):
            callers.ask(3).result(PATIENCE_S)
    with Callers(backend, max_batch=1) as callers:
        first = callers.ask(1)
        in_the_backend(backend, 3)
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
    noise = np.random.default_rng(0).integers(0, 256, (400, 400, 3), dtype=np.uint8)
    backend, data = SilentBackend(), encode_png(noise)  # as many bytes encoded as decoded
    server = TeacherServer(backend)
    url = f"127.0.0.1:{server.start()}"
    batcher = server._running.service.batcher
    asking = threading.Thread(target=infer, args=(url, data))
    try:
        asking.start()
        assert backend.asked.wait(SOON_S)
        assert noise.size + len(data) <= batcher.held_bytes < noise.size + len(data) + 1000
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
REQUEST = DepthRequest(b"", None, 0, "camera")


@contextmanager
def batching(backend) -> Iterator[Batcher]:
    batcher = Batcher(backend, ServiceSettings(), ServiceMetrics(METRIC, 1))
    try:
        yield batcher
    finally:
        batcher.close(0.0)


def label(batcher: Batcher, remaining_s: float = SOON_S) -> None:
    image = picture()
    with batcher.place(image.nbytes):
        batcher.submit(image, REQUEST, remaining_s=remaining_s, is_active=lambda: True)


def fail(batcher: Batcher, times: int, kind: type[Exception] = ZeroDivisionError) -> None:
    for _ in range(times):
        with pytest.raises(kind):
            label(batcher)


def ask(client: triton.InferenceServerClient) -> None:
    client.infer(**infer_arguments(depth_request()), client_timeout=SOON_S)


def test_what_broke_does_not_keep_its_image_until_a_collection():
    def ask(batcher: Batcher) -> weakref.ref:
        image = picture()
        with contextlib.suppress(ZeroDivisionError), batcher.place(image.nbytes):
            batcher.submit(image, REQUEST, remaining_s=None, is_active=lambda: True)
        return weakref.ref(image)

    def breaks(image, request):
        raise ZeroDivisionError("oops")  # anew for each image

    with batching(StubBackend(breaks)) as batcher:
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
    def dies(image, request):
        raise SystemExit

    with batching(StubBackend(dies)) as batcher:
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


class EndedError(Exception):
    """What `abort` raises."""


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"is_active.return_value": False}, grpc.StatusCode.CANCELLED),
        ({"time_remaining.return_value": 0.0}, grpc.StatusCode.DEADLINE_EXCEEDED),
    ],
    ids=["gone", "late"],
)
def test_an_image_whose_caller_left_while_it_waited_for_a_decoder_is_not_decoded(change, code):
    service = TeacherService(StubBackend(), ServiceSettings())
    caller = Mock(**{"time_remaining.return_value": SOON_S, "abort.side_effect": EndedError})

    def ask() -> None:
        with contextlib.suppress(EndedError):
            service.ModelInfer(message(depth_request().image), caller)

    for _ in range(cores()):
        service._decoders.acquire()
    asking = threading.Thread(target=ask)
    asking.start()
    wait_until(lambda: service.batcher.inside)
    caller.configure_mock(**change)
    service._decoders.release()
    asking.join(SOON_S)
    assert caller.abort.call_args.args[0] is code
    assert service.metrics.statistics().inference_stats.compute_input.count == 0
    service.close()
