"""The two data sets of the ablation: scenes of the synthetic world, and a folder of real frames.

Each gives three lists of samples that have nothing in common: what a student learns from
(with the teacher's depth and, for the baseline, a sensor's sparse truth), what may choose
between settings (validation) and what is reported (test), both with exact or measured truth.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from tiekd_ros.core.images import DepthMap
from tiekd_ros.datasets import ReadOptions, RgbdFolder
from tiekd_ros.method.samples import Sample, fit_sample
from tiekd_ros.student.architecture import InputSize
from tiekd_ros.worlds import IndoorWorld, WorldSettings

Progress = Callable[[str], None]

_VIEWS = 24  # of each scene
_PERIOD_S = 60.0
_IMAGE = (320, 240)  # width, height of what the camera sees
_BLOCKS = "tettvttet"  # of a recording: train, test (e), validation
_SENSOR_SHARE = 0.003  # of the pixels: 5 % of the cells of the student's output, as a LiDAR has


@dataclass(frozen=True)
class Split:
    """Samples that share no scene (synthetic) or no time (real) with another split's."""

    taught: list[Sample]
    """To train on: depth as the teacher gives it, of every pixel."""
    known: list[Sample]
    """The same, but only where it can be trusted; the same as `taught` where that is all."""
    measured: list[Sample]
    """The same images with what a sparse sensor measures: the baseline's truth."""
    validation: list[Sample]
    test: list[Sample]


def synthetic(scenes: Sequence[int], size: InputSize, seed: int, say: Progress) -> Split:
    """Render scenes: so many for training, validation and test, each a world of its own.

    The teacher is a good one, not an oracle: its depth is smooth at edges and wrong by a
    slowly varying factor (standard deviation 4 %), as depth networks are.
    """
    rng = np.random.default_rng(seed)
    first = 1000 * (seed + 1)
    parts: list[list[Sample]] = []
    for name, count in zip(("train", "validation", "test"), scenes, strict=True):
        say(f"synthetic world: {count} scenes for {name}")
        parts.append([s for i in range(count) for s in _scene(first + i, size, rng)])
        first += count
    train, validation, test = parts
    taught = [_replaced(s, teacher_like(s.depth, rng)) for s in train]
    measured = [_replaced(s, sparse(s.depth, rng)) for s in train]
    return Split(taught, taught, measured, validation, test)


def real(folder: Path, size: InputSize, seed: int) -> Split:
    """Read a folder of real frames and split it by time, in blocks as the frame log does.

    The last frame of a block is left out where the next block has another use, so that
    neighbours never straddle a border. There is no teacher for these frames: the measured
    depth is the teacher's. A teacher answers for every pixel, and the published losses know
    no other; so holes are filled from their borders.
    """
    data = RgbdFolder(folder, ReadOptions(skip_bad=True))
    uses = [_BLOCKS[i * len(_BLOCKS) // len(data)] for i in range(len(data))]
    parts: dict[str, list[Sample]] = {use: [] for use in set(_BLOCKS)}
    for i, use in enumerate(uses):
        if i + 1 == len(uses) or uses[i + 1] == use:
            image, depth = data.image(i), data.depth(i)
            parts[use].append(fit_sample(image, depth, data.intrinsics, size))
    train, validation, test = (parts[use] for use in "tve")
    if not (train and validation and test):
        raise SystemExit(f"{folder} has {len(data)} frames; a split by time needs at least 18")
    rng = np.random.default_rng(seed)
    taught = [_replaced(s, filled(s.depth)) for s in train]
    measured = [_replaced(s, sparse(s.depth, rng)) for s in train]
    return Split(taught, train, measured, validation, test)


def filled(depth: DepthMap) -> DepthMap:
    """Return depth (H, W) whose holes are filled smoothly from their borders."""
    holes = ~np.isfinite(depth)
    whole: DepthMap = cv2.inpaint(
        np.nan_to_num(depth, nan=0.0), holes.astype(np.uint8), 3, cv2.INPAINT_TELEA
    )
    return whole


def teacher_like(depth: DepthMap, rng: np.random.Generator) -> DepthMap:
    """Return depth (H, W) as a good network would give it: soft edges, a few percent off."""
    height, width = depth.shape
    coarse = rng.normal(0, 1, (4, 5)).astype(np.float32)
    field = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
    soft = cv2.GaussianBlur(depth, (0, 0), 0.006 * width)
    taught: DepthMap = (soft * np.exp(0.04 * field / max(field.std(), 1e-6))).astype(np.float32)
    return taught


def sparse(depth: DepthMap, rng: np.random.Generator) -> DepthMap:
    """Return depth (H, W) known only where a scanning sensor would have measured it."""
    measured: npt.NDArray[np.bool_] = rng.random(depth.shape) < _SENSOR_SHARE
    kept: DepthMap = np.where(measured, depth, np.float32(np.nan))
    return kept


def _scene(seed: int, size: InputSize, rng: np.random.Generator) -> Iterator[Sample]:
    world = IndoorWorld(WorldSettings(seed=seed, period_s=_PERIOD_S))
    camera = world.default_intrinsics(*_IMAGE)
    for step in range(_VIEWS):
        time_ns = round((step + rng.random()) / _VIEWS * _PERIOD_S * 1e9)
        view = world.render(time_ns, *_IMAGE, camera)
        yield fit_sample(view.image, view.depth, camera, size)


def _replaced(sample: Sample, depth: DepthMap) -> Sample:
    return Sample(sample.image, depth, sample.intrinsics)


def save(path: Path, split: Split) -> str:
    """Write a split for other processes: uint8 images and float32 depth in one npz.

    Returns:
        A digest of all of it.
    """
    arrays = {}
    for name, samples in vars(split).items():
        arrays[f"{name}_image"] = np.stack([s.image for s in samples])
        arrays[f"{name}_depth"] = np.stack([s.depth for s in samples])
    np.savez(path, **arrays)
    digest = hashlib.sha256()
    for array in arrays.values():
        digest.update(array.tobytes())
    return digest.hexdigest()[:16]


def load(path: Path) -> Split:
    """Read what `save` wrote."""
    with np.load(path) as arrays:
        return Split(
            *(
                _samples(arrays[f"{name}_image"], arrays[f"{name}_depth"])
                for name in ("taught", "known", "measured", "validation", "test")
            )
        )


def _samples(
    images: npt.NDArray[np.uint8], depths: Sequence[DepthMap] | npt.NDArray[np.float32]
) -> list[Sample]:
    return [Sample(image, depth) for image, depth in zip(images, depths, strict=True)]
