"""`tiekd demo` as a program: it ends in order and leaves no process behind, whenever it is ended.

What a whole run shows is measured by the demo itself (`scripts/demo`).
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from ros_helpers.processes import Process, Processes, is_running
from ros_helpers.waiting import wait_for
from tiekd_ros.demo.run import missing_programs


def descendants(pid: int) -> set[int]:
    """Return the ids of a process's children, and of theirs."""
    parents = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                stat = (entry / "stat").read_text()
            except OSError:
                continue
            parents[int(entry.name)] = int(stat.rpartition(")")[2].split()[1])
    found: set[int] = set()
    fresh = {pid}
    while fresh:
        fresh = {child for child, parent in parents.items() if parent in fresh} - found
        found |= fresh
    return found


def teacher_starts(demo: Process) -> bool:
    commands = (Path(f"/proc/{pid}/cmdline") for pid in descendants(demo.pid))
    return any(b"teacher" in command.read_bytes() for command in commands if command.exists())


def round_runs(demo: Process) -> bool:
    return "round 1: distilling" in demo.output and len(descendants(demo.pid)) == 5


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks for processes in /proc")
@pytest.mark.parametrize(
    ("moment", "number"),
    [(teacher_starts, signal.SIGTERM), (round_runs, signal.SIGTERM), (round_runs, signal.SIGINT)],
    ids=["at the start", "in a round", "Ctrl-C in a round"],
)
def test_a_signal_ends_the_demo_in_order_and_all_its_processes(
    processes: Processes,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    moment: Callable[[Process], bool],
    number: int,
) -> None:
    # A domain of its own: the demo's namespace is always the same.
    monkeypatch.setenv("ROS_DOMAIN_ID", str(215 + os.getpid() % 16))
    demo = processes.tiekd(
        "demo", "--headless", "--output", str(tmp_path / "out"), "--first-frames", "8",
        "--iterations", "100000",
    )  # fmt: skip
    wait_for(lambda: moment(demo), "the moment", explain=lambda: demo.output)
    children = descendants(demo.pid)
    assert demo.stop(number) == 130, demo.output
    assert demo.output.splitlines()[-1] == "interrupted"
    assert "Traceback" not in demo.output
    assert not [pid for pid in children if is_running(pid)]


def test_the_demo_is_up_only_when_every_program_has_sent_something() -> None:
    programs = ["camera_node", "depth_node", "companion_node"]
    for missing in (programs, programs[:2], programs[:1], programs[1:], []):
        known = {name: {"student": "none"} for name in programs[1:] if name not in missing}
        stamps = [] if "camera_node" in missing else [1]
        observer = SimpleNamespace(
            image_stamps=stamps, diagnostics=lambda n, of=known: of.get(n, {})
        )
        assert missing_programs(observer) == missing
