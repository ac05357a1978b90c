"""The launch file, for tests through the real ros2 launch; importing this skips where none is."""

from __future__ import annotations

import shutil
import signal
import subprocess
from pathlib import Path

import pytest

WHY = "needs launch_pytest and launch_ros, which come with a ROS installation and not from PyPI"
pytest.importorskip("launch_pytest", reason=WHY)
pytest.importorskip("launch_ros", reason=WHY)

from ament_index_python.packages import (  # noqa: E402
    PackageNotFoundError,
    get_package_share_directory,
)
from launch.actions import IncludeLaunchDescription  # noqa: E402
from launch.launch_description_sources import PythonLaunchDescriptionSource  # noqa: E402

from ros_helpers.fixtures import isolate_worker  # noqa: E402
from ros_helpers.waiting import PATIENCE_S  # noqa: E402

try:
    SHARE = Path(get_package_share_directory("tiekd_ros"))
except PackageNotFoundError:
    pytest.skip(
        "tiekd_ros is not in the ament index: install it (colcon build, or pip install .) and "
        "source it first",
        allow_module_level=True,
    )

isolate_worker()


def ros2_launch(*words: str) -> subprocess.CompletedProcess[str]:
    """Run `ros2 launch tiekd_ros` with these words to its end."""
    ros2 = shutil.which("ros2")
    if ros2 is None:
        pytest.skip("there is no ros2 command")
    process = subprocess.Popen(
        [ros2, "launch", "tiekd_ros", *words],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        said = process.communicate(timeout=PATIENCE_S)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGINT)  # killed, it would leave its nodes running
        pytest.fail(f"ros2 launch does not end: {process.communicate()}")
    return subprocess.CompletedProcess(process.args, process.returncode, *said)


def included(name: str, **arguments: str) -> IncludeLaunchDescription:
    """Return what starts launch/NAME.launch.py with these arguments."""
    source = PythonLaunchDescriptionSource(str(SHARE / "launch" / f"{name}.launch.py"))
    return IncludeLaunchDescription(source, launch_arguments=arguments.items())


def depth_launch(namespace: str, **arguments: str) -> IncludeLaunchDescription:
    """Return what starts launch/depth.launch.py in a namespace, which the camera is in too."""
    given = {
        "namespace": namespace,
        "image_topic": f"{namespace}/image",
        "camera_info_topic": f"{namespace}/image_info",
        "device": "cpu",
        **arguments,
    }
    return included("depth", **given)
