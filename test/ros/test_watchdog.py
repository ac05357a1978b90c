"""Programs whose executor hangs with Python's lock in its hands, as in an endless take of DDS."""

from __future__ import annotations

import signal
import sys

from ros_helpers.processes import Process, Processes

PROGRAM = """
import collections, itertools, sys, threading, time
from rclpy.node import Node
from tiekd_ros.nodes.common import run

run.HANG_S = 2.0

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

sys.exit(run.run_nodes([lambda: Each("one"), lambda: Each("another")], []))
"""


def program(processes: Processes, hangs: str = "", does: str = "pass") -> Process:
    code = PROGRAM.format(hangs=hangs, does=does)
    return processes.start("program", [sys.executable, "-c", code])


def test_a_program_that_hangs_without_the_lock_is_killed_and_says_where(
    processes: Processes,
) -> None:
    hanging = program(processes, "another", "threading.Event().wait()")
    assert hanging.wait() == -signal.SIGALRM, hanging.output
    assert "in tick" in hanging.output.partition("now")[2]


def test_one_that_holds_the_lock_does_not_end_for_a_signal_but_is_killed_too(
    processes: Processes,
) -> None:
    endless_in_c = "collections.deque(itertools.repeat(0), maxlen=0)"
    hanging = program(processes, "one", endless_in_c)
    hanging.await_output("now")
    assert hanging.stop(signal.SIGTERM) == -signal.SIGALRM, hanging.output
    assert "in tick" in hanging.output.partition("now")[2]


def test_nodes_that_work_live_on_also_in_announced_long_work(processes: Processes) -> None:
    working = program(processes, "one", "exec('with run.long_work(self): time.sleep(3.5)')")
    for name in ("one", "another"):
        working.await_output(f"{name} 5\n")
    assert working.stop() == 0, working.output
