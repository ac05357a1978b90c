"""The whole loop without robot, camera or GPU: synthetic camera and teacher, both nodes, RViz.

ros2 launch tiekd_ros demo.launch.py

Depth appears within seconds of the first labels, from the calibrated base student, and gets better
with each round; they begin by themselves. What was learnt is there at once the next time.
`scripts/demo` does the same without `ros2 launch`, and measures.
"""

from __future__ import annotations

import os
from pathlib import Path

from ament_index_python.packages import (
    PackageNotFoundError,
    get_package_prefix,
    get_package_share_directory,
)
from launch import LaunchContext, LaunchDescription
from launch.actions import LogInfo
from launch.launch_description_entity import LaunchDescriptionEntity
from launch.launch_description_sources.python_launch_file_utilities import (
    load_python_launch_file_as_module,
)
from launch_ros.actions import Node

processes = load_python_launch_file_as_module(str(Path(__file__).with_name("processes.py")))
options = processes.options

CAMERA = {"width": 320, "height": 240, "rate_hz": 8.0, "period_s": 60.0}

# For rounds that begin soon and end soon, and blocks of time that fit the camera's minute.
COMPANION = {
    "frames.block_s": 4.0,
    "student.pixels": 38_000,
    "distill.min_frames": 30,
    "distill.period_s": 30.0,
    "train.iterations": 240,
    "train.seconds": 600.0,
}


def generate_launch_description() -> LaunchDescription:
    return processes.description(_options(), _start)


def _options() -> dict[str, object]:
    base = os.environ.get("XDG_STATE_HOME") or str(Path.home() / ".local" / "state")
    shared = ("device", "composed", "respawn", "params_file", "log_level")
    return {
        "rviz": options.LaunchOption(
            "auto", "Open RViz; auto where it is installed.", ("auto", "true", "false")
        ),
        "state_dir": options.LaunchOption(
            str(Path(base) / "tiekd_demo"),
            "Folder of the frame log and the students; not a robot's own.",
        ),
        **{name: options.LAUNCH_OPTIONS[name] for name in shared},
    }


def _start(context: LaunchContext) -> list[LaunchDescriptionEntity]:
    values = {
        **options.unset_values(),
        "camera": "synthetic",
        "teacher": "synthetic:0",
        **processes.given(context, _options()),
    }
    rviz = values.pop("rviz")
    processes.warn_of_unused_sections(context, [values])
    companion, teacher = options.local_teacher(values)
    fixed = {options.COMPANION: {**COMPANION, **companion}, options.CAMERA: CAMERA}
    return [*processes.nodes(values, fixed), *processes.teacher(teacher), *_rviz(rviz)]


def _rviz(wanted: str) -> list[LaunchDescriptionEntity]:
    if wanted == "false":
        return []
    if wanted == "auto":
        try:
            get_package_prefix("rviz2")
        except PackageNotFoundError:
            return [LogInfo(msg="rviz2 is not installed: look with `ros2 topic echo`, or Foxglove")]
    share = Path(get_package_share_directory("tiekd_ros"))
    config = str(share / "config" / "tiekd.rviz")
    return [Node(package="rviz2", executable="rviz2", arguments=["-d", config], output="log")]
