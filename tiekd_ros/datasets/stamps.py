"""Recorded stamps of the images in a folder."""

from __future__ import annotations

import itertools
from decimal import Decimal, InvalidOperation
from pathlib import Path
from statistics import median

from tiekd_ros.datasets.errors import DatasetError

TIMES_FILES = ("times.txt", "timestamps.txt")

_SECOND_DIGITS = 10  # epoch seconds have ten digits from 2001 to 2286
_STEM_DIGITS = range(16, 20)  # microseconds to nanoseconds since the epoch
# Whole numbers further apart than this are nanoseconds: frames are neither more than a
# quarter of an hour apart, nor less than a microsecond.
_LARGEST_SPACING_S = 1000


def recorded_stamps_ns(folder: Path, names: list[str]) -> list[int] | None:
    """Return the recorded stamps of the images `names`, or None where none are recorded.

    `times.txt` or `timestamps.txt` comes first: the first word of each line is the stamp of
    one image, in seconds, or in nanoseconds where whole numbers are too far apart for
    seconds; lines that start with `#` are passed over. Then file stems of 16 to 19 digits:
    ten digits of seconds since the epoch, the rest a fraction (16 digits are microseconds,
    19 are nanoseconds).

    Raises:
        DatasetError: a stamp file does not fit the images, or stamps do not rise.
    """
    for name in TIMES_FILES:
        path = folder / name
        if path.exists():
            stamps = _read_times(path, len(names))
            _check_rising(stamps, names, str(path))
            return stamps
    if all(name.isascii() and name.isdigit() and len(name) in _STEM_DIGITS for name in names):
        stamps = [
            int(name[:_SECOND_DIGITS] + name[_SECOND_DIGITS:].ljust(9, "0")) for name in names
        ]
        _check_rising(stamps, names, f"file names in {folder}")
        return stamps
    return None


def _read_times(path: Path, count: int) -> list[int]:
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    words = [line.split()[0] for line in lines if line.strip() and not line.startswith("#")]
    if len(words) != count:
        raise DatasetError(
            f"{path} has {len(words)} stamps for {count} images; it needs one line an image"
        )
    try:
        times = [Decimal(word) for word in words]
    except InvalidOperation as error:
        bad = next(word for word in words if not _is_number(word))
        raise DatasetError(f"{path}: {bad!r} is no stamp in seconds or nanoseconds") from error
    if not all(time.is_finite() for time in times):
        raise DatasetError(f"{path}: a stamp must be a finite number")
    scale = 1 if _are_nanoseconds(words, times) else 1_000_000_000
    return [int(time * scale) for time in times]


def _is_number(word: str) -> bool:
    try:
        Decimal(word)
    except InvalidOperation:
        return False
    return True


def _are_nanoseconds(words: list[str], times: list[Decimal]) -> bool:
    if not all(word.isdigit() for word in words):
        return False
    if len(times) == 1:
        return len(words[0]) > _SECOND_DIGITS
    return median(b - a for a, b in itertools.pairwise(times)) > _LARGEST_SPACING_S


def _check_rising(stamps: list[int], names: list[str], where: str) -> None:
    for i in range(1, len(stamps)):
        if stamps[i] <= stamps[i - 1]:
            raise DatasetError(
                f"{where}: the stamp of {names[i]} ({stamps[i]} ns) is not after that of "
                f"{names[i - 1]} ({stamps[i - 1]} ns); stamps must rise in the images' order"
            )
