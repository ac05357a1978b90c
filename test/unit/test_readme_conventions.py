"""The README's table of ROS conventions names tests that exist, and its links lead somewhere."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])


def table() -> list[str]:
    text = (ROOT / "README.md").read_text()
    section = text.partition("\n## ROS conventions\n")[2].partition("\n## ")[0]
    return [line for line in section.splitlines() if line.startswith("| ")][1:]


def functions(file: Path) -> set[str]:
    tree = ast.parse(file.read_text())
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}


def test_each_convention_names_the_test_that_holds_it() -> None:
    rows = table()
    assert len(rows) > 15
    for row in rows:
        named = re.findall(r"\[`(test_\w+)`\]\((test/\w+/\w+\.py)\)", row)
        assert named or "QUALITY_DECLARATION.md" in row, row
        for name, file in named:
            assert name in functions(ROOT / file), f"{file} has no {name}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_to_files_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)", page.read_text()):
        assert (page.parent / target).exists(), f"{page.name} links to {target}"
