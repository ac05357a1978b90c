"""The server as a plain client and a stranger meet it: answers, refusals, start, end, logs."""

from __future__ import annotations

import io
import json
import logging
import re
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton
from tritonclient.grpc import service_pb2, service_pb2_grpc

from helpers.attacks import message as image_message
from helpers.strangers import image_input, infer, refusal
from helpers.teachers import SilentBackend, StubBackend, picture, ramp, serving
from tiekd_ros.core.images import decode_image, encode_jpeg
from tiekd_ros.teacher import service
from tiekd_ros.teacher.errors import BackendRefusal, TeacherServerError
from tiekd_ros.teacher.process import configure_logs
from tiekd_ros.teacher.protocol import DepthAnswer
from tiekd_ros.teacher.server import TeacherServer
from tiekd_ros.teacher.service import RateLimitedErrorLog
from tiekd_ros.teacher.settings import ServerSettings

FP16_RELATIVE_ERROR = 2.0**-11
IMAGE = encode_jpeg(picture())

# An EXIF segment of one entry: orientation 6, the camera was held a quarter turn to the right.
EXIF_QUARTER_TURN = (
    b"\xff\xe1\x00\x22Exif\0\0MM\x00\x2a\x00\x00\x00\x08\x00\x01"
    b"\x01\x12\x00\x03\x00\x00\x00\x01\x00\x06\x00\x00\x00\x00\x00\x00"
)


def test_plain_tritonclient_code_gets_depth():
    backend = StubBackend(DepthAnswer(ramp(), np.full((48, 64), 0.5, np.float32)))
    with serving(backend) as url, triton.InferenceServerClient(url) as client:
        assert client.is_server_live()
        assert client.is_server_ready()
        assert client.is_model_ready("depth_teacher")
        assert not client.is_model_ready("depth_student")
        intrinsics = triton.InferInput("intrinsics", [4], "FP32")
        intrinsics.set_data_from_numpy(np.array([60, 60, 31.5, 23.5], np.float32))
        result = client.infer(
            "depth_teacher",
            [image_input(IMAGE), intrinsics],
            outputs=[
                triton.InferRequestedOutput("confidence"),
                triton.InferRequestedOutput("depth"),
            ],
            request_id="41",
            parameters={"stamp_ns": 12, "frame_id": "camera"},
        )
    depth = result.as_numpy("depth")
    assert depth.dtype == np.float16
    np.testing.assert_allclose(depth.astype(np.float32), ramp(), rtol=FP16_RELATIVE_ERROR)
    assert (result.as_numpy("confidence") == 0.5).all()
    assert result.get_response().id == "41"
    seen = backend.requests[0]
    assert (seen.stamp_ns, seen.frame_id, seen.intrinsics.cx) == (12, "camera", 31.5)


def test_metadata_and_configuration_name_the_teacher():
    with serving(StubBackend()) as url, triton.InferenceServerClient(url) as client:
        assert client.get_server_metadata().name == "tiekd_teacher"
        metadata = client.get_model_metadata("depth_teacher")
        config = client.get_model_config("depth_teacher").config
    assert (metadata.platform, list(metadata.versions)) == ("stub", ["7"])
    assert [tensor.name for tensor in metadata.outputs] == ["depth", "confidence"]
    parameters = {key: value.string_value for key, value in config.parameters.items()}
    assert parameters == {"teacher": "stub", "teacher_version": "7", "metric": "true"}
    assert [tensor.optional for tensor in config.input] == [False, True]


def test_tensors_in_typed_contents_are_read_and_exact_depth_is_to_be_had_as_fp32():
    backend = StubBackend()
    message = service_pb2.ModelInferRequest(model_name="depth_teacher")
    image = message.inputs.add(name="image", datatype="BYTES", shape=[1])
    image.contents.bytes_contents.append(IMAGE)
    intrinsics = message.inputs.add(name="intrinsics", datatype="FP32", shape=[4])
    intrinsics.contents.fp32_contents.extend([60, 61, 31.5, 23.5])
    with serving(backend, depth_type="FP32") as url, grpc.insecure_channel(url) as channel:
        response = service_pb2_grpc.GRPCInferenceServiceStub(channel).ModelInfer(message)
    depth = triton.InferResult(response).as_numpy("depth")  # a call without a deadline
    assert depth.dtype == np.float32
    np.testing.assert_array_equal(depth, ramp())
    assert backend.requests[0].intrinsics.fy == 61


def test_what_is_no_image_is_an_invalid_argument_and_never_reaches_the_backend():
    backend = StubBackend()
    with serving(backend) as url:
        for data in (
            b"", b"garbage", b"\xff\xd8\xff\xe0", b"\x89PNG\r\n\x1a\n" + bytes(40), IMAGE[:60],
        ):  # fmt: skip
            assert refusal(url, data)[0] == "INVALID_ARGUMENT"
        assert "JPEG" in refusal(url, b"garbage")[1]
    assert backend.requests == []


def test_another_model_version_or_output_is_refused():
    backend = StubBackend()
    with serving(backend) as url:
        for arguments, code, words in (
            ({"model": "resnet50"}, "NOT_FOUND", "'resnet50': this server has 'depth_teacher'"),
            ({"model_version": "6"}, "NOT_FOUND", "version '6'"),
            ({"outputs": ["normals"]}, "INVALID_ARGUMENT", "'normals'"),
            ({"outputs": ["depth"] * 10_000}, "INVALID_ARGUMENT", "10000 outputs"),
        ):
            if names := arguments.get("outputs"):
                arguments["outputs"] = [triton.InferRequestedOutput(name) for name in names]
            status, text = refusal(url, IMAGE, **arguments)
            assert (status, words in text) == (code, True), text
        assert backend.requests == []
        infer(url, IMAGE, model_version="7")


def test_an_image_is_labelled_as_its_rows_are_stored_whatever_exif_says():
    seen = []

    def answer(image, request):
        seen.append(image)
        return np.ones(image.shape[:2], np.float32)

    turned = IMAGE[:2] + EXIF_QUARTER_TURN + IMAGE[2:]
    assert decode_image(turned).shape == (64, 48, 3)
    with serving(StubBackend(answer)) as url:
        assert infer(url, turned).as_numpy("depth").shape == (48, 64)
    np.testing.assert_array_equal(seen[0], decode_image(IMAGE))


def test_streams_are_unimplemented_without_a_traceback(caplog):
    with serving(StubBackend()) as url, grpc.insecure_channel(url) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        with pytest.raises(grpc.RpcError) as raised:
            list(stub.ModelStreamInfer(iter([service_pb2.ModelInferRequest()]), timeout=5.0))
    assert raised.value.code() is grpc.StatusCode.UNIMPLEMENTED
    assert "streams" in raised.value.details()
    assert [record for record in caplog.records if record.levelno >= logging.ERROR] == []


def test_a_backends_refusal_keeps_its_text_as_far_as_a_header_carries_it():
    backend = StubBackend(BackendRefusal("unknown image: try\nanother"))
    with serving(backend) as url:
        status, text = refusal(url, IMAGE)
        assert (status, text) == ("FAILED_PRECONDITION", "unknown image: try another")
        backend.answer = BackendRefusal("no, " * 1000)
        status, text = refusal(url, IMAGE)
    assert (status, text) == ("FAILED_PRECONDITION", ("no, " * 1000)[:500])


def test_a_message_that_breaks_the_protocol_is_refused_with_the_place():
    with serving(StubBackend()) as url, grpc.insecure_channel(url) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        for change, reason in (
            (lambda m: m.ClearField("inputs"), "raw contents"),
            (lambda m: m.inputs.add(name="image"), "raw contents"),
            (lambda m: setattr(m.inputs[0], "name", "picture"), "unexpected input 'picture'"),
            (lambda m: setattr(m.inputs[0], "datatype", "UINT8"), "BYTES"),
            (lambda m: m.inputs[0].shape.append(2), "BYTES"),
            (lambda m: m.raw_input_contents.__setitem__(0, b"\xff\xd8\xff\xe0"), "little-endian"),
            (lambda m: m.ClearField("raw_input_contents"), "exactly one element"),
            (lambda m: setattr(m.parameters["stamp_ns"], "string_param", "now"), "stamp_ns"),
            (lambda m: setattr(m.inputs[1], "datatype", "FP64"), "FP32"),
            (lambda m: m.raw_input_contents.__setitem__(1, bytes(15)), "4 numbers"),
            (lambda m: m.raw_input_contents.__setitem__(1, bytes(16)), "describe no camera"),
        ):
            message = image_message(IMAGE)
            message.inputs.add(name="intrinsics", datatype="FP32", shape=[4])
            message.raw_input_contents.append(struct.pack("<4f", 60, 60, 32, 24))
            change(message)
            with pytest.raises(grpc.RpcError, match=reason) as raised:
                stub.ModelInfer(message, timeout=5.0)
            assert raised.value.code() == grpc.StatusCode.INVALID_ARGUMENT


PROMPT_S = 5.0


def test_a_port_in_use_is_a_clear_error():
    first = TeacherServer(StubBackend())
    port = first.start()
    try:
        with pytest.raises(TeacherServerError, match=f"127.0.0.1:{port}.*another program"):
            TeacherServer(StubBackend(), ServerSettings(port=port)).start()
    finally:
        first.stop(0.0)


@contextmanager
def busy(**settings) -> Iterator[tuple[str, SilentBackend]]:
    """A server whose one worker is at an image until the backend is released."""
    backend = SilentBackend()
    with serving(backend, workers=1, **settings) as url:
        asking = threading.Thread(target=infer, args=(url, IMAGE))
        asking.start()
        assert backend.asked.wait(PROMPT_S)
        yield url, backend
        backend.released.set()
        asking.join(PROMPT_S)


def test_health_answers_while_every_worker_is_busy_and_the_next_request_is_told_to_come_back():
    with busy(max_waiting=0) as (url, _), triton.InferenceServerClient(url) as client:
        assert client.is_server_ready(client_timeout=PROMPT_S)
        assert refusal(url, IMAGE)[0] == "RESOURCE_EXHAUSTED"


def test_a_request_whose_caller_gave_up_never_reaches_the_backend():
    with busy() as (url, backend):
        assert refusal(url, IMAGE, client_timeout=0.1)[0] == "DEADLINE_EXCEEDED"
        time.sleep(0.1)
        backend.released.set()
        infer(url, IMAGE)
    assert len(backend.requests) == 2


def test_a_broken_backend_is_logged_whole_once_a_kind_and_the_server_goes_on(caplog):
    broken = StubBackend(ZeroDivisionError(f"no such file: {__file__}"))
    with caplog.at_level(logging.ERROR), serving(broken) as url:
        told = [refusal(url, IMAGE) for _ in range(4)]
        broken.answer = OSError("second")
        told.append(refusal(url, IMAGE))
        broken.answer = ramp()
        assert infer(url, IMAGE).as_numpy("depth").shape == (48, 64)
    text = re.compile(  # without the error's own, which may name files of this machine
        r"the teacher broke on this image \((ZeroDivision|OS)Error\); see request (\w+) in its log"
    )
    assert {status for status, _ in told} == {"INTERNAL"}
    marks = {text.fullmatch(each)[2] for _, each in told}
    whole = [record for record in caplog.records if record.exc_info]
    assert [record.exc_info[0] for record in whole] == [ZeroDivisionError, OSError]
    assert __file__ in str(whole[0].exc_info[1])
    assert {re.search(r"request (\w+);", each.getMessage())[1] for each in whole} == marks
    (count,) = [record.getMessage() for record in caplog.records if not record.exc_info]
    assert re.fullmatch(r"the teacher broke on 3 more requests as on \w+ .ZeroDivision.*", count)


def test_the_next_minute_tells_it_again_and_how_many_there_were(caplog, monkeypatch):
    errors = RateLimitedErrorLog()
    with caplog.at_level(logging.ERROR):
        first = errors.log(ValueError("a"))
        assert errors.log(ValueError("b")) == first
        monkeypatch.setattr(service.time, "monotonic", lambda: float("inf"))
        assert errors.log(ValueError("c")) != first
    assert [bool(record.exc_info) for record in caplog.records] == [True, False, True]
    assert "1 more requests" in caplog.messages[1]


def test_labels_without_a_known_pixel_do_not_fill_the_log(caplog):
    blind = StubBackend(np.full((4, 4), np.nan, np.float32))
    with caplog.at_level(logging.ERROR), serving(blind) as url:
        for _ in range(5):
            status, text = refusal(url, IMAGE)
            assert (status, "single pixel" in text) == ("INTERNAL", True)
        assert len(caplog.records) == 1
    assert len(caplog.records) == 2
    assert "single pixel" in str(caplog.records[0].exc_info[1])


@pytest.fixture
def logs():
    """A stream that takes this process's logs, and a way to choose their format."""
    stream, root = io.StringIO(), logging.getLogger()
    own = logging.getLogger("tiekd_ros")
    before = (root.handlers[:], root.level, own.level)
    yield lambda form, level="info": configure_logs(form, level, stream) or stream
    root.handlers[:], level, own_level = before
    root.setLevel(level)
    own.setLevel(own_level)


def test_as_json_each_record_is_one_object_a_line(logs):
    stream, log = logs("json"), logging.getLogger("tiekd_ros.teacher.test")
    log.info("request", extra={"facts": {"code": "NOT_FOUND", "ms": 1.5}})
    try:
        raise ValueError("two\nlines")
    except ValueError:
        log.exception("it broke:\n%s", "yes")
    first, second = map(json.loads, stream.getvalue().splitlines())
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", first.pop("time"))
    assert first == {
        "level": "info",
        "logger": "tiekd_ros.teacher.test",
        "message": "request",
        "code": "NOT_FOUND",
        "ms": 1.5,
    }
    assert second["message"] == "it broke:\nyes"
    assert second["exception"].endswith("ValueError: two\nlines")


def test_as_text_what_came_over_the_network_cannot_begin_a_line(logs):
    stream = logs("text")
    facts = {"details": "x\n2026-01-01T00:00:00.000Z info forged: line"}
    logging.getLogger("tiekd_ros.test").info("one\ntwo", extra={"facts": facts})
    (line,) = stream.getvalue().splitlines()
    assert " info tiekd_ros.test: one two details=" in line


def test_what_is_told_follows_the_level_and_other_libraries_only_warn(logs):
    stream = logs("text", "error")
    logging.getLogger("tiekd_ros.test").warning("not told")
    logging.getLogger("another").info("not told")
    logging.getLogger("another").warning("told")
    assert [line.rpartition(": ")[2] for line in stream.getvalue().splitlines()] == ["told"]
