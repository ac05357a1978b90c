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
    folder.mkdir(exist_ok=True)
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


ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def test_all_children_end_with_the_supervisor_also_where_it_is_killed(tmp_path):
    numbers = (*ENDING, signal.SIGKILL) if sys.platform == "linux" else ENDING
    scripts = {"one": "exec sleep 100", "two": "exec sleep 100"}
    started = {number: start(tmp_path / number.name, **scripts) for number in numbers}
    for number, process in started.items():
        folder = tmp_path / number.name
        wait_until(lambda folder=folder: pids(folder, "one") and pids(folder, "two"))
        process.send_signal(number)
        output, errors = process.communicate(timeout=PATIENCE_S)
        children = [pid for name in ("one", "two") for pid in pids(folder, name)]
        if number == signal.SIGKILL:
            wait_until(lambda children=children: not any(map(alive, children)))
        else:
            assert (process.returncode, output) == (0, "over\n"), errors
            assert not any(map(alive, children))


def test_a_child_that_dies_is_started_again_with_growing_waits(tmp_path):
    scripts = {"broken": "exit 3", "optional": "exit 1", "steady": "exec sleep 100"}
    process = start(tmp_path, **scripts)
    wait_until(lambda: len(pids(tmp_path, "broken")) == len(pids(tmp_path, "optional")) == 3)
    os.kill(pids(tmp_path, "steady")[0], signal.SIGKILL)
    wait_until(lambda: len(pids(tmp_path, "steady")) == 2)
    process.send_signal(signal.SIGINT)
    lines = process.communicate(timeout=PATIENCE_S)[0].splitlines()
    for name, code in (("broken", 3), ("optional", 1)):
        told = [line for line in lines if line.startswith(name)]
        assert told[:2] == [f"{name} ended with code {code}; again in {s} s" for s in (1, 2)]
    assert "steady was killed by signal 9; again in 1 s" in lines


def test_a_program_that_refuses_to_start_ends_all(tmp_path):
    process = start(tmp_path, steady="exec sleep 100", broken="exit 1")
    _, errors = process.communicate(timeout=PATIENCE_S)
    assert process.returncode != 0
    assert "broken cannot start" in errors
    assert not any(alive(pid) for pid in pids(tmp_path, "steady"))


def test_children_are_asked_to_end_and_the_stubborn_killed():
    stubborn = Child(Program("stubborn", ["sh", "-c", "trap '' TERM; echo; while :; do :; done"]))
    polite, short = Child(Program("polite", ["sleep", "100"])), Child(Program("short", ["true"]))
    short.process.wait()
    stop_children([stubborn, polite, short], patience_s=0.3)
    assert polite.ended == "was killed by signal 15"
    assert stubborn.process.poll() is not None
    assert short.ended == "ended with code 0"


def test_a_program_that_does_not_exist_is_refused_by_name_and_the_others_stop():
    running = Program("running", ["sleep", "100"])
    with pytest.raises(TiekdError, match="cannot start ghost"):
        supervise([running, Program("ghost", ["/no/such/program"])], print)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_output_and_environment_are_the_childs_own_and_our_input_is_not(tmp_path):
    log = tmp_path / "child.log"
    script = 'echo "$GREETING"; echo fault >&2; test "$(wc -c)" = 0'
    child = Child(Program("child", ["sh", "-c", script], log, {"GREETING": "hello"}))
    assert child.process.wait(PATIENCE_S) == 0
    assert sorted(log.read_text().split()) == ["fault", "hello"]


def test_a_program_that_ends_well_is_done_and_so_is_the_supervisor_with_the_last(tmp_path):
    process = start(tmp_path, quick="exit 0", slow="sleep 1")
    output, errors = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0, errors
    assert output.splitlines() == ["quick is done", "slow is done", "over"]
    assert (len(pids(tmp_path, "quick")), len(pids(tmp_path, "slow"))) == (1, 1)


ENDED = """
import sys, time
from tiekd_ros.core.supervisor import Child, Program, ended_by_signals, stop_children
with ended_by_signals():
    child = Child(Program("child", ["sh", "-c", f"echo $$ >> {sys.argv[1]}; exec sleep 100"]))
    try:
        print("begun", flush=True)
        time.sleep(100)
    finally:
        print("closing", flush=True)
        time.sleep(1)
        stop_children([child])
        print("closed", flush=True)
"""


def test_a_signal_ends_a_program_in_order_and_a_second_one_does_not_disturb_it(tmp_path):
    started = {n: start_python("-c", ENDED, str(tmp_path / n.name)) for n in ENDING}
    for number, process in started.items():
        wait_until(lambda name=number.name: pids(tmp_path, name))
        process.send_signal(number)
        assert [process.stdout.readline() for _ in range(2)] == ["begun\n", "closing\n"]
        for again in (signal.SIGINT, signal.SIGTERM):
            process.send_signal(again)
    for number, process in started.items():
        output, errors = process.communicate(timeout=PATIENCE_S)
        assert (output, errors, process.returncode) == ("closed\n", "interrupted\n", 130)
        assert not any(alive(pid) for pid in pids(tmp_path, number.name))
