"""`tiekd up`: the nodes without `ros2 launch`, with the same names and parameters."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from tiekd_ros.supervisor import Program, node_command


@dataclass(frozen=True)
class UpOptions:
    """The arguments that `launch/depth.launch.py` has, and a camera to play where there is none."""

    namespace: str = "tiekd"
    image_topic: str = "/camera/image_raw"
    camera_info_topic: str = "/camera/camera_info"
    params_file: Path | None = None
    teacher: str = "127.0.0.1:8001"
    device: str = "auto"
    state_dir: str = ""
    use_sim_time: bool = False
    log_level: str = "info"
    companion: bool = True
    camera: str = ""
    camera_parameters: dict[str, object] = field(default_factory=dict)
    companion_parameters: dict[str, object] = field(default_factory=dict)
    depth_parameters: dict[str, object] = field(default_factory=dict)


def node_programs(options: UpOptions, logs: Path | None = None) -> list[Program]:
    """Return the programs to run.

    Args:
        options: names and settings.
        logs: folder for one log file a node; None = this process's own output.
    """
    shared = {"state_dir": options.state_dir, "use_sim_time": options.use_sim_time}
    depth = {**shared, "device": options.device, **options.depth_parameters}
    programs = [_program("depth_node", options, depth, logs)]
    if options.companion:
        teacher = "" if options.teacher == "none" else options.teacher
        companion = {**shared, "teacher.url": teacher, **options.companion_parameters}
        programs.append(_program("companion_node", options, companion, logs))
    if options.camera:
        parameters = {"source": options.camera, **options.camera_parameters}
        programs.append(_camera_program(options, parameters, logs))
    return programs


def _program(
    name: str, options: UpOptions, parameters: dict[str, object], logs: Path | None
) -> Program:
    arguments = ["-r", f"__ns:=/{options.namespace.strip('/')}"]
    arguments += ["-r", f"image:={options.image_topic}"]
    arguments += ["-r", f"image_info:={options.camera_info_topic}"]
    if options.params_file is not None:
        arguments += ["--params-file", str(options.params_file)]
    return Program(name, _command(name, arguments, options, parameters), _log(name, logs))


def _camera_program(
    options: UpOptions, parameters: dict[str, object], logs: Path | None
) -> Program:
    arguments = ["-r", f"image_raw:={options.image_topic}"]
    arguments += ["-r", f"camera_info:={options.camera_info_topic}"]
    name = "camera_node"
    return Program(name, _command(name, arguments, options, parameters), _log(name, logs))


def _command(
    name: str, arguments: list[str], options: UpOptions, parameters: dict[str, object]
) -> list[str]:
    for key, value in parameters.items():
        arguments += ["-p", f"{key}:={_yaml(value)}"]
    return node_command(name, [*arguments, "--log-level", options.log_level])


def _yaml(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return f'"{value}"' if isinstance(value, str) else str(value)


def _log(name: str, logs: Path | None) -> Path | None:
    return None if logs is None else logs / f"{name}.log"
