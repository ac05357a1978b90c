"""ROS itself, and what carries its messages."""

from __future__ import annotations

import importlib.metadata
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

from tiekd_ros.core.supervisor import TRANSPORTS
from tiekd_ros.diagnosis.facts import DEPTH_NODE, ERROR, OK, WARN, Finding, RosFacts

_VARIABLE = "FASTDDS_BUILTIN_TRANSPORTS"
_DISTRIBUTIONS = {"3": "Humble", "7": "Jazzy", "9": "Kilted"}
"""By rclpy's major version."""
_LEAST_SHARED_MB = 32.0
_MB = 1e6


def check_ros(
    environment: Mapping[str, str], ros: RosFacts | None, fault: str
) -> Iterator[Finding]:
    """Say which ROS there is.

    Args:
        environment: the user's variables.
        ros: what the probe found; None where it could not run.
        fault: why not.
    """
    if ros is None:
        remedy = (
            "source your installation (source /opt/ros/$ROS_DISTRO/setup.bash), or install the "
            'wheels: pip install "tiekd_ros[ros]"'
            if not fault
            else "see ROS_DOMAIN_ID and RMW_IMPLEMENTATION, and whether ROS works at all: "
            "python -m tiekd_ros.nodes.probe.probe"
        )
        yield Finding(ERROR, "ros", fault or "there is no ROS 2 (no module rclpy)", remedy)
        return
    where = f"{distribution(environment)}, {ros.rmw}, domain {ros.domain}, {_range(environment)}"
    if environment.get("ROS_AUTOMATIC_DISCOVERY_RANGE", "").upper() == "OFF":
        yield Finding(
            ERROR,
            "ros",
            f"{where}: nodes do not find each other",
            "set ROS_AUTOMATIC_DISCOVERY_RANGE to LOCALHOST or SUBNET for all of them",
        )
    elif ros.unheard:
        found = ros.depth_flows or (DEPTH_NODE in ros.managed and ros.topics["image"].publishers)
        yield Finding(
            WARN if found else ERROR,
            "ros",
            f"{where}: this machine has {_programs(ros.unheard)} of this domain that could not be "
            f"seen within {ros.looked_s:.0f} s",
            "look again, for the machine may be busy; if it stays so, give all shells the same "
            "ROS_AUTOMATIC_DISCOVERY_RANGE, and compare their RMW_IMPLEMENTATION, "
            "ROS_SECURITY_* and FASTDDS_* with this one's",
        )
    else:
        yield Finding(OK, "ros", where)


def _programs(count: int) -> str:
    return "a program with ROS" if count == 1 else f"{count} programs with ROS"


def distribution(environment: Mapping[str, str]) -> str:
    """Name the distribution of ROS: that which was sourced, or that of the wheels."""
    sourced = environment.get("ROS_DISTRO")
    if sourced:
        return sourced.capitalize()
    try:
        version = importlib.metadata.version("ros-rclpy")
    except importlib.metadata.PackageNotFoundError:
        return "ROS of an unknown distribution (ROS_DISTRO is not set)"
    name = _DISTRIBUTIONS.get(version.partition(".")[0], "ROS")
    return f"{name} as wheels (rclpy {version})"


def _range(environment: Mapping[str, str]) -> str:
    if environment.get("ROS_LOCALHOST_ONLY") == "1":
        return "this machine only (ROS_LOCALHOST_ONLY)"
    found = environment.get("ROS_AUTOMATIC_DISCOVERY_RANGE", "SUBNET").upper()
    peers = environment.get("ROS_STATIC_PEERS")
    server = environment.get("ROS_DISCOVERY_SERVER")
    more = f", peers {peers}" if peers else ""
    return f"discovery {found}{more}{f', server {server}' if server else ''}"


def check_transports(
    environment: Mapping[str, str],
    ros: RosFacts | None,
    *,
    receive_buffer: Path = Path("/proc/sys/net/core/rmem_max"),
    shared_memory: Path = Path("/dev/shm"),
) -> Iterator[Finding]:
    """Say over what messages travel, and whether large images get lost there."""
    buffer = _receive_buffer(receive_buffer)
    parts = [_transports(environment, ros), f"net.core.rmem_max {buffer}"]
    try:
        total, _, free = shutil.disk_usage(shared_memory)
    except OSError:
        yield Finding(
            WARN,
            "transports",
            f"{', '.join(parts)}; there is no {shared_memory}, so all goes over the network stack",
            "mount it (in a container: --ipc=host)",
        )
        return
    parts.append(f"{shared_memory} {total / _MB:.0f} MB, {free / _MB:.0f} free")
    text = ", ".join(parts)
    if free / _MB < _LEAST_SHARED_MB:
        remedy = f"remove what is stale in {shared_memory}; in a container: --shm-size=512m"
        yield Finding(WARN, "transports", text, remedy)
        return
    lost = None if ros is None else _loss(ros)
    if lost is None:
        yield Finding(OK, "transports", text)
        return
    remedy = (
        f"start the camera's driver, too, with {_VARIABLE}='{TRANSPORTS}'"
        if ros is not None and "fastrtps" in ros.rmw
        else "raise the socket buffers: sudo sysctl -w net.core.rmem_max=33554432"
    )
    yield Finding(WARN, "transports", f"{lost}; {text}", remedy)


def _transports(environment: Mapping[str, str], ros: RosFacts | None) -> str:
    if ros is not None and "fastrtps" not in ros.rmw:
        return ros.rmw
    found = environment.get(_VARIABLE)
    if found:
        return f"{_VARIABLE} {found}"
    return f"{_VARIABLE} not set here (launch files and tiekd up set {TRANSPORTS.split('?')[0]})"


def _receive_buffer(file: Path) -> str:
    try:
        return f"{int(file.read_text()) / 1024:.0f} KiB"
    except (OSError, ValueError):
        return "unknown"


def _loss(ros: RosFacts) -> str | None:
    """Say that images get lost: the small camera_info of the same node comes more often."""
    image, info = ros.topics["image"], ros.topics["camera_info"]
    same = {each.node for each in image.publishers} == {each.node for each in info.publishers}
    if not same or image.rate_hz is None or info.rate_hz is None or info.count < 10:
        return None
    if image.rate_hz > 0.8 * info.rate_hz:
        return None
    return (
        f"images ({image.bytes / 1e3:.0f} kB) come at {image.rate_hz:.1f} Hz, camera_info at "
        f"{info.rate_hz:.1f} Hz: images get lost on the way"
    )
