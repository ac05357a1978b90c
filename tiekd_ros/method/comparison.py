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
from tiekd_ros.method.outliers import outliers
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
    """How a metric changes from the reference to the candidate.

    Attributes:
        before: the reference's mean over the frames.
        after: the candidate's.
        relative: the change as a share, above 0 = larger: of `change`, of the frames' ratios, of
            `change_of_mean`, of the means.
        drawn: the same in bootstrap draws of the frames, (1000,).
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

    def without_outliers(self) -> PairedErrors:
        """Return the errors without the frames whose labels both find to be outliers.

        Such a label is likely wrong, and says nothing. The frames have to be in the order of time.
        """
        each = (self.candidate, self.reference)
        found = np.logical_and(*(outliers([one.abs_rel for one in own]) for own in each))
        kept = ([one for one, lies in zip(own, found, strict=True) if not lies] for own in each)
        return PairedErrors(*kept)

    @cached_property
    def candidate_mean(self) -> FrameMetrics:
        """The candidate's mean over the frames; BadDepthError where there is none."""
        return mean_metrics(self.candidate)

    @cached_property
    def reference_mean(self) -> FrameMetrics:
        """The reference's mean over the frames; BadDepthError where there is none."""
        return mean_metrics(self.reference)

    def change(self, metric: str) -> Change | None:
        """Return how a metric changes frame by frame; None where no frame has it.

        The geometric mean of the frames' ratios: a frame counts by how much better or worse it
        is, not by how large its errors are, so that fewer frames tell as much.

        Args:
            metric: field of `FrameMetrics`, above 0.
        """
        pairs = np.maximum(self._values(metric), _TINY)  # NaN stays
        ratios = np.log(pairs[:, :1] / pairs[:, 1:])  # (n, 1)

        def relative(drawn: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
            return np.asarray(np.expm1(drawn[..., 0].mean(axis=-1)))

        return _change(pairs, ratios, relative)

    def change_of_mean(
        self, metric: str, *, worst: float = 1.0, least: float = _TINY
    ) -> Change | None:
        """Return how a metric's mean changes; None where no frame has it.

        Args:
            metric: field of `FrameMetrics`.
            worst: only the frames where each is largest count, this share of them.
            least: changes are relative to the reference's mean, but to no less than this.
        """
        pairs = self._values(metric)
        count = math.ceil(worst * len(pairs))

        def relative(drawn: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
            after, before = np.moveaxis(
                np.sort(drawn, axis=-2)[..., -count:, :].mean(axis=-2), -1, 0
            )
            return np.asarray((after - before) / np.maximum(before, least))

        return _change(np.sort(pairs, axis=0)[-count:], pairs, relative)

    def _values(self, metric: str) -> npt.NDArray[np.float64]:
        """Return candidate's and reference's values of the frames that have it, (n, 2)."""
        pairs = zip(self.candidate, self.reference, strict=True)
        values = [(getattr(a, metric), getattr(b, metric)) for a, b in pairs]
        found = np.array(values, np.float64).reshape(-1, 2)
        return found[~np.isnan(found[:, 1])]

    def ratio(self, metric: str) -> float:
        """Return the candidate's mean of a metric as a multiple of the reference's."""
        before: float = getattr(self.reference_mean, metric)
        after: float = getattr(self.candidate_mean, metric)
        return after / max(before, _TINY)


def _change(
    pairs: npt.NDArray[np.float64],
    frames: npt.NDArray[np.float64],
    relative: Callable[[npt.NDArray[np.float64]], npt.NDArray[np.float64]],
) -> Change | None:
    """Return a change and its bootstrap draws; None where there is no frame.

    Frames are drawn in blocks of neighbours, as they come, since neighbours err alike (moving-block
    bootstrap, Künsch 1989): the fewer the frames, the wider what is drawn.

    Args:
        pairs: whose means are told, (m, 2).
        frames: values of each frame, (n, v).
        relative: the change by the frames, (..., n, v) -> (...).
    """
    if not len(frames):
        return None
    after, before = pairs.mean(axis=0)
    drawn = relative(frames[_blocks(len(frames))])
    return Change(float(before), float(after), float(relative(frames)), drawn)


@lru_cache(maxsize=8)
def _blocks(count: int) -> npt.NDArray[np.int64]:
    """Return indices of frames, each row a draw of blocks of neighbours: (draws, count)."""
    length = round(count ** (1 / 3))
    first = np.random.default_rng(0).integers(count, size=(_DRAWS, math.ceil(count / length), 1))
    drawn: npt.NDArray[np.int64] = ((first + np.arange(length)) % count).reshape(_DRAWS, -1)
    return drawn[:, :count]


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
