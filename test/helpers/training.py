"""A small RGB-D folder, and `tiekd train` as a program on it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from helpers.frames import HEIGHT, WIDTH, views
from tiekd_ros.core.images import encode_png
from tiekd_ros.worlds import IndoorWorld

COUNT = 11
"""Images of the folder; the last one validates."""


def write_rgbd(folder: Path, count: int = COUNT) -> Path:
    """Write views of the synthetic world as an RGB-D folder, 96x72, millimetres."""
    (folder / "images").mkdir(parents=True)
    (folder / "depth").mkdir()
    for number, view in enumerate(views()[:count]):
        (folder / "images" / f"{number:04d}.png").write_bytes(encode_png(view.image))
        millimetres = np.nan_to_num(view.depth * 1000).astype(np.uint16)
        assert cv2.imwrite(str(folder / "depth" / f"{number:04d}.png"), millimetres)
    k = IndoorWorld.default_intrinsics(WIDTH, HEIGHT)
    (folder / "K.txt").write_text(f"{k.fx} 0 {k.cx}\n0 {k.fy} {k.cy}\n0 0 1\n")
    return folder


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
