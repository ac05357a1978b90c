"""Start depth_node and companion_node for one camera, and on demand a teacher beside them.

ros2 launch tiekd_ros depth.launch.py image_topic:=/camera/image_raw teacher:=workstation:8001 \
    teacher_ca:=ca.pem teacher_token_file:=token
ros2 launch tiekd_ros depth.launch.py teacher:=huggingface:MODEL
"""

from __future__ import annotations

import socket
from pathlib import Path

from ament_index_python.packages import get_package_share_directory
from launch import LaunchContext, LaunchDescription
from launch.actions import (
    DeclareLaunchArgument,
    ExecuteProcess,
    OpaqueFunction,
    SetEnvironmentVariable,
)
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

# The arguments that set a parameter, with the parameters' own defaults. One that is left at its
# default is not passed on, so that it does not hide what a file of parameters says.
DEFAULTS = {
    "device": "auto",
    "teacher": "127.0.0.1:8001",
    "teacher_ca": "",
    "teacher_token_file": "",
    "state_dir": "",
    "use_sim_time": "false",
}


def generate_launch_description() -> LaunchDescription:
    return LaunchDescription(
        [
            *_arguments(),
            # By default Fast DDS loses most camera images between processes; a setting of the
            # user's own stays.
            SetEnvironmentVariable(
                TRANSPORTS,
                EnvironmentVariable(
                    TRANSPORTS, default_value="LARGE_DATA?max_msg_size=2MB&sockets_size=4MB"
                ),
            ),
            OpaqueFunction(function=_nodes),
        ]
    )


def _arguments() -> list[DeclareLaunchArgument]:
    return [
        DeclareLaunchArgument(
            "namespace", default_value="tiekd", description="Namespace of both nodes."
        ),
        DeclareLaunchArgument(
            "image_topic",
            default_value="/camera/image_raw",
            description="The camera's images.",
        ),
        DeclareLaunchArgument(
            "camera_info_topic",
            default_value="/camera/camera_info",
            description="The camera's calibration (sensor_msgs/CameraInfo).",
        ),
        DeclareLaunchArgument(
            "teacher",
            default_value=DEFAULTS["teacher"],
            description="host:port of the teacher server, or none; or a teacher to run beside "
            "the nodes, such as huggingface:MODEL or onnx:FILE.",
        ),
        DeclareLaunchArgument(
            "teacher_ca",
            default_value=DEFAULTS["teacher_ca"],
            description="PEM file with the authority of the teacher's certificate; turns TLS on. "
            "Other ways to connect (teacher.tls, teacher.cert, ...) go into params_file.",
        ),
        DeclareLaunchArgument(
            "teacher_token_file",
            default_value=DEFAULTS["teacher_token_file"],
            description="File with the token that the teacher wants, closed to others.",
        ),
        DeclareLaunchArgument(
            "device",
            default_value=DEFAULTS["device"],
            description="Where the student runs: auto (the GPU where there is one), cpu, cuda, "
            "cuda:1 and so on.",
        ),
        DeclareLaunchArgument(
            "state_dir",
            default_value=DEFAULTS["state_dir"],
            description="Folder of the frame log and the students; empty for "
            "$XDG_STATE_HOME/tiekd, usually ~/.local/state/tiekd.",
        ),
        DeclareLaunchArgument(
            "companion",
            default_value="true",
            choices=["true", "false"],
            description="Whether to log frames and learn from them; false only publishes depth.",
        ),
        DeclareLaunchArgument(
            "params_file",
            default_value="",
            description="YAML with parameters of either node or both; it wins over the files in "
            "this package's config folder, and the arguments given here win over it.",
        ),
        DeclareLaunchArgument(
            "use_sim_time",
            default_value=DEFAULTS["use_sim_time"],
            choices=["true", "false"],
            description="Take the time from /clock, as with a simulator or a bag.",
        ),
        DeclareLaunchArgument(
            "log_level",
            default_value="info",
            choices=["debug", "info", "warn", "error", "fatal"],
            description="Least severity that is logged.",
        ),
    ]


def _nodes(context: LaunchContext) -> list[ExecuteProcess]:
    nodes: list[ExecuteProcess] = []
    if LaunchConfiguration("companion").perform(context) == "true":
        teacher = _teacher_here(context)
        own = {
            "teacher": "teacher.url",
            "teacher_ca": "teacher.ca",
            "teacher_token_file": "teacher.token_file",
        }
        nodes += teacher
        nodes.append(_node(context, "companion_node", own, LOCAL_TEACHER if teacher else {}))
    return [_node(context, "depth_node", {"device": "device"}, {}), *nodes]


def _teacher_here(context: LaunchContext) -> list[ExecuteProcess]:
    """Return the process of a teacher that is to run here, and point the companion to it."""
    teacher = LaunchConfiguration("teacher").perform(context)
    backend, colon, _ = teacher.partition(":")
    if not colon or backend not in BACKENDS:
        return []
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    context.launch_configurations["teacher"] = f"127.0.0.1:{port}"
    command = [ExecutableInPackage("tiekd", "tiekd_ros"), "teacher", "serve", "--give-way"]
    command += ["--backend", teacher, "--port", port]
    return [
        ExecuteProcess(
            cmd=command,
            name="teacher",
            output="screen",
            respawn=True,
            respawn_delay=RESPAWN_DELAY_S,
        )
    ]


def _node(
    context: LaunchContext,
    name: str,
    own_arguments: dict[str, str],
    fixed: dict[str, str | bool],
) -> Node:
    defaults = Path(get_package_share_directory("tiekd_ros")) / "config" / f"{name}.yaml"
    params_file = LaunchConfiguration("params_file").perform(context)
    shared_arguments = {"state_dir": "state_dir", "use_sim_time": "use_sim_time"}
    return Node(
        package="tiekd_ros",
        executable=name,
        name=name,
        namespace=LaunchConfiguration("namespace"),
        parameters=[  # later ones win
            str(defaults),
            *([params_file] if params_file else []),
            *_parameters(context, shared_arguments | own_arguments),
            *([_typed(fixed)] if fixed else []),
        ],
        remappings=[
            ("image", LaunchConfiguration("image_topic")),
            ("image_info", LaunchConfiguration("camera_info_topic")),
        ],
        ros_arguments=["--log-level", LaunchConfiguration("log_level")],
        output="screen",
    )


def _parameters(
    context: LaunchContext, argument_to_parameter: dict[str, str]
) -> list[dict[str, ParameterValue | bool]]:
    """Return the parameters whose arguments were given, typed as the nodes declare them."""
    given: dict[str, ParameterValue | bool] = {}
    for argument, parameter in argument_to_parameter.items():
        value = LaunchConfiguration(argument).perform(context)
        if value == DEFAULTS[argument]:
            continue
        if argument == "use_sim_time":
            given[parameter] = value == "true"
        elif argument == "teacher" and value == "none":
            given[parameter] = ParameterValue("", value_type=str)
        else:  # typed, or launch would read a folder called 12 as a number
            given[parameter] = ParameterValue(value, value_type=str)
    if "teacher.ca" in given:
        given["teacher.tls"] = True
    return [given] if given else []


def _typed(values: dict[str, str | bool]) -> dict[str, ParameterValue]:
    return {name: ParameterValue(value, value_type=type(value)) for name, value in values.items()}
