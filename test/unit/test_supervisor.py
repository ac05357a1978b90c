"""Children: started again when they die, stopped with their parent, killed when they refuse.

The supervisor under test runs in a process of its own, as `tiekd up` does; a test passes when
no child outlives it.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from helpers.children import PATIENCE_S, start_python, wait_until
from tiekd_ros.errors import TiekdError
from tiekd_ros.supervisor import Child, Program, stop_children, supervise
from tiekd_ros.up import UpOptions, node_programs

SUPERVISOR = """
import sys
from tiekd_ros.supervisor import Program, supervise
programs = [
    Program(name, ["sh", "-c", f"echo $$ >> {sys.argv[1]}/{name}; {script}"])
    for name, script in (a.split("=", 1) for a in sys.argv[2:])
]
supervise(programs, lambda line: print(line, flush=True))
print("over", flush=True)
"""


def start(folder: Path, **scripts: str) -> subprocess.Popen[str]:
    """Start a supervisor of shell scripts, each of which notes its process ids in a file."""
    arguments = [f"{name}={script}" for name, script in scripts.items()]
    return start_python("-c", SUPERVISOR, str(folder), *arguments)


def pids(folder: Path, name: str) -> list[int]:
    path = folder / name
    return [int(line) for line in path.read_text().split()] if path.exists() else []


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_all_children_end_with_the_supervisor(tmp_path, number):
    process = start(tmp_path, one="exec sleep 100", two="exec sleep 100")
    wait_until(lambda: pids(tmp_path, "one") and pids(tmp_path, "two"))
    process.send_signal(number)
    output, errors = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0, errors
    assert output == "over\n"
    assert not any(alive(pid) for name in ("one", "two") for pid in pids(tmp_path, name))


def test_a_child_that_dies_is_started_again_with_growing_waits(tmp_path):
    process = start(tmp_path, steady="exec sleep 100", broken="exit 3")
    wait_until(lambda: len(pids(tmp_path, "broken")) == 3)
    process.send_signal(signal.SIGINT)
    lines = process.communicate(timeout=PATIENCE_S)[0].splitlines()
    assert lines[0] == "broken ended with code 3; again in 1 s"
    assert lines[1] == "broken ended with code 3; again in 2 s"
    assert len(pids(tmp_path, "steady")) == 1


def test_a_killed_child_is_told_with_its_signal(tmp_path):
    process = start(tmp_path, one="exec sleep 100")
    wait_until(lambda: pids(tmp_path, "one"))
    os.kill(pids(tmp_path, "one")[0], signal.SIGKILL)
    assert process.stdout.readline() == "one was killed by signal 9; again in 1 s\n"
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=PATIENCE_S)


def test_a_child_that_ignores_the_request_is_killed():
    stubborn = Child(Program("stubborn", ["sh", "-c", "trap '' TERM; echo; while :; do :; done"]))
    polite = Child(Program("polite", ["sleep", "100"]))
    stop_children([stubborn, polite], patience_s=0.3)
    assert polite.ended == "was killed by signal 15"
    assert stubborn.process.poll() is not None


def test_stopping_what_has_ended_does_no_harm():
    child = Child(Program("short", ["true"]))
    child.process.wait()
    stop_children([child])
    assert child.ended == "ended with code 0"


def test_a_program_that_does_not_exist_is_refused_by_name_and_the_others_stop():
    running = Program("running", ["sleep", "100"])
    with pytest.raises(TiekdError, match="cannot start ghost"):
        supervise([running, Program("ghost", ["/no/such/program"])], print)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_output_and_environment_are_the_programs_own(tmp_path):
    log = tmp_path / "child.log"
    script = 'echo "$GREETING"; echo fault >&2'
    child = Child(Program("child", ["sh", "-c", script], log, {"GREETING": "hello"}))
    child.process.wait()
    assert sorted(log.read_text().split()) == ["fault", "hello"]


def test_up_starts_the_nodes_that_the_launch_file_starts():
    programs = node_programs(UpOptions(state_dir="/s", teacher="w:1", use_sim_time=True))
    assert [p.name for p in programs] == ["depth_node", "companion_node"]
    for program in programs:
        command = list(program.command)
        assert command[:3] == [sys.executable, "-m", f"tiekd_ros.nodes.{program.name}"]
        for argument in ("__ns:=/tiekd", 'state_dir:="/s"', "use_sim_time:=true"):
            assert argument in command
    assert 'teacher.url:="w:1"' in programs[1].command
    assert 'device:="auto"' in programs[0].command


def test_up_without_teacher_companion_or_with_a_camera(tmp_path):
    (depth,) = node_programs(UpOptions(companion=False), tmp_path)
    assert depth.log == tmp_path / "depth_node.log"
    _, companion, camera = node_programs(UpOptions(teacher="none", camera="synthetic"))
    assert 'teacher.url:=""' in companion.command
    assert 'source:="synthetic"' in camera.command
    assert "image_raw:=/camera/image_raw" in camera.command
