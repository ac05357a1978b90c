"""The arguments of the launch files; no launch file itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from launch import LaunchContext
from launch.actions import DeclareLaunchArgument
from launch.substitutions import LaunchConfiguration

RESPAWN_DELAY_S = 5.0

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
            choices = (*choices, "")
            text += " The empty choice, '', leaves it to params_file."
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
        "YAML with parameters of any of the nodes, as in this package's config folder; the "
        "arguments given here win over it.",
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


def declared(arguments: Mapping[str, Argument]) -> list[DeclareLaunchArgument]:
    return [argument.declare(name) for name, argument in arguments.items()]


def given(context: LaunchContext, arguments: Mapping[str, Argument]) -> dict[str, str]:
    return {name: LaunchConfiguration(name).perform(context) for name in arguments}
