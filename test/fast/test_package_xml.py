"""package.xml names what ROS has to bring, and says of the package what setup.py says."""

from __future__ import annotations

import ast
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from tiekd_ros import __version__

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ET.parse(ROOT / "package.xml").getroot()
RUNTIME = {each.text for each in PACKAGE.iter("exec_depend")}
TESTS = RUNTIME | {each.text for each in PACKAGE.iter("test_depend")}
ROS = {"rclpy", "ament_index_python", "cv_bridge", "sensor_msgs_py"}


def from_ros(name: str) -> bool:
    return name in ROS or name.startswith("launch") or name.endswith(("_msgs", "_srvs"))


def imported(folder: Path) -> set[str]:
    """Return the ROS packages that the files of a folder import, wherever in them."""
    found = set()
    for path in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                found |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                found.add(node.module)
    return {name for name in (each.partition(".")[0] for each in found) if from_ros(name)}


@pytest.mark.parametrize(
    ("folder", "named", "must_use"),
    [("tiekd_ros", RUNTIME, "rclpy"), ("launch", RUNTIME, "launch"), ("test", TESTS, "std_srvs")],
)
def test_every_ros_package_that_is_imported_is_a_dependency(folder, named, must_use):
    used = imported(ROOT / folder)
    assert must_use in used
    assert used - named == set()


def test_what_both_files_say_of_the_package_is_the_same():
    setup = ast.parse((ROOT / "setup.py").read_text()).body[-1].value
    said = {
        each.arg: ast.literal_eval(each.value)
        for each in setup.keywords
        if isinstance(each.value, ast.Constant)
    }
    maintainer = PACKAGE.find("maintainer")
    assert said["version"] == PACKAGE.findtext("version") == __version__
    assert said["description"] == PACKAGE.findtext("description")
    assert said["license"] == PACKAGE.findtext("license")
    assert (said["maintainer"], said["maintainer_email"]) == (
        maintainer.text,
        maintainer.get("email"),
    )
    assert (ROOT / PACKAGE.find("license").get("file")).is_file()
