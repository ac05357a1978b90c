"""What runs a student: one RGB image in, metric depth and confidence out.

Shapes: H and W the image, Hn and Wn the network's input, h and w its raw output (a quarter of
the input for the fast student, the input's own size for the published ones).
"""

from __future__ import annotations

import itertools
import time
from typing import NamedTuple, Protocol

import cv2
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from tiekd_ros.core.images import DepthMap, RgbImage, resize_depth
from tiekd_ros.student.architecture import SHIFT, DpmNetwork, InputSize, Moments, StudentNetwork
from tiekd_ros.student.checkpoint import CheckpointError, StudentCard

_HIGHEST = 80.0  # exp of it, times 4096 bins, still is a float32
_MEANINGFUL = 1e6  # larger logits have lost their decimals


def fuse_batch_norms(network: StudentNetwork) -> StudentNetwork:
    """Fold every batch norm of a network in eval mode into its convolution, in place.

    All networks here register a batch norm right behind the convolution that feeds it.
    """
    for parent in list(network.modules()):
        for (name, before), (behind, norm) in itertools.pairwise(parent.named_children()):
            if isinstance(before, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                setattr(parent, name, fuse_conv_bn_eval(before, norm))
                setattr(parent, behind, nn.Identity())
    return network


@torch.no_grad()
def shift_logits(network: StudentNetwork) -> bool:
    """Fold a shift into the last layer that keeps exp(logits) a number; return whether it did.

    softmax(z) = softmax(z - s) for any s. The usual s, the largest logit of each pixel, costs two
    passes over all logits. Their mean over the bins is as linear as the layer itself: taking
    the weights' mean over the bins away from the weights shifts all logits by it for free. The
    largest logit then is >= 0, so the sum of exp cannot vanish; that it cannot overflow has to
    be shown. Where the layer's input lies in 0 .. L, no logit of bin c can be above
    b_c + L sum_i max(0, w_ci). float32 leaves room from exp(-87) to exp(88); the bias takes
    another `SHIFT` away to use it on both sides. Where that is not enough, or L is not known,
    nothing is changed and `moments` takes the largest logit as ever.
    """
    if not isinstance(network, DpmNetwork) or network.shifted:
        return isinstance(network, DpmNetwork) and network.shifted
    layer = network.classifier
    assert layer.bias is not None
    weight, bias = layer.weight.double(), layer.bias.double()  # (C, K, 1, 1), (C)
    limit = network.feature_limit
    sized = bias.abs() + limit * weight.abs().sum(dim=(1, 2, 3))  # |logit| at most, by bin
    weight, bias = weight - weight.mean(dim=0), bias - bias.mean() - SHIFT
    highest = bias + limit * weight.clamp_min(0).sum(dim=(1, 2, 3))
    if not (bool(sized.max() < _MEANINGFUL) and bool(highest.max() < _HIGHEST)):  # NaN neither
        return False
    layer.weight.copy_(weight)
    layer.bias.copy_(bias)
    network.shifted = True
    return True


_ROUNDING = 1e-5  # of a depth at the very end of the range
_SAME_M, _SAME_SHARE = 0.01, 0.005  # depth of two ways to run one student may differ by so much
_MOST_OTHER = 0.01  # share of pixels that may differ by more


class StageTimes(NamedTuple):
    """Where the time of one prediction went, milliseconds."""

    preprocess: float
    network: float
    postprocess: float


class Prediction(NamedTuple):
    """What a student says of one image."""

    depth: DepthMap
    """Metres, float32 (H, W)."""
    confidence: npt.NDArray[np.float32] | None
    """0..1, (H, W); NaN, not known, where the student has no depth probability map. None where
    it was not asked for."""
    times: StageTimes


class Runtime(Protocol):
    """A student ready to run: on its device, warmed and proved."""

    card: StudentCard
    description: str
    """For people: `torch, cpu, 1 thread`."""

    def predict(
        self,
        image: RgbImage,
        size: tuple[int, int] | None = None,
        *,
        confidence: bool = True,
    ) -> Prediction:
        """Predict depth for one RGB image, uint8 (H, W, 3).

        Args:
            image: the camera's image, any size.
            size: (height, width) of the answer; the image's own where None.
            confidence: whether to compute the confidence as well.

        Raises:
            BadImageError: it is no RGB image.
        """
        ...


class Stopwatch:
    """Measures one prediction's stages, which end one after the other."""

    def __init__(self) -> None:
        self._marks = [time.perf_counter()]

    def lap(self) -> None:
        """End a stage, and begin the next."""
        self._marks.append(time.perf_counter())

    def times(self) -> StageTimes:
        """End the last stage and return all three, in milliseconds."""
        start, prepared, answered = self._marks
        ended = time.perf_counter()
        each = (prepared - start, answered - prepared, ended - answered)
        return StageTimes(*(seconds * 1e3 for seconds in each))


def confidence_of(card: StudentCard, moments: Moments) -> Tensor:
    """Return how sure a student is, 0..1, (B, 1, h, w).

    How often it is right where it says so (`ConfidenceScale`); of one for which no round has fitted
    that, 1 = as sharp as it was taught.
    """
    if card.confidence is not None:
        return card.confidence.confidence(moments.std / moments.mean, moments.novelty)
    sigma = card.target.sigma(moments.mean, card.bins)
    return (sigma / moments.std.clamp_min(1e-6)).clamp_max(1.0)


def answer_on_cpu(
    card: StudentCard, moments: Moments, size: tuple[int, int], confidence: bool
) -> tuple[DepthMap, npt.NDArray[np.float32] | None]:
    """Return depth and, if asked for, confidence of one image at a (height, width).

    Args:
        card: of the student that said so.
        moments: each (1, 1, h, w), on the CPU.
        size: of the answer.
        confidence: whether it is asked for.
    """
    said = moments.mean[0, 0].numpy()
    depth = said.copy() if said.shape == size else resize_depth(said, *size)
    if not confidence:
        return depth, None
    sure = confidence_of(card, moments)[0, 0].numpy()
    height, width = size
    return depth, cv2.resize(sure, (width, height))


def in_threads(count: int) -> str:
    """Say it in words."""
    return "1 thread" if count == 1 else f"{count} threads"


def probe_image(size: InputSize) -> RgbImage:
    """Return an image that has all values, uint8 RGB (Hn, Wn, 3)."""
    ramp = np.linspace(0, 255, size.height * size.width * 3).astype(np.uint8)
    return ramp.reshape(size.height, size.width, 3)


def same_depth(one: DepthMap, other: DepthMap) -> bool:
    """Say whether two depth maps, metres, are the same within 1 cm or 0.5 %; NaN is not.

    But for one pixel in a hundred: where a pixel sees two surfaces of about one weight, rounding
    decides on which it is (two modes of its depth probability map, two cells, two neighbours).
    """
    same = np.abs(one - other) <= np.maximum(_SAME_M, _SAME_SHARE * one)
    known = np.isfinite(one).all() and np.isfinite(other).all()
    return bool(known and same.mean() >= 1 - _MOST_OTHER)


def prove(runtime: Runtime, *, has_dpm: bool) -> None:
    """Warm a runtime with a probe image and refuse what it could not go live with.

    Args:
        runtime: just made; its first run pays for kernels and memory.
        has_dpm: whether it has to know its confidence.

    Raises:
        CheckpointError: the answer is not finite or lies outside the student's depth range.
    """
    card = runtime.card
    depth, confidence, _ = runtime.predict(probe_image(card.input_size))
    finite = bool(np.isfinite(depth).all())
    if has_dpm:
        finite = finite and confidence is not None and bool(np.isfinite(confidence).all())
    bins = card.bins
    low, high = bins.min_depth_m * (1 - _ROUNDING), bins.max_depth_m * (1 + _ROUNDING)
    if not finite or depth.min() < low or depth.max() > high:
        raise refusal(card)


def refusal(card: StudentCard) -> CheckpointError:
    """Return the error for a student that gives no depth."""
    bins = card.bins
    return CheckpointError(
        f"student {card.version or '(unsaved)'} answers a probe image with depth "
        f"outside {bins.min_depth_m:g} .. {bins.max_depth_m:g} m; it is not used"
    )
