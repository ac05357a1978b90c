"""A teacher whose numbers are fitted to metres, once, when it starts; only where that is asked for.

The fit is made with one camera. An image tells a network how large things appear, not how far they
are: f x / z stays the same where a scene is stretched along the optical axis by f' / f and taken
with the focal length f' in place of f. The network then answers the same, and depth is f' / f times
as large: metres by the fit times the ratio of the focal lengths. This is why metric networks are
trained for one canonical camera (Metric3D, arXiv 2307.10984; Depth Pro, arXiv 2410.02073, section
3.2). An image whose rows and columns have unequal ratios shows the network another scene: beyond
`MOST_UNEQUAL` it is refused. A network may go by perspective too, which betrays the focal length
and which no frame of the fit has judged: beyond `LARGEST_STRETCH` an image is refused. A network
that takes the focal length has done its part already, and is left alone.

The fit, by the meaning of the numbers:

- inverse depth x: 1 / d = scale * x + shift, the scale and shift that make the relative error
  (scale * x + shift) * d - 1 smallest; least squares with Tukey's weights, which outliers (the
  sensor's, the network's) do not move;
- depth in an unknown unit, or in metres that are off: d = scale * x, where the scale is
  exp(median(log(d / x))).

Blocks of frames make and judge it in turn (`split_frames`). A network that is free to choose
another scale for each image fits badly as a whole: the error that is said is what that costs.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from tiekd_ros.core.camera import Intrinsics
from tiekd_ros.core.images import DepthMap, RgbImage
from tiekd_ros.datasets import RgbdFolder
from tiekd_ros.teacher.backend import Backend, check_request, infer_all
from tiekd_ros.teacher.backends.network import (
    INVERSE_DEPTH,
    METRIC,
    BatchedBackend,
    Meaning,
    fingerprint,
    finished,
    meaning_of,
    seen_focal_px,
)
from tiekd_ros.teacher.errors import BackendError, BackendRefusal
from tiekd_ros.teacher.protocol import DepthAnswer, DepthRequest, TeacherIdentity

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
    """Formula from a teacher's numbers to metres, and its errors."""

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

    Every second of up to `_BLOCKS` blocks judges, beginning with the second block. The first frames
    behind a border do neither: they show nearly what those before it show. A single frame makes
    the fit, and nothing judges it.
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


LARGEST_STRETCH = 1.5
"""Ratio of focal lengths, either way, up to which a fit serves another camera."""
MOST_UNEQUAL = 1.1
"""Up to so much, either way, may that ratio differ between rows and columns."""
_WAY_OUT = "the server has to be fitted to frames of such a camera, of such a size (--align)"


class AlignedBackend(BatchedBackend):
    """A teacher whose numbers are turned into metres by a fit; metric, whatever it was before.

    For a camera of another focal length than the fit's, metres are stretched (see the module); an
    image without intrinsics counts as one of the fit's camera, and has to have its aspect.

    What the fit was made of is part of the version: fitted to other frames, it is another teacher.
    What came out is not, for its last digits change with the device.

    Raises:
        DatasetError: the folder cannot be read.
        BackendError: the teacher does not say what its numbers are, or the fit is too bad.
    """

    def __init__(self, backend: Backend, folder: str | Path, max_error: float) -> None:
        """Fit `backend` to the measured depth in `folder`.

        Args:
            backend: the teacher, of any meaning.
            folder: images/, depth/ and K.txt, as `RgbdFolder` reads them.
            max_error: largest median relative error that is served.
        """
        self._backend = backend
        frames = RgbdFolder(Path(folder).expanduser())
        self.fit = fit_to_folder(backend, frames, max_error)
        self._camera, self._camera_size = frames.intrinsics, frames.image_size
        before = backend.identity
        made_of = [before.version, self.fit.meaning, METHOD]
        self.identity = TeacherIdentity(
            name=before.name.removesuffix(f" ({self.fit.meaning})"),
            version=f"{before.version}-aligned-{fingerprint(frames.files, made_of)}",
            metric=True,
        )
        _LOG.info("%s fitted to %s: %s", before.name, folder, self.fit)

    def check(self, request: DepthRequest, height: int, width: int) -> None:
        """Refuse what the teacher refuses, and a focal length too far from the fit's."""
        check_request(self._backend, request, height, width)
        self._stretch(request, height, width)

    def infer_batch(
        self, images: Sequence[RgbImage], requests: Sequence[DepthRequest]
    ) -> list[DepthAnswer]:
        """Label images of one size in metres.

        Raises:
            BackendRefusal: as `check`, and where all of an image is farther than the fit holds.
        """
        height, width = images[0].shape[:2]
        stretches = [self._stretch(request, height, width) for request in requests]
        answers = infer_all(self._backend, images, requests)
        return [
            DepthAnswer(self._metres(answer.depth, stretch), answer.confidence)
            for answer, stretch in zip(answers, stretches, strict=True)
        ]

    def _metres(self, values: DepthMap, stretch: float) -> DepthMap:
        depth = self.fit.metres(values, stretch)
        # What the network itself does not know is not the fit's doing, nor the image's.
        if np.isnan(depth).all() and not np.isnan(values).all():
            raise BackendRefusal(
                f"all of it is beyond {self.fit.farthest_m * stretch:.3g} m, where the fit to "
                "metres was never seen to hold"
            )
        return depth

    def _stretch(self, request: DepthRequest, height: int, width: int) -> float:
        """Return the focal length over the fit's, both in pixels of the network's input."""
        if self.fit.focal_px is None:
            return 1.0
        camera = request.intrinsics or self._fit_camera(height, width)
        seen = seen_focal_px(self._backend, camera, height, width)
        assert seen is not None  # as for the fit: it is the network that decides
        in_x, in_y = (own / fitted for own, fitted in zip(seen, self.fit.focal_px, strict=True))
        if not all(_within(ratio, LARGEST_STRETCH) for ratio in (in_x, in_y)):
            raise BackendRefusal(
                f"this {width}x{height} image reaches the network with {_focals(seen)}, and the "
                f"network was fitted to metres at {_focals(self.fit.focal_px)}: beyond a factor "
                f"of {LARGEST_STRETCH:g} the fit says little; {_WAY_OUT}"
            )
        if not _within(in_x / in_y, MOST_UNEQUAL):
            raise BackendRefusal(
                f"this {width}x{height} image reaches the network stretched, with "
                f"{_focals(seen)}, and the network was fitted to metres at "
                f"{_focals(self.fit.focal_px)}: the fit says nothing of such images; send one of "
                f"the fit's aspect, or {_WAY_OUT}"
            )
        return math.sqrt(in_x * in_y)

    def _fit_camera(self, height: int, width: int) -> Intrinsics:
        """Return the fit's camera, at the size of an image whose own is not known."""
        own_width, own_height = self._camera_size
        factor = width / own_width
        if not _within(factor * own_height / height, MOST_UNEQUAL):
            raise BackendRefusal(
                f"this {width}x{height} image comes without intrinsics and has another aspect "
                f"than the {own_width}x{own_height} frames of the fit to metres, so that it is "
                "not of their camera; send `intrinsics` with it"
            )
        return self._camera.scaled(factor, factor)


def _within(ratio: float, largest: float) -> bool:
    return 1 / largest <= ratio <= largest


def _focals(pixels: tuple[float, float]) -> str:
    x, y = (f"{each:.0f}" for each in pixels)
    return f"a focal length of {x if x == y else f'{x} (columns {y})'} pixels"
