"""The base student's training set: random views of random worlds, one file a world."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from random_world import RandomisedWorld

from tiekd_ros.core.camera import Intrinsics
from tiekd_ros.method.samples import Sample, fit_sample
from tiekd_ros.student import InputSize

WIDTH, HEIGHT = 320, 224


@dataclass(frozen=True)
class StoredView:
    """Image uint8 (224, 320, 3), depth float16 (224, 320) in metres, intrinsics."""

    image: npt.NDArray[np.uint8]
    depth: npt.NDArray[np.float16]
    intrinsics: Intrinsics

    def canonical(self, size: InputSize, canonical: InputSize, focal_px: float) -> Sample:
        """Return the view at a network's size, depth as the canonical camera would have it.

        What a lens of focal length f shows at depth z looks, pixel by pixel, like what one of
        f_c shows at z f_c / f. Depth is multiplied by f_c / f, so one network serves all
        lenses. Lenses are compared at the canonical size: resolution changes no depth.

        Args:
            size: of the sample.
            canonical: the canonical camera's image size.
            focal_px: its focal length.
        """
        fitted = fit_sample(self.image, self.depth.astype(np.float32), self.intrinsics, size)
        assert fitted.intrinsics is not None
        shrunk = (canonical.height * canonical.width / (size.height * size.width)) ** 0.5
        focal = (fitted.intrinsics.fx * fitted.intrinsics.fy) ** 0.5 * shrunk
        return Sample(fitted.image, fitted.depth * np.float32(focal_px / focal), fitted.intrinsics)


def world_file(folder: Path, seed: int) -> Path:
    """Return where the views of a world are kept."""
    return folder / f"world_{seed:06d}.npz"


def render_worlds(folder: Path, seeds: list[int], views: int) -> None:
    """Render what is missing; files appear whole."""
    for seed in seeds:
        path = world_file(folder, seed)
        if path.exists():
            continue
        world = RandomisedWorld(seed)
        shown = [world.view(index, WIDTH, HEIGHT) for index in range(views)]
        part = path.with_suffix(".part")
        with part.open("wb") as file:
            np.savez(
                file,
                images=np.stack([v.image for v in shown]),
                depths=np.stack([v.depth for v in shown]).astype(np.float16),
                cameras=np.array([v.intrinsics.as_tuple() for v in shown]),
            )
        os.replace(part, path)


def load_world(path: Path) -> list[StoredView]:
    """Read the views of one world."""
    with np.load(path) as file:
        images, depths, cameras = file["images"], file["depths"], file["cameras"]
    return [
        StoredView(image, depth, Intrinsics(*(float(v) for v in camera)))
        for image, depth, camera in zip(images, depths, cameras, strict=True)
    ]
