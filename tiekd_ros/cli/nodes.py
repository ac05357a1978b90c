"""`tiekd up`, `demo` and `snapshot`: the nodes, run without `ros2 launch` or looked at."""

from __future__ import annotations

import inspect
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.status import Status

from tiekd_ros.cli.options import console, in_place_of
from tiekd_ros.core import supervisor
from tiekd_ros.core.errors import TiekdError
from tiekd_ros.core.launch_options import (
    BOOL,
    LAUNCH_OPTIONS,
    LaunchOption,
    unset_values,
    unused_sections,
)
from tiekd_ros.core.settings import TextEnum
from tiekd_ros.core.state import StateFolder

_LINE_EVERY_S = 3.0
_NAMES = {"state_dir": "state"}  # as in the other verbs


def _parameter(name: str, option: LaunchOption) -> inspect.Parameter:
    """Return the command-line option of a launch option; None = not given."""
    kind: Any = str
    default: object = None
    shown: str | bool = option.default or False
    if option.choices == BOOL:
        kind = bool
        default = None if option.parameter else option.default == "true"
        shown = (name if option.default == "true" else f"no-{name}").replace("_", "-")
    elif option.is_file:
        kind = Path
    elif option.choices:
        make_enum: Any = TextEnum  # mypy knows the call with literals only
        kind = make_enum(name, {choice: choice for choice in option.choices})
    info = typer.Option(
        help=option.description,
        show_default=shown,
        exists=option.is_file,
        dir_okay=not option.is_file,
    )
    return inspect.Parameter(
        _NAMES.get(name, name),
        inspect.Parameter.KEYWORD_ONLY,
        default=default,
        annotation=Annotated[kind if kind is bool and default is not None else kind | None, info],
    )


def _given(**values: Any) -> dict[str, str]:
    """Return the values of the launch options that were given, as texts."""
    given = {}
    for name, value in values.items():
        if value is not None:
            given[name] = str(value).lower() if isinstance(value, bool) else str(value)
    return given


@in_place_of(
    "given",
    {
        name: _parameter(name, option)
        for name, option in LAUNCH_OPTIONS.items()
        if name != "respawn"  # nodes are always started again here
    },
    _given,
)
def up(given: dict[str, str]) -> None:
    """Run the nodes, as `ros2 launch tiekd_ros depth.launch.py` does, until Ctrl-C.

    Subscribe to /tiekd/depth for depth in metres. Until a student has been accepted, depth
    stays silent: the first comes by itself with a teacher's first labels, a better one when
    /tiekd/distill is called.
    """
    supervisor.require_ros()
    supervisor.prepare_environment()
    if given.get("state_dir"):
        given["state_dir"] = str(StateFolder.resolve(given["state_dir"]).create().root)
    values = {**unset_values(), **given}
    try:
        unused = unused_sections([values])
    except ValueError as error:
        raise TiekdError(str(error)) from error
    for text in unused:
        sys.stderr.write(f"warning: {text}\n")
    namespace = values["namespace"].strip("/")
    console.print(f"depth in metres on /{namespace}/depth; Ctrl-C ends", highlight=False)
    programs = supervisor.node_programs(values)
    supervisor.supervise(programs, lambda line: console.print(line, highlight=False))


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
    ] = 600.0,
    first_frames: Annotated[
        int, typer.Option(help="Labelled frames before the first round.", min=8)
    ] = 60,
) -> None:
    """Show the whole loop on this machine: camera, student, teacher, two distillation rounds.

    Real ROS nodes and a real gRPC teacher, each a process. Writes a contact sheet and
    demo.json; exits 0 only if depth got better than the best constant, the second round made
    nothing worse, and no frame was dropped by a swap. Takes five to nine minutes on two cores.
    """
    supervisor.require_ros()
    supervisor.prepare_environment()
    supervisor.isolate()
    with supervisor.ended_by_signals():
        from tiekd_ros.demo.run import DemoOptions, run_demo

        training = (iterations, train_seconds, first_frames)
        result = run_demo(DemoOptions(frames, output, headless, seed, *training), console)
    raise typer.Exit(1 if result.failures else 0)


def snapshot(
    output: Annotated[Path, typer.Argument(help="Folder for the pictures.", metavar="OUT")],
    namespace: Annotated[str, typer.Option(help="Of the nodes.")] = "tiekd",
    image_topic: Annotated[
        str, typer.Option(help="The camera's.", show_default="what the depth node listens to")
    ] = "",
    timeout: Annotated[
        float, typer.Option(help="How long to wait for depth (s).", min=0.1, max=3600.0)
    ] = 20.0,
) -> None:
    """Write pictures of one moment of the running nodes: image, depth, preview and point cloud.

    All are of one camera image. Files: image.png, depth_mm.png (16 bits, millimetres, 0 = none),
    preview.png (with the depths of its colours), points.png (from beside the camera and from above)
    and snapshot.json. Files of these names in OUT are replaced. Exits 1 if a part, or the depth
    node's diagnostics, are missing, and says why.
    """
    supervisor.require_ros()
    supervisor.prepare_environment()
    if output.exists() and not output.is_dir():
        raise TiekdError(f"{output} is a file; give a folder")
    from tiekd_ros.nodes.probe.snapshot import SnapshotTaker, write_snapshot

    with (
        SnapshotTaker(namespace, image_topic) as taker,
        console.status("waiting for depth") as status,
    ):
        taken = taker.take(timeout, _Progress(status).show)
        files = write_snapshot(taken, output)
    for file in files:
        console.print(str(file), highlight=False, soft_wrap=True)
    if taken.missing:
        reasons = "; ".join(f"no {part}: {why}" for part, why in taken.missing.items())
        raise TiekdError(f"the snapshot is not whole: {reasons}")


class _Progress:
    """Shows what has come so far: a line that changes on a terminal, now and then one elsewhere."""

    def __init__(self, status: Status) -> None:
        self._status = status
        self._spoken = time.monotonic()

    def show(self, counts: Mapping[str, int]) -> None:
        text = "waiting; so far " + ", ".join(f"{part} {n}" for part, n in counts.items())
        if console.is_terminal:
            self._status.update(text)
        elif time.monotonic() - self._spoken > _LINE_EVERY_S:
            self._spoken = time.monotonic()
            console.print(text, highlight=False, soft_wrap=True)
