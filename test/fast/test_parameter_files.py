"""Files of ROS parameters: refused where they are none, and told which sections are for nobody."""

from __future__ import annotations

from pathlib import Path

import pytest

from tiekd_ros.core.parameter_files import full_name, sections, unheeded

DEPTH, COMPANION = "/tiekd/depth_node", "/tiekd/companion_node"
VALUES = "{ros__parameters: {device: cpu}}"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "my.yaml"


@pytest.mark.parametrize(
    ("text", "keys"),
    [
        (f"/**: {VALUES}\n/**/depth_node: {VALUES}", ["/**", "/**/depth_node"]),
        (f"tiekd: {{depth_node: {VALUES}, companion_node: {VALUES}}}", ["tiekd/depth_node",
         "tiekd/companion_node"]),
        (f"/a: {VALUES}\n---\n/b: {VALUES}", ["/a", "/b"]),
        ("/a: {ros__parameters: {x: !mine 1}}", ["/a"]),
        ("", []),
        ("# nothing yet", []),
    ],
)  # fmt: skip
def test_the_sections_are_found(file: Path, text: str, keys: list[str]) -> None:
    file.write_text(text)
    assert sections(file) == keys


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("/**:\n  device: cpu", "ros__parameters is missing below '/**/device'"),
        ("/**:", "ros__parameters is missing below '/**'"),
        ("device", "no sections such as '/**'"),
        ("- device", "no sections such as '/**'"),
        ("ros__parameters: {device: cpu}", "must stand in a section"),
        ("/**:\n  ros__parameters:", "there are none below ros__parameters of '/**'"),
        ("/**: [", "no YAML"),
    ],
)
def test_what_is_no_file_of_parameters_is_refused(file: Path, text: str, reason: str) -> None:
    file.write_text(text)
    with pytest.raises(ValueError, match="is no file of parameters") as refused:
        sections(file)
    assert str(file) in str(refused.value)
    assert reason in str(refused.value)


def test_a_file_that_is_not_there_or_no_text_is_refused(file: Path) -> None:
    with pytest.raises(ValueError, match="No such file"):
        sections(file)
    file.write_bytes(b"\xff\xfe\x00\x81")
    with pytest.raises(ValueError, match=r"cannot be read|no YAML"):
        sections(file)
    with pytest.raises(ValueError, match="cannot be read"):
        sections(file.parent)


@pytest.mark.parametrize(
    ("key", "would_do"),
    [
        ("depth_node", "use '/tiekd/depth_node', '/**/depth_node', or '/**' for all nodes"),
        ("/tiekd/deph_node", "use '/tiekd/depth_node', '/**/depth_node'"),
        ("/other/companion_node", "use '/tiekd/companion_node', '/**/companion_node'"),
        ("/driver", "or '/**' for all nodes"),
    ],
)
def test_a_section_that_nobody_takes_is_told_with_what_would_do(
    file: Path, key: str, would_do: str
) -> None:
    file.write_text(f"{key}: {VALUES}\n/**/depth_node: {VALUES}")
    (said,) = unheeded(file, [DEPTH, COMPANION])
    assert f"takes the section {key!r}" in said
    assert would_do in said


def test_a_section_of_a_node_that_is_left_out_is_no_fault(file: Path) -> None:
    file.write_text(f"{COMPANION}: {VALUES}")
    assert unheeded(file, [DEPTH], [COMPANION]) == []
    assert len(unheeded(file, [DEPTH])) == 1


@pytest.mark.parametrize(
    ("namespace", "name"),
    [("tiekd", "/tiekd/n"), ("/a/b/", "/a/b/n"), ("", "/n"), ("/", "/n")],
)
def test_the_full_name(namespace: str, name: str) -> None:
    assert full_name(namespace, "n") == name
