"""Programs of nodes that break while they run, or that the middleware does not let be made."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from ros_helpers.processes import Processes
from tiekd_ros.supervisor import node_command

BREAKING = """
import sys
from rclpy.node import Node
from tiekd_ros.nodes.run import run_nodes

class Each(Node):
    def __init__(self, name):
        super().__init__(name)
        self.timer = self.create_timer(0.1, self.tick)

    def tick(self):
        if self.get_name() == {breaks!r}:
            raise OSError("disk full")

    def release(self):
        print(self.get_name(), "is released", flush=True)

sys.exit(run_nodes([lambda: Each("one"), lambda: Each("another")], []))
"""


@pytest.mark.parametrize("breaks", ["one", "another"])
def test_where_one_node_breaks_all_end_and_the_program_says_why(
    processes: Processes, breaks: str
) -> None:
    code = BREAKING.format(breaks=breaks)
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
