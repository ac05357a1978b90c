"""What the wire takes of a label's time: the whole way there and back, and its parts."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from measuring import Spread, interleaved, spread
from teacher_load_models import CAMERA, INSTANT, jpegs, ramp
from teacher_load_processes import Server
from tritonclient.grpc import service_pb2

from tiekd_ros.core.images import decode_image
from tiekd_ros.teacher.checks import check_answer
from tiekd_ros.teacher.client import ClientSettings, TeacherClient
from tiekd_ros.teacher.protocol import (
    DepthAnswer,
    DepthRequest,
    TeacherIdentity,
    read_answer,
    write_answer,
)


class Overhead(NamedTuple):
    """Milliseconds a frame of 640x480, of a teacher that answers at once."""

    round_trip: Spread  # the client asks and has a checked label
    parts: dict[str, Spread]  # the same work done alone, without any wire
    sent_kb: float
    received_kb: float


def run_overhead(repeats: int) -> Overhead:
    """Measure one robot that asks one frame after the other."""
    image = jpegs()[0]
    height, width = decode_image(image).shape[:2]
    answer = DepthAnswer(ramp(1.0, 9.0, width, height))
    message = _written(answer)
    parts: dict[str, Callable[[], object]] = {
        "server: JPEG to image": lambda: decode_image(image),
        "server: depth to message": lambda: _written(answer),
        "client: message to depth": lambda: read_answer(
            service_pb2.ModelInferResponse.FromString(message)
        ),
        "client: believe it": lambda: check_answer(answer, width, height),
    }
    request = DepthRequest(image, CAMERA, 1, "camera")
    with (
        Server(INSTANT) as server,
        TeacherClient(ClientSettings(url=server.url)) as client,
    ):
        whole = {"round trip": lambda: client.infer(request)}
        times = interleaved({**whole, **parts}, repeats=repeats, warm_up=10)
    return Overhead(
        round_trip=spread(times["round trip"]),
        parts={name: spread(times[name]) for name in parts},
        sent_kb=len(image) / 1e3,
        received_kb=len(message) / 1e3,
    )


def _written(answer: DepthAnswer) -> bytes:
    identity = TeacherIdentity("overhead", "1", metric=True)
    written: bytes = write_answer(answer, identity).SerializeToString()
    return written
