"""`tiekd doctor`: why is there no depth?"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.table import Table

from tiekd_ros.cli.options import AsJson, console

if TYPE_CHECKING:
    from tiekd_ros.diagnosis.examination import Examination
    from tiekd_ros.diagnosis.facts import Finding

_MARKS = {"ok": "[green]ok[/green]", "warn": "[yellow]warn[/yellow]", "error": "[red]ERROR[/red]"}


def doctor(
    namespace: Annotated[str, typer.Option(help="Namespace of the nodes.")] = "tiekd",
    image_topic: Annotated[
        str,
        typer.Option(
            help="Where the camera's images should be.",
            metavar="TOPIC",
            show_default="what depth_node listens to, or /camera/image_raw",
        ),
    ] = "",
    camera_info_topic: Annotated[
        str,
        typer.Option(
            help="Where the camera's calibration should be.",
            metavar="TOPIC",
            show_default="likewise",
        ),
    ] = "",
    depth_topic: Annotated[
        str,
        typer.Option(
            help="Where depth should be.",
            metavar="TOPIC",
            show_default="what depth_node publishes, or <namespace>/depth",
        ),
    ] = "",
    state: Annotated[
        str,
        typer.Option("--state", help="State folder.", show_default="that of the running nodes"),
    ] = "",
    teacher: Annotated[
        str,
        typer.Option(
            help="Teacher to ask.", metavar="HOST:PORT", show_default="that of the companion"
        ),
    ] = "",
    seconds: Annotated[
        float, typer.Option(help="How long to listen to the topics.", min=0.5, max=300.0)
    ] = 3.0,
    as_json: AsJson = False,
) -> None:
    """Say why there is no depth, and what would help.

    Looks at ROS, its transports, the camera's topics, the nodes, the device, the state folder,
    the student and the teacher, and listens for a few seconds; it changes nothing. Call it in the
    shell, and as the user, that the nodes run with. Without ROS it looks at the rest.

    Exit status: 0 if depth comes and nothing is wrong with it (there may be warnings), 1 if there
    is an error. docs/troubleshooting.md goes by symptom.
    """
    from tiekd_ros.diagnosis.examination import Complaint, examine

    topics = (image_topic, camera_info_topic, depth_topic)
    complaint = Complaint(namespace, *topics, state, teacher, seconds)
    if as_json:
        result = examine(complaint, lambda text: None)
        typer.echo(json.dumps(result.as_dict(), indent=2))
    else:
        with console.status("looking at ROS") as status:
            result = examine(complaint, lambda text: status.update(f"looking at {text}"))
        _show(result)
    raise typer.Exit(1 if result.errors else 0)


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
