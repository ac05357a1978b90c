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

from launch import LaunchContext, LaunchDescription
from launch.launch_description_entity import LaunchDescriptionEntity
from launch.launch_description_sources.python_launch_file_utilities import (
    load_python_launch_file_as_module,
)

processes = load_python_launch_file_as_module(str(Path(__file__).with_name("processes.py")))
options = processes.options

NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]*")
DEVICE = re.compile(r"webcam|\d+|/dev/.*")
FOR_EACH = "{camera} stands for the camera's name"


def generate_launch_description() -> LaunchDescription:
    return processes.description(_options(), _start)


def _options() -> dict[str, object]:
    base = os.environ.get("XDG_STATE_HOME") or str(Path.home() / ".local" / "state")
    own = {
        "cameras": options.LaunchOption(
            "front,rear", "Names of the cameras, as in ROS names, with commas between."
        ),
        "namespace": options.LaunchOption(
            "tiekd/{camera}",
            f"Namespace of a camera's nodes; {FOR_EACH}: tiekd/front for the camera front.",
        ),
        "image_topic": options.LaunchOption(
            "/{camera}/image_raw",
            f"A camera's images; {FOR_EACH}: /front/image_raw for the camera front.",
        ),
        "camera_info_topic": options.LaunchOption(
            "/{camera}/camera_info",
            f"A camera's calibration; {FOR_EACH}: /front/camera_info for the camera front.",
        ),
        "camera": options.LaunchOption(
            "",
            "Also play the cameras: synthetic, a folder of images, a bag, a video file or a "
            f"webcam; {FOR_EACH}. Empty = they have drivers of their own.",
        ),
        "state_dir": options.LaunchOption(
            f"{base}/tiekd/{{camera}}",
            f"Folder of a camera's frame log and students, one for each; {FOR_EACH}.",
        ),
    }
    return own | {name: value for name, value in options.LAUNCH_OPTIONS.items() if name not in own}


def _start(context: LaunchContext) -> list[LaunchDescriptionEntity]:
    values = processes.given(context, _options())
    cameras = _names(values.pop("cameras"))
    own_to_each = ["namespace", "image_topic", "camera_info_topic", "state_dir"]
    if DEVICE.fullmatch(values["camera"]):  # of which there is one; what is recorded may be shared
        own_to_each.append("camera")
    for name in own_to_each:
        if len(cameras) > 1 and "{camera}" not in values[name]:
            raise ValueError(f"{name}:={values[name]} is one for all cameras; put {{camera}} in it")
    each = {
        camera: {name: value.replace("{camera}", camera) for name, value in values.items()}
        for camera in cameras
    }
    processes.warn_of_unused_sections(context, list(each.values()))
    companion, teacher = options.local_teacher(values)
    started = processes.teacher(teacher)
    for camera, own in each.items():
        fixed = {
            options.COMPANION: companion,
            options.CAMERA: {"frame_id": f"{camera}_optical_frame"},
        }
        started += processes.nodes(own, fixed)
    return started


def _names(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",") if name.strip()]
    for name in names:
        if not NAME.fullmatch(name):
            raise ValueError(f"cameras:={text}: {name!r} is no name for a camera; use a-z, 0-9, _")
    if not names or len(set(names)) < len(names):
        raise ValueError(f"cameras:={text}: give different names, with commas between")
    return names
