"""`tiekd doctor`: why there is no depth. Collects the facts and asks the rules of `diagnosis`."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import typer
from rich.markup import escape
from rich.table import Table

from tiekd_ros.cli.doctor_facts import DoctorFacts, DoctorRequest, collect
from tiekd_ros.cli.options import AsJson, console, with_settings
from tiekd_ros.diagnosis import keys
from tiekd_ros.diagnosis.camera import camera_model, check_camera_info, check_image
from tiekd_ros.diagnosis.facts import COMPANION_NODE, DEPTH_NODE, ERROR, WARN, Finding, RosFacts
from tiekd_ros.diagnosis.machine import (
    check_device,
    check_ros,
    check_state,
    check_student,
    check_teacher,
    check_transports,
)
from tiekd_ros.diagnosis.nodes import (
    check_clock,
    check_companion_node,
    check_depth,
    check_depth_node,
)

_MARKS = {"ok": "[green]ok[/green]", "warn": "[yellow]warn[/yellow]", "error": "[red]ERROR[/red]"}


@with_settings("request", DoctorRequest, "What to examine")
def doctor(request: DoctorRequest, as_json: AsJson = False) -> None:
    """Say why there is no depth, and what would help.

    Looks at ROS, its transports, the camera's topics, the nodes, the device, the state folder,
    the student and the teacher, and listens for a few seconds; it changes nothing. Call it in the
    shell, and as the user, that the nodes run with. Without ROS it looks at the rest.

    Exit status: 0 if depth comes and nothing is wrong with it (there may be warnings), 1 if there
    is an error. docs/troubleshooting.md goes by symptom.
    """
    if as_json:
        result = examine(request)
        typer.echo(json.dumps(result.as_dict(), indent=2))
    else:
        with console.status("looking at ROS") as status:
            result = examine(request, lambda text: status.update(f"looking at {text}"))
        _show(result)
    raise typer.Exit(1 if result.errors else 0)


@dataclass(frozen=True)
class Examination:
    """The result of `tiekd doctor`."""

    findings: tuple[Finding, ...]
    ros: RosFacts | None
    depth_topic: str

    @property
    def errors(self) -> int:
        """Number of findings that are errors."""
        return sum(each.level == ERROR for each in self.findings)

    @property
    def depth_flows(self) -> bool:
        """Whether depth came."""
        return self.ros is not None and self.ros.depth_flows

    @property
    def depth_hz(self) -> float | None:
        """Depth images a second; None where it is not known."""
        return None if self.ros is None else self.ros.topics["depth"].rate_hz

    def as_dict(self) -> dict[str, Any]:
        """Return plain values, fit for JSON."""
        return {
            "depth_flows": self.depth_flows,
            "depth_hz": self.depth_hz,
            "findings": [each.as_dict() for each in self.findings],
            "ros": {} if self.ros is None else dataclasses.asdict(self.ros),
        }


def examine(
    request: DoctorRequest, on_progress: Callable[[str], None] = lambda text: None
) -> Examination:
    """Collect the facts and apply all rules; takes some seconds longer than `request.seconds`.

    Args:
        request: the nodes to examine.
        on_progress: called with the present step.
    """
    facts = collect(request, on_progress)
    usual = f"{request.full_namespace.rstrip('/')}/depth"
    topic = usual if facts.ros is None else facts.ros.topics["depth"].name
    return Examination(tuple(diagnose(request, facts)), facts.ros, topic)


def diagnose(request: DoctorRequest, facts: DoctorFacts) -> list[Finding]:
    """Apply all rules to the facts, in the order in which depth comes about."""
    ros = facts.ros
    found = [*check_ros(facts.machine, ros, facts.ros_fault), *check_transports(facts.machine, ros)]
    if ros is not None:
        found += check_image(ros, request.image_topic)
        found += check_camera_info(ros, request.camera_info_topic)
        found += check_clock(ros)
        found += check_depth_node(ros)
    reported = {} if ros is None else ros.report_of(DEPTH_NODE).values
    found += check_device(facts.machine.device, reported.get(keys.RUNTIME, ""))
    found += check_state(facts.state, nodes_run=ros is not None and bool(ros.own_nodes))
    running = reported.get(keys.STUDENT, "")
    students = check_student(
        facts.state,
        namespace=request.full_namespace,
        running=running,
        focal_px=None if ros is None else _focal_px(ros),
        frames_needed=facts.frames_needed,
    )
    # Where depth comes there is a student, in whatever folder.
    flows = ros is not None and ros.depth_flows
    found += [replace(s, level=WARN) if flows and s.level == ERROR else s for s in students]
    has_student = bool(facts.state.live) or running not in ("", "none")
    if ros is not None:
        found += check_companion_node(ros, has_student=has_student)
    link = "" if ros is None else ros.report_of(COMPANION_NODE).values.get(keys.TEACHER_LINK, "")
    found += check_teacher(facts.teacher, link, has_student=has_student)
    if ros is not None:
        found += check_depth(ros, obstacles=sum(each.level == ERROR for each in found))
    return found


def _focal_px(ros: RosFacts) -> tuple[float, float] | None:
    """Return the camera's focal length fx and the width that it is for; None if uncalibrated."""
    model = camera_model(ros.topics["camera_info"])
    if model is None or not model.is_calibrated:
        return None
    return model.k[0] / model.binning[0], model.image_size[0]


# Showing the result.


def _show(result: Examination) -> None:
    table = Table.grid(padding=(0, 1))
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True, style="bold")
    table.add_column()
    for each in result.findings:
        table.add_row(_MARKS[each.level], each.check, _text(each))
    console.print(table)
    console.print(_verdict(result), highlight=False)


def _text(finding: Finding) -> str:
    if not finding.remedy:
        return escape(finding.what)
    return f"{escape(finding.what)}\n[bold]→ {escape(finding.remedy)}[/bold]"


def _verdict(result: Examination) -> str:
    topic = result.depth_topic
    if not result.depth_flows:
        return f"[red bold]no depth on {topic}[/red bold]: begin with the first ERROR"
    rate = "" if result.depth_hz is None else f" at {result.depth_hz:.1f} Hz"
    if result.errors:
        return f"[red bold]depth on {topic}{rate}, but something is wrong[/red bold]: see ERROR"
    return f"[green bold]depth on {topic}{rate}[/green bold]"
