"""Start depth_node and companion_node for one camera, and on demand a teacher or a camera.

ros2 launch tiekd_ros depth.launch.py image_topic:=/camera/image_raw teacher:=workstation:8001 \
    teacher_ca:=ca.pem teacher_token_file:=token
ros2 launch tiekd_ros depth.launch.py teacher:=huggingface:MODEL
ros2 launch tiekd_ros depth.launch.py camera:=recording.mcap teacher:=none

The nodes are managed nodes that configure and activate themselves, so plain processes are all
that is started here, on every ROS 2; autostart:=false leaves it to a lifecycle manager.
"""

from __future__ import annotations

from pathlib import Path

from launch import LaunchContext, LaunchDescription
from launch.actions import ExecuteProcess
from launch.launch_description_sources.python_launch_file_utilities import (
    load_python_launch_file_as_module,
)

processes = load_python_launch_file_as_module(str(Path(__file__).with_name("processes.py")))
arguments = processes.arguments


def generate_launch_description() -> LaunchDescription:
    return processes.description(arguments.ARGUMENTS, _start)


def _start(context: LaunchContext) -> list[ExecuteProcess]:
    values = arguments.given(context, arguments.ARGUMENTS)
    values, fixed, teacher = processes.with_teacher(values)
    processes.look_at_parameters(context, [values])
    return [*processes.nodes(values, {arguments.COMPANION: fixed}), *teacher]
