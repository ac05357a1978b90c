"""Which files a bag consists of: what its metadata.yaml says against what is there."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import Any

import yaml

from tiekd_ros.frames.bags.records import BagError

METADATA = "metadata.yaml"
SUFFIXES = (".mcap", ".db3", ".mcap.zstd", ".db3.zstd", ".bag")

_REINDEX = "`ros2 bag reindex` writes a new one; here it is not needed"


@dataclass
class Layout:
    """The files of a bag, in the order of their recording."""

    files: list[Path]
    notes: list[str] = field(default_factory=list)
    """What was odd about them."""
    promised: dict[str, int] = field(default_factory=dict)
    """Number of messages by topic, where a metadata.yaml says it."""


def is_bag(path: Path) -> bool:
    """Tell whether a path looks like a bag: one of its files, or a folder that holds some."""
    if path.is_dir():
        return bool(_storage_files(path)) or _read_metadata(path / METADATA, []) is not None
    return path.is_file() and (path.name == METADATA or path.name.endswith(SUFFIXES))


def find_layout(path: Path) -> Layout:
    """Find a bag's files.

    Raises:
        BagError: nothing is there, or a folder without any.
    """
    if not path.exists():
        raise BagError(f"{path} does not exist; give the folder of a rosbag2, or one of its files")
    if path.name == METADATA:
        path = path.parent
    if path.is_file():
        return Layout([path])
    there = _storage_files(path)
    layout = _by_metadata(path, there)
    if not layout.files:
        listed = ", ".join(layout.promised) or "nothing"
        raise BagError(
            f"{path} holds no bag: there is no file of {', '.join(SUFFIXES)} in it"
            + (f" (its {METADATA} promises messages of {listed})" if layout.promised else "")
        )
    return layout


def _storage_files(folder: Path) -> list[Path]:
    files = [file for file in folder.iterdir() if file.name.endswith(SUFFIXES) and file.is_file()]
    return sorted(files, key=lambda file: [_natural(p) for p in re.split(r"(\d+)", file.name)])


def _natural(part: str) -> tuple[int, str]:
    return (int(part), "") if part.isdigit() else (-1, part)


def _by_metadata(folder: Path, there: list[Path]) -> Layout:
    """Return the files in the order that metadata.yaml gives; all that are there without one."""
    layout = Layout(there)
    metadata = _read_metadata(folder / METADATA, layout.notes)
    if metadata is None:
        return layout
    try:
        listed = [PurePath(str(name)).name for name in metadata["relative_file_paths"]]
        for entry in metadata.get("topics_with_message_count") or []:
            layout.promised[str(entry["topic_metadata"]["name"])] = int(entry["message_count"])
    except (KeyError, TypeError, ValueError) as error:
        layout.notes.append(
            f"{METADATA} cannot be understood ({error!r}): read all files; {_REINDEX}"
        )
        return layout
    names = {file.name: file for file in there}
    missing = [name for name in listed if name not in names]
    extra = [name for name in names if name not in listed]
    if missing:
        layout.notes.append(
            f"{METADATA} lists {len(listed)} files, of which {len(missing)} are not there "
            f"({_short(missing)}): read the others"
        )
    if extra:
        layout.notes.append(f"{METADATA} does not list {_short(extra)}: read as well")
    layout.files = [names[name] for name in (*dict.fromkeys(listed), *extra) if name in names]
    return layout


def _read_metadata(path: Path, notes: list[str]) -> dict[str, Any] | None:
    if not path.is_file():
        notes.append(
            f"there is no {METADATA}: its recorder was stopped before it wrote one; {_REINDEX}"
        )
        return None
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        information = content["rosbag2_bagfile_information"]
        if not isinstance(information, dict):
            raise TypeError("rosbag2_bagfile_information is empty")
    except (OSError, UnicodeDecodeError, yaml.YAMLError, KeyError, TypeError) as error:
        line = str(error).splitlines()[0]
        notes.append(f"{METADATA} cannot be read ({line}): read all files; {_REINDEX}")
        return None
    return information


def _short(names: list[str]) -> str:
    if len(names) <= 3:
        return ", ".join(names)
    return f"{names[0]}, {names[1]} … {names[-1]}"
