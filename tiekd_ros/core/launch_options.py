"""The options of the launch files and of `tiekd up`, and what the nodes get from them.

The standard library and PyYAML only, and nothing of this package: `launch/launch_options.py` is a
link to this file, since `ros2 launch` may run in a Python that cannot import tiekd_ros. No
dataclasses either: launch files are loaded without an entry in `sys.modules`, which those need.

Values are texts by the option's name, as `ros2 launch` has them. An option that sets a parameter
is "" where it is not given, so that it does not hide what a file of parameters says; given, it
wins over the file, even with the default's value.
"""

from __future__ import annotations

import difflib
import re
import socket
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml

DEPTH, COMPANION, CAMERA = "depth_node", "companion_node", "camera_node"
BOOL = ("true", "false")
RESPAWN_DELAY_S = 5.0

_PARAMETERS = "ros__parameters"
_WILDCARDS = {"*": r"/\w+", "**": r"(/\w+)*"}


class LaunchOption(NamedTuple):
    """One option."""

    default: str
    """What holds where the option is not given, and no file of parameters says otherwise."""
    description: str
    choices: tuple[str, ...] = ()
    parameter: str = ""
    """The ROS parameter that it sets, if any."""
    nodes: tuple[str, ...] = (DEPTH, COMPANION)
    """The nodes whose parameter it sets."""
    is_file: bool = False

    @property
    def unset(self) -> str:
        """The value where the option is not given."""
        return "" if self.parameter else self.default


LAUNCH_OPTIONS = {
    "namespace": LaunchOption("tiekd", "Namespace of the nodes."),
    "image_topic": LaunchOption("/camera/image_raw", "The camera's images."),
    "camera_info_topic": LaunchOption(
        "/camera/camera_info", "The camera's calibration (sensor_msgs/CameraInfo)."
    ),
    "image_transport": LaunchOption(
        "raw",
        "How the images come: raw (sensor_msgs/Image), or compressed (JPEG or PNG, on the image "
        "topic with /compressed behind it).",
        choices=("raw", "compressed"),
        parameter="image_transport",
    ),
    "rectify": LaunchOption(
        "false",
        "Take the lens's distortion out of the images by camera_info; for cameras whose driver "
        "publishes only unrectified ones.",
        choices=BOOL,
        parameter="rectify",
    ),
    "camera": LaunchOption(
        "",
        "Also play a camera on the image topic: synthetic, a folder of images, a bag, a video "
        "file, or webcam (/dev/video0). Empty = the camera has a driver of its own.",
    ),
    "teacher": LaunchOption(
        "127.0.0.1:8001",
        "host:port of the teacher server, or none; or a teacher to run beside the nodes, such as "
        "huggingface:MODEL or onnx:FILE.",
        parameter="teacher.url",
        nodes=(COMPANION,),
    ),
    "teacher_ca": LaunchOption(
        "",
        "PEM file with the authority of the teacher's certificate; turns TLS on. Other ways to "
        "connect (teacher.tls, teacher.cert, ...) go into the file of parameters.",
        parameter="teacher.ca",
        nodes=(COMPANION,),
        is_file=True,
    ),
    "teacher_token_file": LaunchOption(
        "",
        "File with the token that the teacher wants; only its owner may read it.",
        parameter="teacher.token_file",
        nodes=(COMPANION,),
        is_file=True,
    ),
    "device": LaunchOption(
        "auto",
        "Where the student runs: auto (the GPU where there is one), cpu, cuda, cuda:1 and so on.",
        parameter="device",
        nodes=(DEPTH,),
    ),
    "state_dir": LaunchOption(
        "",
        "Folder of the frame log and the students; empty = $XDG_STATE_HOME/tiekd, usually "
        "~/.local/state/tiekd.",
        parameter="state_dir",
    ),
    "companion": LaunchOption(
        "true", "Log frames and learn from them; without it only depth is published.", BOOL
    ),
    "composed": LaunchOption(
        "false", "Run depth_node and companion_node in one process, which takes less memory.", BOOL
    ),
    "autostart": LaunchOption(
        "true",
        "The nodes configure and activate themselves; otherwise a lifecycle manager does it, or "
        "`ros2 lifecycle set`.",
        choices=BOOL,
        parameter="autostart",
    ),
    "respawn": LaunchOption(
        "true",
        f"Start a node again {RESPAWN_DELAY_S:.0f} s after it ended. One that cannot start, and "
        "ends with 1 at once, ends all. A played camera is not started again.",
        BOOL,
    ),
    "params_file": LaunchOption(
        "",
        "YAML with parameters of any of the nodes, as in this package's config folder; options "
        "that are given win over it.",
        is_file=True,
    ),
    "use_sim_time": LaunchOption(
        "false",
        "Take the time from /clock, as with a simulator or a bag.",
        choices=BOOL,
        parameter="use_sim_time",
        nodes=(DEPTH, COMPANION, CAMERA),
    ),
    "log_level": LaunchOption(
        "info", "Least severity that is logged.", ("debug", "info", "warn", "error", "fatal")
    ),
}

TEACHER_BACKENDS = ("recorded", "synthetic", "huggingface", "onnx", "ensemble")
"""The names of `tiekd_ros.teacher.backends`. A teacher with such a name before its colon runs
beside the nodes."""

LOCAL_TEACHER: dict[str, object] = {
    # It starts with the nodes: how long it may be silent before that is a warning.
    "labels.starting_s": 120.0,
    # Whatever a file of parameters says of another teacher.
    "teacher.tls": False,
    "teacher.ca": "",
    "teacher.cert": "",
    "teacher.key": "",
    "teacher.server_name": "",
    "teacher.pin": "",
    "teacher.token_file": "",
}
"""Parameters of the companion for a teacher that runs beside the nodes."""


class NodeProcess(NamedTuple):
    """A process of one node or several."""

    executable: str
    nodes: tuple[str, ...]
    namespace: str
    params_file: str
    """Empty = none."""
    parameters: dict[str, object]
    """Given on the command line, so they win over the file."""
    remappings: dict[str, str]
    log_level: str


def unset_values() -> dict[str, str]:
    """Return the values of all options where none is given."""
    return {name: option.unset for name, option in LAUNCH_OPTIONS.items()}


def node_processes(
    values: Mapping[str, str], fixed: Mapping[str, Mapping[str, object]]
) -> list[NodeProcess]:
    """Return the processes of one camera's nodes.

    Args:
        values: of all `LAUNCH_OPTIONS`.
        fixed: by node, parameters that win over all others.
    """
    has_companion = values["companion"] == "true"
    processes: dict[str, tuple[str, ...]]
    if has_companion and values["composed"] == "true":
        processes = {"tiekd_nodes": (DEPTH, COMPANION)}
    else:
        processes = {name: (name,) for name in (DEPTH, COMPANION) if name == DEPTH or has_companion}
    if values["camera"]:
        processes[CAMERA] = (CAMERA,)
    return [
        NodeProcess(
            executable,
            nodes,
            values["namespace"],
            values["params_file"],
            _parameters(nodes, values, fixed),
            {
                "image_raw" if executable == CAMERA else "image": values["image_topic"],
                "camera_info" if executable == CAMERA else "image_info": values[
                    "camera_info_topic"
                ],
            },
            values["log_level"],
        )
        for executable, nodes in processes.items()
    ]


def _parameters(
    nodes: tuple[str, ...],
    values: Mapping[str, str],
    fixed: Mapping[str, Mapping[str, object]],
) -> dict[str, object]:
    found: dict[str, object] = {}
    for name, option in LAUNCH_OPTIONS.items():
        value = values[name]
        if option.parameter and value and set(option.nodes) & set(nodes):
            found[option.parameter] = value == "true" if option.choices == BOOL else value
    if found.get("teacher.url") == "none":
        found["teacher.url"] = ""
    if "teacher.ca" in found:
        found["teacher.tls"] = True
    if CAMERA in nodes:
        found["source"] = values["camera"]
    for node in nodes:
        found |= fixed.get(node, {})
    return found


def local_teacher(values: Mapping[str, str]) -> tuple[dict[str, object], list[str]]:
    """Return what a teacher beside the nodes needs; both are empty where none is to run there.

    Returns:
        Parameters of the companion that lead to the teacher, and the arguments of `tiekd` that
        start it on a free port.
    """
    backend, colon, _ = values["teacher"].partition(":")
    if not colon or backend not in TEACHER_BACKENDS or values["companion"] == "false":
        return {}, []
    port = str(free_port())
    arguments = ["teacher", "serve", "--give-way", "--backend", values["teacher"], "--port", port]
    return {**LOCAL_TEACHER, "teacher.url": f"127.0.0.1:{port}"}, arguments


def free_port() -> int:
    """Return a TCP port of 127.0.0.1 that is free at the moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def unused_sections(cameras: Sequence[Mapping[str, str]], above: str = "") -> list[str]:
    """Return a sentence for each section of the params_file that no node takes.

    Args:
        cameras: for each camera, the values of all `LAUNCH_OPTIONS`; one params_file.
        above: the namespace that a launch file put before the nodes' own.

    Raises:
        ValueError: it is no file of parameters.
    """
    if not (file := cameras[0]["params_file"]):
        return []
    started: list[str] = []
    absent: list[str] = []
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
            (started if is_wanted else absent).append(full_name(namespace, node))
    said = []
    for key in sections(path := Path(file)):
        if not any(takes(key, node) for node in (*started, *absent)):
            meant = _meant(key, started)
            said.append(
                f"{path}: no node that is started takes the section {key!r}; use {meant!r}, "
                f"'/**/{meant.rpartition('/')[2]}', or '/**' for all nodes"
            )
    return said


def full_name(namespace: str, node: str) -> str:
    """Return a node's full name, such as /tiekd/depth_node."""
    return "/".join(["", *filter(None, namespace.split("/")), node])


def sections(path: Path) -> list[str]:
    """Return the keys of a file's sections, as they are written; those of nested ones with a /.

    Raises:
        ValueError: there is no such file, or ROS would refuse it.
    """
    try:
        with path.open(encoding="utf-8") as file:
            # All values as text: of what type they are is the node's to say.
            documents = list(yaml.load_all(file, yaml.BaseLoader))
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} cannot be read as a file of parameters: {error}") from error
    except yaml.YAMLError as error:
        text = " ".join(str(error).split())
        raise ValueError(f"{path} is no file of parameters: it is no YAML: {text}") from error
    return [key for document in documents if document for key in _keys(document, (), path)]


def takes(key: str, node: str) -> bool:
    """Say whether the node of this full name takes a section with this key, as rcl does.

    `*` stands for one part of the name, `**` for any number of them, also none. A key without a
    slash at its begin is read as if it had one.
    """
    parts = key.removeprefix("/").split("/")
    pattern = "".join(_WILDCARDS.get(part, "/" + re.escape(part)) for part in parts)
    return re.fullmatch(pattern, node, re.ASCII) is not None


def _keys(tree: Any, above: tuple[str, ...], path: Path) -> Iterator[str]:
    where = "/".join(above)
    if not isinstance(tree, dict):
        raise ValueError(
            f"{path} is no file of parameters: {_PARAMETERS} is missing below {where!r}"
            if above
            else f"{path} is no file of parameters: it has no sections such as '/**'"
        )
    for key, value in tree.items():
        if key != _PARAMETERS:
            yield from _keys(value, (*above, key), path)
        elif not above:
            raise ValueError(
                f"{path} is no file of parameters: {_PARAMETERS} must stand in a section, such "
                "as '/**'"
            )
        elif not isinstance(value, dict):
            raise ValueError(
                f"{path} is no file of parameters: there are none below {_PARAMETERS} of {where!r}"
            )
        else:
            yield where


def _meant(key: str, nodes: Sequence[str]) -> str:
    """Return the node whose name is most like the key's."""
    names = {node.rpartition("/")[2]: node for node in reversed(nodes)}
    near = difflib.get_close_matches(key.rpartition("/")[2], list(names), n=1)
    return names[near[0]] if near else nodes[0]
