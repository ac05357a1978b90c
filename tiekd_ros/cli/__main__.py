"""The `tiekd` command. Each verb, or group of verbs, has a file of its own.

Those files import what needs torch, gRPC or ROS only when a verb runs: `--help` stays quick,
and a verb needs only the extras that it uses.
"""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from tiekd_ros import __version__
from tiekd_ros.cli.doctor import doctor
from tiekd_ros.cli.frames import frames
from tiekd_ros.cli.nodes import demo, snapshot, up
from tiekd_ros.cli.offline import evaluate, label, train
from tiekd_ros.cli.students import distill, students
from tiekd_ros.cli.teacher import teacher
from tiekd_ros.core.errors import TiekdError

app = typer.Typer(
    help="Metric depth on a robot from one camera, kept good by distillation.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(students, name="students")
app.add_typer(frames, name="frames")
app.add_typer(teacher, name="teacher")
for verb in (up, demo, snapshot, doctor, distill, label, train, evaluate):
    app.command()(verb)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"tiekd_ros {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Metric depth on a robot from one camera, kept good by distillation."""


def main() -> None:
    """Run the command; a user's mistake ends with its message and status 1."""
    try:
        app()
    except TiekdError as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(1)


if __name__ == "__main__":
    main()
