"""`tiekd up`, `demo` and `snapshot`: the nodes, run without `ros2 launch` or looked at."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated

import typer
from rich.status import Status

from tiekd_ros.cli.options import State, console
from tiekd_ros.core.errors import TiekdError
from tiekd_ros.core.parameter_files import full_name, unheeded
from tiekd_ros.core.state import StateFolder
from tiekd_ros.core.supervisor import Program, free_port, node_command

Namespace = Annotated[str, typer.Option(help="Namespace of the nodes.")]
ImageTopic = Annotated[str, typer.Option(help="The camera's images.")]
CameraInfoTopic = Annotated[str, typer.Option(help="The camera's calibration.")]
ImageTransport = Annotated[
    str | None,
    typer.Option(
        help="How the images come: raw, or compressed (on <image topic>/compressed).",
        show_default="raw",
    ),
]
Rectify = Annotated[
    bool | None,
    typer.Option(
        help="Take the lens's distortion out of the images by camera_info.",
        show_default="no-rectify",
    ),
]
ParamsFile = Annotated[
    Path | None,
    typer.Option(
        help="YAML with ROS parameters; the options given here win over it.",
        exists=True,
        dir_okay=False,
    ),
]
Teacher = Annotated[
    str | None,
    typer.Option(
        help="host:port of the teacher server, or none; or a teacher to run beside the nodes, such "
        "as huggingface:MODEL or onnx:FILE.",
        show_default="127.0.0.1:8001",
    ),
]
TeacherCa = Annotated[
    Path | None,
    typer.Option(
        help="PEM file with the authority of the teacher's certificate; turns TLS on.",
        exists=True,
        dir_okay=False,
    ),
]
TeacherTokenFile = Annotated[
    Path | None,
    typer.Option(
        help="File with the token that the teacher wants, closed to others.",
        exists=True,
        dir_okay=False,
    ),
]
Device = Annotated[str | None, typer.Option(help="auto, cpu, cuda or cuda:N.", show_default="auto")]
Camera = Annotated[
    str,
    typer.Option(
        help="Also play a camera: 'synthetic', a folder of images, a bag, a video file, or a "
        "webcam (/dev/video0).",
        metavar="SOURCE",
    ),
]
Companion = Annotated[bool, typer.Option(help="Log frames and learn from them.")]
Composed = Annotated[
    bool, typer.Option(help="Run both nodes in one process, which takes less memory.")
]
UseSimTime = Annotated[
    bool | None, typer.Option(help="Take the time from /clock.", show_default="no-use-sim-time")
]
LogLevel = Annotated[str, typer.Option(help="debug, info, warn or error.")]

# How a teacher that runs here is reached, whatever a file of parameters says of another; and how
# long it may be silent before that is a warning, since it starts with the nodes.
_LOCAL_TEACHER: dict[str, object] = {
    "labels.starting_s": 120.0,
    "teacher.tls": False,
    **{f"teacher.{name}": "" for name in ("ca", "cert", "key", "server_name", "pin", "token_file")},
}


@dataclass(frozen=True)
class UpOptions:
    """What to start, and some of the parameters; `params_file` is for all others.

    None leaves a parameter to that file and to the nodes' own default.
    """

    namespace: str = "tiekd"
    image_topic: str = "/camera/image_raw"
    camera_info_topic: str = "/camera/camera_info"
    image_transport: str | None = None
    rectify: bool | None = None
    params_file: Path | None = None
    teacher: str | None = None
    teacher_ca: Path | None = None
    teacher_token_file: Path | None = None
    device: str | None = None
    state_dir: str | None = None
    use_sim_time: bool | None = None
    log_level: str = "info"
    companion: bool = True
    composed: bool = False
    camera: str = ""
    camera_parameters: dict[str, object] = field(default_factory=dict)
    companion_parameters: dict[str, object] = field(default_factory=dict)
    depth_parameters: dict[str, object] = field(default_factory=dict)


def node_programs(options: UpOptions, logs: Path | None = None) -> list[Program]:
    """Return the programs to run: the nodes, and before them a teacher where one is to run here.

    Args:
        options: names and settings.
        logs: folder for one log file a program; None = this process's own output.
    """
    if options.teacher is not None and is_backend(options.teacher):
        port = free_port()
        parameters = {**_LOCAL_TEACHER, **options.companion_parameters}
        here = replace(options, teacher=f"127.0.0.1:{port}", companion_parameters=parameters)
        nodes = node_programs(here, logs)
        teacher = _teacher_program(options.teacher, port, logs)
        return [teacher, *nodes] if options.companion else nodes  # nobody else would ask it
    shared = {
        "state_dir": options.state_dir,
        "use_sim_time": options.use_sim_time,
        "image_transport": options.image_transport,
        "rectify": options.rectify,
    }
    depth = {**shared, "device": options.device, **options.depth_parameters}
    companion = {**shared, **_access(options), **options.companion_parameters}
    if options.companion and options.composed:
        programs = [_program("tiekd_nodes", options, {**depth, **companion}, logs)]
    else:
        programs = [_program("depth_node", options, depth, logs)]
        if options.companion:
            programs.append(_program("companion_node", options, companion, logs))
    if options.camera:
        parameters = {"source": options.camera, **options.camera_parameters}
        programs.append(_camera_program(options, parameters, logs))
    return programs


def unheeded_sections(options: UpOptions) -> list[str]:
    """Return a sentence for each section of `params_file` that no node takes.

    Raises:
        TiekdError: it is no file of parameters.
    """
    if options.params_file is None:
        return []
    wanted = {
        "depth_node": True,
        "companion_node": options.companion,
        "camera_node": bool(options.camera),
    }
    names = {node: full_name(options.namespace, node) for node in wanted}
    started = [name for node, name in names.items() if wanted[node]]
    try:
        return unheeded(options.params_file, started, list(names.values()))
    except ValueError as error:
        raise TiekdError(str(error)) from error


def is_backend(teacher: str) -> bool:
    """Say whether this names a backend, as in `huggingface:MODEL`, and not a server's address."""
    name, colon, _ = teacher.partition(":")
    if not colon or not name.isalpha():  # an address in numbers needs no look at the backends
        return False
    from tiekd_ros.teacher.backends import BACKENDS

    return name in BACKENDS


def _access(options: UpOptions) -> dict[str, object]:
    """Return the parameters of where the teacher is; None = not given."""
    ca, token_file = options.teacher_ca, options.teacher_token_file
    return {
        "teacher.url": "" if options.teacher == "none" else options.teacher,
        "teacher.ca": None if ca is None else str(ca),
        "teacher.tls": None if ca is None else True,
        "teacher.token_file": None if token_file is None else str(token_file),
    }


def _teacher_program(teacher: str, port: int, logs: Path | None) -> Program:
    command = [sys.executable, "-m", "tiekd_ros.cli", "teacher", "serve", "--give-way"]
    command += ["--backend", teacher, "--port", str(port)]
    # Without a teacher depth is published and frames are logged all the same.
    return Program("teacher", command, _log("teacher", logs), required=False)


def _program(
    name: str, options: UpOptions, parameters: dict[str, object], logs: Path | None
) -> Program:
    arguments = ["-r", f"__ns:=/{options.namespace.strip('/')}"]
    arguments += ["-r", f"image:={options.image_topic}"]
    arguments += ["-r", f"image_info:={options.camera_info_topic}"]
    return Program(name, _command(name, arguments, options, parameters), _log(name, logs))


def _camera_program(
    options: UpOptions, parameters: dict[str, object], logs: Path | None
) -> Program:
    arguments = ["-r", f"__ns:=/{options.namespace.strip('/')}"]
    arguments += ["-r", f"image_raw:={options.image_topic}"]
    arguments += ["-r", f"camera_info:={options.camera_info_topic}"]
    name = "camera_node"
    return Program(name, _command(name, arguments, options, parameters), _log(name, logs))


def _command(
    name: str, arguments: list[str], options: UpOptions, parameters: dict[str, object]
) -> list[str]:
    if options.params_file is not None:
        arguments += ["--params-file", str(options.params_file)]
    for key, value in parameters.items():
        if value is not None:
            arguments += ["-p", f"{key}:={_yaml(value)}"]
    return node_command(name, [*arguments, "--log-level", options.log_level])


def _yaml(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return f'"{value}"' if isinstance(value, str) else str(value)


def _log(name: str, logs: Path | None) -> Path | None:
    return None if logs is None else logs / f"{name}.log"


def up(
    state: State = "",
    namespace: Namespace = "tiekd",
    image_topic: ImageTopic = "/camera/image_raw",
    camera_info_topic: CameraInfoTopic = "/camera/camera_info",
    image_transport: ImageTransport = None,
    rectify: Rectify = None,
    params_file: ParamsFile = None,
    teacher: Teacher = None,
    teacher_ca: TeacherCa = None,
    teacher_token_file: TeacherTokenFile = None,
    device: Device = None,
    camera: Camera = "",
    companion: Companion = True,
    composed: Composed = False,
    use_sim_time: UseSimTime = None,
    log_level: LogLevel = "info",
) -> None:
    """Run the nodes, as `ros2 launch tiekd_ros depth.launch.py` does, until Ctrl-C.

    Subscribe to /tiekd/depth for depth in metres. Until a student has been accepted, depth
    stays silent: log frames with a teacher and call /tiekd/distill.
    """
    from tiekd_ros.core.supervisor import prepare_environment, require_ros, supervise

    require_ros()
    prepare_environment()
    options = UpOptions(
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
    for text in unheeded_sections(options):
        sys.stderr.write(f"warning: {text}\n")
    console.print(f"depth in metres on /{namespace.strip('/')}/depth; Ctrl-C ends", highlight=False)
    supervise(node_programs(options), lambda line: console.print(line, highlight=False))


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


_LINE_EVERY_S = 3.0


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
    from tiekd_ros.core.supervisor import prepare_environment, require_ros

    require_ros()
    prepare_environment()
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
