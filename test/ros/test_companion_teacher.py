"""companion_node and teachers that are away, broken, silent or not to be believed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
from diagnostic_msgs.msg import DiagnosticStatus

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
from ros_helpers.companion import LOGGING, PATIENT_TEACHER, await_frames, log_pictures, stats
from ros_helpers.peer import Peer, running
from tiekd_ros.core.launch_options import free_port
from tiekd_ros.core.state import StateFolder
from tiekd_ros.nodes.companion.node import CompanionNode
from tiekd_ros.teacher.errors import BackendRefusal
from tiekd_ros.teacher.protocol import TeacherIdentity

NODE = "companion_node"


@pytest.fixture
def port() -> int:
    return free_port()


@pytest.fixture(autouse=True)
def companion(peer: Peer, state: StateFolder, port: int) -> Iterator[None]:
    parameters = {**LOGGING, **PATIENT_TEACHER, "teacher__url": f"127.0.0.1:{port}"}
    with running(CompanionNode, peer, state_dir=str(state.root), **parameters):
        yield


@contextmanager
def labelled(peer: Peer, state: StateFolder, port: int, count: int) -> Iterator[StubBackend]:
    """Serve a teacher that has labelled the first frames."""
    backend = StubBackend()
    with serving(backend, port=port):
        log_pictures(peer, state, range(count))
        await_frames(state, "labelled", count)
        yield backend


def test_frames_wait_for_a_teacher_that_is_away_and_are_labelled_when_it_comes(
    peer: Peer, state: StateFolder, port: int
) -> None:
    log_pictures(peer, state, range(3))
    peer.await_diagnosis(NODE, "the teacher does not answer", DiagnosticStatus.WARN)
    peer.await_value(NODE, "waiting for labels", "3")
    with serving(StubBackend(), port=port):
        await_frames(state, "labelled", 3)
        peer.await_diagnosis(NODE, "logging frames", DiagnosticStatus.OK)


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (np.zeros((HEIGHT, WIDTH), np.float32), "label_unknown"),
        (-ramp(), "label_range"),
        (ramp(WIDTH, WIDTH), "label_shape"),
        (np.full((HEIGHT, WIDTH), 3, np.float32), "label_constant"),
        (BackendRefusal("never seen"), "teacher_refused"),
    ],
    ids=["zero", "negative", "wrong shape", "constant", "refusal"],
)
def test_a_frame_without_a_credible_label_is_rejected_and_the_next_one_labelled(
    peer: Peer, state: StateFolder, port: int, answer: Answer, reason: str
) -> None:
    backend = StubBackend(answer)
    with serving(backend, port=port):
        log_pictures(peer, state, [0])
        await_frames(state, "rejected", 1)
        assert stats(state).rejected == {reason: 1}
        peer.await_value(NODE, f"rejected: {reason}", "1")
        peer.await_value(NODE, f"refused: {reason}", "1")
        backend.answer = ramp()
        log_pictures(peer, state, [1])
        await_frames(state, "labelled", 1)


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (RuntimeError("out of memory"), "broke on a request"),
        (np.full((HEIGHT, WIDTH), 3, np.float32), "the teacher stub 7 is suspect"),
    ],
    ids=["error", "constant"],
)
def test_frames_wait_while_a_teacher_is_sick(
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


def test_frames_wait_while_the_teacher_is_not_metric(
    peer: Peer, state: StateFolder, port: int
) -> None:
    backend = StubBackend(identity=RELATIVE)
    with serving(backend, port=port):
        log_pictures(peer, state, range(2))
        peer.await_diagnosis(
            NODE, "does not say that its depth is in metres", DiagnosticStatus.WARN
        )
        assert not backend.requests
    with serving(StubBackend(), port=port):
        await_frames(state, "labelled", 2)


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
        peer.await_diagnosis(NODE, "logging frames", DiagnosticStatus.OK)


def test_another_teacher_is_said_and_its_labels_compared_with_its_own(
    peer: Peer, state: StateFolder, port: int
) -> None:
    with labelled(peer, state, port, 8) as backend:
        peer.await_value(NODE, "teacher", "stub 7")
        backend.identity = TeacherIdentity("stub", "8", metric=True)
        backend.answer = ramp() * np.float32(100)
        log_pictures(peer, state, [8])
        await_frames(state, "labelled", 9)
        peer.await_diagnosis(NODE, "the teacher changed: stub 8", DiagnosticStatus.WARN)
        peer.await_value(NODE, "teacher changes", "1")
        assert stats(state).teachers == {"stub 7": 8, "stub 8": 1}


def test_time_and_bytes_of_a_label_are_reported(peer: Peer, state: StateFolder, port: int) -> None:
    with labelled(peer, state, port, 2):
        peer.await_value(NODE, "labels received", "2")
        values = peer.diagnosis(NODE).values
    assert 0 < float(values["round trip p50 [ms]"]) <= float(values["round trip p95 [ms]"])
    assert 0 < float(values["bytes up per frame"]) < 20_000
    assert 64 * 48 * 2 < float(values["bytes down per frame"]) < 64 * 48 * 2 + 300
    assert values["teacher connection"] == "plain"


def test_frames_wait_while_the_teacher_says_nothing(
    peer: Peer, state: StateFolder, port: int
) -> None:
    backend = SilentBackend()
    with serving(backend, port=port):
        log_pictures(peer, state, range(2))
        peer.await_diagnosis(NODE, "DEADLINE_EXCEEDED", DiagnosticStatus.WARN)
        assert stats(state).frames["logged"]
        log_pictures(peer, state, [2])  # nobody waits for it
        backend.released.set()
        await_frames(state, "labelled", 3)
