"""The doctor's examination of real nodes."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from ros_helpers.drivers import Rclpy
from ros_helpers.peer import running
from tiekd_ros.cli.doctor import Examination, examine
from tiekd_ros.cli.doctor_facts import DoctorRequest
from tiekd_ros.core.state import StateFolder
from tiekd_ros.diagnosis.facts import ERROR, OK, Finding
from tiekd_ros.nodes.depth.node import DepthNode


def examined(
    namespace: str, say: Callable[[str], None] = lambda text: None, **request: str
) -> Examination:
    """Return the doctor's result; every finding has a remedy unless all is well."""
    result = examine(DoctorRequest(namespace, seconds=1.0, **request), say)
    assert all(bool(each.remedy) == (each.level != OK) for each in result.findings)
    return result


def errors(result: Examination) -> list[Finding]:
    return [each for each in result.findings if each.level == ERROR]


def only(result: Examination, check: str, level: str) -> Finding:
    """Return the one finding of a check, which has this level."""
    (finding,) = (each for each in result.findings if each.check == check)
    assert finding.level == level, finding
    return finding


@contextmanager
def depth_node(namespace: str, state: StateFolder, **parameters: object) -> Iterator[None]:
    """Run depth_node as a program of its own would: a participant in this process."""
    with (
        Rclpy(namespace) as program,
        running(DepthNode, program, state_dir=str(state.root), device="cpu", **parameters),
    ):
        yield
    gc.collect()  # rclpy keeps a destroyed lifecycle node in the graph until then
