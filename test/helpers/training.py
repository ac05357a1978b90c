"""A small RGB-D folder, and `tiekd train` as a program on it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from helpers import depth_data
from helpers.frames import HEIGHT, WIDTH, views
from tiekd_ros.worlds import IndoorWorld

COUNT = 11
"""Images of the folder; the last one validates."""


def write_rgbd(folder: Path, count: int = COUNT) -> Path:
    """Write views of the synthetic world as an RGB-D folder, 96x72, millimetres."""
    images, depths = zip(*((view.image, view.depth) for view in views()[:count]), strict=True)
    return depth_data.write_rgbd(
        folder, images, depths, IndoorWorld.default_intrinsics(WIDTH, HEIGHT)
    )


def train_arguments(data: Path, output: Path, *more: str, **groups: dict[str, Any]) -> list[str]:
    """Return the arguments of a run of 5 steps of 4 images, in this process, on the CPU."""
    settings = {
        "train": {"batch_norm": "frozen", **groups.get("train", {})},
        "student": {"bins": 17, "max_depth_m": 10.0},
        "housekeeping": {"log_every": 1, "picture_every": 0, **groups.get("housekeeping", {})},
        **{name: v for name, v in groups.items() if name not in ("train", "housekeeping")},
    }
    return [
        "train", "--data", str(data), "--output", str(output), "--input-size", "64x96",
        "--init", "random", "--batch-size", "4", "--iterations", "5", "--workers", "0",
        "--device", "cpu", "--settings", json.dumps(settings), *more,
    ]  # fmt: skip
