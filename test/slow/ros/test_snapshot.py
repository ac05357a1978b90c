"""`tiekd snapshot` as a program."""

from __future__ import annotations

from pathlib import Path

from ros_helpers.processes import Processes


def test_it_ends_at_ctrl_c_without_a_traceback(processes: Processes, tmp_path: Path) -> None:
    taken = processes.tiekd("snapshot", str(tmp_path / "out"), "--namespace", "no")
    taken.await_output("so far")
    assert taken.stop() != 0
    assert "Traceback" not in taken.output
