"""Start depth_node and companion_node for one camera, and on demand a teacher or a camera.

ros2 launch tiekd_ros depth.launch.py image_topic:=/camera/image_raw teacher:=workstation:8001 \
    teacher_ca:=ca.pem teacher_token_file:=token
ros2 launch tiekd_ros depth.launch.py teacher:=huggingface:MODEL
ros2 launch tiekd_ros depth.launch.py camera:=recording.mcap teacher:=none

The nodes are managed nodes that configure and activate themselves, so plain processes are all
that is started here, on every ROS 2; autostart:=false leaves it to a lifecycle manager.
demo.launch.py and multi_camera.launch.py use what stands here.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

from ament_index_python.packages import get_package_share_directory
from launch import LaunchContext, LaunchDescription
from launch.actions import (
    DeclareLaunchArgument,
    EmitEvent,
    ExecuteProcess,
    LogInfo,
    OpaqueFunction,
    SetEnvironmentVariable,
)
from launch.events import Shutdown
from launch.launch_description_entity import LaunchDescriptionEntity
from launch.substitutions import EnvironmentVariable, LaunchConfiguration
from launch_ros.actions import Node
from launch_ros.parameter_descriptions import ParameterValue
from launch_ros.substitutions import ExecutableInPackage

TRANSPORTS = "FASTDDS_BUILTIN_TRANSPORTS"

# A teacher with such a name before its colon runs here. Written out, since `ros2 launch` may run
# in a Python without this package's dependencies.
BACKENDS = ("recorded", "synthetic", "huggingface", "onnx", "ensemble")

# How a teacher that runs here is reached, whatever a file of parameters says of another.
LOCAL_TEACHER = {
    "teacher.tls": False,
    "teacher.ca": "",
    "teacher.cert": "",
    "teacher.key": "",
    "teacher.server_name": "",
    "teacher.pin": "",
    "teacher.token_file": "",
}
RESPAWN_DELAY_S = 5.0
STEADY_S = 60.0  # a node that ended with 1 before that cannot start, and says why

DEPTH, COMPANION, CAMERA = "depth_node", "companion_node", "camera_node"
BOOL = ("true", "false")


class Argument(NamedTuple):
    """One argument; `default` is what holds where nobody says anything.

    One that sets a parameter is declared as empty, and passed on only where it is given: so it
    does not hide what a file of parameters says, and wins over it even with the default's value.
    """

    default: str
    description: str
    choices: tuple[str, ...] | None = None
    parameter: str = ""
    nodes: tuple[str, ...] = (DEPTH, COMPANION)

    def declare(self, name: str) -> DeclareLaunchArgument:
        text, choices = self.description, self.choices
        if self.parameter and self.default:
            text += f" Default: {self.default}, unless params_file says otherwise."
        if self.parameter and choices:
            choices = ("", *choices)
        return DeclareLaunchArgument(
            name, default_value=self.unset, description=text, choices=choices
        )

    @property
    def unset(self) -> str:
        """The value where it is not given."""
        return "" if self.parameter else self.default


ARGUMENTS = {
    "namespace": Argument("tiekd", "Namespace of the nodes."),
    "image_topic": Argument("/camera/image_raw", "The camera's images."),
    "camera_info_topic": Argument(
        "/camera/camera_info", "The camera's calibration (sensor_msgs/CameraInfo)."
    ),
    "image_transport": Argument(
        "raw",
        "How the images come: raw (sensor_msgs/Image), or compressed (JPEG or PNG, on "
        "<image_topic>/compressed).",
        ("raw", "compressed"),
        "image_transport",
    ),
    "rectify": Argument(
        "false",
        "Take the lens's distortion out of the images by camera_info; for cameras whose driver "
        "publishes only unrectified ones.",
        BOOL,
        "rectify",
    ),
    "camera": Argument(
        "",
        "Also play a camera on image_topic: synthetic, a folder of images, a bag, a video file, "
        "or webcam (/dev/video0). Empty = there is one.",
    ),
    "teacher": Argument(
        "127.0.0.1:8001",
        "host:port of the teacher server, or none; or a teacher to run beside the nodes, such as "
        "huggingface:MODEL or onnx:FILE.",
        None,
        "teacher.url",
        (COMPANION,),
    ),
    "teacher_ca": Argument(
        "",
        "PEM file with the authority of the teacher's certificate; turns TLS on. Other ways to "
        "connect (teacher.tls, teacher.cert, ...) go into params_file.",
        None,
        "teacher.ca",
        (COMPANION,),
    ),
    "teacher_token_file": Argument(
        "",
        "File with the token that the teacher wants, closed to others.",
        None,
        "teacher.token_file",
        (COMPANION,),
    ),
    "device": Argument(
        "auto",
        "Where the student runs: auto (the GPU where there is one), cpu, cuda, cuda:1 and so on.",
        None,
        "device",
        (DEPTH,),
    ),
    "state_dir": Argument(
        "",
        "Folder of the frame log and the students; empty for $XDG_STATE_HOME/tiekd, usually "
        "~/.local/state/tiekd.",
        None,
        "state_dir",
    ),
    "companion": Argument(
        "true", "Whether to log frames and learn from them; false only publishes depth.", BOOL
    ),
    "composed": Argument(
        "false", "Run depth_node and companion_node in one process, which takes less memory.", BOOL
    ),
    "autostart": Argument(
        "true",
        "Whether the nodes configure and activate themselves; false for a lifecycle manager, or "
        "`ros2 lifecycle set`.",
        BOOL,
        "autostart",
    ),
    "respawn": Argument(
        "true",
        f"Start a node again {RESPAWN_DELAY_S:.0f} s after it ended. One that cannot start, and "
        "ends with 1 at once, ends all. A played camera never comes again.",
        BOOL,
    ),
    "params_file": Argument(
        "",
        "YAML with parameters of any of the nodes; it wins over the files in this package's "
        "config folder, and the arguments given here win over it.",
    ),
    "use_sim_time": Argument(
        "false",
        "Take the time from /clock, as with a simulator or a bag.",
        BOOL,
        "use_sim_time",
        (DEPTH, COMPANION, CAMERA),
    ),
    "log_level": Argument(
        "info", "Least severity that is logged.", ("debug", "info", "warn", "error", "fatal")
    ),
}


def generate_launch_description() -> LaunchDescription:
    return LaunchDescription(
        [*declared(ARGUMENTS), carry_images(), OpaqueFunction(function=_start)]
    )


def declared(arguments: Mapping[str, Argument]) -> list[DeclareLaunchArgument]:
    return [argument.declare(name) for name, argument in arguments.items()]


def carry_images() -> SetEnvironmentVariable:
    """By default Fast DDS loses most images between processes; a user's own setting stays."""
    usual = "LARGE_DATA?max_msg_size=2MB&sockets_size=4MB"
    return SetEnvironmentVariable(TRANSPORTS, EnvironmentVariable(TRANSPORTS, default_value=usual))


def given(context: LaunchContext, arguments: Mapping[str, Argument]) -> dict[str, str]:
    return {name: LaunchConfiguration(name).perform(context) for name in arguments}


def _start(context: LaunchContext) -> list[ExecuteProcess]:
    values = given(context, ARGUMENTS)
    values, fixed, teacher = with_teacher(values)
    return [*nodes(values, {COMPANION: fixed}), *teacher]


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
        respawn_delay=RESPAWN_DELAY_S,
    )
    return {**values, "teacher": f"127.0.0.1:{port}"}, dict(LOCAL_TEACHER), [process]


def nodes(
    values: Mapping[str, str], fixed: Mapping[str, Mapping[str, object]] | None = None
) -> list[ExecuteProcess]:
    """Return the processes for one camera.

    Args:
        values: of all ARGUMENTS; the teacher is an address, or none.
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
    share = Path(get_package_share_directory("tiekd_ros"))
    is_camera = executable == CAMERA
    respawn = values["respawn"] == "true" and not is_camera
    return Node(
        package="tiekd_ros",
        executable=executable,
        name=executable if len(names) == 1 else None,  # a name is given to all in the process
        namespace=values["namespace"],
        parameters=[  # later ones win
            *(str(share / "config" / f"{name}.yaml") for name in names),
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
        respawn_delay=RESPAWN_DELAY_S,
        on_exit=None if is_camera else _end_where_refused(executable),
    )


def _dictionaries(
    names: tuple[str, ...],
    values: Mapping[str, str],
    fixed: Mapping[str, Mapping[str, object]],
) -> list[dict[str, ParameterValue]]:
    """Return the parameters whose arguments were given, typed as the nodes declare them."""
    found: dict[str, object] = {}
    for name, argument in ARGUMENTS.items():
        value = values[name]
        if argument.parameter and value and set(argument.nodes) & set(names):
            found[argument.parameter] = value == "true" if argument.choices == BOOL else value
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
