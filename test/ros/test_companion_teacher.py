"""companion_node and teachers: away, broken, closed, pinned or not to be believed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from diagnostic_msgs.msg import DiagnosticStatus

from helpers.certificates import Certificates, make_certificates
from helpers.students import small_student
from helpers.teachers import (
    HEIGHT,
    RELATIVE,
    WIDTH,
    Answer,
    SilentBackend,
    StubBackend,
    ramp,
    serving,
)
from ros_helpers.companion import (
    STEP_NS,
    await_frames,
    log_pictures,
    logging_companion,
    round_parameters,
    stats,
)
from ros_helpers.messages import camera_info, image_message
from ros_helpers.peer import Peer
from tiekd_ros.core.launch_options import free_port
from tiekd_ros.core.state import StateFolder
from tiekd_ros.student.registry import StudentRegistry
from tiekd_ros.teacher.errors import BackendRefusal
from tiekd_ros.teacher.protocol import TeacherIdentity

NODE = "companion_node"
TOKEN = "0123456789abcdef-robot"


@pytest.fixture
def port() -> int:
    return free_port()


@pytest.fixture
def companion(peer: Peer, state: StateFolder, port: int) -> Iterator[None]:
    with logging_companion(peer, state, f"127.0.0.1:{port}"):
        yield


def await_logging(peer: Peer, last: int) -> None:
    """Wait until all is well, showing the last picture, since a camera that stops is a finding."""
    image = image_message(last, step_ns=STEP_NS)
    peer.await_diagnosis(NODE, "logging frames", DiagnosticStatus.OK, image, camera_info())


@contextmanager
def labelled(peer: Peer, state: StateFolder, port: int, count: int) -> Iterator[StubBackend]:
    """Serve a teacher that has labelled the first frames."""
    backend = StubBackend()
    with serving(backend, port=port):
        log_pictures(peer, state, range(count))
        await_frames(state, "labelled", count)
        yield backend


@pytest.mark.usefixtures("companion")
def test_frames_wait_for_a_teacher_that_is_away_and_are_labelled_when_it_comes(
    peer: Peer, state: StateFolder, port: int
) -> None:
    log_pictures(peer, state, range(3))
    peer.await_diagnosis(NODE, "the teacher does not answer", DiagnosticStatus.WARN)
    peer.await_value(NODE, "waiting for labels", "3")
    with serving(StubBackend(), port=port):
        await_frames(state, "labelled", 3)
        await_logging(peer, 2)


@pytest.mark.usefixtures("companion")
def test_a_frame_without_a_credible_label_is_rejected_and_the_next_one_labelled(
    peer: Peer, state: StateFolder, port: int
) -> None:
    backend, rejected = StubBackend(), {}
    with serving(backend, port=port):
        for number, (answer, reason) in enumerate(
            (
                (np.zeros((HEIGHT, WIDTH), np.float32), "label_unknown"),
                (-ramp(), "label_range"),
                (ramp(WIDTH, WIDTH), "label_shape"),
                (np.full((HEIGHT, WIDTH), 3, np.float32), "label_constant"),
                (BackendRefusal("never seen"), "teacher_refused"),
            )
        ):
            backend.answer = answer
            log_pictures(peer, state, [2 * number])
            await_frames(state, "rejected", number + 1)
            rejected[reason] = 1
            assert stats(state).rejected == rejected
            peer.await_value(NODE, f"rejected: {reason}", "1")
            peer.await_value(NODE, f"refused: {reason}", "1")
            backend.answer = ramp()
            log_pictures(peer, state, [2 * number + 1])
            await_frames(state, "labelled", number + 1)


@pytest.mark.usefixtures("companion")
@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (RuntimeError("out of memory"), "broke on a request"),
        (np.full((HEIGHT, WIDTH), 3, np.float32), "the teacher stub 7 is suspect"),
    ],
    ids=["error", "constant"],
)
def test_frames_wait_while_a_teacher_fails(
    peer: Peer, state: StateFolder, port: int, answer: Answer, said: str
) -> None:
    backend = StubBackend(answer)
    with serving(backend, port=port):
        log_pictures(peer, state, range(7))
        peer.await_diagnosis(NODE, said, DiagnosticStatus.WARN)
        rejected = sum(stats(state).rejected.values())
        assert rejected <= 5
        backend.answer = ramp()
        await_frames(state, "labelled", 7 - rejected)


@pytest.mark.usefixtures("companion")
def test_frames_wait_while_the_teacher_is_not_metric(
    peer: Peer, state: StateFolder, port: int
) -> None:
    backend = StubBackend(identity=RELATIVE)
    with serving(backend, port=port):
        log_pictures(peer, state, range(2))
        said = "does not say that its depth is in metres"
        peer.await_diagnosis(NODE, said, DiagnosticStatus.WARN)
        assert not backend.requests
    with serving(StubBackend(), port=port):
        await_frames(state, "labelled", 2)


@pytest.mark.usefixtures("companion")
def test_labels_of_a_wrong_scale_are_refused_until_the_scale_is_right_again(
    peer: Peer, state: StateFolder, port: int
) -> None:
    with labelled(peer, state, port, 8) as backend:
        backend.answer = ramp() * np.float32(100)
        log_pictures(peer, state, range(8, 11))
        await_frames(state, "rejected", 3)
        said = peer.await_diagnosis(
            NODE, "the last 3 labels were refused (last: label_scale_jump", DiagnosticStatus.WARN
        )
        assert said.values["refused: label_scale_jump"] == "3"
        assert stats(state).rejected == {"label_scale_jump": 3}
        backend.answer = ramp()
        log_pictures(peer, state, [11])
        await_frames(state, "labelled", 9)
        await_logging(peer, 11)


@pytest.mark.usefixtures("companion")
def test_another_teacher_is_said_and_its_labels_compared_with_its_own(
    peer: Peer, state: StateFolder, port: int
) -> None:
    with labelled(peer, state, port, 8) as backend:
        peer.await_value(NODE, "teacher", "stub 7")
        peer.await_value(NODE, "labels received", "8")
        values = peer.diagnosis(NODE).values
        assert 0 < float(values["round trip p50 [ms]"]) <= float(values["round trip p95 [ms]"])
        assert 0 < float(values["bytes up per frame"]) < 20_000
        assert 64 * 48 * 2 < float(values["bytes down per frame"]) < 64 * 48 * 2 + 300
        assert values["teacher connection"] == "plain"
        backend.identity = TeacherIdentity("stub", "8", metric=True)
        backend.answer = ramp() * np.float32(100)
        log_pictures(peer, state, [8])
        await_frames(state, "labelled", 9)
        peer.await_diagnosis(NODE, "the teacher changed: stub 8", DiagnosticStatus.WARN)
        peer.await_value(NODE, "teacher changes", "1")
        assert stats(state).teachers == {"stub 7": 8, "stub 8": 1}


@pytest.mark.usefixtures("companion")
def test_frames_wait_while_the_teacher_says_nothing(
    peer: Peer, state: StateFolder, port: int
) -> None:
    backend = SilentBackend()
    with serving(backend, port=port):
        log_pictures(peer, state, range(2))
        peer.await_diagnosis(NODE, "DEADLINE_EXCEEDED", DiagnosticStatus.WARN)
        assert stats(state).frames["logged"]
        log_pictures(peer, state, [2])  # which is not held up
        backend.released.set()
        await_frames(state, "labelled", 3)


# TLS, tokens and pins; what labels are compared with.


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return make_certificates(tmp_path_factory.mktemp("certificates"))


@pytest.fixture
def token(tmp_path: Path) -> Path:
    file = tmp_path / "token"
    file.write_text(TOKEN)
    file.chmod(0o600)
    return file


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
        "teacher__tls": True,
        "teacher__ca": str(certificates.ca),
        "teacher__cert": str(certificates.client_cert),
        "teacher__key": str(certificates.client_key),
        "teacher__token_file": str(token),
    }
    with serving(StubBackend(), **closed) as url, logging_companion(peer, state, url, **own):
        log_pictures(peer, state, range(2))
        await_frames(state, "labelled", 2)
        peer.await_value(NODE, "teacher connection", "TLS")


def test_frames_of_a_robot_that_is_not_let_in_wait_until_it_is(
    peer: Peer, state: StateFolder, port: int, token: Path
) -> None:
    known = token.with_name("known")
    known.write_text("another-token-than-its")
    known.chmod(0o600)
    with logging_companion(peer, state, f"127.0.0.1:{port}", teacher__token_file=str(token)):
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
        logging_companion(peer, state, url, teacher__token_file=str(missing)),
    ):
        peer.await_diagnosis(NODE, "missing", DiagnosticStatus.ERROR)
        log_pictures(peer, state, range(2))
        assert sum(stats(state).frames["logged"].values()) == 2
        token.rename(missing)
        await_frames(state, "labelled", 2)


def test_frames_wait_while_another_than_the_pinned_teacher_answers(
    peer: Peer, state: StateFolder
) -> None:
    backend = StubBackend()
    with serving(backend) as url, logging_companion(peer, state, url, teacher__pin="stub 8"):
        log_pictures(peer, state, range(2))
        peer.await_diagnosis(NODE, "teacher.pin is 'stub 8'", DiagnosticStatus.WARN)
    assert not backend.requests


@pytest.mark.usefixtures("promoted", "companion")
def test_a_label_far_from_what_the_live_student_sees_is_refused(
    peer: Peer, state: StateFolder, port: int
) -> None:
    with labelled(peer, state, port, 8) as backend:
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
        with logging_companion(peer, state, url):
            log_pictures(peer, state, range(8))
            await_frames(state, "labelled", 8)
        backend.answer = ramp() * np.float32(100)
        with logging_companion(peer, state, url):
            log_pictures(peer, state, [8])
            await_frames(state, "rejected", 1)
            assert stats(state).rejected == {"label_scale_jump": 1}


@pytest.mark.usefixtures("companion")
def test_labels_of_a_scale_that_settled_are_told_of(
    peer: Peer, state: StateFolder, port: int
) -> None:
    with labelled(peer, state, port, 8) as backend:
        backend.answer = ramp() * np.float32(10)
        log_pictures(peer, state, range(8, 14))
        peer.await_diagnosis(NODE, "of another scale than before", DiagnosticStatus.WARN)
        peer.await_value(NODE, "label scales settled", "1")


def test_labels_that_disagree_with_the_live_student_are_told_and_start_a_round(
    peer: Peer, state: StateFolder, port: int
) -> None:
    registry = StudentRegistry(state.students)
    card = {"status": "accepted", "scores": {"after": {"abs_rel": 0.001}}}
    registry.promote(registry.add(small_student(**card)).version)
    distill = {"min_new_labels": 4, "min_frames": 2, "min_held_out": 2}
    rounds = round_parameters(distill=distill, train={"iterations": 1})
    url = f"127.0.0.1:{port}"
    with serving(StubBackend(), port=port), logging_companion(peer, state, url, **rounds):
        log_pictures(peer, state, range(6))
        await_frames(state, "labelled", 6)
        said = "labels disagree with student 000001 by AbsRel"
        peer.await_diagnosis(NODE, said, DiagnosticStatus.WARN)
        assert not peer.statuses  # told only
        assert peer.set_parameter(NODE, "distill.drift", True).successful
        assert peer.await_round(1)["trigger"].startswith(f"drift: {said}")
