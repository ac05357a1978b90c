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
options = processes.options


def generate_launch_description() -> LaunchDescription:
    return processes.description(options.LAUNCH_OPTIONS, _start)


def _start(context: LaunchContext) -> list[ExecuteProcess]:
    values = processes.given(context, options.LAUNCH_OPTIONS)
    processes.warn_of_unused_sections(context, [values])
    companion, teacher = options.local_teacher(values)
    fixed = {options.COMPANION: companion}
    return [*processes.nodes(values, fixed), *processes.teacher(teacher)]
