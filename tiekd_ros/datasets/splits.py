"""Split files: which images belong to a data set's part.

One line an image: `image depth focal` for KITTI and NYU, the image's name in folders.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from tiekd_ros.datasets.errors import DatasetError

SPLIT_FOLDERS = (".", "split", "splits")
_NO_DEPTH = "None"


@dataclass(frozen=True)
class SplitEntry:
    """One line: paths relative to the data set's roots, without the leading slash some have."""

    image: str
    depth: str | None
    """None where the file says `None`."""
    focal: float | None
    """In pixels; None where the line ends before."""


def read_split(path: Path) -> list[SplitEntry]:
    """Return a split file's entries, sorted by image as the published loaders do.

    Raises:
        DatasetError: the file is missing, empty, or a line is not `image depth focal`.
    """
    entries: dict[str, SplitEntry] = {}
    for number, line in enumerate(_lines(path), 1):
        words = line.split()
        if not words:
            continue
        entry = _entry(words, f"{path}, line {number}")
        if entry.image in entries:
            raise DatasetError(f"{path}, line {number} names {entry.image} again; remove one")
        entries[entry.image] = entry
    if not entries:
        raise DatasetError(f"{path} is empty; it needs lines `image depth focal`")
    return [entries[name] for name in sorted(entries)]


def read_names(path: Path, suffixes: Sequence[str]) -> list[str]:
    """Return the image names in a folder's split file, one a line, without their suffix.

    Args:
        path: the file; empty lines and those that start with `#` are passed over.
        suffixes: what may follow a name and is cut off, in lower case.

    Raises:
        DatasetError: the file cannot be read, is empty, or names an image twice.
    """
    names: dict[str, None] = {}
    for number, line in enumerate(_lines(path), 1):
        name = line.strip()
        if not name or name.startswith("#"):
            continue
        suffix = PurePosixPath(name).suffix
        if suffix.lower() in suffixes:
            name = name.removesuffix(suffix)
        if name in names:
            raise DatasetError(f"{path}, line {number} names {name} again; remove one")
        names[name] = None
    if not names:
        raise DatasetError(f"{path} is empty; it needs one image name a line")
    return list(names)


def find_split(folder: Path, split: Path | None, usual: Sequence[str]) -> Path:
    """Return the split file: `split`, here or in `folder`, else the first of the `usual` names.

    Raises:
        DatasetError: there is none.
    """
    places = [folder / place for place in SPLIT_FOLDERS]
    if split is not None:
        split = split.expanduser()
        found = [p for p in (split, *(place / split for place in places)) if p.is_file()]
        if found:
            return found[0]
        raise DatasetError(f"there is no split file {split}, neither here nor in {folder}")
    for name in usual:
        for place in places:
            if (place / name).is_file():
                return place / name
    raise DatasetError(
        f"no split file {' or '.join(usual)} in {folder}, its split/ or splits/; give one "
        "(--split FILE, lines `image depth focal`)"
    )


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DatasetError(f"cannot read the split file {path}: {error}") from error


def _entry(words: list[str], where: str) -> SplitEntry:
    if len(words) not in (2, 3):
        raise DatasetError(f"{where} has {len(words)} words; expected `image depth focal`")
    image, depth = (word.lstrip("/") for word in words[:2])
    for path in (image, depth):
        if not path or ".." in PurePosixPath(path).parts:
            raise DatasetError(f"{where}: {path!r} is no path inside the data set")
    focal = None
    if len(words) == 3:
        try:
            focal = float(words[2])
        except ValueError:
            focal = math.nan
        if not (math.isfinite(focal) and focal > 0):
            raise DatasetError(f"{where}: focal must be positive pixels, got {words[2]!r}")
    return SplitEntry(image, None if depth == _NO_DEPTH else depth, focal)
