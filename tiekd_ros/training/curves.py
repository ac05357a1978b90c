"""What a run writes for people to look at: `metrics.jsonl` and tensorboard's event files."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
from torch.utils.tensorboard import SummaryWriter

from tiekd_ros.core.images import DepthMap, RgbImage
from tiekd_ros.method.stepping import TrainingError
from tiekd_ros.student.checkpoint import replace_durably

METRICS = "metrics.jsonl"

Paint = Callable[[DepthMap, float, float], RgbImage]
"""Maps depth, (H, W) in metres, between a near and a far depth to colours."""


class Curves:
    """Writes values by step; on continuing, what lies after the snapshot is dropped.

    Args:
        folder: the run's folder.
        step: the last step that counts, 0 at the start.

    Raises:
        TrainingError: the folder cannot be written to.
    """

    def __init__(self, folder: Path, step: int) -> None:
        self._path = folder / METRICS
        try:
            kept = _lines_until(self._path, step)
            replace_durably(self._path, "".join(kept).encode())
            self._file = self._path.open("a")
        except OSError as error:
            raise TrainingError(f"cannot write {self._path}: {error.strerror}") from error
        self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1)

    def close(self) -> None:
        """Close the files."""
        with contextlib.suppress(OSError):  # a full disk was told already, or all is written
            self._board.close()
        with contextlib.suppress(OSError):
            self._file.close()

    def values(self, step: int, kind: str, values: Mapping[str, float]) -> None:
        """Write values of a step; `kind` (train, validation) groups them.

        Raises:
            TrainingError: the disk refuses.
        """
        with self._telling():
            self._file.write(json.dumps({"step": step, "kind": kind, **values}) + "\n")
            self._file.flush()
            for name, value in values.items():
                self._board.add_scalar(f"{kind}/{name}", value, step)

    def pictures(self, step: int, name: str, picture: RgbImage) -> None:
        """Write a picture, uint8 RGB (H, W, 3)."""
        with self._telling():
            self._board.add_image(name, picture, step, dataformats="HWC")

    def flush(self) -> None:
        """Let tensorboard see what was written."""
        with self._telling():
            self._board.flush()

    @contextlib.contextmanager
    def _telling(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise TrainingError(
                f"cannot write the curves to {self._path.parent}: {error.strerror}; make room, "
                "then continue with --resume"
            ) from error


def _lines_until(path: Path, step: int) -> list[str]:
    """Return the whole lines of a file up to a step; a killed writer may leave half a line."""
    if not path.exists():
        return []
    kept = []
    for line in path.read_text().splitlines(keepends=True):
        try:
            if line.endswith("\n") and json.loads(line)["step"] <= step:
                kept.append(line)
        except (ValueError, KeyError, TypeError):
            continue
    return kept


def picture_row(
    images: npt.NDArray[np.uint8], teacher: DepthMap, student: DepthMap, paint: Paint
) -> RgbImage:
    """Return images beside teacher and student depth in one scale of colours.

    Args:
        images: RGB, (B, H, W, 3).
        teacher: metres, (B, H, W), NaN = unknown.
        student: metres, (B, H, W).
        paint: maps depth (H, W) between two depths to colours.

    Returns:
        One row of three pictures per image, (B * H, 3 * W, 3).
    """
    rows = []
    for image, wanted, given in zip(images, teacher, student, strict=True):
        known = np.concatenate([d[np.isfinite(d)] for d in (wanted, given)])
        low, high = np.percentile(known, (2, 98)) if known.size else (0.0, 1.0)
        high = max(high, low + 1e-3)
        pictures = [image, *(paint(d, float(low), float(high)) for d in (wanted, given))]
        rows.append(np.concatenate(pictures, axis=1))
    row: RgbImage = np.concatenate(rows, axis=0)
    return row
