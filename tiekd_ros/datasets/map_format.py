"""How teacher maps are stored: the published convention, and that of the project's folders."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tiekd_ros.core.errors import BadDepthError, DatasetError
from tiekd_ros.core.images import (
    DEPTH_UNITS_PER_M,
    DepthMap,
    decode_depth_png,
    decode_share_png,
    encode_depth_png,
    encode_share_png,
)

TEACHER_FOLDER = "teacher"
"""Where a data set's teacher maps lie unless another folder is given."""
TEACHER_NOTE = "teacher.json"
"""The file beside the maps that says who made them, and in which unit."""


@dataclass(frozen=True)
class MapFormat:
    """16-bit PNG, one channel, 0 = unknown.

    `share_of_m` None: the number is metres * 256, rounded. Otherwise, as published for KITTI
    (80 m) and NYU (10 m): the share of that depth, v / 65535 * share_of_m, truncated. (The
    published NYU evaluation divides by 65525 instead, 0.015 % more: a slip, not followed.)
    """

    share_of_m: float | None = None

    @property
    def units(self) -> str:
        """What the numbers mean, in words."""
        if self.share_of_m is None:
            return "uint16 = metres * 256, 0 = unknown"
        return f"uint16 = metres / {self.share_of_m:g} * 65535, 0 = unknown"

    @property
    def max_depth_m(self) -> float:
        """The largest depth that can be stored, in metres."""
        return 65535 / DEPTH_UNITS_PER_M if self.share_of_m is None else self.share_of_m

    @property
    def at_image_size(self) -> bool:
        """Whether maps must have their image's size, as the published ones have."""
        return self.share_of_m is not None

    def encode(self, depth: DepthMap) -> bytes:
        """Encode metres, (H, W), NaN = unknown; what cannot be stored becomes unknown.

        Shares are the exception: what is beyond their range becomes the farthest depth.
        """
        if self.share_of_m is None:
            return encode_depth_png(depth)
        return encode_share_png(depth, self.share_of_m)

    def read(self, path: Path) -> DepthMap:
        """Read a map: float32 metres (H, W), NaN = unknown.

        Raises:
            DatasetError: the file cannot be read or is no 16-bit PNG.
        """
        try:
            data = path.read_bytes()
            if self.share_of_m is None:
                return decode_depth_png(data)
            return decode_share_png(data, self.share_of_m)
        except OSError as error:
            raise DatasetError(
                f"cannot read the teacher map {path}: {error.strerror}; make it with `tiekd label`"
            ) from error
        except BadDepthError as error:
            raise DatasetError(f"{path}: {error}") from error


KITTI_MAPS = MapFormat(80.0)
NYU_MAPS = MapFormat(10.0)
FOLDER_MAPS = MapFormat()
