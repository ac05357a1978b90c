"""Launch options: files of parameters, the table, and the launch files that are made from it.

`ros2 launch` is not needed: the launch files run against stand-ins of its modules, which keep
what they are called with. test/launch runs them for real, where it is installed.
"""

from __future__ import annotations

import dataclasses
import sys
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from tiekd_ros.core.launch_options import (
    BOOL,
    COMPANION,
    LAUNCH_OPTIONS,
    LOCAL_TEACHER,
    TEACHER_BACKENDS,
    full_name,
    sections,
    unset_values,
    unused_sections,
)
from tiekd_ros.nodes.common.parameter_groups import NODE_SETTINGS
from tiekd_ros.teacher.backends import BACKENDS

LAUNCH = Path(__file__).resolve().parents[2] / "launch"
VALUES = "{ros__parameters: {device: cpu}}"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "my.yaml"


def test_the_sections_of_a_file_are_found(file: Path) -> None:
    for text, keys in (
        (f"/**: {VALUES}\n/**/depth_node: {VALUES}", ["/**", "/**/depth_node"]),
        (f"tiekd: {{a: {VALUES}, b: {VALUES}}}", ["tiekd/a", "tiekd/b"]),
        (f"/a: {VALUES}\n---\n/b: {VALUES}", ["/a", "/b"]),
        ("/a: {ros__parameters: {x: !mine 1}}", ["/a"]),
        ("", []),
        ("# nothing yet", []),
    ):
        file.write_text(text)
        assert sections(file) == keys


def test_what_is_no_file_of_parameters_is_refused(file: Path) -> None:
    for text, reason in (
        ("/**:\n  device: cpu", "ros__parameters is missing below '/**/device'"),
        ("/**:", "ros__parameters is missing below '/**'"),
        ("device", "no sections such as '/**'"),
        ("- device", "no sections such as '/**'"),
        ("ros__parameters: {device: cpu}", "must stand in a section"),
        ("/**:\n  ros__parameters:", "there are none below ros__parameters of '/**'"),
        ("/**: [", "no YAML"),
    ):
        file.write_text(text)
        with pytest.raises(ValueError, match="is no file of parameters") as refused:
            sections(file)
        assert str(file) in str(refused.value)
        assert reason in str(refused.value)
    file.write_bytes(b"\xff\xfe\x00\x81")
    with pytest.raises(ValueError, match=r"cannot be read|no YAML"):
        sections(file)
    for path, reason in ((file.parent, "cannot be read"), (file.parent / "no", "No such file")):
        with pytest.raises(ValueError, match=reason):
            sections(path)


def test_a_section_that_no_node_takes_is_told_with_what_would_do(file: Path) -> None:
    values = {**unset_values(), "params_file": str(file)}
    for key, would_do in (
        ("depth_node", "use '/tiekd/depth_node', '/**/depth_node', or '/**' for all nodes"),
        ("/tiekd/deph_node", "use '/tiekd/depth_node', '/**/depth_node'"),
        ("/other/companion_node", "use '/tiekd/companion_node', '/**/companion_node'"),
        ("/driver", "or '/**' for all nodes"),
    ):
        file.write_text(f"{key}: {VALUES}\n/**/depth_node: {VALUES}")
        (warning,) = unused_sections([values])
        assert f"takes the section {key!r}" in warning
        assert would_do in warning
    values["companion"] = "false"  # a section of a node that is left out is no fault
    file.write_text(f"/tiekd/companion_node: {VALUES}")
    assert unused_sections([values]) == []
    assert len(unused_sections([values], above="/robot")) == 1


def test_the_full_name() -> None:
    for namespace, name in (("tiekd", "/tiekd/n"), ("/a/b/", "/a/b/n"), ("", "/n"), ("/", "/n")):
        assert full_name(namespace, "n") == name


def test_the_table_knows_the_backends_and_the_defaults_of_the_parameters() -> None:
    assert set(TEACHER_BACKENDS) == set(BACKENDS)
    compared = 0
    for option in LAUNCH_OPTIONS.values():
        group, _, name = option.parameter.rpartition(".")
        for node in option.nodes:
            for field in dataclasses.fields(NODE_SETTINGS[node].get(group, ())):
                if option.parameter and field.name == name:
                    is_bool = option.choices == BOOL
                    default = str(field.default).lower() if is_bool else field.default
                    assert option.default == default, name
                    compared += 1
    assert compared >= 10


class Recorder:
    """Stands for any class of launch: keeps its arguments."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.args = args
        self.__dict__.update(kwargs)


class LaunchConfiguration(Recorder):
    def perform(self, context: SimpleNamespace) -> str:
        value: str = context.launch_configurations[self.args[0]]
        return value


def load(path: str) -> ModuleType:
    """Load a launch file as launch does: without an entry in sys.modules."""
    loader = SourceFileLoader("python_launch_file", path)
    spec = spec_from_loader(loader.name, loader)
    assert spec is not None
    module = module_from_spec(spec)
    loader.exec_module(module)
    return module


@pytest.fixture
def launch(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Put stand-ins in place of launch; return the warnings that are logged."""
    warnings: list[str] = []
    names = {
        "launch": ("LaunchContext", "LaunchDescription"),
        "launch.actions": (
            "DeclareLaunchArgument", "EmitEvent", "ExecuteProcess", "LogInfo", "OpaqueFunction",
            "SetEnvironmentVariable",
        ),
        "launch.events": ("Shutdown",),
        "launch.launch_description_entity": ("LaunchDescriptionEntity",),
        "launch.launch_description_sources": (),
        "launch.launch_description_sources.python_launch_file_utilities": (),
        "launch.logging": (),
        "launch.substitutions": ("EnvironmentVariable",),
        "launch_ros": (),
        "launch_ros.actions": ("Node",),
        "launch_ros.parameter_descriptions": ("ParameterValue",),
        "launch_ros.substitutions": ("ExecutableInPackage",),
        "ament_index_python": (),
        "ament_index_python.packages": (
            "PackageNotFoundError", "get_package_prefix", "get_package_share_directory",
        ),
    }  # fmt: skip
    for name, classes in names.items():
        module: Any = ModuleType(name)
        for each in classes:
            setattr(module, each, type(each, (Recorder,), {}))
        monkeypatch.setitem(sys.modules, name, module)
        parent, _, child = name.rpartition(".")
        if parent:
            setattr(sys.modules[parent], child, module)
    modules: Any = sys.modules
    files = modules["launch.launch_description_sources.python_launch_file_utilities"]
    files.load_python_launch_file_as_module = load
    modules["launch.substitutions"].LaunchConfiguration = LaunchConfiguration
    logger = SimpleNamespace(warning=warnings.append)
    modules["launch.logging"].get_logger = lambda name: logger
    return warnings


def start(name: str, **given: str) -> tuple[list[Any], list[Any]]:
    """Return what a launch file declares, and what it starts with these arguments."""
    (described,) = load(str(LAUNCH / f"{name}.launch.py")).generate_launch_description().args
    declared = [each for each in described if type(each).__name__ == "DeclareLaunchArgument"]
    values = {each.args[0]: each.default_value for each in declared}
    assert given.keys() <= values.keys()
    (function,) = [e.function for e in described if type(e).__name__ == "OpaqueFunction"]
    return declared, function(SimpleNamespace(launch_configurations={**values, **given}))


def parameters(node: Any) -> dict[str, Any]:
    values = [each for each in node.parameters if isinstance(each, dict)]
    return {name: value.args[0] for name, value in values[0].items()} if values else {}


@pytest.mark.usefixtures("launch")
def test_the_launch_file_declares_the_table_and_starts_its_nodes() -> None:
    declared, started = start("depth")
    assert [each.args[0] for each in declared] == list(LAUNCH_OPTIONS)
    found = {each.args[0]: each for each in declared}
    assert "Default: 127.0.0.1:8001, unless params_file" in found["teacher"].description
    assert found["image_transport"].choices == ("raw", "compressed", "")
    assert "'', leaves it to params_file" in found["image_transport"].description
    assert found["namespace"].choices is None
    assert [node.executable for node in started] == ["depth_node", "companion_node"]
    assert [parameters(node) for node in started] == [{}, {}]
    given = {"rectify": "false", "device": "auto", "composed": "true", "params_file": ""}
    _, (both,) = start("depth", **given, image_topic="/front")
    assert (both.executable, both.name) == ("tiekd_nodes", None)
    assert parameters(both) == {"rectify": False, "device": "auto"}
    assert ("image", "/front") in both.remappings


def test_a_launch_starts_a_local_teacher_and_warns_of_sections(
    launch: list[str], file: Path
) -> None:
    file.write_text(f"depth_node: {VALUES}")
    _, started = start("depth", teacher="onnx:x.onnx", params_file=str(file), camera="synthetic")
    *nodes, teacher = started
    assert [node.executable for node in nodes] == ["depth_node", "companion_node", "camera_node"]
    assert [node.respawn for node in nodes] == [True, True, False]
    assert [node.parameters[0] for node in nodes] == [str(file)] * 3
    port = teacher.cmd[teacher.cmd.index("--port") + 1]
    assert parameters(nodes[1]) == {**LOCAL_TEACHER, "teacher.url": f"127.0.0.1:{port}"}
    assert len(launch) == 1
    assert "takes the section 'depth_node'" in launch[0]


@pytest.mark.usefixtures("launch")
def test_each_of_several_cameras_has_nodes_and_a_folder_of_its_own() -> None:
    _, started = start("multi_camera", cameras="front,rear", state_dir="/s/{camera}")
    assert [node.namespace for node in started] == ["tiekd/front"] * 2 + ["tiekd/rear"] * 2
    assert parameters(started[-1]) == {"state_dir": "/s/rear"}
    for words, reason in (
        ({"cameras": "front,front"}, "different names"),
        ({"cameras": "front,my camera"}, "no name for a camera"),
        *(
            ({name: value}, "put {camera} in it")
            for name, value in (
                ("state_dir", "/tmp/one"),
                ("namespace", "tiekd"),
                ("camera_info_topic", "/camera_info"),
                ("camera", "/dev/video0"),
                ("camera", "webcam"),
            )
        ),
    ):
        with pytest.raises(ValueError, match=reason):
            start("multi_camera", **words)


@pytest.mark.usefixtures("launch")
def test_the_demo_plays_a_camera_and_starts_a_teacher() -> None:
    _, started = start("demo", rviz="false", state_dir="/s")
    *nodes, teacher = started
    assert [node.executable for node in nodes] == ["depth_node", "companion_node", "camera_node"]
    assert parameters(nodes[2]) == {
        "source": "synthetic", "width": 320, "height": 240, "rate_hz": 8.0, "period_s": 60.0,
    }  # fmt: skip
    assert parameters(nodes[1])["student.pixels"] == 38_000
    assert "synthetic:0" in teacher.cmd


@pytest.mark.usefixtures("launch")
def test_a_node_that_ends_at_once_with_1_ends_all_and_no_other_does() -> None:
    _, (depth, _) = start("depth")
    assert depth.on_exit(SimpleNamespace(returncode=-9), None) == []
    assert depth.on_exit(SimpleNamespace(returncode=1), None) == []  # it had started before
    _, (depth, companion) = start("depth")
    text, _ = companion.on_exit(SimpleNamespace(returncode=1), None)
    assert text.msg == "companion_node cannot start; its own message says why"
    assert companion.executable == COMPANION
