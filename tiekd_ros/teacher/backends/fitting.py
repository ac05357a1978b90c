"""Fit a teacher's numbers to metres on frames whose depth was measured.

By these methods:

- inverse depth x: 1 / d = scale * x + shift, the scale and shift that make the relative error
  (scale * x + shift) * d - 1 smallest; least squares with Tukey's weights, which outliers (the
  sensor's, the network's) do not move;
- depth in an unknown unit, or in metres that are off: d = scale * x, where the scale is
  exp(median(log(d / x))).

The frames are cut into blocks in their order, as the frame log's are: the second judges, the
first makes the fit, and so on. A few frames behind each border do neither, for they show nearly
what those before it show. A network that is free to choose another scale for each image fits badly
as a whole: the error that is said is what that costs.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from tiekd_ros.datasets import RgbdFolder
from tiekd_ros.images import DepthMap
from tiekd_ros.teacher.backend import Backend, BackendRefusal
from tiekd_ros.teacher.backends.batched import seen_focal_px
from tiekd_ros.teacher.backends.outputs import (
    INVERSE_DEPTH,
    METRIC,
    Meaning,
    finished,
    meaning_of,
)
from tiekd_ros.teacher.errors import BackendError
from tiekd_ros.teacher.protocol import DepthRequest

_LOG = logging.getLogger(__name__)

MAX_FRAMES = 64  # evenly spread over the folder
PIXELS_PER_FRAME = 4096
METHOD = 2
"""Another number for whatever would fit the same frames otherwise."""
_BLOCKS, _LEAST_BLOCK = 5, 4  # fewer blocks where they would have fewer frames
_GUARD_SHARE = 0.2  # of a block's frames, behind a border
_LEAST_PIXELS = 100
_PAIRS, _JUDGES = 500, 2000
_ROUNDS = 20
_TUKEY = 4.685 * 1.4826  # times the median error: 95 % efficient where errors are Gaussian
_BEYOND = 2.0  # times the largest measured depth: farther the fit was never seen to hold

Values = npt.NDArray[np.floating]


@dataclass(frozen=True)
class Fit:
    """How a teacher's numbers become metres, and how well."""

    meaning: Meaning
    """Of the numbers."""
    scale: float
    shift: float
    """1/m, of inverse depth; 0 where only the scale was fitted."""
    farthest_m: float
    """What comes out farther, before it is stretched, is unknown."""
    median_error: float
    """Of |depth - measured| / measured, on blocks of frames that did not make the fit."""
    p90_error: float
    frames: int
    """That made or judged the fit."""
    pixels: int
    """That made the fit."""
    focal_px: tuple[float, float] | None = None
    """The frames' (fx, fy) in pixels of the network's input; None where they do not count."""

    def metres(self, values: npt.NDArray[np.float32], stretch: float = 1.0) -> DepthMap:
        """Turn the teacher's numbers into metres, NaN where they say nothing.

        Args:
            values: the numbers, (H, W).
            stretch: the camera's focal length over `focal_px`; depth goes with it.
        """
        depth: Values
        with np.errstate(divide="ignore", invalid="ignore"):
            if self.meaning == INVERSE_DEPTH:
                depth = 1 / (self.scale * values + self.shift)
            else:
                depth = self.scale * values
            near = np.where(depth <= self.farthest_m, depth, np.nan)
        return finished((near * stretch).astype(np.float32), METRIC)

    def __str__(self) -> str:
        """Say the fit in a line."""
        inverse = self.meaning == INVERSE_DEPTH
        formula = (
            f"1/depth = {self.scale:.6g} x {'+' if self.shift >= 0 else '-'} {abs(self.shift):.6g}"
            if inverse
            else f"depth = {self.scale:.6g} x"
        )
        return (
            f"{formula}, median error {self.median_error:.1%}, nine of ten below "
            f"{self.p90_error:.1%} ({self.frames} frames)"
        )


def fit_to_folder(backend: Backend, folder: RgbdFolder, max_error: float) -> Fit:
    """Fit a teacher's numbers to a folder's depth.

    Raises:
        DatasetError: a frame cannot be read.
        BackendError: the teacher does not say what its numbers are, labels too little of the
            folder, or the median error is above `max_error`.
    """
    meaning = meaning_of(backend)
    if meaning is None:
        raise BackendError(
            f"{backend.identity.name} does not say what its numbers are, so that they cannot be "
            "fitted to metres"
        )
    count = min(len(folder), MAX_FRAMES)
    spread = np.linspace(0, len(folder) - 1, count).round().astype(int).tolist()
    making, judging = split_frames(spread)
    makers = _samples(backend, folder, making)
    judges = _samples(backend, folder, judging) if judging else makers
    made, judged, frames = _joined(makers), _joined(judges), len(makers)
    if judging:
        frames += len(judges)
    if min(len(made[1]), len(judged[1])) < _LEAST_PIXELS:
        raise BackendError(
            f"{folder.path} and {backend.identity.name} have {len(made[1])} known pixels in common "
            f"to fit, {len(judged[1])} to judge it, in {frames} frames; {_LEAST_PIXELS} each "
            "are needed"
        )
    width, height = folder.image_size
    focal = seen_focal_px(backend, folder.intrinsics, height, width)
    fit = replace(_fit(meaning, made, judged, frames), focal_px=focal)
    if not (np.isfinite([fit.scale, fit.shift]).all() and fit.scale > 0):
        raise BackendError(
            f"{backend.identity.name} does not fit {folder.path} as {meaning}: the best scale is "
            f"{fit.scale:.6g}, and it must be positive; are its numbers what they are said to be?"
        )
    if fit.median_error > max_error:
        raise BackendError(
            f"{backend.identity.name} does not fit {folder.path}: {fit}; at most {max_error:.1%} "
            "is served (align_max_error)"
        )
    return fit


def split_frames(frames: Sequence[int]) -> tuple[list[int], list[int]]:
    """Return the frames that make the fit, and those that judge it.

    Every second of up to `_BLOCKS` blocks judges, beginning with the second block. Nothing is
    taken right behind a border. A single frame makes the fit, and nothing judges it.
    """
    blocks = min(_BLOCKS, max(2, len(frames) // _LEAST_BLOCK))
    parts: tuple[list[int], list[int]] = ([], [])
    for number, block in enumerate(np.array_split(np.asarray(frames), blocks)):
        guard = math.ceil(_GUARD_SHARE * len(block)) if number and len(block) > 2 else 0
        parts[number % 2].extend(block[guard:].tolist())
    return parts


def _fit(
    meaning: Meaning, made: tuple[Values, Values], judged: tuple[Values, Values], frames: int
) -> Fit:
    if meaning == INVERSE_DEPTH:
        scale, shift = fit_inverse(*made)
    else:
        scale, shift = fit_scale(*made), 0.0
    farthest = _BEYOND * float(max(made[1].max(), judged[1].max()))
    fit = Fit(meaning, scale, shift, farthest, 0.0, 0.0, frames, len(made[1]))
    errors = np.abs(fit.metres(judged[0].astype(np.float32)) - judged[1]) / judged[1]
    # What the fit calls unknown is wrong altogether where depth was measured.
    median, high = np.percentile(np.nan_to_num(errors, nan=1.0), (50, 90))
    return replace(fit, median_error=float(median), p90_error=float(high))


def fit_inverse(values: Values, depth: Values) -> tuple[float, float]:
    """Return scale and shift of 1 / depth = scale * values + shift; both inputs are (N,).

    Starts from the best of many exact solutions of two pixels, and goes on by reweighted least
    squares of the relative error with Tukey's weights, whose threshold follows the median error.
    """
    system = np.stack([values * depth, depth], axis=1)  # (N, 2), times (scale, shift): 1
    best = _start(system)
    for _ in range(_ROUNDS):
        errors = np.abs(system @ best - 1)
        threshold = max(_TUKEY * float(np.median(errors)), 1e-9)
        root = np.clip(1 - (errors / threshold) ** 2, 0, None)  # the weights' square roots
        best = np.linalg.lstsq(system * root[:, None], root, rcond=None)[0]
    return float(best[0]), float(best[1])


def _start(system: Values) -> Values:
    """Return (scale, shift) that fits two pixels exactly, and half of all pixels best."""
    rng = np.random.default_rng(0)
    pairs = system[rng.integers(0, len(system), (_PAIRS, 2))]  # (pairs, 2, 2)
    pairs = pairs[np.abs(np.linalg.det(pairs)) > 1e-12]
    ones = np.ones((len(pairs), 2, 1))
    plain: Values = np.linalg.lstsq(system, np.ones(len(system)), rcond=None)[0]
    candidates = np.concatenate([plain[None], np.linalg.solve(pairs, ones)[..., 0]])
    some = system[rng.integers(0, len(system), _JUDGES)]
    errors = np.abs(candidates @ some.T - 1)  # (candidates, judges)
    start: Values = candidates[np.median(errors, axis=1).argmin()]
    return start


def fit_scale(values: Values, depth: Values) -> float:
    """Return the scale of depth = scale * values, both (N,); only positive values count."""
    usable = values > 0
    if not usable.any():
        return float("nan")
    return float(np.exp(np.median(np.log(depth[usable] / values[usable]))))


def _samples(
    backend: Backend, folder: RgbdFolder, indices: Sequence[int]
) -> list[tuple[Values, Values]]:
    """Return (values, depth), each (N,), of these frames; without refused ones."""
    samples = []
    for index in indices:
        request = DepthRequest(b"", folder.intrinsics, 0, "")
        try:
            values = backend.infer(folder.image(index), request).depth
        except BackendRefusal as error:
            _LOG.warning("left out of the fit: %s: %s", folder.names[index], error)
            continue
        depth = folder.depth(index)
        rows, columns = np.nonzero(np.isfinite(depth) & (depth > 0))
        chosen = np.random.default_rng(index).permutation(len(rows))[:PIXELS_PER_FRAME]
        rows, columns = rows[chosen], columns[chosen]
        # The same place in both, by pixel centres, at whatever resolutions.
        matched = values[
            ((rows + 0.5) * values.shape[0] / depth.shape[0]).astype(int),
            ((columns + 0.5) * values.shape[1] / depth.shape[1]).astype(int),
        ]
        known = np.isfinite(matched)
        samples.append((matched[known].astype(np.float64), depth[rows, columns][known]))
    return samples


def _joined(frames: Sequence[tuple[Values, Values]]) -> tuple[Values, Values]:
    empty = np.empty(0)
    return (
        np.concatenate([empty, *(values for values, _ in frames)]),
        np.concatenate([empty, *(depth for _, depth in frames)]),
    )
