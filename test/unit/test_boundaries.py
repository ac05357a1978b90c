"""The house's walls: who may import whom, and what each part needs to be importable.

DESIGN.md, section 2: imports point one way; nothing outside `nodes` imports ROS.
"""

from __future__ import annotations

import ast
import importlib.util
from pathlib import Path

import pytest

from helpers.children import run_python

PACKAGE = Path(importlib.util.find_spec("tiekd_ros").origin).parent

ROS = {
    "rclpy", "rclpy_components", "ament_index_python", "launch", "launch_ros", "cv_bridge",
    "sensor_msgs", "sensor_msgs_py", "std_msgs", "std_srvs", "diagnostic_msgs", "geometry_msgs",
    "rcl_interfaces", "lifecycle_msgs", "builtin_interfaces", "rosgraph_msgs",
}  # fmt: skip

LEAVES = {
    "__init__", "errors", "settings", "camera", "closing", "cores", "devices", "images",
    "image_encodings", "image_size", "mailbox", "parameter_files", "rectify", "runtimes", "state",
}  # fmt: skip
TOP = {
    "demo", "cli", "cli_doctor", "cli_frames", "cli_frames_import", "cli_options", "cli_snapshot",
    "cli_students", "cli_teacher", "cli_teacher_ping", "offline", "up", "supervisor",
    "ros_environment",
}  # fmt: skip
MAY_IMPORT = {
    "student": set(),
    "frames": set(),
    "worlds": set(),
    "datasets": set(),
    "report": set(),
    "teacher": set(),
    "teacher.backends": {"worlds", "datasets"},
    "distillation": {"student", "frames", "datasets"},
    "doctor": {"distillation", "student", "frames", "teacher", "ros_environment"},
    "nodes": {"distillation", "frames", "student", "teacher", "worlds", "datasets", "report"},
}
"""The rooms that each room may import beside itself and the leaves."""

TEACHER_CLIENT_SIDE = {"client", "errors", "protocol", "checks", "trust", "upload"}


def modules() -> dict[str, Path]:
    """Return the package's modules, named without `tiekd_ros.`, and their files."""
    names = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)
        names[name] = path
    return names


MODULES = modules()


def imports_of(path: Path) -> set[str]:
    """Return the full names of what a file imports, also inside functions and TYPE_CHECKING."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def own_imports(path: Path) -> set[str]:
    """Return the modules of this package that a file imports, named without `tiekd_ros.`."""
    own = {n.removeprefix("tiekd_ros.") for n in imports_of(path) if n.startswith("tiekd_ros.")}
    return {_module_of(name) for name in own}


def _module_of(name: str) -> str:
    while name and name not in MODULES:
        name = name.rpartition(".")[0]
    return name or "__init__"


def room_of(module: str) -> str:
    return module.partition(".")[0]


@pytest.mark.parametrize("module", [m for m in MODULES if room_of(m) != "nodes"])
def test_nothing_outside_nodes_imports_ros(module):
    foreign = {name.partition(".")[0] for name in imports_of(MODULES[module])}
    assert not foreign & ROS
    messages = {name for name in foreign if name.endswith(("_msgs", "_srvs"))}
    assert not messages


@pytest.mark.parametrize("module", [m for m in MODULES if room_of(m) not in TOP | LEAVES])
def test_rooms_import_one_way(module):
    room = room_of(module)
    allowed = {room} | LEAVES | MAY_IMPORT[room]
    if module.startswith("teacher.backends"):
        allowed |= MAY_IMPORT["teacher.backends"]
    used = own_imports(MODULES[module])
    assert {name for name in used if room_of(name) not in allowed} == set()


@pytest.mark.parametrize("module", sorted(LEAVES))
def test_leaves_import_nothing_but_leaves(module):
    assert own_imports(MODULES[module]) <= LEAVES


@pytest.mark.parametrize("module", [m for m in MODULES if room_of(m) == "nodes"])
def test_nodes_use_only_the_client_side_of_the_teacher(module):
    used = {n for n in own_imports(MODULES[module]) if room_of(n) == "teacher"}
    assert used <= {f"teacher.{name}" for name in TEACHER_CLIENT_SIDE}


def test_every_room_has_its_rules():
    rooms = {room_of(name) for name in MODULES}
    assert rooms == LEAVES | TOP | {room_of(name) for name in MAY_IMPORT}


def reaches_ros(module: str) -> bool:
    """Say whether a module of the demo, which is a ROS client, needs the nodes."""
    used = own_imports(MODULES[module])
    return any(
        (room_of(name) == "nodes" and name != "nodes.settings")
        or (room_of(name) == "demo" and name != module and reaches_ros(name))
        for name in used
    )


def test_only_ros_clients_use_the_nodes_as_a_library():
    users = {m for m in MODULES for name in own_imports(MODULES[m]) if room_of(name) == "nodes"}
    assert {room_of(module) for module in users} <= {"nodes", "demo", "cli_snapshot"}


def test_everything_but_the_nodes_can_be_imported_without_ros():
    rest = [m for m in MODULES if room_of(m) not in ("nodes", "__init__")]
    others = [f"tiekd_ros.{m}" for m in rest if room_of(m) != "demo" or not reaches_ros(m)]
    assert "tiekd_ros.demo.score" in others
    code = f"""
import importlib, sys
for name in {sorted(ROS)!r}:
    sys.modules[name] = None
for name in {others!r}:
    importlib.import_module(name)
"""
    # The nodes' settings belong to them, but describe parameters to programs without ROS too.
    done = run_python("-c", code + "import tiekd_ros.nodes.settings")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("module", "heavy"),
    [
        ("tiekd_ros.teacher.server", "torch"),
        ("tiekd_ros.teacher.client", "torch"),
        ("tiekd_ros.frames", "torch"),
        ("tiekd_ros.cli", "torch"),
        ("tiekd_ros.cli", "grpc"),
        ("tiekd_ros.cli", "rosbags"),
        ("tiekd_ros.datasets", "torch"),
        ("tiekd_ros.offline.label_command", "torch"),
        ("tiekd_ros.offline.evaluate_command", "grpc"),
        ("tiekd_ros.offline.train_command", "torch"),
        ("tiekd_ros.nodes.settings", "torch"),
        ("tiekd_ros.distillation.worker", "accelerate"),
        ("tiekd_ros.distillation.worker", "tensorboard"),
    ],
)
def test_a_part_does_not_load_what_it_does_not_need(module, heavy):
    code = f"import sys, {module}; sys.exit({heavy!r} in sys.modules)"
    done = run_python("-c", code)
    assert done.returncode == 0, done.stderr or f"{module} loads {heavy}"
