"""Files of ROS parameters: which of their sections a node takes.

Without ROS. `launch/parameter_files.py` is a link to this file, since `ros2 launch` may run in a
Python that cannot import this package: so this imports nothing of it.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

_PARAMETERS = "ros__parameters"
_WILDCARDS = {"*": r"/\w+", "**": r"(/\w+)*"}


def full_name(namespace: str, node: str) -> str:
    """Return a node's full name, such as /tiekd/depth_node."""
    return "/".join(["", *filter(None, namespace.split("/")), node])


def sections(path: Path) -> list[str]:
    """Return the keys of a file's sections, as they are written; those of nested ones with a /.

    Raises:
        ValueError: there is no such file, or ROS would refuse it.
    """
    try:
        with path.open(encoding="utf-8") as file:
            # All values as text: of what type they are is the node's to say.
            documents = list(yaml.load_all(file, yaml.BaseLoader))
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} cannot be read as a file of parameters: {error}") from error
    except yaml.YAMLError as error:
        text = " ".join(str(error).split())
        raise ValueError(f"{path} is no file of parameters: it is no YAML: {text}") from error
    return [key for document in documents if document for key in _keys(document, (), path)]


def takes(key: str, node: str) -> bool:
    """Say whether the node of this full name takes a section with this key, as rcl does.

    `*` stands for one part of the name, `**` for any number of them, also none. A key without a
    slash at its begin is read as if it had one.
    """
    parts = key.removeprefix("/").split("/")
    pattern = "".join(_WILDCARDS.get(part, "/" + re.escape(part)) for part in parts)
    return re.fullmatch(pattern, node, re.ASCII) is not None


def unheeded(path: Path, nodes: Sequence[str], absent: Sequence[str] = ()) -> list[str]:
    """Return a sentence for each section that no node takes, with the keys that would do.

    Args:
        path: the file.
        nodes: full names of those that are started.
        absent: of those that might have been; that a section is for one of these is no fault.

    Raises:
        ValueError: there is no such file, or ROS would refuse it.
    """
    said = []
    for key in sections(path):
        if not any(takes(key, node) for node in (*nodes, *absent)):
            meant = _meant(key, nodes)
            name = meant.rpartition("/")[2]
            said.append(
                f"{path}: no node that is started takes the section {key!r}; use {meant!r}, "
                f"'/**/{name}', or '/**' for all nodes"
            )
    return said


def _keys(tree: Any, above: tuple[str, ...], path: Path) -> Iterator[str]:
    where = "/".join(above)
    if not isinstance(tree, dict):
        raise ValueError(
            f"{path} is no file of parameters: {_PARAMETERS} is missing below {where!r}"
            if above
            else f"{path} is no file of parameters: it has no sections such as '/**'"
        )
    for key, value in tree.items():
        if key != _PARAMETERS:
            yield from _keys(value, (*above, key), path)
        elif not above:
            raise ValueError(
                f"{path} is no file of parameters: {_PARAMETERS} must stand in a section, such "
                "as '/**'"
            )
        elif not isinstance(value, dict):
            raise ValueError(
                f"{path} is no file of parameters: there are none below {_PARAMETERS} of {where!r}"
            )
        else:
            yield where


def _meant(key: str, nodes: Sequence[str]) -> str:
    """Return the node whose name is most like the key's."""
    names = {node.rpartition("/")[2]: node for node in reversed(nodes)}
    near = difflib.get_close_matches(key.rpartition("/")[2], list(names), n=1)
    return names[near[0]] if near else nodes[0]
