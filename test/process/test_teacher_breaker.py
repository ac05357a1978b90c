"""The circuit breaker by itself, and in a client whose server goes away and comes back."""

from __future__ import annotations

import threading
import time

import pytest

from helpers.children import PATIENCE_S, wait_until
from helpers.teachers import (
    METRIC,
    SilentBackend,
    StubBackend,
    depth_request,
    free_port,
    ramp,
    serving,
)
from tiekd_ros.core.errors import InvalidSettingError
from tiekd_ros.teacher.client import CircuitBreaker, ClientSettings, TeacherClient
from tiekd_ros.teacher.errors import (
    CircuitOpenError,
    TeacherBusyError,
    TeacherFailedError,
    TeacherUnreachableError,
)

SOON_S = 0.02
NEVER_S = 3600.0


def client_for(url: str, **settings) -> TeacherClient:
    quick = {
        "timeout_s": 5.0,
        "attempts": 1,
        "backoff_initial_s": 0.01,
        "break_initial_s": SOON_S,
        "break_max_s": 4 * SOON_S,
    }
    return TeacherClient(ClientSettings(url=url, **{**quick, **settings}))


def opened(wait_s: float, most_s: float = NEVER_S) -> CircuitBreaker:
    breaker = CircuitBreaker(1, wait_s, most_s)
    assert breaker.enter() is False
    assert breaker.fail("gone", probe=False) is not None
    return breaker


def test_it_opens_after_so_many_failures_in_a_row_and_no_sooner():
    breaker = CircuitBreaker(3, NEVER_S, NEVER_S)
    for _ in range(2):
        assert breaker.fail("gone", probe=False) is None
    breaker.succeed()
    for _ in range(2):
        assert breaker.fail("gone", probe=False) is None
        assert breaker.enter() is False
    wait_s = breaker.fail("gone", probe=False)
    assert 0.49 * NEVER_S < wait_s <= NEVER_S  # jitter takes up to half
    with pytest.raises(CircuitOpenError, match=r"3 requests in a row \(last: gone\)") as refusal:
        breaker.enter()
    assert 0 < refusal.value.retry_in_s <= wait_s
    assert breaker.state()[0] == "open"


def test_one_probe_at_a_time_and_its_answer_closes_the_circuit():
    breaker = opened(SOON_S)
    wait_until(lambda: breaker.state()[0] == "half-open")
    assert breaker.enter() is True
    with pytest.raises(CircuitOpenError):
        breaker.enter()
    breaker.succeed()
    assert breaker.enter() is False
    assert breaker.state() == ("closed", 0.0)


def test_a_failed_probe_opens_it_again_for_longer_up_to_the_cap():
    breaker, waits = opened(SOON_S, 8 * SOON_S), []
    for _ in range(6):
        wait_until(lambda: breaker.state()[0] == "half-open")
        assert breaker.enter() is True
        waits.append(breaker.fail("gone", probe=True))
    assert all(wait_s <= 8 * SOON_S for wait_s in waits)
    assert all(wait_s > 3.9 * SOON_S for wait_s in waits[3:])  # half of the cap, less a moment


def test_a_probe_that_says_nothing_leaves_the_next_one_to_say_it():
    breaker = opened(SOON_S)
    wait_until(lambda: breaker.state()[0] == "half-open")
    assert breaker.enter() is True
    breaker.leave(probe=True)
    assert breaker.enter() is True


def test_a_call_that_began_before_does_not_put_the_probe_off():
    breaker = opened(SOON_S)
    before = breaker.state()[1]
    assert breaker.fail("gone", probe=False) <= before
    wait_until(lambda: breaker.state()[0] == "half-open")
    assert breaker.enter() is True


def test_a_client_stops_asking_says_when_to_come_back_and_recovers():
    port = free_port()
    with client_for(f"127.0.0.1:{port}", break_after=2) as client:
        for expected in (False, True):
            with pytest.raises(TeacherUnreachableError) as refusal:
                client.infer(depth_request())
            assert (refusal.value.retry_in_s is not None) is expected
        assert client.breaker.state()[0] != "closed"
        with serving(StubBackend(), port=port):
            answered = []

            def ask() -> bool:
                try:
                    answered.append(client.infer(depth_request()))
                except TeacherUnreachableError as error:
                    time.sleep(error.retry_in_s)
                return bool(answered)

            wait_until(ask)
            assert answered[0].teacher == METRIC
            assert client.breaker.state()[0] == "closed"


def test_nothing_is_sent_while_the_circuit_is_open():
    port = free_port()
    backend = StubBackend()
    waits = {"break_after": 1, "break_initial_s": NEVER_S, "break_max_s": NEVER_S}
    with client_for(f"127.0.0.1:{port}", **waits) as client:
        with pytest.raises(TeacherUnreachableError):
            client.infer(depth_request())
        with serving(backend, port=port):
            for _ in range(3):
                with pytest.raises(CircuitOpenError):
                    client.infer(depth_request())
    assert backend.requests == []


def test_a_probe_is_one_try_however_many_a_request_gets():
    port = free_port()
    with client_for(f"127.0.0.1:{port}", break_after=1, attempts=3) as client:
        with pytest.raises(TeacherUnreachableError, match="3 tries"):
            client.infer(depth_request())
        wait_until(lambda: client.breaker.state()[0] == "half-open")
        with pytest.raises(TeacherUnreachableError, match="1 try"):
            client.infer(depth_request())


def test_a_teacher_that_breaks_on_an_image_is_not_out_of_reach():
    backend = StubBackend(RuntimeError("out of memory"))
    with serving(backend) as url, client_for(url, break_after=1) as client:
        for _ in range(3):
            with pytest.raises(TeacherFailedError):
                client.infer(depth_request())
        backend.answer = ramp()
        client.infer(depth_request())


def test_a_full_teacher_is_not_out_of_reach():
    backend = SilentBackend()
    with (
        serving(backend, max_waiting=0) as url,
        client_for(url) as patient,
        client_for(url, break_after=1) as late,
    ):
        waiting = threading.Thread(target=patient.infer, args=(depth_request(),))
        waiting.start()
        assert backend.asked.wait(PATIENCE_S)
        for _ in range(3):
            with pytest.raises(TeacherBusyError, match="too much to do"):
                late.infer(depth_request())
        backend.released.set()
        waiting.join(PATIENCE_S)
        late.infer(depth_request())


def test_round_trips_and_bytes_are_counted_for_answers_only():
    request = depth_request()
    port = free_port()
    with client_for(f"127.0.0.1:{port}", break_after=100) as client:
        with pytest.raises(TeacherUnreachableError):
            client.infer(request)
        assert client.traffic.snapshot().answers == 0
        with serving(StubBackend(), port=port):
            for _ in range(3):
                client.infer(request)
        traffic = client.traffic.snapshot()
    assert traffic.answers == 3
    assert traffic.bytes_up == len(request.image)
    assert 64 * 48 * 2 < traffic.bytes_down < 64 * 48 * 2 + 300  # FP16, and the message around it
    assert 0 < traffic.round_trip_p50_s <= traffic.round_trip_p95_s < PATIENCE_S


def test_a_cap_below_the_first_wait_is_refused():
    with pytest.raises(InvalidSettingError, match="break_max_s must be at least break_initial_s"):
        ClientSettings(break_initial_s=5.0, break_max_s=1.0)
