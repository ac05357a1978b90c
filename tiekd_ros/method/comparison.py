"""Paired comparison: the depth errors of two students on the same frames, frame by frame.

The gate and the canary evaluation are policies over `PairedErrors`; a statistic that either
wants is a property here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from tiekd_ros.core.images import DepthMap, RgbImage
from tiekd_ros.method.metrics import DepthMetrics, best_constant, depth_metrics, mean_metrics
from tiekd_ros.method.samples import Sample
from tiekd_ros.student.bins import DepthBins
from tiekd_ros.student.runtimes.base import Runtime

DepthPredictor = Callable[[RgbImage], DepthMap]
"""Returns depth in metres, (H, W), for an image, uint8 RGB (H, W, 3)."""


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
class PairedErrors:
    """Errors of a candidate and a reference, one entry a frame, of the same frames."""

    candidate: Sequence[DepthMetrics]
    reference: Sequence[DepthMetrics]

    def __len__(self) -> int:
        return len(self.candidate)

    def __add__(self, other: PairedErrors) -> PairedErrors:
        """Return the errors of both, as of one comparison."""
        return PairedErrors(
            [*self.candidate, *other.candidate], [*self.reference, *other.reference]
        )

    @cached_property
    def candidate_mean(self) -> DepthMetrics:
        """The candidate's mean over the frames; BadDepthError where there is none."""
        return mean_metrics(self.candidate)

    @cached_property
    def reference_mean(self) -> DepthMetrics:
        """The reference's mean over the frames; BadDepthError where there is none."""
        return mean_metrics(self.reference)

    def ratio(self, metric: str) -> float:
        """Return the candidate's mean of a metric as a multiple of the reference's."""
        return _ratio(self.candidate_mean, self.reference_mean, metric)

    def frame_ratios(self, metric: str) -> npt.NDArray[np.float64]:
        """Return the candidate's metric as a multiple of the reference's for each frame, (n,)."""
        pairs = zip(self.candidate, self.reference, strict=True)
        return np.array([_ratio(one, other, metric) for one, other in pairs])


def _ratio(candidate: DepthMetrics, reference: DepthMetrics, metric: str) -> float:
    ratio: float = getattr(candidate, metric) / max(getattr(reference, metric), 1e-9)
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
    pairs: list[tuple[DepthMetrics, DepthMetrics]] = []
    for done, frame in enumerate(frames, start=1):
        one = depth_metrics(candidate(frame.image), frame.depth, low, high)
        other = depth_metrics(reference(frame.image), frame.depth, low, high)
        if one is not None and other is not None:
            pairs.append((one, other))
        on_frame(done)
        if len(pairs) == most:
            break
    return PairedErrors([one for one, _ in pairs], [other for _, other in pairs])


def mean_errors(
    predictor: DepthPredictor, frames: Iterable[Sample], bins: DepthBins
) -> DepthMetrics:
    """Return a predictor's mean errors within the range of `bins`; BadDepthError as `compare`."""
    low, high = bins.min_depth_m, bins.max_depth_m
    each = (depth_metrics(predictor(f.image), f.depth, low, high) for f in frames)
    return mean_metrics([errors for errors in each if errors is not None])
