"""The batcher: who goes together, who waits, who is turned away, and that nobody is forgotten.

With backends that hold still until they are told to go on, so that what is in a batch does not
depend on how fast this machine is.
"""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest

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
from helpers.teachers import StubBackend
from tiekd_ros.teacher.backend import BackendRefusal
from tiekd_ros.teacher.batcher import QueuedRequest
from tiekd_ros.teacher.errors import BusyError, CallerGoneError, LateError, StoppingError
from tiekd_ros.teacher.protocol import DepthRequest


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
