"""The client against teachers that answer, refuse, lie and break.

Over real gRPC on 127.0.0.1; a test passes when the client raises the one error that tells its
caller what to do (retry later, drop the image, distrust the answer) and goes on afterwards.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from tritonclient.grpc import service_pb2, service_pb2_grpc

from helpers.teachers import (
    METRIC,
    RELATIVE,
    StubBackend,
    depth_request,
    foreign_server,
    free_port,
    ramp,
    serving,
)
from tiekd_ros.core.errors import InvalidSettingError
from tiekd_ros.teacher.backend import BackendRefusal
from tiekd_ros.teacher.checks import AnswerChecks
from tiekd_ros.teacher.client import ClientSettings, TeacherClient
from tiekd_ros.teacher.errors import (
    RelativeTeacherError,
    TeacherAnswerError,
    TeacherFailedError,
    TeacherRefusedError,
    TeacherUnreachableError,
)
from tiekd_ros.teacher.protocol import DepthAnswer, DepthRequest


def client_for(url: str, **settings) -> TeacherClient:
    quick = {"timeout_s": 5.0, "attempts": 2, "backoff_initial_s": 0.02, "backoff_max_s": 0.1}
    return TeacherClient(ClientSettings(url=url, **{**quick, **settings}))


def test_a_request_and_its_answer_survive_the_wire():
    confidence = np.full((48, 64), 0.75, np.float32)
    backend = StubBackend(DepthAnswer(ramp(), confidence))
    sent = depth_request(stamp_ns=1_700_000_000_123_456_789)
    with serving(backend, depth_type="FP32") as url, client_for(url) as client:
        answer = client.infer(sent)
        assert client.identity() == METRIC
    np.testing.assert_array_equal(answer.depth, ramp())
    np.testing.assert_array_equal(answer.confidence, confidence)
    assert answer.depth.dtype == answer.confidence.dtype == np.float32
    assert answer.teacher == METRIC
    assert backend.requests == [replace(sent, image=b"")]  # the image itself went decoded


def test_a_request_without_intrinsics_arrives_without():
    backend = StubBackend()
    with serving(backend) as url, client_for(url) as client:
        client.infer(DepthRequest(depth_request().image, None, 0, ""))
    assert backend.requests[0].intrinsics is None


@pytest.mark.parametrize(
    ("depth", "reason"),
    [
        (np.zeros((48, 64), np.float32), "known"),
        (-ramp(), "positive"),
        (ramp(width=96), "aspect ratio"),
        (ramp()[None], "shape"),
        (np.full((48, 64), 2.0, np.float32), "constant"),
        (ramp() * 1000, "max_depth_m"),
        (np.full((48, 64), np.inf, np.float32), "max_depth_m"),
    ],
)
def test_an_answer_that_cannot_be_depth_is_not_believed(depth, reason):
    with (
        serving(StubBackend(depth)) as url,
        client_for(url) as client,
        pytest.raises(TeacherAnswerError, match=reason),
    ):
        client.infer(depth_request())


def test_a_refused_image_is_not_retried_and_carries_the_reason():
    backend = StubBackend(BackendRefusal("never seen this room"))
    with (
        serving(backend) as url,
        client_for(url) as client,
        pytest.raises(TeacherRefusedError, match="never seen this room"),
    ):
        client.infer(depth_request())
    assert len(backend.requests) == 1


def test_bytes_that_are_no_image_are_not_even_sent():
    with (
        client_for(f"127.0.0.1:{free_port()}") as client,
        pytest.raises(TeacherRefusedError, match="neither JPEG nor PNG"),
    ):
        client.infer(DepthRequest(b"garbage", None, 0, ""))


def test_a_teacher_that_breaks_is_told_apart_from_one_that_refuses_and_goes_on():
    backend = StubBackend(RuntimeError("CUDA out of memory"))
    with serving(backend) as url, client_for(url) as client:
        with pytest.raises(TeacherFailedError, match="RuntimeError"):
            client.infer(depth_request())
        backend.answer = ramp()
        assert client.infer(depth_request()).depth.shape == (48, 64)


def test_a_relative_teacher_is_refused_unless_allowed():
    with serving(StubBackend(identity=RELATIVE)) as url:
        with client_for(url) as client, pytest.raises(RelativeTeacherError, match="metres"):
            client.infer(depth_request())
        with TeacherClient(ClientSettings(url=url), allow_relative=True) as client:
            assert client.infer(depth_request()).teacher == RELATIVE


def test_a_teacher_swapped_for_a_relative_one_is_noticed_at_its_first_answer():
    backend = StubBackend()
    with serving(backend) as url, client_for(url) as client:
        client.infer(depth_request())
        backend.identity = RELATIVE
        with pytest.raises(RelativeTeacherError):
            client.infer(depth_request())
        backend.identity = METRIC
        assert client.infer(depth_request()).teacher == METRIC


def test_nobody_listening_is_unreachable():
    with (
        client_for(f"127.0.0.1:{free_port()}") as client,
        pytest.raises(TeacherUnreachableError, match="is it running"),
    ):
        client.identity()


def test_a_server_without_the_model_is_unreachable_not_a_refusal():
    class Empty(service_pb2_grpc.GRPCInferenceServiceServicer):
        pass

    with (
        foreign_server(Empty()) as url,
        client_for(url) as client,
        pytest.raises(TeacherUnreachableError, match="depth_teacher"),
    ):
        client.infer(depth_request())


def test_a_server_that_does_not_say_metric_is_not_taken_for_metric():
    class Unnamed(service_pb2_grpc.GRPCInferenceServiceServicer):
        def ModelConfig(self, request, context):  # noqa: N802
            return service_pb2.ModelConfigResponse()

    with (
        foreign_server(Unnamed()) as url,
        client_for(url) as client,
        pytest.raises(RelativeTeacherError, match="metric"),
    ):
        client.infer(depth_request())


def test_a_busy_teacher_is_tried_again():
    class BusyOnce(service_pb2_grpc.GRPCInferenceServiceServicer):
        calls = 0

        def ModelConfig(self, request, context):  # noqa: N802
            import grpc

            self.calls += 1
            if self.calls == 1:
                context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "queue full")
            response = service_pb2.ModelConfigResponse()
            for key, text in METRIC.as_parameters().items():
                response.config.parameters[key].string_value = text
            return response

    with foreign_server(BusyOnce()) as url, client_for(url) as client:
        assert client.identity() == METRIC


def test_a_message_over_the_servers_limit_is_a_refusal():
    noise = np.random.default_rng(0).integers(0, 256, (1600, 2000, 3), dtype=np.uint8)
    with (
        serving(StubBackend(), max_message_mb=2, max_image_mb=1) as url,
        client_for(url) as client,
        pytest.raises(TeacherRefusedError, match="max_message_mb"),
    ):
        client.infer(depth_request(noise))


def test_sparse_labels_pass_where_the_threshold_says_so():
    depth = np.full((48, 64), np.nan, np.float32)
    depth[::8, ::8] = ramp()[::8, ::8]
    with serving(StubBackend(depth)) as url:
        with client_for(url) as client, pytest.raises(TeacherAnswerError, match="min_known_share"):
            client.infer(depth_request())
        settings = ClientSettings(url=url)
        with TeacherClient(settings, AnswerChecks(min_known_share=0.001)) as client:
            client.infer(depth_request())


@pytest.mark.parametrize("url", ["http://127.0.0.1:8001", "127.0.0.1", "host:99999"])
def test_an_address_that_is_not_host_and_port_is_refused(url):
    with pytest.raises(InvalidSettingError, match="host:port"):
        ClientSettings(url=url)
