"""Programs of nodes that break while they run, or that the middleware does not let be made."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from ros_helpers.processes import Processes
from ros_helpers.waiting import wait_for
from tiekd_ros.core.supervisor import node_command

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


@pytest.mark.parametrize(("breaks", "closing_s"), [("one", 0), ("another", 1000)])
def test_where_one_node_breaks_all_end_and_the_program_says_why(
    processes: Processes, breaks: str, closing_s: float
) -> None:
    """Also where the middleware does not come to an end, as Fast DDS at times."""
    code = BREAKING.format(breaks=breaks, closing_s=closing_s)
    program = processes.start("breaking", [sys.executable, "-c", code])
    assert program.wait() == 1, program.output
    assert f"error: {breaks} broke: OSError: disk full" in program.output
    for name in ("one", "another"):
        assert f"{name} is released" in program.output


def test_where_the_middleware_refuses_a_node_the_reason_is_one_line(
    processes: Processes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    enclave = tmp_path / "enclaves"
    enclave.mkdir()
    for name in (
        "identity_ca.cert.pem",
        "permissions_ca.cert.pem",
        "cert.pem",
        "key.pem",
        "governance.p7s",
        "permissions.p7s",
    ):
        (enclave / name).touch()
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
    program = processes.start("talking", [sys.executable, "-c", LOGGING])
    wait_for(
        lambda: "the thread has come to its end" in program.output,
        "the thread's end",
        explain=lambda: program.output,
    )
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
    program = processes.start("two", [sys.executable, "-c", TWO_ROOMS])
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
    program = processes.start("stopped", [sys.executable, "-c", STOPPED_EARLY])
    assert program.wait() == 0, program.output
    assert not program.output
