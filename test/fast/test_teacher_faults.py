"""Client and server with a bad network between them.

Over real gRPC, through a TCP proxy that delays, cuts, truncates and swallows. A test passes when
the client says in bounded time that the teacher is out of reach, believes nothing that came in
part, and works again as soon as the network does, without being made anew.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import numpy as np
import pytest

from helpers.clocks import let_the_clock_jump
from helpers.proxy import TcpProxy
from helpers.teachers import SilentBackend, StubBackend, depth_request, picture, ramp, serving
from tiekd_ros.teacher.client import ClientSettings, TeacherClient
from tiekd_ros.teacher.errors import TeacherUnreachableError
from tiekd_ros.teacher.server import TeacherServer
from tiekd_ros.teacher.settings import ServerSettings

WIDTH, HEIGHT = 320, 240
MIDDLE = 50_000  # bytes into an answer of 300 kB, far beyond all that goes before it
DEADLINE_S = 0.4
PATIENCE_S = 30.0  # of what has to happen soon on a busy machine

REQUEST = depth_request(picture(0, WIDTH, HEIGHT))
LABEL = ramp(WIDTH, HEIGHT)


def client_for(url: str, **settings) -> TeacherClient:
    quick = {
        "timeout_s": PATIENCE_S,
        "attempts": 2,
        "backoff_initial_s": 0.02,
        "backoff_max_s": 0.1,
        "break_after": 1000,
    }
    return TeacherClient(ClientSettings(url=url, **{**quick, **settings}))


def port_of(url: str) -> int:
    return int(url.rpartition(":")[2])


def assert_label(client: TeacherClient) -> None:
    np.testing.assert_array_equal(client.infer(REQUEST).depth, LABEL)


@pytest.fixture
def backend() -> StubBackend:
    return StubBackend(LABEL)


@pytest.fixture
def proxy(backend) -> Iterator[TcpProxy]:
    with serving(backend, depth_type="FP32") as url, TcpProxy(port_of(url)) as between:
        yield between


def test_latency_delays_a_label_and_does_not_change_it(proxy):
    proxy.delay(0.15)
    started = time.monotonic()
    with client_for(proxy.url) as client:
        assert_label(client)
    assert time.monotonic() - started > 0.3  # there and back


def test_latency_beyond_the_deadline_is_out_of_reach_until_it_falls(proxy):
    proxy.delay(2 * DEADLINE_S)
    with client_for(proxy.url, timeout_s=DEADLINE_S) as client:
        with pytest.raises(TeacherUnreachableError, match="2 tries"):
            client.infer(REQUEST)
        proxy.pass_on()
        assert_label(client)


@pytest.mark.parametrize("fault", ["cut", "truncate"])
def test_an_answer_that_breaks_off_is_asked_for_again(backend, proxy, fault):
    def answer(image, request):
        if len(backend.requests) == 1:
            getattr(proxy, fault)(MIDDLE)
        else:
            proxy.pass_on()
        return LABEL

    backend.answer = answer
    with client_for(proxy.url) as client:
        assert_label(client)
    assert len(backend.requests) == 2


@pytest.mark.parametrize("fault", ["cut", "truncate"])
def test_an_answer_that_never_comes_whole_is_not_believed_in_part(backend, proxy, fault):
    getattr(proxy, fault)(MIDDLE)
    with client_for(proxy.url) as client:
        with pytest.raises(TeacherUnreachableError, match="2 tries"):
            client.infer(REQUEST)
        assert len(backend.requests) == 2
        proxy.pass_on()
        assert_label(client)


@pytest.mark.parametrize("connected", [True, False])
def test_a_black_hole_meets_the_deadline(proxy, connected):
    with client_for(proxy.url, timeout_s=DEADLINE_S) as client:
        if connected:
            assert_label(client)
        proxy.swallow()
        with pytest.raises(TeacherUnreachableError, match="2 tries"):
            client.infer(REQUEST)
        proxy.pass_on()
        assert_label(client)


def test_silence_in_the_middle_of_an_answer_meets_the_deadline(proxy):
    with client_for(proxy.url, timeout_s=DEADLINE_S) as client:
        assert_label(client)
        proxy.stall(MIDDLE)
        with pytest.raises(TeacherUnreachableError, match="DEADLINE_EXCEEDED"):
            client.infer(REQUEST)
        proxy.pass_on()
        assert_label(client)


def test_a_refused_connection_is_out_of_reach_until_somebody_listens_again(proxy):
    with client_for(proxy.url) as client:
        assert_label(client)
        proxy.refuse()
        with pytest.raises(TeacherUnreachableError, match="is it running"):
            client.infer(REQUEST)
        proxy.pass_on()
        assert_label(client)


def test_a_restart_under_load_gives_each_image_its_own_label_all_the_same():
    asked = threading.Event()

    def answer(image, request):
        asked.set()
        time.sleep(0.02)
        return ramp() + request.stamp_ns

    first = TeacherServer(StubBackend(answer), ServerSettings())
    second = TeacherServer(StubBackend(answer), ServerSettings())
    labels = {}
    with TcpProxy(first.start()) as proxy, client_for(proxy.url, attempts=100) as client:

        def ask(stamps):
            for stamp in stamps:
                labels[stamp] = client.infer(depth_request(stamp_ns=stamp)).depth

        robots = [
            threading.Thread(target=ask, args=(range(start, start + 5),)) for start in (1, 6, 11)
        ]
        for robot in robots:
            robot.start()
        try:
            assert asked.wait(PATIENCE_S)
            first.stop(0.0)
            proxy.target_port = second.start()
            for robot in robots:
                robot.join(PATIENCE_S)
        finally:
            first.stop(0.0)
            second.stop(0.0)
    assert sorted(labels) == list(range(1, 16))
    for stamp, depth in labels.items():
        np.testing.assert_allclose(depth, ramp() + stamp, rtol=1e-3)


def test_a_full_queue_is_told_from_a_lost_connection():
    backend = SilentBackend()
    with (
        serving(backend, max_waiting=0) as url,
        TcpProxy(port_of(url)) as proxy,
        client_for(proxy.url) as patient,
        client_for(proxy.url, attempts=5) as late,
    ):
        waiting = threading.Thread(target=patient.infer, args=(REQUEST,))
        waiting.start()
        assert backend.asked.wait(PATIENCE_S)
        with pytest.raises(TeacherUnreachableError, match="max_waiting"):
            late.infer(REQUEST)
        assert proxy.accepted == 2  # one connection each, through all tries
        backend.released.set()
        waiting.join(PATIENCE_S)
        late.infer(REQUEST)


def test_more_robots_than_places_all_get_their_labels():
    def answer(image, request):
        time.sleep(0.01)
        return ramp() + request.stamp_ns

    labels = {}

    def ask(url, stamp):
        with client_for(url, attempts=100) as client:
            labels[stamp] = client.infer(depth_request(stamp_ns=stamp)).depth

    with serving(StubBackend(answer), max_waiting=1) as url:
        robots = [threading.Thread(target=ask, args=(url, stamp)) for stamp in range(1, 17)]
        for robot in robots:
            robot.start()
        for robot in robots:
            robot.join(PATIENCE_S)
    assert sorted(labels) == list(range(1, 17))
    for stamp, depth in labels.items():
        np.testing.assert_allclose(depth, ramp() + stamp, rtol=1e-3)


def test_a_clock_that_jumps_moves_no_deadline(proxy, monkeypatch):
    let_the_clock_jump(monkeypatch)
    with client_for(proxy.url, timeout_s=DEADLINE_S) as client:
        assert_label(client)
        proxy.swallow()
        with pytest.raises(TeacherUnreachableError, match="2 tries"):
            client.infer(REQUEST)
        proxy.pass_on()
        assert_label(client)
        assert 0 < client.traffic.snapshot().round_trip_p95_s < PATIENCE_S
