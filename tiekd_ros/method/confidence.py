"""Confidence that means something: how often depth is right, fitted on held-out frames.

A student's spread orders pixels well where it has learnt, but what a spread is worth differs from
student to student. Two numbers make a confidence of it (logistic regression of right or wrong on
the logarithm of std / mean, Platt 1999). Where the student has not learnt, its spread says nothing:
there the distance of what it sees to what it was trained on lowers the confidence
(`StudentNetwork.remember`).

Shapes: N frames.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from tiekd_ros.core.settings import Settings, setting
from tiekd_ros.method.metrics import valid_pixels
from tiekd_ros.method.samples import Sample, spread
from tiekd_ros.student.architecture import StudentNetwork
from tiekd_ros.student.checkpoint import LEAST_SPREAD, ConfidenceScale
from tiekd_ros.student.preprocessing import normalise

_MEMORY_FRAMES = 128  # that are looked at, at most
_PIXELS = 2000  # of a frame: its neighbours say the same
_KNOWN_QUANTILE = 0.95  # share of the held-out frames whose novelty counts as known
_STEPS = 50  # of Newton's method; ten would do
_FINE = 1e-6  # a smaller step ends it
_PRIOR = 1.0  # weight of "a spread of 7 % is right half the time", in pixels
_PRIOR_SCALE = (-5.3, 2.0)  # offset and slope
_BINS = 10
_GAP_LEVELS = (0.5, 0.7, 0.9)
_HALF_WIDTH = 0.05  # around these
_LEAST_SHARE = 0.005  # of the pixels

Values = npt.NDArray[np.float64]


@dataclass(frozen=True)
class ConfidenceSettings(Settings):
    """What a confidence says."""

    tolerance: float = setting(
        0.1,
        "of pixels with confidence c, a share c is off by at most this share of the label",
        minimum=0.01,
        maximum=1.0,
    )


@dataclass(frozen=True)
class FrameSpread:
    """What a student says of pixels of one frame whose depth is known, each (n,)."""

    relative_std: Values
    error: Values
    """Absolute, relative to the label."""
    novelty: float
    """Of the frame; 0 where it is not known."""


def remember_frames(
    network: StudentNetwork, samples: Sequence[Sample], pause: Callable[[], object] = lambda: None
) -> None:
    """Have a network in eval mode remember what it was trained on, if it can.

    Args:
        network: is changed.
        samples: at its input's size; at most 128, spread over all, are looked at.
        pause: called after each frame.
    """
    found = []
    for sample in spread(samples, _MEMORY_FRAMES):
        summary = network.summary(_raw(network, sample))
        if summary is None:
            return
        found.append(summary)
        pause()
    network.remember(torch.cat(found))


@torch.no_grad()
def _raw(network: StudentNetwork, sample: Sample) -> object:
    device = next(network.parameters()).device
    return network(normalise(torch.from_numpy(sample.image[None]).to(device)))


@torch.no_grad()
def frame_spreads(
    network: StudentNetwork, samples: Iterable[Sample], pause: Callable[[], object] = lambda: None
) -> list[FrameSpread]:
    """Return what a network in eval mode says of the frames that have known depth.

    Args:
        network: has a DPM.
        samples: at its input's size, with labels.
        pause: called after each frame.
    """
    found, bins = [], network.bins
    for sample in samples:
        mean, std, novelty = network.moments(_raw(network, sample))
        size = sample.depth.shape
        depth, deviation = (_at(each, size).ravel() for each in (mean, std))
        known = np.flatnonzero(valid_pixels(sample.depth, bins.min_depth_m, bins.max_depth_m))
        if len(known):
            chosen = known[:: -(-len(known) // _PIXELS)]
            said, truth = depth[chosen], sample.depth.ravel()[chosen].astype(np.float64)
            new = 0.0 if novelty is None else float(novelty.flatten()[0])
            found.append(FrameSpread(deviation[chosen] / said, np.abs(said - truth) / truth, new))
        pause()
    return found


def _at(values: Tensor, size: tuple[int, ...]) -> Values:
    if values.shape[2:] != size:
        values = functional.interpolate(values, size, mode="nearest-exact")
    found: Values = values[0, 0].double().cpu().numpy()
    return found


def fit_confidence(frames: Sequence[FrameSpread], tolerance: float) -> ConfidenceScale:
    """Return the scale that fits frames which the student did not learn from.

    Args:
        frames: one or more.
        tolerance: relative error up to which a pixel is right.
    """
    spreads = np.concatenate([frame.relative_std for frame in frames])
    right = relative_errors(frames) <= tolerance
    x = np.stack((np.ones_like(spreads), -np.log(np.maximum(spreads, LEAST_SPREAD))))  # (2, n)
    weights = _logistic_regression(x, right)
    if weights[1] < 0:  # the spread misleads: say how often it is right on the whole
        share = (right.sum() + 0.5) / (len(right) + 1)
        weights = np.array([np.log(share / (1 - share)), 0.0])
    novelty = float(np.quantile([frame.novelty for frame in frames], _KNOWN_QUANTILE))
    return ConfidenceScale(tolerance, float(weights[0]), float(weights[1]), novelty)


def _logistic_regression(x: Values, right: npt.NDArray[np.bool_]) -> Values:
    """Return weights w, (2,), such that sigmoid(w @ x) fits what is right, (n,), for x (2, n).

    Newton's method; a step is halved until it helps, without which it may go to and fro for ever.
    """
    prior = np.array(_PRIOR_SCALE)

    def cost(weights: Values) -> float:
        z = weights @ x
        far = weights - prior
        return float(np.logaddexp(0.0, z).sum() - z[right].sum() + 0.5 * _PRIOR * (far @ far))

    weights = prior.copy()
    for _ in range(_STEPS):
        p = _sigmoid(weights @ x)
        gradient = x @ (right - p) - _PRIOR * (weights - prior)
        hessian = (x * p * (1 - p)) @ x.T + _PRIOR * np.eye(2)
        step = np.linalg.solve(hessian, gradient)
        before = cost(weights)
        while cost(weights + step) > before and np.abs(step).max() > _FINE:
            step = step / 2
        weights = weights + step
        if np.abs(step).max() <= _FINE:
            break
    return weights


def _sigmoid(x: Values) -> Values:
    y: Values = 0.5 * (1 + np.tanh(0.5 * x))
    return y


@dataclass(frozen=True)
class ConfidenceErrors:
    """How far a confidence is from what it says, over pixels.

    Attributes:
        mean: of the confidence.
        right: share of the pixels that are right.
        gaps: by confidence, 0.5, 0.7 and 0.9: the share that is right less the confidence, among
            the pixels that say about so; NaN = too few do.
        ence: |share that is right - confidence| / confidence, the mean of ten bins of as many
            pixels each (expected normalised calibration error, after Levi et al., arXiv
            1905.11659).
        ause: area between the sparsification curve of AbsRel and the best one: what the order of
            the pixels costs, 0 = nothing.
        ause_constant: that of a confidence that orders nothing.
    """

    mean: float
    right: float
    gaps: dict[float, float]
    ence: float
    ause: float
    ause_constant: float

    def as_dict(self) -> dict[str, float]:
        """Return the values that are known by name, for a card."""
        gaps = {f"gap at {level:g}": gap for level, gap in self.gaps.items() if np.isfinite(gap)}
        names = ("mean", "right", "ence", "ause", "ause_constant")
        return {name: getattr(self, name) for name in names} | gaps


def confidence_errors(said: Values, error: Values, tolerance: float) -> ConfidenceErrors:
    """Return how well confidences do.

    Args:
        said: the confidences, (n,).
        error: of depth, relative to the label, the same shape.
        tolerance: error up to which a pixel is right.
    """
    right = error <= tolerance
    order = np.argsort(-said, kind="stable")
    parts = [(said[i].mean(), right[i].mean()) for i in np.array_split(order, _BINS) if len(i)]
    count = np.arange(1, len(order) + 1)
    best, own = (np.cumsum(error[o]) / count for o in (np.argsort(error), order))
    return ConfidenceErrors(
        mean=float(said.mean()),
        right=float(right.mean()),
        gaps={level: _gap(said, right, level) for level in _GAP_LEVELS},
        ence=float(np.mean([abs(share - mean) / max(mean, 1e-3) for mean, share in parts])),
        ause=float((own - best).mean()),
        ause_constant=float((error.mean() - best).mean()),
    )


def confidences(scale: ConfidenceScale, frames: Sequence[FrameSpread]) -> Values:
    """Return the confidences of all pixels of frames, one after the other."""
    stds = torch.from_numpy(np.concatenate([frame.relative_std for frame in frames]))
    new = np.concatenate([np.full(len(frame.error), frame.novelty) for frame in frames])
    said: Values = scale.confidence(stds, torch.from_numpy(new)).numpy()
    return said


def relative_errors(frames: Sequence[FrameSpread]) -> Values:
    """Return the errors of all pixels of frames, one after the other."""
    return np.concatenate([frame.error for frame in frames])


def _gap(said: Values, right: npt.NDArray[np.bool_], level: float) -> float:
    about = np.abs(said - level) <= _HALF_WIDTH
    enough = about.sum() >= _LEAST_SHARE * len(said)
    return float((right[about] - said[about]).mean()) if enough else float("nan")


def calibrated(
    frames: Sequence[FrameSpread], tolerance: float
) -> tuple[ConfidenceScale, ConfidenceErrors] | None:
    """Return the scale that fits frames, and how well one does on frames that it was not fitted to.

    That is judged in two folds: of the earlier half of the frames on the later half, and the
    reverse. None where there are not two frames.
    """
    middle = len(frames) // 2
    if not middle:
        return None
    halves = frames[:middle], frames[middle:]
    first, second = (fit_confidence(half, tolerance) for half in halves)
    said = np.concatenate((confidences(second, halves[0]), confidences(first, halves[1])))
    errors = confidence_errors(said, relative_errors(frames), tolerance)
    return fit_confidence(frames, tolerance), errors
