"""What is refused ends all with its reason; parameters that are given in vain are told."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from ros_helpers.launching import ros2_launch  # first: it skips where there is no ros2 launch

STARTED = "process started"


def launch_depth(folder: Path, *words: str, sections: object = None) -> str:
    """Launch what is refused, with these parameters in a file; return what was said."""
    given = [f"namespace:=refused_{folder.name}", "teacher:=none", f"state_dir:={folder / 'state'}"]
    if sections is not None:
        file = folder / "my.yaml"
        file.write_text(yaml.safe_dump(sections))
        given.append(f"params_file:={file}")
    ended = ros2_launch("depth.launch.py", *given, *words)
    return ended.stdout + ended.stderr


def test_a_node_that_cannot_start_ends_all_with_the_reason(tmp_path: Path) -> None:
    values = {"/**/depth_node": {"ros__parameters": {"encoding": "8UC1"}}}
    said = launch_depth(tmp_path, sections=values)
    assert "8UC1" in said
    assert "depth_node cannot start; its own message says why" in said
    assert said.count("[depth_node-1]: process started") == 1


def test_a_camera_that_cannot_start_ends_all_with_the_reason(tmp_path: Path) -> None:
    said = launch_depth(tmp_path, f"camera:={tmp_path / 'nowhere'}")
    assert "nowhere does not exist" in said
    assert "camera_node cannot start; its own message says why" in said
    assert said.count("camera_node-3]: process started") == 1


@pytest.mark.parametrize(
    ("name", "value"), [("min_confidence", "high"), ("threads", 1.5), ("rectify", 1)]
)
def test_a_value_of_a_wrong_type_is_refused_and_not_replaced_by_the_default(
    tmp_path: Path, name: str, value: object
) -> None:
    values = {"/**": {"ros__parameters": {name: value}}}
    said = launch_depth(tmp_path, "companion:=false", sections=values)
    assert f"error: parameter {name}: " in said
    assert "depth_node cannot start; its own message says why" in said


@pytest.mark.parametrize("name", ["depth", "demo", "multi_camera"])
def test_without_the_file_of_parameters_nothing_is_started(name: str, tmp_path: Path) -> None:
    missing = ros2_launch(f"{name}.launch.py", f"params_file:={tmp_path / 'my.yaml'}")
    assert missing.returncode != 0
    said = missing.stdout + missing.stderr
    assert f"{tmp_path / 'my.yaml'} cannot be read as a file of parameters" in said
    assert STARTED not in said


def test_a_file_without_sections_is_refused(tmp_path: Path) -> None:
    said = launch_depth(tmp_path, sections={"/**": {"encoding": "16UC1"}})
    assert "ros__parameters is missing below '/**/encoding'" in said
    assert STARTED not in said


def test_each_section_that_no_node_takes_is_told_with_what_would_do(tmp_path: Path) -> None:
    values = {"ros__parameters": {"encoding": "16UC1"}}
    keys = ["depth_node", f"/refused_{tmp_path.name}/companion_node", "/**/camera_node", "/x/y"]
    said = launch_depth(
        tmp_path,
        f"camera:={tmp_path / 'nowhere'}",  # so that it ends by itself
        "companion:=false",
        sections=dict.fromkeys(keys, values),
    )
    warned = [line for line in said.splitlines() if "no node that is started takes" in line]
    assert len(warned) == 2, said
    for line, key in zip(warned, ["/x/y", "depth_node"], strict=True):
        assert f"the section '{key}'" in line
        assert f"use '/refused_{tmp_path.name}/depth_node', '/**/depth_node', or '/**'" in line
