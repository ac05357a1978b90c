"""The `tiekd` command: thin, one function a verb."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from tiekd_ros import __version__
from tiekd_ros.cli import offline
from tiekd_ros.cli import up as running
from tiekd_ros.cli.doctor import doctor
from tiekd_ros.cli.frames import frames
from tiekd_ros.cli.options import AsJson, State, console
from tiekd_ros.cli.snapshot import snapshot
from tiekd_ros.cli.students import students
from tiekd_ros.cli.teacher import teacher
from tiekd_ros.core.errors import TiekdError
from tiekd_ros.core.state import StateFolder

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
app.command()(doctor)


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


@app.command()
def up(
    state: State = "",
    namespace: running.Namespace = "tiekd",
    image_topic: running.ImageTopic = "/camera/image_raw",
    camera_info_topic: running.CameraInfoTopic = "/camera/camera_info",
    image_transport: running.ImageTransport = None,
    rectify: running.Rectify = None,
    params_file: running.ParamsFile = None,
    teacher: running.Teacher = None,
    teacher_ca: running.TeacherCa = None,
    teacher_token_file: running.TeacherTokenFile = None,
    device: running.Device = None,
    camera: running.Camera = "",
    companion: running.Companion = True,
    composed: running.Composed = False,
    use_sim_time: running.UseSimTime = None,
    log_level: running.LogLevel = "info",
) -> None:
    """Run the nodes, as `ros2 launch tiekd_ros depth.launch.py` does, until Ctrl-C.

    Subscribe to /tiekd/depth for depth in metres. Until a student has been accepted, depth
    stays silent: log frames with a teacher and call /tiekd/distill.
    """
    from tiekd_ros.core.supervisor import prepare_environment, require_ros, supervise

    require_ros()
    prepare_environment()
    options = running.UpOptions(
        namespace=namespace,
        image_topic=image_topic,
        camera_info_topic=camera_info_topic,
        image_transport=image_transport,
        rectify=rectify,
        params_file=params_file,
        teacher=teacher,
        teacher_ca=teacher_ca,
        teacher_token_file=teacher_token_file,
        device=device,
        state_dir=str(StateFolder.resolve(state).create().root) if state else None,
        use_sim_time=use_sim_time,
        log_level=log_level,
        companion=companion,
        composed=composed,
        camera=camera,
    )
    for text in running.unheeded_sections(options):
        sys.stderr.write(f"warning: {text}\n")
    console.print(f"depth in metres on /{namespace.strip('/')}/depth; Ctrl-C ends", highlight=False)
    supervise(running.node_programs(options), lambda line: console.print(line, highlight=False))


@app.command()
def demo(
    frames: Annotated[
        Path | None,
        typer.Option(
            help="Play this RGB-D folder (images/, depth/, K.txt) instead of the synthetic world.",
            metavar="DIR",
        ),
    ] = None,
    output: Annotated[Path, typer.Option(help="Where results go.")] = Path("demo_output"),
    headless: Annotated[bool, typer.Option("--headless", help="Plain lines, no live bar.")] = False,
    seed: Annotated[int, typer.Option(help="Seed of the synthetic world.", min=0)] = 0,
    iterations: Annotated[int, typer.Option(help="Training steps of a round.", min=1)] = 240,
    train_seconds: Annotated[
        float, typer.Option(help="Training time of a round at most.", min=1.0)
    ] = 180.0,
    first_frames: Annotated[
        int, typer.Option(help="Labelled frames before the first round.", min=8)
    ] = 60,
) -> None:
    """Show the whole loop on this machine: camera, student, teacher, two distillation rounds.

    Real ROS nodes and a real gRPC teacher, each a process. Writes a contact sheet and
    demo.json; exits 0 only if depth got better than the best constant, the second round made
    nothing worse, and no frame was dropped by a swap. Takes about seven minutes on two cores.
    """
    from tiekd_ros.core.supervisor import (
        ended_by_signals,
        isolate,
        prepare_environment,
        require_ros,
    )

    require_ros()
    prepare_environment()
    isolate()
    with ended_by_signals():
        from tiekd_ros.demo.run import DemoOptions, run_demo

        training = (iterations, train_seconds, first_frames)
        result = run_demo(DemoOptions(frames, output, headless, seed, *training), console)
    raise typer.Exit(1 if result.failures else 0)


@app.command()
def distill(
    state: State = "",
    settings: Annotated[
        str,
        typer.Option(help='Settings as JSON, for example {"train": {"iterations": 500}}.'),
    ] = "{}",
    as_json: AsJson = False,
) -> None:
    """Run one distillation round offline; promote the student if it is better.

    Needs no ROS: labelled frames in, a judged student out, as the companion does it.
    """
    from dataclasses import asdict

    from tiekd_ros.cli.distill import RoundFailedError, distill_once

    folder = StateFolder.resolve(state)
    try:
        record = distill_once(folder, settings, None if as_json else console)
    except RoundFailedError as error:
        if as_json:
            typer.echo(json.dumps(asdict(error.record), indent=2))
        raise
    if as_json:
        typer.echo(json.dumps(asdict(record), indent=2))


app.command()(snapshot)
offline.register(app)


def main() -> None:
    """Run the command; a user's mistake ends with its message and status 1."""
    try:
        app()
    except TiekdError as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(1)


if __name__ == "__main__":
    main()
