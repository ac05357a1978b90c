"""A node's findings in its log: when they appear, and now and then while they last."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from ros_helpers.peer import Peer
from tiekd_ros.nodes.camera import input as finding_log
from tiekd_ros.nodes.camera.input import FindingLog
from tiekd_ros.nodes.common.reporting import ERROR, OK, WARN


class Log:
    """What a FindingLog logged at any of some times, in seconds."""

    def __init__(self, peer: Peer, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture):
        self._log, self._capfd, self._now = FindingLog(peer.node), capfd, 0.0
        clock = SimpleNamespace(monotonic=lambda: self._now)
        monkeypatch.setattr(finding_log, "time", clock)

    def after(self, seconds: float, *findings: tuple[bytes, str]) -> list[str]:
        """Note the findings at that time; return severities and texts of what was logged."""
        self._now = 1000.0 + seconds
        self._log.add(findings)
        lines = self._capfd.readouterr().err.splitlines()
        return [f"{line.partition(']')[0][1:]} {line.rpartition(']: ')[2]}" for line in lines]


@pytest.fixture
def log(peer: Peer, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture) -> Log:
    return Log(peer, monkeypatch, capfd)


def test_it_is_logged_when_it_has_lasted_a_second_and_again_each_minute(log: Log) -> None:
    finding = (WARN, "no image arrives")
    assert log.after(0.0, finding) == []
    assert log.after(0.9, finding) == []
    assert log.after(1.1, finding) == ["WARN no image arrives"]
    assert log.after(2.0, finding) == []
    assert log.after(61.0, finding) == []
    assert log.after(61.2, finding) == ["WARN no image arrives"]


def test_what_goes_at_once_is_not_logged(log: Log) -> None:
    assert log.after(0.0, (ERROR, "a publisher is not heard")) == []
    assert log.after(0.5) == []
    assert log.after(1.5, (ERROR, "a publisher is not heard")) == []
    assert log.after(2.6, (ERROR, "a publisher is not heard")) == ["ERROR a publisher is not heard"]


def test_other_numbers_do_not_make_another_finding(log: Log) -> None:
    assert log.after(0.0, (WARN, "no image for 3 s"), (OK, "all is well")) == []
    assert log.after(2.0, (WARN, "no image for 5 s"), (OK, "all is well")) == [
        "WARN no image for 5 s"
    ]
    assert log.after(3.0, (WARN, "no image for 6 s")) == []
    assert log.after(4.0, (WARN, "no image for 7 s"), (WARN, "no camera_info")) == []
    assert log.after(5.1, (WARN, "no image for 8 s"), (WARN, "no camera_info")) == [
        "WARN no camera_info"
    ]
