"""deploy/ray as it is deployed: serve.yaml with several replicas, and haproxy.cfg before it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from helpers.certificates import Certificates
from helpers.children import wait_until
from helpers.haproxy import haproxy, haproxy_before
from helpers.ray_serve import RayServe, assert_labels, free_ports, serve_run, write_recording
from helpers.readme import plain_client, run_client
from helpers.teachers import secret
from tiekd_ros.teacher.client import ClientSettings, TeacherClient
from tiekd_ros.teacher.errors import TeacherUnreachableError

pytest.importorskip("ray.serve")
pytestmark = pytest.mark.timeout(400)

DEPLOY = Path(__file__).resolve().parents[2] / "deploy" / "ray"
TOKEN = "a-token-of-the-robots"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("ray")


@pytest.fixture(scope="module")
def token_file(folder) -> str:
    return secret(folder / "tokens", TOKEN)


@pytest.fixture(scope="module")
def serve(folder, token_file) -> Iterator[RayServe]:
    """Return serve.yaml running: another teacher and other ports, two replicas on the CPU."""
    config = yaml.safe_load((DEPLOY / "serve.yaml").read_text())
    config["http_options"]["port"], config["grpc_options"]["port"] = free_ports(2)
    (application,) = config["applications"]
    application["args"] |= {
        "teacher": f"recorded:{write_recording(folder / 'room')}",
        "token_file": token_file,
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
def front(serve, folder, token_file) -> Iterator[tuple[str, Certificates]]:
    """Return the url of haproxy.cfg running, with a certificate of the test's own."""
    program = haproxy()
    if program is None:
        pytest.skip("haproxy is not here")
    with haproxy_before(serve.url, token_file, folder, program) as running:
        yield running


def answers(client: TeacherClient) -> bool:
    try:
        return bool(client.identity().name)
    except TeacherUnreachableError:
        return False


def test_several_replicas_label_each_image_once_and_right(serve, token_file):
    settings = ClientSettings(url=serve.url, token_file=token_file)
    with TeacherClient(settings) as client:
        assert_labels(client)


def test_the_same_client_works_through_tls_in_front(front, token_file):
    url, certificates = front
    settings = ClientSettings(url=url, tls=True, ca=str(certificates.ca), token_file=token_file)
    with TeacherClient(settings) as client:
        wait_until(lambda: answers(client))
        assert_labels(client)
    stranger = ClientSettings(url=url, tls=True, ca=str(certificates.stranger_ca), timeout_s=5.0)
    with TeacherClient(stranger) as client:
        assert not answers(client)


def test_the_readmes_program_with_tls_works_and_without_a_token_does_not(front, tmp_path):
    url, certificates = front
    plain = "InferenceServerClient(url)"
    secured = f"InferenceServerClient(url, ssl=True, root_certificates={str(certificates.ca)!r})"
    text = plain_client()
    assert text.count(plain) == 1
    text = text.replace(plain, secured)
    done = run_client(url, tmp_path, text, TIEKD_TEACHER_TOKEN=TOKEN)
    assert done.stdout.startswith("64x48: median 3.0"), done.stdout + done.stderr
    other = run_client(url, tmp_path, text, TIEKD_TEACHER_TOKEN="a-token-of-another")
    assert "UNAUTHENTICATED" in other.stderr
