"""companion_node and teachers that are away, broken, silent or not to be believed."""

from __future__ import annotations

from collections.abc import Iterator

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
    free_port,
    ramp,
    serving,
)
from ros_helpers.companion import LOGGING, PATIENT_TEACHER, await_frames, log_pictures, stats
from ros_helpers.peer import Peer, running
from tiekd_ros.nodes.companion_node import CompanionNode
from tiekd_ros.state import StateFolder
from tiekd_ros.teacher.backend import BackendRefusal

NODE = "companion_node"


@pytest.fixture
def port() -> int:
    return free_port()


@pytest.fixture(autouse=True)
def companion(peer: Peer, state: StateFolder, port: int) -> Iterator[None]:
    parameters = {**LOGGING, **PATIENT_TEACHER, "teacher__url": f"127.0.0.1:{port}"}
    with running(CompanionNode, peer, state_dir=str(state.root), **parameters):
        yield


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
        (np.full((HEIGHT, WIDTH), np.nan, np.float32), "answer_not_believed"),
        (-ramp(), "answer_not_believed"),
        (ramp(WIDTH, WIDTH), "answer_not_believed"),
        (np.full((HEIGHT, WIDTH), 3, np.float32), "answer_not_believed"),
        (BackendRefusal("never seen"), "teacher_refused"),
        (RuntimeError("out of memory"), "teacher_broke"),
    ],
    ids=["nan", "negative", "wrong shape", "constant", "refusal", "error"],
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
        backend.answer = ramp()
        log_pictures(peer, state, [1])
        await_frames(state, "labelled", 1)


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
