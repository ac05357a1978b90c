"""Paired comparison: the depth errors of two students on the same frames, frame by frame.

The gate and the canary evaluation are policies over `PairedErrors`; a statistic that either
wants is a property here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
import numpy.typing as npt

from tiekd_ros.core.images import DepthMap, RgbImage
from tiekd_ros.method.metrics import FrameMetrics, best_constant, frame_metrics, mean_metrics
from tiekd_ros.method.samples import Sample
from tiekd_ros.student.bins import DepthBins
from tiekd_ros.student.runtimes.base import Runtime

DepthPredictor = Callable[[RgbImage], DepthMap]
"""Returns depth in metres, (H, W), for an image, uint8 RGB (H, W, 3)."""

_DRAWS = 1000
_TINY = 1e-9


def student_predictor(runtime: Runtime) -> DepthPredictor:
    """Return the predictor that a student's runtime is."""
    return lambda image: runtime.predict(image, confidence=False).depth


def constant_predictor(samples: Sequence[Sample], bins: DepthBins) -> DepthPredictor:
    """Return the predictor that gives the best constant depth of these samples.

    Raises:
        BadDepthError: no sample has a pixel of known depth inside the range of `bins`.
    """
    constant = best_constant([s.depth for s in samples], bins.min_depth_m, bins.max_depth_m)
    return lambda image: np.full(image.shape[:2], constant, np.float32)


@dataclass(frozen=True)
class Change:
    """How a metric's mean changes from the reference to the candidate.

    Attributes:
        before: the reference's mean.
        after: the candidate's.
        relative: the change as a share of `before`; above 0 = larger.
        drawn: the same in bootstrap draws of the frames, (1000,), ascending.
    """

    before: float
    after: float
    relative: float
    drawn: npt.NDArray[np.float64]

    def interval(self, level: float) -> tuple[float, float]:
        """Return the ends between which this share of the draws lies."""
        low, high = np.quantile(self.drawn, (0.5 - level / 2, 0.5 + level / 2))
        return float(low), float(high)


@dataclass(frozen=True)
class PairedErrors:
    """Errors of a candidate and a reference, one entry a frame, of the same frames."""

    candidate: Sequence[FrameMetrics]
    reference: Sequence[FrameMetrics]

    def __len__(self) -> int:
        return len(self.candidate)

    def __add__(self, other: PairedErrors) -> PairedErrors:
        """Return the errors of both, as of one comparison."""
        return PairedErrors(
            [*self.candidate, *other.candidate], [*self.reference, *other.reference]
        )

    @cached_property
    def candidate_mean(self) -> FrameMetrics:
        """The candidate's mean over the frames; BadDepthError where there is none."""
        return mean_metrics(self.candidate)

    @cached_property
    def reference_mean(self) -> FrameMetrics:
        """The reference's mean over the frames; BadDepthError where there is none."""
        return mean_metrics(self.reference)

    def change(self, metric: str, *, worst: float = 1.0, least: float = _TINY) -> Change | None:
        """Return how a metric changes over the frames that have it; None where none has.

        Frames are drawn in blocks of neighbours, as they come, since neighbours err alike
        (moving-block bootstrap, Künsch 1989): the fewer the frames, the wider what is drawn.

        Args:
            metric: field of `FrameMetrics`.
            worst: only the frames where each is largest count, this share of them.
            least: changes are relative to the reference's mean, but to no less than this.
        """
        pairs = zip(self.candidate, self.reference, strict=True)
        values = np.array([(getattr(a, metric), getattr(b, metric)) for a, b in pairs])
        values = values[~np.isnan(values[:, 1])] if len(values) else values
        if not len(values):
            return None
        count = math.ceil(worst * len(values))

        def means(chosen: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:  # (..., n) -> (...)
            mean: npt.NDArray[np.float64] = np.sort(chosen, axis=-1)[..., -count:].mean(axis=-1)
            return mean

        after, before = (float(means(values[:, i])) for i in (0, 1))
        draws = _blocks(len(values))
        drawn_after, drawn_before = (means(values[:, i][draws]) for i in (0, 1))
        relative = (drawn_after - drawn_before) / np.maximum(drawn_before, least)
        return Change(before, after, (after - before) / max(before, least), np.sort(relative))

    def ratio(self, metric: str) -> float:
        """Return the candidate's mean of a metric as a multiple of the reference's."""
        return _ratio(self.candidate_mean, self.reference_mean, metric)

    def frame_ratios(self, metric: str) -> npt.NDArray[np.float64]:
        """Return the candidate's metric as a multiple of the reference's for each frame, (n,)."""
        pairs = zip(self.candidate, self.reference, strict=True)
        return np.array([_ratio(one, other, metric) for one, other in pairs])


@lru_cache(maxsize=8)
def _blocks(count: int) -> npt.NDArray[np.int64]:
    """Return indices of frames, each row a draw of blocks of neighbours: (draws, count)."""
    length = round(count ** (1 / 3))
    first = np.random.default_rng(0).integers(count, size=(_DRAWS, math.ceil(count / length), 1))
    drawn: npt.NDArray[np.int64] = ((first + np.arange(length)) % count).reshape(_DRAWS, -1)
    return drawn[:, :count]


def _ratio(candidate: FrameMetrics, reference: FrameMetrics, metric: str) -> float:
    ratio: float = getattr(candidate, metric) / max(getattr(reference, metric), _TINY)
    return ratio


def compare(
    candidate: DepthPredictor,
    reference: DepthPredictor,
    frames: Iterable[Sample],
    bins: DepthBins,
    *,
    most: int | None = None,
    on_frame: Callable[[int], object] = lambda done: None,
) -> PairedErrors:
    """Compare two predictors on frames, within one depth range.

    Args:
        candidate: predicts what is judged.
        reference: predicts what it is judged against.
        frames: with their labels; one without a valid pixel inside the range is passed over.
        bins: only their range counts.
        most: stop after so many frames that could be compared.
        on_frame: called after each frame with the number of frames done.

    Raises:
        BadDepthError: a predictor gives NaN, or depth of another size.
    """
    low, high = bins.min_depth_m, bins.max_depth_m
    pairs: list[tuple[FrameMetrics, FrameMetrics]] = []
    for done, frame in enumerate(frames, start=1):
        one = frame_metrics(candidate(frame.image), frame.depth, low, high)
        other = frame_metrics(reference(frame.image), frame.depth, low, high)
        if one is not None and other is not None:
            pairs.append((one, other))
        on_frame(done)
        if len(pairs) == most:
            break
    return PairedErrors([one for one, _ in pairs], [other for _, other in pairs])


def mean_errors(
    predictor: DepthPredictor, frames: Iterable[Sample], bins: DepthBins
) -> FrameMetrics:
    """Return a predictor's mean errors within the range of `bins`; BadDepthError as `compare`."""
    low, high = bins.min_depth_m, bins.max_depth_m
    each = (frame_metrics(predictor(f.image), f.depth, low, high) for f in frames)
    return mean_metrics([errors for errors in each if errors is not None])
