"""`tiekd up`: the nodes without `ros2 launch`, with the same names and parameters."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated

import typer

from tiekd_ros.core.errors import TiekdError
from tiekd_ros.core.parameter_files import full_name, unheeded
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
