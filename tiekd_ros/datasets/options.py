"""What to read of a data set."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal


@dataclass(frozen=True)
class ReadOptions:
    """What to read of a data set, and what to do with entries that cannot be used."""

    split: Path | None = None
    """Split file, as given or inside the data set's folder.

    Lines `image depth focal` (KITTI, NYU; None: the usual file) or image names (folders; None:
    all images).
    """
    subset: Literal["train", "test"] = "test"
    """Which of the usual split files to take where none is given (KITTI, NYU)."""
    truth: bool = True
    """Read measured depth: every item has it, or is refused. Otherwise no item has it."""
    teacher: bool = False
    """Read a teacher's depth: every item has it, or is refused. Otherwise no item has it."""
    teacher_maps: Path | None = None
    """The folder of teacher maps; None: `teacher/` in the data set's folder."""
    crop: bool = True
    """KITTI: cut image and truth to the benchmark's 352x1216, which teacher maps have."""
    skip_bad: bool = False
    """Leave out entries without their files, and list them, instead of refusing all."""
