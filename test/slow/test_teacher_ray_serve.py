"""The teacher under a real Ray Serve, with its real gRPC ingress.

Passes when the robot's client and the README's program work unchanged, every refusal is that of
the plain server, and nothing that a stranger sends brings it down.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException

from helpers.attacks import png_of
from helpers.ray_serve import (
    FRAMES,
    RayServe,
    assert_labels,
    free_ports,
    serve_run,
    write_recording,
)
from helpers.readme import run_client
from helpers.strangers import refusal
from helpers.teachers import picture
from tiekd_ros.core.images import encode_png
from tiekd_ros.teacher.client import ClientSettings, TeacherClient

pytest.importorskip("ray.serve")
pytestmark = pytest.mark.timeout(400)

TOKEN, OLD_TOKEN = "a-token-of-the-robots", "the-one-from-before"


@pytest.fixture(scope="module")
def frames(tmp_path_factory) -> Path:
    return write_recording(tmp_path_factory.mktemp("ray") / "room")


@pytest.fixture(scope="module")
def serve(frames) -> Iterator[RayServe]:
    grpc_port, http_port = free_ports(2)
    arguments = [
        "tiekd_ros.teacher.ray_app:app", f"teacher=recorded:{frames}", "cpus=0.1", "max_batch=4",
        f"grpc_port={grpc_port}", f"http_port={http_port}",
    ]  # fmt: skip
    tokens = f"{TOKEN}\n{OLD_TOKEN}\n"
    with serve_run(*arguments, port=grpc_port, TIEKD_TEACHER_TOKENS=tokens) as running:
        yield running


@pytest.fixture
def client(serve, monkeypatch) -> Iterator[TeacherClient]:
    monkeypatch.setenv("TIEKD_TEACHER_TOKEN", TOKEN)
    with TeacherClient(ClientSettings(url=serve.url)) as client:
        yield client


def refused(url: str, data: bytes, token: str = TOKEN, **arguments) -> tuple[str, str]:
    return refusal(url, data, headers={"authorization": f"Bearer {token}"}, **arguments)


def test_the_robots_client_and_the_readmes_program_work_unchanged(serve, client, tmp_path):
    identity = client.identity()
    assert (identity.name, identity.metric) == ("recorded", True)
    assert_labels(client)
    done = run_client(serve.url, tmp_path, TIEKD_TEACHER_TOKEN=TOKEN)
    assert done.stdout.startswith("64x48: median 3.0"), done.stdout + done.stderr


def test_metadata_statistics_and_what_is_lacking_are_the_plain_servers(serve):
    headers = {"authorization": f"Bearer {OLD_TOKEN}"}
    with triton.InferenceServerClient(serve.url) as stranger:
        assert stranger.is_server_live(headers=headers)
        assert stranger.is_server_ready(headers=headers)
        assert not stranger.is_model_ready("other", headers=headers)
        assert stranger.get_server_metadata(headers=headers).name == "tiekd_teacher"
        statistics = stranger.get_inference_statistics(headers=headers)
        assert statistics.model_stats[0].name == "depth_teacher"
        with pytest.raises(InferenceServerException) as raised:
            stranger.load_model("other", headers=headers)
    assert raised.value.status() == "StatusCode.UNIMPLEMENTED"


def test_strangers_and_bad_images_are_refused_as_by_the_plain_server(serve, client):
    image = encode_png(picture())
    for token in ("", "a-token-of-another"):
        assert refused(serve.url, image, token)[0] == "UNAUTHENTICATED"
    code, text = refused(serve.url, png_of(10_000, 10_000))
    assert (code, "max_pixels" in text) == ("INVALID_ARGUMENT", True)
    assert refused(serve.url, b"no image at all")[0] == "INVALID_ARGUMENT"
    assert refused(serve.url, image[: len(image) // 2])[0] == "INVALID_ARGUMENT"
    code, text = refused(serve.url, encode_png(picture(FRAMES + 1)))
    assert (code, "unknown image" in text) == ("FAILED_PRECONDITION", True)
    assert "Traceback" not in text
    assert "Traceback" not in serve.log.read_text()  # strangers do not fill it
    assert refused(serve.url, image, client_timeout=0.0001)[0] == "DEADLINE_EXCEEDED"
    with socket.create_connection(("127.0.0.1", int(serve.url.rpartition(":")[2]))) as wire:
        wire.sendall(os.urandom(4096))
    assert_labels(client)


def test_ctrl_c_ends_it(serve):
    assert serve.stop() == 0, serve.log.read_text()
