"""The ROS tests: real rclpy, kept to this machine, each in a namespace of its own."""

from __future__ import annotations

import importlib.util
import itertools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tiekd_ros.core.state import StateFolder
from tiekd_ros.core.supervisor import isolate, prepare_environment

if TYPE_CHECKING:
    from ros_helpers.camera import InputBench
    from ros_helpers.peer import Peer
    from ros_helpers.processes import Processes
    from tiekd_ros.nodes.depth.node import DepthNode

NO_ROS = importlib.util.find_spec("rclpy") is None
_numbers = itertools.count(1)

_TICK_S = 0.1


def isolate_worker() -> None:
    """Keep this process to this machine; a worker of pytest-xdist gets a ROS domain of its own."""
    prepare_environment()
    domain, worker = isolate(), os.environ.get("PYTEST_XDIST_WORKER", "")
    if worker:  # gw0, gw1, ...; they inherit the domain that the controller chose
        os.environ["ROS_DOMAIN_ID"] = str((domain + int(worker.removeprefix("gw"))) % 100 + 1)


isolate_worker()


class _Skipped(pytest.Module):
    def collect(self) -> list[pytest.Item]:
        pytest.skip(
            "needs ROS 2, and there is no module rclpy: source an installation, or "
            'pip install "tiekd_ros[ros]"',
            allow_module_level=True,
        )


def pytest_pycollect_makemodule(
    module_path: Path, parent: pytest.Collector
) -> pytest.Module | None:
    return _Skipped.from_parent(parent, path=module_path) if NO_ROS else None


@pytest.fixture(scope="session", autouse=True)
def ros_logs(tmp_path_factory: pytest.TempPathFactory) -> None:
    os.environ["ROS_LOG_DIR"] = str(tmp_path_factory.mktemp("ros_logs"))


@pytest.fixture(scope="session", autouse=True)
def short_tick() -> None:
    """Have the nodes in the tests' process look and report ten times a second."""
    from tiekd_ros.nodes.common.managed import ManagedNode

    ManagedNode.tick_s = _TICK_S


@pytest.fixture
def namespace() -> str:
    return f"/test_{os.getpid()}_{next(_numbers)}"


@pytest.fixture
def peer(namespace: str) -> Iterator[Peer]:
    from ros_helpers.peer import Peer

    with Peer(namespace) as peer:
        yield peer


@pytest.fixture
def bench(namespace: str) -> Iterator[InputBench]:
    from ros_helpers.camera import InputBench

    with InputBench(namespace) as bench:
        yield bench


@pytest.fixture
def processes(namespace: str, tmp_path: Path) -> Iterator[Processes]:
    from ros_helpers.processes import Processes

    with Processes(namespace, tmp_path) as processes:
        yield processes


@pytest.fixture
def state(tmp_path: Path) -> StateFolder:
    return StateFolder(tmp_path / "state").create()


@pytest.fixture
def promoted(state: StateFolder) -> str:
    """Return the version of a small student that is live in the state folder."""
    from helpers.students import promote_small

    return promote_small(state)


@pytest.fixture
def depth_node(peer: Peer, state: StateFolder, promoted: str) -> Iterator[DepthNode]:
    """Run depth_node with a small student."""
    from ros_helpers.peer import running
    from tiekd_ros.nodes.depth.node import DepthNode

    with running(DepthNode, peer, state_dir=str(state.root)) as node:
        yield node


@pytest.fixture
def filled(tmp_path: Path) -> StateFolder:
    """Return a state folder whose frame log has 24 labelled frames."""
    from helpers.frames import filled_state

    return filled_state(tmp_path / "state")
