"""The programs that an installation has for the nodes: Ctrl-C ends each quietly, at any time."""

from __future__ import annotations

import sys

import pytest

from ros_helpers.peer import Peer
from ros_helpers.processes import Process, Processes
from ros_helpers.waiting import wait_for
from tiekd_ros.nodes.programs import PROGRAMS

# As the console script, but the import of the node's module is where Ctrl-C is pressed.
INTERRUPTED = """
import os, signal, sys

class Import:
    def find_spec(self, name, path=None, target=None):
        if name == "{module}":
            print("importing", flush=True)
            os.kill(os.getpid(), signal.SIGINT)

sys.meta_path.insert(0, Import())
from tiekd_ros.nodes.programs import {program}
sys.argv[1:] = ["--ros-args", "-r", "__ns:={namespace}"]
sys.exit({program}())
"""
USUAL = """
import sys
from tiekd_ros.nodes.programs import {program}
sys.argv[1:] = ["--ros-args", "-r", "__ns:={namespace}"]
sys.exit({program}())
"""


def start(processes: Processes, code: str, program: str) -> Process:
    text = code.format(
        program=program,
        module=PROGRAMS[program][0].partition(":")[0],
        namespace=processes.namespace,
    )
    return processes.start(program, [sys.executable, "-c", text])


@pytest.mark.parametrize("program", PROGRAMS)
def test_while_it_imports(processes: Processes, program: str) -> None:
    process = start(processes, INTERRUPTED, program)
    assert process.wait() == 0, process.output
    assert process.output == "importing\n"


def test_while_it_runs(processes: Processes, peer: Peer) -> None:
    process = start(processes, USUAL, "camera_node")
    peer.listen_to_camera("image_raw", "camera_info")
    wait_for(lambda: peer.images, "an image", explain=lambda: process.output)
    assert process.stop() == 0, process.output
    assert "Traceback" not in process.output
