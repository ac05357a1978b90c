"""Programs of nodes that break, hang, log, or that the middleware does not let be made."""

from __future__ import annotations

import re
import signal
import sys
from pathlib import Path

import pytest

from ros_helpers.processes import Process, Processes
from tiekd_ros.core.supervisor import node_command


def start(processes: Processes, code: str) -> Process:
    return processes.start("program", [sys.executable, "-c", code])


BREAKING = """
import sys, time
from rclpy.node import Node
from tiekd_ros.nodes.common import run

class Each(Node):
    def __init__(self, name):
        super().__init__(name)
        self.timer = self.create_timer(0.1, self.tick)

    def tick(self):
        if self.get_name() == {breaks!r}:
            raise OSError("disk full")

    def release(self):
        print(self.get_name(), "is released", flush=True)

    def destroy_node(self):
        time.sleep({closing_s})
        super().destroy_node()

run._LEAVE_S = 0.5
sys.exit(run.run_nodes([lambda: Each("one"), lambda: Each("another")], []))
"""


def test_where_one_node_breaks_all_end_and_the_program_says_why(processes: Processes) -> None:
    """Also where the middleware does not come to an end, as Fast DDS at times."""
    for breaks, closing_s in (("one", 0), ("another", 1000)):
        program = start(processes, BREAKING.format(breaks=breaks, closing_s=closing_s))
        assert program.wait() == 1, program.output
        error = f"error: {breaks} broke: OSError: disk full"
        for text in (error, "one is released", "another is released"):
            assert text in program.output


def test_where_the_middleware_refuses_a_node_the_reason_is_one_line(
    processes: Processes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    enclave = tmp_path / "enclaves"
    enclave.mkdir()
    for name in ("identity_ca.cert", "permissions_ca.cert", "cert", "key"):
        (enclave / f"{name}.pem").touch()
    for name in ("governance", "permissions"):
        (enclave / f"{name}.p7s").touch()
    monkeypatch.setenv("ROS_SECURITY_ENABLE", "true")
    monkeypatch.setenv("ROS_SECURITY_STRATEGY", "Enforce")
    monkeypatch.setenv("ROS_SECURITY_KEYSTORE", str(tmp_path))
    program = processes.start("camera", node_command("camera_node", []))
    assert program.wait() == 1, program.output
    assert "error: ROS cannot make the node: " in program.output
    assert "Traceback" not in program.output


LOGGING = """
import logging, sys, threading
from rclpy.node import Node
from tiekd_ros.nodes.common.run import run_nodes

log = logging.getLogger("tiekd_ros.some.room")

def work():
    for one in (log.info, log.warning, log.error, log.info):
        one("a %s of %s", one.__name__, threading.current_thread().name)
    try:
        raise OSError("disk full")
    except OSError:
        log.exception("it broke")
    log.info("not %d words", "even these")  # a text that cannot be made
    print("the thread has come to its end", flush=True)

class Talking(Node):
    def start(self):
        self.thread = threading.Thread(target=work, name="worker")
        self.thread.start()

sys.exit(run_nodes([lambda: Talking("talking")], []))
"""


def test_a_thread_may_log_at_any_level_and_never_breaks_by_it(processes: Processes) -> None:
    program = start(processes, LOGGING)
    program.await_output("the thread has come to its end")
    for level, method in (("INFO", "info"), ("WARN", "warning"), ("ERROR", "error")):
        assert re.search(rf"\[{level}\].* a {method} of worker", program.output), program.output
    assert re.search(r"\[ERROR\].* it broke(.|\n)*OSError: disk full", program.output)
    assert "severity cannot be changed" not in program.output


TWO_ROOMS = """
import logging, sys
from rclpy.node import Node
from tiekd_ros.nodes.common.run import run_nodes

class Each(Node):
    def __init__(self, name, *rooms):
        super().__init__(name)
        self.rooms = rooms

    def start(self):
        if self.rooms:
            logging.getLogger("tiekd_ros.framelog.store").warning("of frames")
            logging.getLogger("tiekd_ros.student.runtimes.choosing").warning("of students")
            print("started", flush=True)

sys.exit(run_nodes([lambda: Each("first"), lambda: Each("second", "framelog", "teacher")], []))
"""


def test_a_room_logs_as_the_node_whose_room_it_is(processes: Processes) -> None:
    program = start(processes, TWO_ROOMS)
    program.await_output("started")
    program.await_output("[second]: of frames")
    program.await_output("[first]: of students")
    assert program.stop() == 0, program.output


STOPPED_EARLY = """
import os, signal, sys, time
import rclpy
from rclpy.node import Node
from std_msgs.msg import String
from tiekd_ros.nodes.common.run import run_nodes

class Slow(Node):
    def __init__(self):
        super().__init__("slow")
        os.kill(os.getpid(), signal.SIGTERM)
        while rclpy.ok():
            time.sleep(0.01)
        self.create_publisher(String, "word", 1)

sys.exit(run_nodes([Slow], []))
"""


def test_a_signal_while_a_node_is_made_is_no_error(processes: Processes) -> None:
    program = start(processes, STOPPED_EARLY)
    assert program.wait() == 0, program.output
    assert not program.output


# The watchdog: an executor hangs, as in an endless take of DDS.

WATCHED = """
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


def watched(processes: Processes, hangs: str, does: str) -> Process:
    return start(processes, WATCHED.format(hangs=hangs, does=does))


def test_a_program_that_hangs_is_killed_and_says_where_also_if_it_holds_pythons_lock(
    processes: Processes,
) -> None:
    for node, does in (
        ("another", "threading.Event().wait()"),
        ("one", "collections.deque(itertools.repeat(0), maxlen=0)"),  # endless in C
    ):
        hanging = watched(processes, node, does)
        hanging.await_output("now")
        if node == "one":  # no signal ends it
            hanging.child.process.send_signal(signal.SIGTERM)
        assert hanging.wait() == -signal.SIGALRM, hanging.output
        assert "in tick" in hanging.output.partition("now")[2]


def test_nodes_that_work_live_on_also_in_announced_long_work(processes: Processes) -> None:
    working = watched(processes, "one", "exec('with run.long_work(self): time.sleep(3.5)')")
    for name in ("one", "another"):
        working.await_output(f"{name} 5\n")
    assert working.stop() == 0, working.output
