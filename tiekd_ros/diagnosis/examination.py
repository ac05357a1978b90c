"""All checks, in the order in which depth comes about."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import IO, Any, NamedTuple

from tiekd_ros.core.errors import InvalidSettingError
from tiekd_ros.core.state import StateFolder
from tiekd_ros.core.supervisor import prepare_environment
from tiekd_ros.diagnosis.camera import check_camera_info, check_image, focal_px
from tiekd_ros.diagnosis.environment import check_ros, check_transports
from tiekd_ros.diagnosis.facts import COMPANION_NODE, DEPTH_NODE, ERROR, WARN, Finding, RosFacts
from tiekd_ros.diagnosis.machine import check_device, check_state
from tiekd_ros.diagnosis.nodes import (
    check_clock,
    check_companion_node,
    check_depth,
    check_depth_node,
)
from tiekd_ros.diagnosis.students import check_student, live_student
from tiekd_ros.diagnosis.teacher import check_teacher
from tiekd_ros.rounds.plan import RoundSettings

_NAME = re.compile(r"/?[A-Za-z_]\w*(/[A-Za-z_]\w*)*/?", re.ASCII)
_NOISE = re.compile(r"^error: |^\[ERROR\] \[[\d.]+\] \[\w+\]: |, at /\S+:\d+$")
"""What rcl puts around its messages."""
_PATIENCE_S = 60.0
"""How much longer than it listens the probe may take until it is ended: what it waits for at most,
and more than twice that for a busy machine."""


@dataclass(frozen=True)
class Complaint:
    """What is to be examined.

    Raises:
        InvalidSettingError: a namespace or a topic that ROS cannot have.
    """

    namespace: str = "tiekd"
    image_topic: str = ""
    camera_info_topic: str = ""
    depth_topic: str = ""
    state: str = ""
    teacher: str = ""
    seconds: float = 3.0

    def __post_init__(self) -> None:
        """Refuse names that ROS would refuse."""
        for name in ("namespace", "image_topic", "camera_info_topic", "depth_topic"):
            value = getattr(self, name)
            if value.strip("/") and not _NAME.fullmatch(value):
                raise InvalidSettingError(
                    f"{name} must be a ROS name, such as /camera/image_raw: letters, digits, _ "
                    f"and /, no part beginning with a digit; got {value!r}"
                )

    @property
    def full_namespace(self) -> str:
        """The namespace with its slash."""
        return f"/{self.namespace.strip('/')}"


@dataclass(frozen=True)
class Examination:
    """What was found."""

    findings: tuple[Finding, ...]
    facts: Mapping[str, Any]
    """The probe's JSON; empty where it could not run."""
    depth_hz: float | None
    depth_flows: bool
    depth_topic: str
    """Where it is looked for."""

    @property
    def errors(self) -> int:
        """How many of the findings are errors."""
        return sum(each.level == ERROR for each in self.findings)

    def as_dict(self) -> dict[str, Any]:
        """Return plain values, fit for JSON."""
        return {
            "depth_flows": self.depth_flows,
            "depth_hz": self.depth_hz,
            "findings": [each.as_dict() for each in self.findings],
            "ros": dict(self.facts),
        }


def examine(complaint: Complaint, say: Callable[[str], None]) -> Examination:
    """Look at everything; takes some seconds longer than `complaint.seconds`.

    Args:
        complaint: what to look at.
        say: called with what is being done.
    """
    environment = dict(os.environ)
    with _probe(complaint) as ask:
        say("the device")
        import torch  # noqa: F401  (takes seconds, while ROS is listened to)

        say("ROS")
        facts, fault = ask(lambda what: say(f"ROS: waiting for {what}"))
    ros = RosFacts.from_json(facts) if facts else None
    found = [*check_ros(environment, ros, fault), *check_transports(environment, ros)]
    if ros is not None:
        found += check_image(ros, complaint.image_topic)
        found += check_camera_info(ros, complaint.camera_info_topic)
        found += check_clock(ros)
        found += check_depth_node(ros)
    found += _local(complaint, ros, say)
    if ros is not None:
        obstacles = sum(each.level == ERROR for each in found)
        found += check_depth(ros, obstacles)
    return Examination(
        tuple(found),
        facts,
        None if ros is None else ros.topics["depth"].rate_hz,
        ros is not None and ros.depth_flows,
        f"{complaint.full_namespace.rstrip('/')}/depth"
        if ros is None
        else ros.topics["depth"].name,
    )


def _local(
    complaint: Complaint, ros: RosFacts | None, say: Callable[[str], None]
) -> Iterator[Finding]:
    """Look at what needs no ROS, with what is known from it."""
    said = {} if ros is None else ros.said(DEPTH_NODE).values
    device, runtime = (
        "auto" if ros is None else str(ros.parameter(DEPTH_NODE, name, "auto"))
        for name in ("device", "runtime")
    )
    yield from check_device(device, runtime, said.get("runtime", ""))
    say("the state folder")
    state = StateFolder.resolve(complaint.state or _state_dir(ros))
    yield from check_state(state, nodes_run=ros is not None and bool(ros.managed))
    focal = None if ros is None else focal_px(ros)
    running = said.get("student", "")
    for each in check_student(
        state, complaint.full_namespace, running, focal, _round_settings(ros)
    ):
        # Where depth comes there is a student, wherever it is.
        flows = ros is not None and ros.depth_flows and each.level == ERROR
        yield replace(each, level=WARN) if flows else each
    has_student = bool(live_student(state)) or running not in ("", "none")
    if ros is not None:
        yield from check_companion_node(ros, has_student=has_student)
    companion = None if ros is None else ros.managed.get(COMPANION_NODE)
    link = "" if ros is None else ros.said(COMPANION_NODE).values.get("teacher link", "")
    say("the teacher")
    yield from check_teacher(
        None if companion is None else companion.parameters,
        complaint.teacher,
        link,
        has_student=has_student,
    )


def _state_dir(ros: RosFacts | None) -> str:
    if ros is None:
        return ""
    found = [str(ros.parameter(kind, "state_dir", "")) for kind in (DEPTH_NODE, COMPANION_NODE)]
    return next(filter(None, found), "")


def _round_settings(ros: RosFacts | None) -> RoundSettings:
    """Return what a round needs, by the companion's parameters where one runs."""
    default = RoundSettings()
    if ros is None:
        return default
    names = ("min_frames", "min_held_out")
    known = {n: ros.parameter(COMPANION_NODE, f"distill.{n}", getattr(default, n)) for n in names}
    return RoundSettings(**known)


class _Answer(NamedTuple):
    facts: dict[str, Any]
    """The probe's; empty where there are none."""
    fault: str
    """Why there are none; empty where there is no ROS."""


_Ask = Callable[[Callable[[str], None]], _Answer]
"""Waits for the probe; what it is given is called with what the probe waits for."""


@contextlib.contextmanager
def _probe(complaint: Complaint) -> Iterator[_Ask]:
    """Run the probe beside the block; yields what waits for its answer."""
    if importlib.util.find_spec("rclpy") is None:
        yield lambda say: _Answer({}, "")
        return
    prepare_environment()
    command = [sys.executable, "-m", "tiekd_ros.nodes.probe.probe"]
    command += ["--namespace", complaint.namespace, "--seconds", str(complaint.seconds)]
    command += ["--image-topic", complaint.image_topic]
    command += ["--camera-info-topic", complaint.camera_info_topic]
    command += ["--depth-topic", complaint.depth_topic]
    with tempfile.TemporaryFile("w+") as errors:
        child = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors, text=True
        )
        late = threading.Timer(complaint.seconds + _PATIENCE_S, child.kill)
        late.start()
        try:
            yield lambda say: _await(child, errors, say)
        finally:
            late.cancel()
            child.kill()
            child.communicate()


def _await(child: subprocess.Popen[str], errors: IO[str], say: Callable[[str], None]) -> _Answer:
    facts: dict[str, Any] = {}
    assert child.stdout is not None
    for line in child.stdout:
        if not line.startswith("{"):  # Fast DDS and rcutils may write there, too
            continue
        facts = json.loads(line)
        if "waits_for" in facts:
            say(facts["waits_for"])
    status = child.wait()
    if status == 0 and "waits_for" not in facts:
        return _Answer(facts, "")
    if status == -signal.SIGKILL:
        return _Answer({}, "ROS did not answer in time: looking at its graph took too long")
    errors.seek(0)
    last = (errors.read().strip().splitlines() or [f"status {status}"])[-1]
    return _Answer({}, f"ROS cannot be used: {_NOISE.sub('', last)}")
