"""Launch arguments and processes made of `launch_options`; no launch file itself.

Loaded by its path, as launch files are, since `ros2 launch` may run in a Python that cannot
import this package.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import launch.logging
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
from launch.launch_description_sources.python_launch_file_utilities import (
    load_python_launch_file_as_module,
)
from launch.substitutions import EnvironmentVariable, LaunchConfiguration
from launch_ros.actions import Node
from launch_ros.parameter_descriptions import ParameterValue
from launch_ros.substitutions import ExecutableInPackage

options = load_python_launch_file_as_module(str(Path(__file__).with_name("launch_options.py")))

TRANSPORTS = "FASTDDS_BUILTIN_TRANSPORTS"
STEADY_S = 60.0  # a node that ended with 1 before that cannot start, and says why


def description(
    table: Mapping[str, object],
    start: Callable[[LaunchContext], list[LaunchDescriptionEntity]],
) -> LaunchDescription:
    """Return a launch file's description.

    Args:
        table: its options by name, each a `LaunchOption`.
        start: returns what to start, where the values are known.
    """
    # By default Fast DDS loses most images between processes; a user's own setting stays.
    usual = "LARGE_DATA?max_msg_size=2MB&sockets_size=4MB&non_blocking=true"
    transports = EnvironmentVariable(TRANSPORTS, default_value=usual)
    return LaunchDescription(
        [
            *(declare(name, option) for name, option in table.items()),
            SetEnvironmentVariable(TRANSPORTS, transports),
            OpaqueFunction(function=start),
        ]
    )


def declare(name: str, option: object) -> DeclareLaunchArgument:
    """Return the launch argument of a `LaunchOption`."""
    text, choices = option.description, option.choices
    if option.parameter and option.default:
        text += f" Default: {option.default}, unless params_file says otherwise."
    if option.parameter and choices:
        choices = (*choices, "")
        text += " The empty choice, '', leaves it to params_file."
    return DeclareLaunchArgument(
        name, default_value=option.unset, description=text, choices=choices or None
    )


def given(context: LaunchContext, table: Mapping[str, object]) -> dict[str, str]:
    """Return the values of the options in this launch."""
    return {name: LaunchConfiguration(name).perform(context) for name in table}


def teacher(arguments: Sequence[str]) -> list[ExecuteProcess]:
    """Return the process of a teacher beside the nodes; none where there are no arguments."""
    if not arguments:
        return []
    process = ExecuteProcess(
        cmd=[ExecutableInPackage("tiekd", "tiekd_ros"), *arguments],
        name="teacher",
        output="screen",
        respawn=True,
        respawn_delay=options.RESPAWN_DELAY_S,
    )
    return [process]


def warn_of_unused_sections(context: LaunchContext, cameras: Sequence[Mapping[str, str]]) -> None:
    """Warn of sections of the params_file that no node takes.

    Args:
        context: of the launch, which may have put a namespace before the nodes'.
        cameras: for each camera, the values of all options.

    Raises:
        ValueError: it is no file of parameters.
    """
    above = context.launch_configurations.get("ros_namespace", "")
    for text in options.unused_sections(cameras, above):
        launch.logging.get_logger("tiekd_ros").warning(text)


def nodes(values: Mapping[str, str], fixed: Mapping[str, Mapping[str, object]]) -> list[Node]:
    """Return the processes of one camera's nodes; the arguments are those of `node_processes`."""
    respawn = values["respawn"] == "true"
    return [_node(process, respawn) for process in options.node_processes(values, fixed)]


def _node(process: object, respawn: bool) -> Node:
    """Return the action that runs a `NodeProcess`."""
    # Typed, or launch would read a folder called 12 as a number.
    parameters = {
        name: ParameterValue(value, value_type=type(value))
        for name, value in process.parameters.items()
    }
    files = [process.params_file] if process.params_file else []
    return Node(
        package="tiekd_ros",
        executable=process.executable,
        # A name would be given to all nodes of the process.
        name=process.executable if len(process.nodes) == 1 else None,
        namespace=process.namespace,
        parameters=[*files, *([parameters] if parameters else [])],  # later ones win
        remappings=list(process.remappings.items()),
        ros_arguments=[*_enclave(process), "--log-level", process.log_level],
        output="screen",
        respawn=respawn and process.executable != options.CAMERA,
        respawn_delay=options.RESPAWN_DELAY_S,
        on_exit=_end_where_refused(process.executable),
    )


def _enclave(process: object) -> list[str]:
    """Return the SROS2 enclave of a process, where security is on; see docs/security.md."""
    if os.environ.get("ROS_SECURITY_ENABLE", "").lower() != "true":
        return []
    return ["--enclave", options.full_name(process.namespace, process.executable)]


def _end_where_refused(name: str) -> Callable[..., list[LaunchDescriptionEntity]]:
    """Return what ends all where a node's first start fails: trying again would not help."""
    begun = time.monotonic()
    exits: list[int] = []
    reason = f"{name} cannot start; its own message says why"

    def on_exit(event: object, context: LaunchContext) -> list[LaunchDescriptionEntity]:
        exits.append(event.returncode)
        if exits != [1] or time.monotonic() - begun > STEADY_S:
            return []
        return [LogInfo(msg=reason), EmitEvent(event=Shutdown(reason=reason))]

    return on_exit
