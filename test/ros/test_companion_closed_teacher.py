"""companion_node and teachers behind TLS and tokens, pinned ones, and the live student's say."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from diagnostic_msgs.msg import DiagnosticStatus

from helpers.certificates import Certificates, make_certificates
from helpers.students import small_student
from helpers.teachers import StubBackend, ramp, serving
from ros_helpers.companion import LOGGING, PATIENT_TEACHER, await_frames, log_pictures, stats
from ros_helpers.peer import Peer, running
from tiekd_ros.core.launch_options import free_port
from tiekd_ros.core.state import StateFolder
from tiekd_ros.nodes.companion.node import CompanionNode
from tiekd_ros.student.registry import StudentRegistry

NODE = "companion_node"
TOKEN = "0123456789abcdef-robot"


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return make_certificates(tmp_path_factory.mktemp("certificates"))


@pytest.fixture
def token(tmp_path: Path) -> Path:
    file = tmp_path / "token"
    file.write_text(TOKEN)
    file.chmod(0o600)
    return file


@contextmanager
def companion(peer: Peer, state: StateFolder, **teacher: object) -> Iterator[CompanionNode]:
    own = {f"teacher__{name}": value for name, value in teacher.items()}
    parameters = {**LOGGING, **PATIENT_TEACHER, **own}
    with running(CompanionNode, peer, state_dir=str(state.root), **parameters) as node:
        yield node


def test_a_robot_with_certificate_and_token_gets_its_labels(
    peer: Peer, state: StateFolder, certificates: Certificates, token: Path
) -> None:
    closed = {
        "tls_cert": str(certificates.cert),
        "tls_key": str(certificates.key),
        "client_ca": str(certificates.ca),
        "token_file": str(token),
    }
    own = {
        "tls": True,
        "ca": str(certificates.ca),
        "cert": str(certificates.client_cert),
        "key": str(certificates.client_key),
        "token_file": str(token),
    }
    with serving(StubBackend(), **closed) as url, companion(peer, state, url=url, **own):
        log_pictures(peer, state, range(2))
        await_frames(state, "labelled", 2)
        peer.await_value(NODE, "teacher connection", "TLS")


def test_frames_of_a_robot_that_is_not_let_in_wait_until_it_is(
    peer: Peer, state: StateFolder, token: Path, tmp_path: Path
) -> None:
    known = tmp_path / "known"
    known.write_text("another-token-than-its")
    known.chmod(0o600)
    port = free_port()
    url = f"127.0.0.1:{port}"
    with companion(peer, state, url=url, token_file=str(token)):
        with serving(StubBackend(), port=port, token_file=str(known)):
            log_pictures(peer, state, range(2))
            said = peer.await_diagnosis(NODE, "does not let this robot in", DiagnosticStatus.WARN)
            assert TOKEN not in str(said)
            assert stats(state).frames["logged"] != {"train": 0, "held_out": 0}
        with serving(StubBackend(), port=port, token_file=str(token)):
            await_frames(state, "labelled", 2)


def test_frames_are_logged_while_the_token_cannot_be_read_and_labelled_once_it_can(
    peer: Peer, state: StateFolder, token: Path
) -> None:
    missing = token.with_name("missing")
    with (
        serving(StubBackend(), token_file=str(token)) as url,
        companion(peer, state, url=url, token_file=str(missing)),
    ):
        peer.await_diagnosis(NODE, "missing", DiagnosticStatus.ERROR)
        log_pictures(peer, state, range(2))
        assert sum(stats(state).frames["logged"].values()) == 2
        token.rename(missing)
        await_frames(state, "labelled", 2)


def test_frames_wait_while_another_than_the_pinned_teacher_answers(
    peer: Peer, state: StateFolder
) -> None:
    port = free_port()
    backend = StubBackend()
    with companion(peer, state, url=f"127.0.0.1:{port}", pin="stub 8"):
        with serving(backend, port=port):
            log_pictures(peer, state, range(2))
            peer.await_diagnosis(NODE, "teacher.pin is 'stub 8'", DiagnosticStatus.WARN)
        assert not backend.requests


def test_a_label_far_from_what_the_live_student_sees_is_refused(
    peer: Peer, state: StateFolder
) -> None:
    registry = StudentRegistry(state.students)
    registry.promote(registry.add(small_student()).version, force=True)
    backend = StubBackend()
    with serving(backend) as url, companion(peer, state, url=url):
        log_pictures(peer, state, range(8))
        await_frames(state, "labelled", 8)
        wait = peer.await_diagnosis(NODE, "logging frames")
        assert 0.05 < float(wait.values["label / student"]) < 20
        backend.answer = ramp() * np.float32(150)
        log_pictures(peer, state, [8])
        await_frames(state, "rejected", 1)
        assert stats(state).rejected == {"label_against_student": 1}


def test_labels_of_the_last_run_are_what_those_of_this_one_are_compared_with(
    peer: Peer, state: StateFolder
) -> None:
    backend = StubBackend()
    with serving(backend) as url:
        with companion(peer, state, url=url):
            log_pictures(peer, state, range(8))
            await_frames(state, "labelled", 8)
        backend.answer = ramp() * np.float32(100)
        with companion(peer, state, url=url):
            log_pictures(peer, state, [8])
            await_frames(state, "rejected", 1)
            assert stats(state).rejected == {"label_scale_jump": 1}


def test_labels_of_a_scale_that_settled_are_told_of(peer: Peer, state: StateFolder) -> None:
    backend = StubBackend()
    with serving(backend) as url, companion(peer, state, url=url):
        log_pictures(peer, state, range(8))
        await_frames(state, "labelled", 8)
        backend.answer = ramp() * np.float32(10)
        log_pictures(peer, state, range(8, 14))
        peer.await_diagnosis(NODE, "of another scale than before", DiagnosticStatus.WARN)
        peer.await_value(NODE, "label scales settled", "1")
