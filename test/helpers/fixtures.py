"""Fixtures that several files use."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from helpers.canaries import CANARY_PLAN, JUDGED_WORSE, OpenCanary
from helpers.frames import filled_state
from helpers.rounds import SHORT, OpenRounds, said
from helpers.stores import labellers, open_log
from helpers.students import small_student
from helpers.training import write_rgbd
from tiekd_ros.core.state import StateFolder
from tiekd_ros.framelog import FrameStore, Labeller
from tiekd_ros.rounds import worker_process as following
from tiekd_ros.rounds.plan import RoundPlan
from tiekd_ros.student.checkpoint import Student
from tiekd_ros.student.registry import StudentRegistry


@pytest.fixture(scope="session")
def labelled(tmp_path_factory) -> StateFolder:
    """A state folder whose frame log is labelled; not to be changed: copy it, as `state` does."""
    return filled_state(tmp_path_factory.mktemp("labelled"))


@pytest.fixture
def state(labelled, tmp_path) -> StateFolder:
    """A state folder with labelled frames, no student and no round."""
    state = StateFolder(tmp_path / "state").create()
    shutil.copy(labelled.frames, state.frames)
    return state


@pytest.fixture
def store(tmp_path: Path) -> Iterator[FrameStore]:
    """An empty frame log without guard times."""
    with open_log(tmp_path) as opened:
        yield opened


@pytest.fixture
def labeller_of(store: FrameStore) -> Iterator[Callable[..., Labeller]]:
    """A function that starts a labeller of that log; all are stopped afterwards."""
    with labellers(store) as start:
        yield start


@pytest.fixture
def enter(state) -> Iterator[Callable[..., OpenRounds]]:
    """A function that opens a runner of rounds on the state folder, with a plan."""
    started: list[OpenRounds] = []

    def enter(plan: RoundPlan = SHORT) -> OpenRounds:
        started.append(OpenRounds(state, plan))
        return started[-1]

    yield enter
    for rounds in started:
        rounds.runner.stop()
        rounds.store.close()


@pytest.fixture
def open_canary(state) -> Iterator[Callable[[], OpenCanary]]:
    """A function that opens a canary on the state folder, with a plan."""
    started: list[OpenCanary] = []

    def open_canary(plan: RoundPlan = CANARY_PLAN) -> OpenCanary:
        started.append(OpenCanary(state, plan))
        return started[-1]

    yield open_canary
    for opened in started:
        opened.close()


@pytest.fixture
def judged_worse(monkeypatch) -> None:
    """Workers of a canary that only say that the student is worse."""
    monkeypatch.setattr(following, "spawn_worker", said(JUDGED_WORSE))


@pytest.fixture(scope="session")
def rgbd(tmp_path_factory) -> Path:
    """An RGB-D folder of the synthetic world, not to be changed."""
    return write_rgbd(tmp_path_factory.mktemp("data") / "rgbd")


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Torch as the programs that are started here have it, so that results can be compared."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def student() -> Student:
    """A small one, not to be changed."""
    return small_student()


@pytest.fixture
def registry(tmp_path: Path, student: Student) -> StudentRegistry:
    """A registry with three versions, none live."""
    registry = StudentRegistry(tmp_path / "students")
    for _ in range(3):
        registry.add(student)
    return registry
