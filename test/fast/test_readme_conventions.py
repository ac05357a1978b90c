"""The table of ROS conventions names tests that exist, and its links lead somewhere."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def collected(file: Path) -> set[str]:
    """Return the names of what pytest finds in a file: functions of the file and of its classes."""
    found = list(ast.parse(file.read_text()).body)
    found += [node for each in found if isinstance(each, ast.ClassDef) for node in each.body]
    return {node.name for node in found if isinstance(node, ast.FunctionDef)}


def test_each_convention_names_the_tests_that_hold_it() -> None:
    text = (ROOT / "docs" / "ros_conventions.md").read_text()
    rows = [line for line in text.splitlines() if line.startswith("| ")][1:]
    assert len(rows) > 15
    for row in rows:
        _, _, claim, tests, _ = row.split("|")
        named = re.findall(r"\[`(test_\w+)`\]\(\.\./(test/[\w/]+\.py)\)", tests)
        assert named or "QUALITY_DECLARATION.md" in claim, row
        for name, file in named:
            assert name in collected(ROOT / file), f"{file} has no {name}"
        parts = claim.count(";") + 1
        assert len({name for name, _ in named}) >= parts or not named, f"a test each: {row}"


def test_links_to_files_lead_somewhere() -> None:
    for page in (*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")):
        for target in re.findall(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"
