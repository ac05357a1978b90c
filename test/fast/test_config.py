"""The parameter files in `config/` say what the settings say, no more and no less."""

import dataclasses

import pytest
import yaml

from helpers.config import CONFIG, NODES, render


def parameters(node: str) -> dict:
    content = yaml.safe_load((CONFIG / f"{node}.yaml").read_text())
    assert list(content) == ["/**"]
    assert list(content["/**"]) == ["ros__parameters"]
    return content["/**"]["ros__parameters"]


@pytest.mark.parametrize("node", NODES)
def test_every_parameter_stands_there_with_its_default_and_its_type(node):
    found = parameters(node)
    for group, kind in NODES[node].items():
        values = found.pop(group) if group else found
        for field in dataclasses.fields(kind):
            value = values.pop(field.name)
            assert value == field.default, f"{group}.{field.name}"
            assert type(value) is type(field.default), f"{group}.{field.name}"
        assert group == "" or values == {}
    assert found == {}


@pytest.mark.parametrize("node", NODES)
def test_the_values_make_valid_settings(node):
    found = parameters(node)
    for group, kind in NODES[node].items():
        names = [field.name for field in dataclasses.fields(kind)]
        values = found[group] if group else {name: found[name] for name in names}
        assert kind.from_mapping(values) == kind()


@pytest.mark.parametrize("node", NODES)
def test_the_comments_are_those_of_the_settings(node):
    hint = "write the files anew: PYTHONPATH=.:test python -m helpers.config"
    assert (CONFIG / f"{node}.yaml").read_text() == render(node), hint


def test_there_is_one_file_a_node():
    assert sorted(p.stem for p in CONFIG.glob("*.yaml")) == sorted(NODES)
