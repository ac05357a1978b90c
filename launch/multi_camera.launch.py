"""Several cameras: for each a depth_node and a companion_node of its own, one teacher for all.

ros2 launch tiekd_ros multi_camera.launch.py cameras:=front,rear teacher:=workstation:8001

That listens to /front/image_raw and /rear/image_raw with their camera_info, and publishes
/tiekd/front/depth, /tiekd/rear/depth and so on. Every camera learns for itself: its frames and
students are in a folder of its own under state_dir.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from types import ModuleType

from launch import LaunchContext, LaunchDescription
from launch.actions import OpaqueFunction
from launch.launch_description_entity import LaunchDescriptionEntity
from launch.launch_description_sources.python_launch_file_utilities import (
    load_python_launch_file_as_module,
)

NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]*")
DEVICE = re.compile(r"webcam|\d+|/dev/.*")
FOR_EACH = "{camera} stands for the camera's name."


def generate_launch_description() -> LaunchDescription:
    depth = _depth_launch()
    return LaunchDescription(
        [
            *depth.declared(_arguments(depth)),
            depth.carry_images(),
            OpaqueFunction(function=_start),
        ]
    )


def _depth_launch() -> ModuleType:
    return load_python_launch_file_as_module(str(Path(__file__).with_name("depth.launch.py")))


def _arguments(depth: ModuleType) -> dict[str, object]:
    base = os.environ.get("XDG_STATE_HOME") or str(Path.home() / ".local" / "state")
    own = {
        "cameras": depth.Argument(
            "front,rear", "Names of the cameras, as in ROS names, with commas between."
        ),
        "namespace": depth.Argument("tiekd/{camera}", f"Namespace of a camera's nodes. {FOR_EACH}"),
        "image_topic": depth.Argument("/{camera}/image_raw", f"A camera's images. {FOR_EACH}"),
        "camera_info_topic": depth.Argument(
            "/{camera}/camera_info", f"A camera's calibration. {FOR_EACH}"
        ),
        "camera": depth.Argument(
            "",
            "Also play the cameras: synthetic, a folder of images, a bag, a video file or a "
            f"webcam. {FOR_EACH} Empty = they are there.",
        ),
        "state_dir": depth.Argument(
            f"{base}/tiekd/{{camera}}",
            f"Folder of a camera's frame log and students, one for each. {FOR_EACH}",
        ),
    }
    return own | {name: value for name, value in depth.ARGUMENTS.items() if name not in own}


def _start(context: LaunchContext) -> list[LaunchDescriptionEntity]:
    depth = _depth_launch()
    values = depth.given(context, _arguments(depth))
    cameras = _names(values.pop("cameras"))
    own_to_each = ["namespace", "image_topic", "camera_info_topic", "state_dir"]
    if DEVICE.fullmatch(values["camera"]):  # of which there is one; what is recorded may be shared
        own_to_each.append("camera")
    for name in own_to_each:
        if len(cameras) > 1 and "{camera}" not in values[name]:
            raise ValueError(f"{name}:={values[name]} is one for all cameras; put {{camera}} in it")
    values, teacher_is_here, started = depth.with_teacher(values)
    for camera in cameras:
        own = {name: value.replace("{camera}", camera) for name, value in values.items()}
        fixed = {
            "companion_node": teacher_is_here,
            "camera_node": {"frame_id": f"{camera}_optical_frame"},
        }
        started += depth.nodes(own, fixed)
    return started


def _names(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",") if name.strip()]
    for name in names:
        if not NAME.fullmatch(name):
            raise ValueError(f"cameras:={text}: {name!r} is no name for a camera; use a-z, 0-9, _")
    if not names or len(set(names)) < len(names):
        raise ValueError(f"cameras:={text}: give different names, with commas between")
    return names
