"""Programs whose executor hangs with Python's lock in its hands, as in an endless take of DDS."""

from __future__ import annotations

import signal
import sys

import pytest

from ros_helpers.processes import Process, Processes

PROGRAM = """
import collections, itertools, sys, threading, time
from rclpy.node import Node
from tiekd_ros.nodes import watchdog
from tiekd_ros.nodes.common.run import run_nodes

watchdog.LIMIT_S = 2.0

class Each(Node):
    def __init__(self, name):
        super().__init__(name)
        self.ticks = 0
        self.timer = self.create_timer(0.5, self.tick)

    def tick(self):
        self.ticks += 1
        if self.get_name() == {hangs!r} and self.ticks == 2:
            print("now", flush=True)
            {does}
        print(self.get_name(), self.ticks, flush=True)

sys.exit(run_nodes([lambda: Each("one"), lambda: Each("another")], []))
"""
WITH_THE_LOCK = "collections.deque(itertools.repeat(0), maxlen=0)"  # endless, in C
WITHOUT_IT = "threading.Event().wait()"


def program(processes: Processes, hangs: str = "", does: str = "pass") -> Process:
    code = PROGRAM.format(hangs=hangs, does=does)
    return processes.start("program", [sys.executable, "-c", code])


@pytest.mark.parametrize("hangs", ["one", "another"])
@pytest.mark.parametrize("does", [WITH_THE_LOCK, WITHOUT_IT], ids=["with the lock", "without"])
def test_a_program_that_hangs_is_killed_and_says_where(
    processes: Processes, hangs: str, does: str
) -> None:
    hanging = program(processes, hangs, does)
    assert hanging.wait() == -signal.SIGALRM, hanging.output
    assert "in tick" in hanging.output.partition("now")[2]


def test_one_that_hangs_does_not_end_for_a_signal(processes: Processes) -> None:
    hanging = program(processes, "one", WITH_THE_LOCK)
    hanging.await_output("now")
    assert hanging.stop(signal.SIGTERM) == -signal.SIGALRM, hanging.output


@pytest.mark.parametrize(
    "does",
    [
        "pass",
        # As a transition: longer than the limit, and announced.
        "exec('with watchdog.patience(self): time.sleep(3.5)')",
    ],
    ids=["works", "takes its time"],
)
def test_one_that_works_lives_on_and_ends_in_order(processes: Processes, does: str) -> None:
    working = program(processes, "one", does)
    for name in ("one", "another"):
        working.await_output(f"{name} 9\n")
    assert working.stop() == 0, working.output
