"""The arguments of the launch files: described, and refused where they cannot be."""

from __future__ import annotations

import os
from types import ModuleType
from typing import Any

import pytest

from ros_helpers.launching import (
    SHARE,
    ros2_launch,
)  # first: it skips where there is no ros2 launch

# ruff: isort: split
from launch import LaunchContext, LaunchDescription
from launch.actions import DeclareLaunchArgument, SetEnvironmentVariable
from launch.launch_description_sources.python_launch_file_utilities import (
    get_launch_description_from_python_launch_file,
    load_python_launch_file_as_module,
)

FILES = ("depth", "demo", "multi_camera")
TRANSPORTS = "FASTDDS_BUILTIN_TRANSPORTS"


def launch_file(name: str) -> str:
    return str(SHARE / "launch" / f"{name}.launch.py")


def shared() -> ModuleType:
    """Return the module that the launch files share."""
    return load_python_launch_file_as_module(str(SHARE / "launch" / "processes.py"))


def arguments(name: str) -> dict[str, DeclareLaunchArgument]:
    description: LaunchDescription = get_launch_description_from_python_launch_file(
        launch_file(name)
    )
    return {argument.name: argument for argument in description.get_launch_arguments()}


@pytest.mark.parametrize("name", FILES)
def test_every_argument_has_a_description_and_a_default(name: str) -> None:
    for argument in arguments(name).values():
        assert len(argument.description) > 10
        assert argument.default_value is not None


@pytest.mark.parametrize("name", FILES)
def test_ros2_shows_the_arguments(name: str) -> None:
    shown = ros2_launch(f"{name}.launch.py", "--show-args")
    assert shown.returncode == 0, shown.stderr
    for argument in arguments(name):
        assert f"'{argument}':" in shown.stdout


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize(("own", "used"), [(None, "LARGE_DATA?"), ("UDPv4", "UDPv4")])
def test_images_get_through_unless_the_user_chose_the_way(
    name: str, own: str | None, used: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(TRANSPORTS, own or "")  # is put back afterwards, whatever it was
    if own is None:
        monkeypatch.delenv(TRANSPORTS)
    description = get_launch_description_from_python_launch_file(launch_file(name))
    for action in description.entities:
        if isinstance(action, SetEnvironmentVariable):
            action.execute(LaunchContext())
    assert os.environ[TRANSPORTS].startswith(used)


def test_what_is_given_wins_over_the_file_of_parameters_even_if_it_is_the_default() -> None:
    module = shared()

    def parameters(number: int, **given: str) -> dict[str, Any]:
        node = module.nodes({**module.options.unset_values(), **given}, {})[number]
        context = LaunchContext()
        node._perform_substitutions(context)
        assert node.node_name == f"/tiekd/{('depth_node', 'companion_node')[number]}"
        found = module.options.node_processes({**module.options.unset_values(), **given}, {})
        return found[number].parameters

    assert parameters(0) == {}
    given = {"rectify": "false", "device": "auto", "image_transport": "raw"}
    assert parameters(0, **given) == {**given, "rectify": False}
    url = module.options.LAUNCH_OPTIONS["teacher"].default
    assert parameters(1, teacher=url) == {"teacher.url": url}


@pytest.mark.parametrize("namespace", ["", "/", "robot1", "/robot1/front/"])
def test_the_enclave_has_a_name_in_every_namespace(
    namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = shared()
    monkeypatch.setenv("ROS_SECURITY_ENABLE", "true")
    values = {**module.options.unset_values(), "namespace": namespace}
    _, enclave = module._enclave(module.options.node_processes(values, {})[0])
    assert enclave == "/".join(["", *filter(None, namespace.split("/")), "depth_node"])


def test_cameras_that_would_get_into_each_others_way_are_refused() -> None:
    refused = ros2_launch("multi_camera.launch.py", "namespace:=tiekd")
    assert refused.returncode != 0
    assert "put {camera} in it" in refused.stdout + refused.stderr
    assert "process started" not in refused.stdout + refused.stderr


def test_the_default_names_of_several_cameras_are_told_by_an_example() -> None:
    declared = arguments("multi_camera")
    for name, example in (
        ("namespace", "tiekd/front"),
        ("image_topic", "/front/image_raw"),
        ("camera_info_topic", "/front/camera_info"),
    ):
        argument = declared[name]
        (default,) = argument.default_value
        assert f"{example} for the camera front" in argument.description
        assert default.text.replace("{camera}", "front") == example
