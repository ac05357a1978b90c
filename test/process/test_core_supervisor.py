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
from tiekd_ros.core.errors import TiekdError
from tiekd_ros.core.supervisor import Child, Program, stop_children, supervise

SUPERVISOR = """
import sys
from tiekd_ros.core.supervisor import Program, supervise
programs = [
    Program(
        name,
        ["sh", "-c", f"echo $$ >> {sys.argv[1]}/{name}; {script}"],
        required=not name.startswith("optional"),
    )
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
    """Say whether a process is there and is no zombie (an orphan's end may have no witness)."""
    try:
        os.kill(pid, 0)
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except ProcessLookupError:
        return False
    except OSError:  # no /proc, or it ended just now
        return Path("/proc/self").exists() is False
    return state != "Z"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
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


def test_a_program_that_refuses_to_start_ends_all(tmp_path):
    process = start(tmp_path, steady="exec sleep 100", broken="exit 1")
    _, errors = process.communicate(timeout=PATIENCE_S)
    assert process.returncode != 0
    assert "broken cannot start" in errors
    assert not any(alive(pid) for pid in pids(tmp_path, "steady"))


def test_one_that_is_not_required_is_tried_again_with_growing_waits(tmp_path):
    process = start(tmp_path, steady="exec sleep 100", optional="exit 1")
    lines = [process.stdout.readline() for _ in range(2)]
    assert lines[0] == "optional ended with code 1; again in 1 s\n"
    assert lines[1] == "optional ended with code 1; again in 2 s\n"
    assert len(pids(tmp_path, "steady")) == 1
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=PATIENCE_S)


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


@pytest.mark.skipif(sys.platform != "linux", reason="asks the Linux kernel for it")
def test_children_end_with_a_supervisor_that_is_killed(tmp_path):
    process = start(tmp_path, one="exec sleep 100", two="exec sleep 100")
    wait_until(lambda: pids(tmp_path, "one") and pids(tmp_path, "two"))
    process.kill()
    process.communicate(timeout=PATIENCE_S)
    wait_until(lambda: not any(alive(p) for n in ("one", "two") for p in pids(tmp_path, n)))


def test_a_program_that_ends_well_is_done_and_so_is_the_supervisor_with_the_last(tmp_path):
    process = start(tmp_path, quick="exit 0", slow="sleep 1")
    output, errors = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0, errors
    assert output.splitlines() == ["quick is done", "slow is done", "over"]
    assert (len(pids(tmp_path, "quick")), len(pids(tmp_path, "slow"))) == (1, 1)


def test_children_do_not_read_our_input(tmp_path):
    log = tmp_path / "child.log"
    for where in (log, None):
        child = Child(Program("child", ["sh", "-c", 'test "$(wc -c)" = 0'], where))
        assert child.process.wait(PATIENCE_S) == 0


ENDED = """
import sys, time
from tiekd_ros.core.supervisor import Child, Program, ended_by_signals, stop_children
with ended_by_signals():
    child = Child(Program("child", ["sh", "-c", f"echo $$ >> {sys.argv[1]}/child; exec sleep 100"]))
    try:
        print("begun", flush=True)
        time.sleep(100)
    finally:
        print("closing", flush=True)
        time.sleep(1)
        stop_children([child])
        print("closed", flush=True)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_a_program_in_order_and_a_second_one_does_not_disturb_it(tmp_path, number):
    process = start_python("-c", ENDED, str(tmp_path))
    wait_until(lambda: pids(tmp_path, "child"))
    process.send_signal(number)
    assert [process.stdout.readline() for _ in range(2)] == ["begun\n", "closing\n"]
    for again in (signal.SIGINT, signal.SIGTERM):
        process.send_signal(again)
    output, errors = process.communicate(timeout=PATIENCE_S)
    assert (output, errors, process.returncode) == ("closed\n", "interrupted\n", 130)
    assert not any(alive(pid) for pid in pids(tmp_path, "child"))
