"""Borders: which rooms may import which, and what each needs to be importable."""

from __future__ import annotations

import ast
import importlib.util
from pathlib import Path

from helpers.children import run_python

PACKAGE = Path(importlib.util.find_spec("tiekd_ros").origin).parent

ROS = {
    "rclpy", "rclpy_components", "ament_index_python", "launch", "launch_ros", "cv_bridge",
    "sensor_msgs", "sensor_msgs_py", "std_msgs", "std_srvs", "diagnostic_msgs", "geometry_msgs",
    "rcl_interfaces", "lifecycle_msgs", "builtin_interfaces", "rosgraph_msgs",
}  # fmt: skip

TOP = {"demo", "cli"}
"""What puts things together may import everything."""

MAY_IMPORT = {
    "core": set(),
    "student": {"core"},
    "framelog": {"core"},
    "worlds": {"core"},
    "datasets": {"core"},
    "report": {"core"},
    "bags": {"core", "framelog"},
    "teacher": {"core"},
    "teacher.backends": {"worlds", "datasets"},
    "method": {"core", "student"},
    "rounds": {"core", "method", "student", "framelog", "datasets"},
    "evaluation": {"core", "method", "student", "framelog", "datasets", "teacher"},
    "training": {"core", "method", "student", "framelog", "datasets", "evaluation", "report"},
    "diagnosis": {"core"},
    "nodes": {
        "core", "student", "framelog", "bags", "datasets", "worlds", "method", "rounds", "teacher",
        "diagnosis", "report",
    },
}  # fmt: skip
"""The rooms that each room may import beside itself."""

TEACHER_CLIENT_SIDE = {"client", "errors", "protocol", "trust", "label_source"}


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


def test_nothing_outside_nodes_imports_ros():
    for module, path in MODULES.items():
        foreign = {name.partition(".")[0] for name in imports_of(path)}
        messages = {name for name in foreign if name.endswith(("_msgs", "_srvs"))}
        assert room_of(module) == "nodes" or not (foreign & ROS | messages), module


def test_rooms_import_one_way():
    assert {room_of(name) for name in MODULES} == {"__init__"} | TOP | {*map(room_of, MAY_IMPORT)}
    wrong = []
    for module, path in MODULES.items():
        room = room_of(module)
        if room in TOP | {"__init__"}:
            continue
        allowed = {room, "__init__"} | MAY_IMPORT[room]
        if module.startswith("teacher.backends"):
            allowed |= MAY_IMPORT["teacher.backends"]
        wrong += [(module, used) for used in own_imports(path) if room_of(used) not in allowed]
    assert wrong == []


def test_nodes_use_only_the_client_side_of_the_teacher():
    allowed = {f"teacher.{name}" for name in TEACHER_CLIENT_SIDE}
    nodes = [path for module, path in MODULES.items() if room_of(module) == "nodes"]
    used = {n for path in nodes for n in own_imports(path) if room_of(n) == "teacher"}
    assert used <= allowed


def reaches_ros(module: str) -> bool:
    """Say whether a module of the demo, which is a ROS client, needs the nodes."""
    used = own_imports(MODULES[module])
    return any(
        (room_of(name) == "nodes" and name != "nodes.common.settings")
        or (room_of(name) == "demo" and name != module and reaches_ros(name))
        for name in used
    )


def test_everything_but_the_nodes_can_be_imported_without_ros():
    rest = [m for m in MODULES if room_of(m) not in ("nodes", "__init__")]
    others = [f"tiekd_ros.{m}" for m in rest if room_of(m) != "demo" or not reaches_ros(m)]
    assert "tiekd_ros.demo.results" in others
    code = f"""
import importlib, sys
for name in {sorted(ROS)!r}:
    sys.modules[name] = None
for name in {others!r}:
    importlib.import_module(name)
"""
    # The nodes' settings belong to them, but describe parameters to programs without ROS too.
    done = run_python("-c", code + "import tiekd_ros.nodes.common.settings")
    assert done.returncode == 0, done.stderr


def test_a_part_does_not_load_what_it_does_not_need():
    for module, heavy in (
        ("teacher.server", ["torch"]),
        ("teacher.client", ["torch"]),
        ("framelog", ["torch"]),
        ("datasets", ["torch"]),
        ("cli.__main__", ["torch", "grpc", "rosbags"]),
        ("nodes.common.settings", ["torch"]),
        ("rounds.worker", ["accelerate", "tensorboard"]),
    ):
        code = f"import sys, tiekd_ros.{module}; sys.exit(bool({set(heavy)} & sys.modules.keys()))"
        done = run_python("-c", code)
        assert done.returncode == 0, done.stderr or f"{module} loads one of {heavy}"
