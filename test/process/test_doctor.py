"""What `tiekd doctor` knows of this machine's other programs and users."""

from __future__ import annotations

import os
import socket
from contextlib import ExitStack

import pytest

from helpers.children import run_python, start_python

pytest.importorskip("rclpy", reason="needs ROS 2", exc_type=ImportError)

from tiekd_ros.nodes.probe.graph import is_kept_to_this_machine, is_off, programs_by_domain
from tiekd_ros.nodes.probe.probe import depth_among

DOMAIN = 101
FIRST = 7400 + 250 * DOMAIN


def test_programs_are_known_by_the_ports_that_they_hold(tmp_path):
    table = tmp_path / "udp"
    for held, count in (
        ([FIRST + 10, FIRST + 11], 1),
        ([FIRST + 10, FIRST + 11, FIRST + 14, FIRST + 15], 2),
        ([FIRST], 1),
        ([FIRST, FIRST + 10, FIRST + 11], 1),
        ([FIRST + 10], 0),
        ([FIRST + 11, FIRST + 12], 0),
        ([FIRST + 250 + 10, FIRST + 250 + 11], 0),  # that any program may be lent
    ):
        lines = [f"0: 0100007F:{port:04X} 0:0 07 0:0 0:0 0 0 0 inode" for port in held]
        table.write_text("\n".join(["sl local_address ...", *lines]))
        assert programs_by_domain([table]).get(DOMAIN, 0) == count
    assert programs_by_domain([tmp_path / "none"]) == {}


def test_another_programs_ports_count_and_ones_own_do_not():
    code = (
        "import socket, sys\n"
        "held = [socket.socket(type=socket.SOCK_DGRAM) for _ in sys.argv[1:]]\n"
        "for each, number in zip(held, sys.argv[1:]): each.bind(('127.0.0.1', int(number)))\n"
        "print('held', flush=True); sys.stdin.read()"
    )
    with ExitStack() as stack:
        for number in (FIRST + 14, FIRST + 15):
            own = stack.enter_context(socket.socket(type=socket.SOCK_DGRAM))
            own.bind(("127.0.0.1", number))
        assert DOMAIN not in programs_by_domain()
        child = start_python("-c", code, str(FIRST + 10), str(FIRST + 11), stdin=-1)
        stack.callback(child.communicate)
        assert child.stdout.readline() == "held\n"
        assert programs_by_domain()[DOMAIN] == 1


def test_whether_programs_of_other_machines_are_discovered():
    for environment, kept in (
        ({}, False),
        ({"ROS_AUTOMATIC_DISCOVERY_RANGE": "localhost"}, True),
        ({"ROS_LOCALHOST_ONLY": "1"}, True),
        ({"ROS_LOCALHOST_ONLY": "0"}, False),
        ({"ROS_AUTOMATIC_DISCOVERY_RANGE": "LOCALHOST", "ROS_STATIC_PEERS": "10.0.0.1"}, False),
    ):
        assert is_kept_to_this_machine(environment) is kept
    assert is_off({"ROS_AUTOMATIC_DISCOVERY_RANGE": "Off"})
    assert not is_off({})


def test_depth_is_found_among_the_nodes_images():
    confidence, preview = "/tiekd/confidence", "/tiekd/depth/preview"
    for outputs, topic in (
        ([confidence, "/tiekd/depth", preview], "/tiekd/depth"),
        (["/front/depth", confidence, preview], "/front/depth"),
        (["/front/range", confidence, preview], "/front/range"),
        (["/certain", "/front/depth_image", preview], "/front/depth_image"),
        ([], "/tiekd/depth"),
    ):
        assert depth_among(outputs, "/tiekd") == topic


def test_a_state_folder_that_only_others_may_write_to(tmp_path):
    if os.geteuid() != 0:
        pytest.skip("becomes another user, which only root can")
    root = tmp_path / "state"
    root.mkdir(mode=0o755)
    code = f"""
import os
from pathlib import Path
from tiekd_ros.cli.doctor_facts import _write_fault
for part in {[str(p) for p in (root, *root.parents)]!r}:
    os.chmod(part, os.stat(part).st_mode | 0o055) if part.startswith("/tmp/") else None
os.setuid(65534)
print(_write_fault(Path({str(root)!r})))
"""
    done = run_python("-c", code)
    assert done.stdout == "Permission denied\n", done.stdout + done.stderr
