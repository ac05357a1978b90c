"""The processes that the launch files start, by what was given for `arguments.ARGUMENTS`.

No launch file itself; loaded as one, since `ros2 launch` may run in a Python that cannot import
this package.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import launch.logging
from launch import LaunchContext, LaunchDescription
from launch.actions import (
    EmitEvent,
    ExecuteProcess,
    LogInfo,
    OpaqueFunction,
    SetEnvironmentVariable,
)
from launch.events import Shutdown
from launch.launch_description_entity import LaunchDescriptionEntity
from launch.launch_description_sources.python_launch_file_utilities import (
    load_python_launch_file_as_module,
)
from launch.substitutions import EnvironmentVariable
from launch_ros.actions import Node
from launch_ros.parameter_descriptions import ParameterValue
from launch_ros.substitutions import ExecutableInPackage

arguments = load_python_launch_file_as_module(str(Path(__file__).with_name("arguments.py")))
parameter_files = load_python_launch_file_as_module(
    str(Path(__file__).with_name("parameter_files.py"))
)
DEPTH, COMPANION, CAMERA = arguments.DEPTH, arguments.COMPANION, arguments.CAMERA

TRANSPORTS = "FASTDDS_BUILTIN_TRANSPORTS"

# A teacher with such a name before its colon runs here. Written out, since `ros2 launch` may run
# in a Python without this package's dependencies.
BACKENDS = ("recorded", "synthetic", "huggingface", "onnx", "ensemble")

# How a teacher that runs here is reached, whatever a file of parameters says of another; and how
# long it may be silent before that is a warning, since it starts with the nodes.
LOCAL_TEACHER = {
    "labels.starting_s": 120.0,
    "teacher.tls": False,
    "teacher.ca": "",
    "teacher.cert": "",
    "teacher.key": "",
    "teacher.server_name": "",
    "teacher.pin": "",
    "teacher.token_file": "",
}
STEADY_S = 60.0  # a node that ended with 1 before that cannot start, and says why


def description(
    declared: Mapping[str, object],
    start: Callable[[LaunchContext], list[LaunchDescriptionEntity]],
) -> LaunchDescription:
    """Return a launch file's description.

    Args:
        declared: its arguments by name, each an `arguments.Argument`.
        start: returns what to start, where the arguments are known.
    """
    return LaunchDescription(
        [*arguments.declared(declared), _carry_images(), OpaqueFunction(function=start)]
    )


def _carry_images() -> SetEnvironmentVariable:
    """By default Fast DDS loses most images between processes; a user's own setting stays."""
    usual = "LARGE_DATA?max_msg_size=2MB&sockets_size=4MB&non_blocking=true"
    return SetEnvironmentVariable(TRANSPORTS, EnvironmentVariable(TRANSPORTS, default_value=usual))


def with_teacher(
    values: dict[str, str],
) -> tuple[dict[str, str], dict[str, object], list[ExecuteProcess]]:
    """Start a teacher that is to run here; return values and fixed parameters that lead to it."""
    backend, colon, _ = values["teacher"].partition(":")
    if not colon or backend not in BACKENDS or values["companion"] == "false":
        return values, {}, []
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    command = [ExecutableInPackage("tiekd", "tiekd_ros"), "teacher", "serve", "--give-way"]
    command += ["--backend", values["teacher"], "--port", port]
    process = ExecuteProcess(
        cmd=command,
        name="teacher",
        output="screen",
        respawn=True,
        respawn_delay=arguments.RESPAWN_DELAY_S,
    )
    return {**values, "teacher": f"127.0.0.1:{port}"}, dict(LOCAL_TEACHER), [process]


def look_at_parameters(context: LaunchContext, cameras: Sequence[Mapping[str, str]]) -> None:
    """Warn of what a given params_file has in vain.

    Args:
        context: of the launch, which may have put a namespace before the nodes'.
        cameras: for each camera, the values of all `arguments.ARGUMENTS`; one params_file.

    Raises:
        ValueError: it is no file of parameters.
    """
    if not (file := cameras[0]["params_file"]):
        return
    above = context.launch_configurations.get("ros_namespace", "")
    started, absent = [], []
    for values in cameras:
        namespace = values["namespace"]
        if not namespace.startswith("/"):
            namespace = f"{above}/{namespace}"
        wanted = {
            DEPTH: True,
            COMPANION: values["companion"] != "false",
            CAMERA: bool(values["camera"]),
        }
        for node, is_wanted in wanted.items():
            name = parameter_files.full_name(namespace, node)
            (started if is_wanted else absent).append(name)
    for text in parameter_files.unheeded(Path(file), started, absent):
        launch.logging.get_logger("tiekd_ros").warning(text)


def nodes(
    values: Mapping[str, str], fixed: Mapping[str, Mapping[str, object]] | None = None
) -> list[ExecuteProcess]:
    """Return the processes for one camera.

    Args:
        values: of all `arguments.ARGUMENTS`; the teacher is an address, or none.
        fixed: by node, parameters that win over all others.
    """
    fixed = fixed or {}
    found = []
    if values["companion"] == "false":
        found.append(_node(DEPTH, (DEPTH,), values, fixed))
    elif values["composed"] == "true":
        found.append(_node("tiekd_nodes", (DEPTH, COMPANION), values, fixed))
    else:
        found += [_node(name, (name,), values, fixed) for name in (DEPTH, COMPANION)]
    if values["camera"]:
        found.append(_node(CAMERA, (CAMERA,), values, fixed))
    return found


def _node(
    executable: str,
    names: tuple[str, ...],
    values: Mapping[str, str],
    fixed: Mapping[str, Mapping[str, object]],
) -> Node:
    """Return the process that runs these nodes."""
    is_camera = executable == CAMERA
    respawn = values["respawn"] == "true" and not is_camera
    return Node(
        package="tiekd_ros",
        executable=executable,
        name=executable if len(names) == 1 else None,  # a name is given to all in the process
        namespace=values["namespace"],
        parameters=[  # later ones win
            *([values["params_file"]] if values["params_file"] else []),
            *_dictionaries(names, values, fixed),
        ],
        remappings=[
            ("image_raw" if is_camera else "image", values["image_topic"]),
            ("camera_info" if is_camera else "image_info", values["camera_info_topic"]),
        ],
        ros_arguments=[*_enclave(executable, values), "--log-level", values["log_level"]],
        output="screen",
        respawn=respawn,
        respawn_delay=arguments.RESPAWN_DELAY_S,
        on_exit=_end_where_refused(executable),
    )


def _dictionaries(
    names: tuple[str, ...],
    values: Mapping[str, str],
    fixed: Mapping[str, Mapping[str, object]],
) -> list[dict[str, ParameterValue]]:
    """Return the parameters whose arguments were given, typed as the nodes declare them."""
    found: dict[str, object] = {}
    for name, argument in arguments.ARGUMENTS.items():
        value, is_bool = values[name], argument.choices == arguments.BOOL
        if argument.parameter and value and set(argument.nodes) & set(names):
            found[argument.parameter] = value == "true" if is_bool else value
    if found.get("teacher.url") == "none":
        found["teacher.url"] = ""
    if "teacher.ca" in found:
        found["teacher.tls"] = True
    if CAMERA in names:
        found["source"] = values["camera"]
    for name in names:
        found |= fixed.get(name, {})
    # Typed, or launch would read a folder called 12 as a number.
    typed = {name: ParameterValue(value, value_type=type(value)) for name, value in found.items()}
    return [typed] if typed else []


def _enclave(executable: str, values: Mapping[str, str]) -> list[str]:
    """Return the SROS2 enclave of a node, where security is on; see docs/security.md."""
    if os.environ.get("ROS_SECURITY_ENABLE", "").lower() != "true":
        return []
    return ["--enclave", f"/{values['namespace'].strip('/')}/{executable}".replace("//", "/")]


def _end_where_refused(name: str) -> Callable[..., list[LaunchDescriptionEntity]]:
    """Return what ends all where a node's first start fails: trying again would not help."""
    begun = time.monotonic()
    ends: list[int] = []
    reason = f"{name} cannot start; it has said why"

    def look(event: object, context: LaunchContext) -> list[LaunchDescriptionEntity]:
        ends.append(event.returncode)  # type: ignore[attr-defined]
        if ends != [1] or time.monotonic() - begun > STEADY_S:
            return []
        return [LogInfo(msg=reason), EmitEvent(event=Shutdown(reason=reason))]

    return look
