"""KITTI and NYU in their official layouts, and RGB-D folders; a few images each, made up."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from tiekd_ros.core.camera import Intrinsics
from tiekd_ros.core.images import DepthMap, RgbImage

DAY = "2011_09_26"
KITTI_SIZES = ((375, 1242), (370, 1226), (376, 1241))  # (height, width) of real recordings
KITTI_FOCAL = 721.5377
CX, CY = 609.5593, 172.854


@dataclass(frozen=True)
class Written:
    """One written image with its depth, as they were before storage."""

    name: str
    image: RgbImage
    truth: DepthMap  # metres, 0 = unknown


def smooth_image(rng: np.random.Generator, height: int, width: int) -> RgbImage:
    """Return a smooth coloured picture, uint8 (H, W, 3)."""
    small = rng.integers(0, 256, (6, 16, 3), dtype=np.uint8)
    return cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC)


def sparse_depth(rng: np.random.Generator, height: int, width: int, longest_m: float) -> DepthMap:
    """Return metres where a scanner would have hit, 0 elsewhere (nine pixels in ten)."""
    depth = rng.uniform(1.0, longest_m, (height, width)).astype(np.float32)
    depth[rng.random((height, width)) > 0.1] = 0
    return depth


def write_png(path: Path, units: np.ndarray) -> None:
    """Write whole numbers as they are."""
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), units)


def write_image(path: Path, image: RgbImage) -> None:
    """Write an RGB picture."""
    write_png(path, cv2.cvtColor(image, cv2.COLOR_RGB2BGR))


def write_calibration(folder: Path, height: int, width: int) -> None:
    """Write the lines of KITTI's calibration that matter, among others."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = ["calib_time: 09-Jan-2012 13:57:47", "corner_dist: 9.950000e-02"]
    for camera in ("02", "03"):
        p = (KITTI_FOCAL, 0, CX, 44.85, 0, KITTI_FOCAL, CY, 0.21, 0, 0, 1, 0.0027)
        lines.append(f"S_{camera}: 1.392000e+03 5.120000e+02")
        lines.append(f"S_rect_{camera}: {width:.6e} {height:.6e}")
        lines.append(f"P_rect_{camera}: " + " ".join(f"{value:.6e}" for value in p))
    (folder / "calib_cam_to_cam.txt").write_text("\n".join(lines) + "\n")


def write_kitti(
    root: Path, count: int = 2, *, images: str = "", depths: str = "", calibrated: bool = True
) -> list[Written]:
    """Write `count` images, each of another day and size; the split file has one `None` more.

    Args:
        root: the data set's folder.
        count: 1 to 3.
        images: folder of the days inside `root`.
        depths: folder of the drives' depth inside `root`.
        calibrated: write each day's calibration.
    """
    rng, written, lines = np.random.default_rng(0), [], []
    for index, (height, width) in enumerate(KITTI_SIZES[:count]):
        day = f"2011_09_{26 + index}"
        drive = f"{day}_drive_000{index + 1}_sync"
        number = f"{69 - index:010d}.png"
        name = f"{day}/{drive}/image_02/data/{number}"
        image = smooth_image(rng, height, width)
        truth = sparse_depth(rng, height, width, 90.0)
        write_image(root / images / name, image)
        depth = f"{drive}/proj_depth/groundtruth/image_02/{number}"
        write_png(root / depths / depth, np.rint(truth * 256).astype(np.uint16))
        if calibrated:
            write_calibration(root / images / day, height, width)
        lines.insert(0, f"{name} {depth} {KITTI_FOCAL:.4f}")
        written.append(Written(name, image, truth))
    lines.append(f"{DAY}/{DAY}_drive_0009_sync/image_02/data/0000000001.png None 721.5377")
    (root / "kitti_eigen_test.txt").write_text("\n".join(lines) + "\n")
    return written


def write_nyu(root: Path, count: int = 2, *, slash: str = "/") -> list[Written]:
    """Write `count` images of 480x640 with dense depth, and the test split file."""
    rng, written, lines = np.random.default_rng(1), [], []
    for index in range(count):
        scene = f"kitchen_000{index}"
        name = f"{scene}/rgb_0004{index}.jpg"
        image = smooth_image(rng, 480, 640)
        truth = rng.uniform(0.5, 9.5, (480, 640)).astype(np.float32)
        truth[:5] = 0
        write_image(root / name, image)
        write_png(
            root / scene / f"sync_depth_0004{index}.png", np.rint(truth * 1000).astype(np.uint16)
        )
        lines.append(f"{slash}{name} {slash}{scene}/sync_depth_0004{index}.png 518.8579")
        written.append(Written(name, image, truth))
    (root / "nyu_test.txt").write_text("\n".join(lines) + "\n")
    return written


def write_rgbd(
    folder: Path,
    images: Sequence[RgbImage],
    depths: Sequence[DepthMap],
    camera: Intrinsics | None = None,
) -> Path:
    """Write an RGB-D folder, with names from 0000.png on.

    Args:
        folder: must not hold images yet.
        images: RGB.
        depths: metres, NaN = unknown; stored in whole millimetres.
        camera: None = a focal length of 60 pixels, and the image's middle.
    """
    for index, (image, depth) in enumerate(zip(images, depths, strict=True)):
        millimetres = np.nan_to_num(depth * 1000).round().astype(np.uint16)
        write_image(folder / "images" / f"{index:04d}.png", image)
        write_png(folder / "depth" / f"{index:04d}.png", millimetres)
    height, width = images[0].shape[:2]
    k = camera or Intrinsics(60.0, 60.0, (width - 1) / 2, (height - 1) / 2)
    np.savetxt(folder / "K.txt", k.matrix())
    return folder
