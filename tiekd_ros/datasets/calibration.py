"""Camera intrinsics from the files that lie beside recorded images."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import yaml

from tiekd_ros.core.camera import CameraModel, Intrinsics, same_shape
from tiekd_ros.core.errors import BadIntrinsicsError, DatasetError

K_FILE = "K.txt"
CAMERA_FILES = ("camera.yaml", "camera_info.yaml")


def find_intrinsics(folder: Path, image_size: tuple[int, int]) -> Intrinsics | None:
    """Return the intrinsics that lie in `folder`, in pixels of an image of `image_size`.

    `K.txt` (3x3) comes first, then `camera.yaml` and `camera_info.yaml` (the file that ROS's
    camera_calibration writes). None where there is no such file.

    Raises:
        DatasetError: a file is there and does not describe a camera of this image size.
    """
    for name in (K_FILE, *CAMERA_FILES):
        if (folder / name).exists():
            return read_intrinsics(folder / name, image_size)
    return None


def read_intrinsics(path: Path, image_size: tuple[int, int]) -> Intrinsics:
    """Read a camera matrix of 3 rows (.txt) or a camera_calibration file (.yaml).

    Raises:
        DatasetError: it is missing, or does not describe a camera of this image size.
    """
    if path.suffix.lower() in (".yaml", ".yml"):
        return _read_camera_yaml(path, image_size)
    return _read_k(path, image_size)


def read_camera_model(path: Path, image_size: tuple[int, int]) -> CameraModel:
    """Read the same files with the lens's distortion, where they say it.

    Raises:
        DatasetError: as `read_intrinsics`, or the distortion is no list of numbers.
    """
    model = CameraModel.pinhole(read_intrinsics(path, image_size), *image_size)
    if path.suffix.lower() not in (".yaml", ".yml"):
        return model
    content = read_yaml(path)
    found: dict[str, Any] = {}
    # P holds only for the size that it was made for; with that of a pinhole, K, all sizes do.
    same_size = (content["image_width"], content["image_height"]) == image_size
    try:
        for key, name in (("d", "distortion_coefficients"), ("r", "rectification_matrix")):
            if name in content:
                found[key] = _numbers(content[name])
        kind = str(content.get("distortion_model", model.distortion_model))
        if len(found.get("r", model.r)) != 9:
            raise ValueError("a rectification matrix has 9 numbers")
        p = _numbers(content.get("projection_matrix") or {"data": ()})
    except (KeyError, TypeError, ValueError) as error:
        raise DatasetError(f"{path}: the distortion cannot be read ({error!r})") from error
    if same_size and len(p) == 12:
        found["p"] = p
    return replace(model, distortion_model=kind, **found)


def _numbers(matrix: Any) -> tuple[float, ...]:
    found = tuple(float(number) for number in matrix["data"])
    if not all(map(math.isfinite, found)):
        raise ValueError("all numbers must be finite")
    return found


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML file whose top level is a mapping; an empty file is an empty mapping."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        line = str(error).splitlines()[0]
        raise DatasetError(f"{path} is no readable YAML ({line}); mend or remove it") from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise DatasetError(f"{path} must hold `key: value` lines, got {type(content).__name__}")
    return content


def _read_k(path: Path, image_size: tuple[int, int]) -> Intrinsics:
    try:
        rows = [line.split() for line in path.read_text(encoding="utf-8").splitlines()]
        matrix = [[float(number) for number in row] for row in rows if row]
    except (OSError, UnicodeDecodeError, ValueError) as error:
        raise DatasetError(f"{path} must hold 3 rows of 3 numbers: {error}") from error
    if [len(row) for row in matrix] != [3, 3, 3]:
        raise DatasetError(
            f"{path} must hold 3 rows of 3 numbers (fx 0 cx / 0 fy cy / 0 0 1), got rows of "
            f"{[len(row) for row in matrix]}"
        )
    if not np.allclose(matrix[2], (0, 0, 1)):
        raise DatasetError(f"{path}: the last row of a camera matrix is 0 0 1, got {matrix[2]}")
    return plausible(path, [number for row in matrix for number in row], image_size)


def _read_camera_yaml(path: Path, image_size: tuple[int, int]) -> Intrinsics:
    content = read_yaml(path)
    try:
        size = (int(content["image_width"]), int(content["image_height"]))
        numbers = [float(number) for number in content["camera_matrix"]["data"]]
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise DatasetError(
            f"{path} is no camera_calibration file ({error!r}): it needs image_width, "
            "image_height and camera_matrix: {data: [9 numbers]}"
        ) from error
    if min(size) < 1 or not same_shape(size, image_size):
        raise DatasetError(
            f"{path} describes images of {size[0]}x{size[1]}, those here are "
            f"{image_size[0]}x{image_size[1]}: not the same view; use this camera's own file"
        )
    intrinsics = plausible(path, numbers, size)
    return intrinsics.scaled(image_size[0] / size[0], image_size[1] / size[1])


def plausible(where: Path | str, numbers: npt.ArrayLike, size: tuple[int, int]) -> Intrinsics:
    """Return a camera matrix's intrinsics if it can belong to images of (width, height) `size`.

    Raises:
        DatasetError: it cannot; the message begins with `where` it stands.
    """
    try:
        found = Intrinsics.from_matrix(numbers)
    except BadIntrinsicsError as error:
        raise DatasetError(f"{where}: {error}") from error
    fault = found.implausibility(*size)
    if fault:
        raise DatasetError(f"{where}: {fault}")
    return found
