"""The client against teachers that answer, refuse, lie and break, and a bad network between them.

Over real gRPC on 127.0.0.1, through a TCP proxy that delays, cuts, truncates and swallows. A test
passes when the client makes one attempt, in bounded time, raises the one error that tells its
caller what to do, and works again as soon as teacher and network do, without being made anew.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import pytest
from tritonclient.grpc import service_pb2, service_pb2_grpc

from helpers.children import wait_until
from helpers.proxy import TcpProxy, let_the_clock_jump
from helpers.teachers import (
    METRIC,
    RELATIVE,
    SilentBackend,
    StubBackend,
    depth_request,
    foreign_server,
    infer_patiently,
    picture,
    ramp,
    serving,
)
from tiekd_ros.core.errors import InvalidSettingError
from tiekd_ros.core.launch_options import free_port
from tiekd_ros.teacher.client import ClientSettings, TeacherClient
from tiekd_ros.teacher.errors import (
    BackendRefusal,
    RelativeTeacherError,
    TeacherAnswerError,
    TeacherBusyError,
    TeacherFailedError,
    TeacherRefusedError,
    TeacherUnreachableError,
)
from tiekd_ros.teacher.protocol import (
    AnswerChecks,
    DepthAnswer,
    DepthRequest,
    TeacherIdentity,
    check_answer,
    read_answer,
    write_answer,
)
from tiekd_ros.teacher.server import TeacherServer

WIDTH, HEIGHT = 320, 240
MIDDLE = 50_000  # bytes into an answer of 300 kB, far beyond all that goes before it
DEADLINE_S = 0.4
PATIENCE_S = 30.0  # of what has to happen soon on a busy machine

REQUEST = depth_request(picture(0, WIDTH, HEIGHT))
LABEL = ramp(WIDTH, HEIGHT)


def client_for(url: str, **settings) -> TeacherClient:
    return TeacherClient(ClientSettings(url=url, **{"timeout_s": PATIENCE_S, **settings}))


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


def test_a_request_and_its_answer_survive_the_wire():
    confidence = np.full((48, 64), 0.75, np.float32)
    backend = StubBackend(DepthAnswer(ramp(), confidence))
    sent = depth_request(stamp_ns=1_700_000_000_123_456_789)
    with serving(backend, depth_type="FP32") as url, client_for(url) as client:
        answer = client.infer(sent)
        assert client.identity() == METRIC
        assert client.ready()
        client.infer(replace(sent, intrinsics=None))
    np.testing.assert_array_equal(answer.depth, ramp())
    np.testing.assert_array_equal(answer.confidence, confidence)
    assert answer.depth.dtype == answer.confidence.dtype == np.float32
    assert answer.teacher == METRIC
    first, second = backend.requests
    assert first == replace(sent, image=b"")  # the image itself went decoded
    assert second.intrinsics is None


def test_a_refusal_carries_its_reason_and_is_told_from_a_teacher_that_breaks():
    backend = StubBackend(BackendRefusal("never seen this room"))
    with serving(backend, max_message_mb=2, max_image_mb=1) as url, client_for(url) as client:
        with pytest.raises(TeacherRefusedError, match="never seen this room"):
            client.infer(REQUEST)
        assert len(backend.requests) == 1
        with pytest.raises(TeacherRefusedError):
            client.infer(DepthRequest(b"garbage", None, 0, ""))
        with pytest.raises(TeacherRefusedError, match="max_message_mb"):
            client.infer(DepthRequest(bytes(3 << 20), None, 0, ""))
        backend.answer = RuntimeError("CUDA out of memory")
        with pytest.raises(TeacherFailedError, match="RuntimeError"):
            client.infer(REQUEST)
        backend.answer = ramp()
        assert client.infer(REQUEST).depth.shape == (48, 64)


def test_a_relative_teacher_is_refused_unless_allowed_also_where_it_takes_anothers_place():
    backend = StubBackend(identity=RELATIVE)
    with serving(backend) as url, client_for(url) as client:
        with pytest.raises(RelativeTeacherError, match="metres"):
            client.infer(REQUEST)
        with TeacherClient(ClientSettings(url=url), allow_relative=True) as tolerant:
            assert tolerant.infer(REQUEST).teacher == RELATIVE
        backend.identity = METRIC
        assert client.infer(REQUEST).teacher == METRIC
        backend.identity = RELATIVE  # noticed at its first answer
        with pytest.raises(RelativeTeacherError):
            client.infer(REQUEST)


def test_no_listener_is_unreachable_and_counts_as_no_answer():
    port = free_port()
    with client_for(f"127.0.0.1:{port}") as client:
        for call in (client.identity, client.ready, lambda: client.infer(REQUEST)):
            with pytest.raises(TeacherUnreachableError, match="is it running") as failure:
                call()
            assert failure.value.retry_after_s is None
        assert client.traffic.snapshot().answers == 0
        with serving(StubBackend(), port=port):
            for _ in range(3):
                client.infer(REQUEST)
        traffic = client.traffic.snapshot()
    assert traffic.answers == 3
    assert traffic.bytes_up == len(REQUEST.image)
    assert 64 * 48 * 2 < traffic.bytes_down < 64 * 48 * 2 + 300  # FP16, and the message around it
    assert 0 < traffic.round_trip_p50_s <= traffic.round_trip_p95_s < PATIENCE_S


def test_a_server_without_the_model_or_without_a_name_is_no_metric_teacher():
    class Empty(service_pb2_grpc.GRPCInferenceServiceServicer):
        pass

    class Unnamed(service_pb2_grpc.GRPCInferenceServiceServicer):
        def ModelConfig(self, request, context):  # noqa: N802
            return service_pb2.ModelConfigResponse()

    for servicer, error, text in (
        (Empty(), TeacherUnreachableError, "depth_teacher"),
        (Unnamed(), RelativeTeacherError, "metric"),
    ):
        with (
            foreign_server(servicer) as url,
            client_for(url) as client,
            pytest.raises(error, match=text),
        ):
            client.infer(depth_request())


def test_an_address_that_is_not_host_and_port_is_refused():
    for url in ("http://127.0.0.1:8001", "127.0.0.1", "host:99999"):
        with pytest.raises(InvalidSettingError, match="host:port"):
            ClientSettings(url=url)
    with pytest.raises(InvalidSettingError, match="url is empty"):
        TeacherClient(ClientSettings(url=""))


# A bad network.


def test_latency_delays_a_label_and_beyond_the_deadline_is_out_of_reach(proxy):
    proxy.delay(0.15)
    started = time.monotonic()
    with client_for(proxy.url) as client:
        assert_label(client)
    assert time.monotonic() - started > 0.3  # there and back
    proxy.delay(2 * DEADLINE_S)
    with client_for(proxy.url, timeout_s=DEADLINE_S) as client:
        with pytest.raises(TeacherUnreachableError, match="no answer from the teacher at"):
            client.infer(REQUEST)
        proxy.pass_on()
        assert_label(client)


def test_an_answer_that_breaks_off_is_not_believed_in_part(backend, proxy):
    with client_for(proxy.url) as client:
        for number, fault in enumerate((proxy.cut, proxy.truncate)):
            fault(MIDDLE)
            with pytest.raises(TeacherUnreachableError, match="no answer"):
                client.infer(REQUEST)
            assert len(backend.requests) == 1 + 2 * number
            proxy.pass_on()
            assert_label(client)


def test_silence_meets_the_deadline(proxy):
    with client_for(proxy.url, timeout_s=DEADLINE_S) as client:
        for fault in (proxy.swallow, proxy.swallow, lambda: proxy.stall(MIDDLE)):
            fault()  # before there is a connection, on one, and in the middle of an answer
            started = time.monotonic()
            with pytest.raises(TeacherUnreachableError, match="DEADLINE_EXCEEDED"):
                client.infer(REQUEST)
            assert DEADLINE_S < time.monotonic() - started + 0.01 < PATIENCE_S
            proxy.pass_on()
            assert_label(client)


def test_a_refused_connection_is_out_of_reach_until_there_is_a_listener_again(proxy):
    with client_for(proxy.url) as client:
        assert_label(client)
        proxy.refuse()
        with pytest.raises(TeacherUnreachableError, match="is it running"):
            client.infer(REQUEST)
        proxy.pass_on()
        assert_label(client)
        successor = TeacherIdentity("stub", "8", metric=True)
        with serving(StubBackend(identity=successor)) as url:
            proxy.refuse()
            proxy.target_port = port_of(url)
            proxy.pass_on()
            with contextlib.suppress(TeacherUnreachableError):
                client.infer(REQUEST)
            assert client.identity() == successor
            assert client.infer(REQUEST).teacher == successor


def test_closing_ends_a_pending_call_at_once():
    backend, errors = SilentBackend(), []

    def ask():
        with pytest.raises(TeacherUnreachableError) as raised:
            client.infer(REQUEST)
        errors.append(str(raised.value))

    with serving(backend) as url:
        client = client_for(url)
        asking = threading.Thread(target=ask)
        asking.start()
        assert backend.asked.wait(PATIENCE_S)
        client.close()
        asking.join(PATIENCE_S / 2)
        assert "closed" in errors[0]
        with pytest.raises(TeacherUnreachableError, match="closed"):
            client.infer(REQUEST)


def test_a_clock_that_jumps_moves_no_deadline(proxy, monkeypatch):
    let_the_clock_jump(monkeypatch)
    with client_for(proxy.url, timeout_s=DEADLINE_S) as client:
        assert_label(client)
        proxy.swallow()
        with pytest.raises(TeacherUnreachableError, match="no answer"):
            client.infer(REQUEST)
        proxy.pass_on()
        assert_label(client)
        assert 0 < client.traffic.snapshot().round_trip_p95_s < PATIENCE_S


def test_a_full_queue_is_told_from_a_lost_connection():
    backend = SilentBackend()
    with (
        serving(backend, max_waiting=0) as url,
        TcpProxy(port_of(url)) as proxy,
        client_for(proxy.url) as patient,
        client_for(proxy.url) as late,
    ):
        waiting = threading.Thread(target=patient.infer, args=(REQUEST,))
        waiting.start()
        assert backend.asked.wait(PATIENCE_S)
        for _ in range(3):
            with pytest.raises(TeacherBusyError, match=r"too much to do.*max_waiting") as busy:
                late.infer(REQUEST)
            assert busy.value.retry_after_s > 0
        assert proxy.accepted == 2  # one connection each, through all attempts
        backend.released.set()
        waiting.join(PATIENCE_S)
        late.infer(REQUEST)


def answers_slowly(image, request):
    time.sleep(0.02)
    return ramp() + request.stamp_ns


def assert_own_labels(clients: list[TeacherClient], begin: Callable[[], None] | None = None):
    """Ask for 5 labels on each client, all at once; `begin` is called in the meantime."""

    def ask(number: int, client: TeacherClient) -> None:
        for stamp in range(5 * number, 5 * number + 5):
            labels[stamp] = infer_patiently(client, depth_request(stamp_ns=stamp)).depth

    labels: dict[int, np.ndarray] = {}
    robots = [threading.Thread(target=ask, args=each) for each in enumerate(clients)]
    for robot in robots:
        robot.start()
    if begin is not None:
        begin()
    for robot in robots:
        robot.join(PATIENCE_S)
    assert sorted(labels) == list(range(5 * len(clients)))
    for stamp, depth in labels.items():
        np.testing.assert_allclose(depth, ramp() + stamp, rtol=1e-3)


def test_a_restart_under_load_gives_each_image_its_own_label_all_the_same():
    backend = StubBackend(answers_slowly)
    first, second = TeacherServer(backend), TeacherServer(backend)

    def restart() -> None:
        wait_until(lambda: backend.requests)
        first.stop(0.0)
        proxy.target_port = second.start()

    with TcpProxy(first.start()) as proxy, client_for(proxy.url) as client:
        try:
            assert_own_labels([client] * 3, restart)
        finally:
            first.stop(0.0)
            second.stop(0.0)


def test_more_robots_than_places_all_get_their_labels():
    with (
        serving(StubBackend(answers_slowly), max_waiting=1) as url,
        contextlib.ExitStack() as robots,
    ):
        assert_own_labels([robots.enter_context(client_for(url)) for _ in range(8)])


# What is believed of an answer, where the wire has no say.


def check(depth, confidence=None, size=(64, 48), checks=None):
    check_answer(DepthAnswer(depth, confidence), *size, checks)


def test_depth_of_the_same_view_is_believed_and_what_no_view_has_is_not():
    for size in ((64, 48), (640, 480), (641, 480), (32, 24)):
        check(ramp(), size=size)
    noise = np.random.default_rng(0).normal(2.0, 0.005, (48, 64)).astype(np.float32)
    check(noise)  # a flat wall
    negative, sparse = ramp(), ramp()
    negative[3, 3] = -0.01
    sparse[:, 8:] = np.nan
    check(sparse)
    for depth, checks, words in (
        (ramp(48, 64), None, "48x64 for an image of 64x48"),
        (negative, None, r"-0\.01 m"),
        (sparse, AnswerChecks(min_known_share=0.5), r"12\.\d+% of the depth map is known"),
    ):
        with pytest.raises(TeacherAnswerError, match=words):
            check(depth, checks=checks)


def test_confidence_has_the_shape_of_its_depth_and_lies_between_0_and_1():
    check(ramp(), np.ones((48, 64), np.float32))
    with pytest.raises(TeacherAnswerError, match="agree"):
        check(ramp(), np.ones((24, 32), np.float32))
    with pytest.raises(TeacherAnswerError, match="between 0 and 1"):
        check(ramp(), np.full((48, 64), 1.5, np.float32))


def test_a_depth_of_zero_is_read_as_unknown_and_beyond_fp16_nothing_is_believed():
    depth = ramp()
    depth[5] = 0
    answer = read_answer(write_answer(DepthAnswer(depth), METRIC, "FP32"))
    assert np.isnan(answer.depth[5]).all()
    assert np.isnan(answer.depth).sum() == 65
    answer = read_answer(write_answer(DepthAnswer(ramp() * 1e5), METRIC, "FP16"))
    with pytest.raises(TeacherAnswerError, match="inf"):
        check_answer(answer, 64, 48)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda m: m.ClearField("outputs"), "no output `depth`"),
        (lambda m: setattr(m.outputs[0], "datatype", "FP64"), "FP64"),
        (lambda m: m.outputs[0].shape.append(1), "shape"),
        (lambda m: m.outputs[0].shape.__setitem__(0, -48), "shape"),
        (lambda m: m.raw_output_contents.__setitem__(0, bytes(7)), "carries 0 numbers"),
        (lambda m: m.raw_output_contents.__setitem__(0, bytes(8)), "carries 2 numbers"),
        (lambda m: m.ClearField("raw_output_contents"), "carries 0 numbers"),
    ],
)
def test_an_answer_that_breaks_the_protocol_is_not_believed(change, reason):
    message = write_answer(DepthAnswer(ramp()), METRIC, "FP32")
    change(message)
    with pytest.raises(TeacherAnswerError, match=reason):
        read_answer(message)
