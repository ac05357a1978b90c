"""The parameter files in `config/` say what the settings say, no more and no less.

PYTHONPATH=. python test/fast/test_config.py     writes them anew
"""

from __future__ import annotations

import dataclasses
import json
import textwrap
from pathlib import Path

import pytest
import yaml

from tiekd_ros.core.settings import setting_info
from tiekd_ros.nodes.common.parameter_groups import NODE_SETTINGS

CONFIG = Path(__file__).resolve().parents[2] / "config"

_LAUNCHED = """\
#   ros2 launch tiekd_ros depth.launch.py params_file:=my.yaml
#   tiekd up --params-file my.yaml
"""
_RUN = "#   ros2 run tiekd_ros camera_node --ros-args --params-file my.yaml\n"
_KEYS = """\
#
# The key /**: is for all nodes that are given the file, /tiekd/{node}: for this one in that
# namespace, /**/{node}: for this one in any. {node}: alone is for one in none.
"""

_TITLES = {
    "frames": "The frame log: what is worth keeping, and how much of it. [all at start]",
    "labels": "Asking the teacher for labels, in the background. [all at start]",
    "teacher": "Where the teacher is, how it is reached, and how patiently. [all at start]",
    "upload": "What becomes of an image before it is sent to the teacher. [all at start]",
    "checks": "What a label must look like before it is believed. [all at start]",
    "trust": "How a label must fit those before it, and the live student. [all at start]",
    "distill": "Distillation rounds: when one may start, and on which frames.",
    "student": "The shape of a first student; later ones inherit it.",
    "train": "The training of one round.",
    "loss": "The TIE-KD loss.",
    "augment": "How far a training sample may differ from its frame.",
    "gate": "What a candidate has to show before it goes live.",
    "confidence": "What a confidence says.",
    "canary": "What a promoted student has to stand before its predecessor is let go.",
    "resources": "How training gives way to the depth node on the same machine.",
    "diagnostics": "What /diagnostics warns of.",
}


def render(node: str) -> str:
    """Return the text of a node's parameter file."""
    lines = [f"# Parameters of {node}, all at their defaults. Copy what you change:\n#\n"]
    lines.append((_RUN if node == "camera_node" else _LAUNCHED) + _KEYS.format(node=node))
    lines.append(
        "#\n# [at start] = read when the node starts; the others can be changed while it runs,\n"
        "# with `ros2 param set`. A value out of range is refused, and the message says why.\n"
        "/**:\n  ros__parameters:\n"
    )
    for group, kind in NODE_SETTINGS[node].items():
        indent = " " * (6 if group else 4)
        if group:
            lines.append(f"\n    # {_TITLES[group]}\n    {group}:\n")
        for field in dataclasses.fields(kind):
            lines.append(_comment(field, indent))
            lines.append(f"{indent}{field.name}: {json.dumps(field.default)}\n")
    return "".join(lines)


def _comment(field: dataclasses.Field, indent: str) -> str:
    info = setting_info(field)
    text = info.description
    if info.choices or type(field.default) in (int, float):
        text += f" ({info.allowed()})"
    if info.read_only:
        text += " [at start]"
    return (
        textwrap.fill(text, 96, initial_indent=f"{indent}# ", subsequent_indent=f"{indent}# ")
        + "\n"
    )


@pytest.mark.parametrize("node", NODE_SETTINGS)
def test_every_parameter_stands_there_with_its_default_its_type_and_its_words(node):
    text = (CONFIG / f"{node}.yaml").read_text()
    assert text == render(node), f"write the files anew: PYTHONPATH=. python {__file__}"
    found = yaml.safe_load(text)["/**"]["ros__parameters"]
    for group, kind in NODE_SETTINGS[node].items():
        values = found.pop(group) if group else found
        for field in dataclasses.fields(kind):
            value = values.pop(field.name)
            assert value == field.default, f"{group}.{field.name}"
            assert type(value) is type(field.default), f"{group}.{field.name}"
        assert group == "" or values == {}
    assert found == {}


def test_there_is_one_file_a_node():
    assert sorted(p.stem for p in CONFIG.glob("*.yaml")) == sorted(NODE_SETTINGS)


if __name__ == "__main__":
    for name in NODE_SETTINGS:
        (CONFIG / f"{name}.yaml").write_text(render(name))
