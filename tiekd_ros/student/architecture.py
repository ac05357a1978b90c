"""What every student network is: an image in, a depth probability map (DPM) or depth out.

Shapes: B batch, C bins, H and W the network's input, h and w its raw output (H / output_scale,
W / output_scale, rounded up).
"""

from __future__ import annotations

import abc
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from tiekd_ros.core.errors import InvalidSettingError
from tiekd_ros.core.settings import Settings, setting
from tiekd_ros.student.bins import DepthBins

STRIDE = 32
"""Input sizes on a robot are multiples of this, which suits every architecture."""


@dataclass(frozen=True)
class InputSize(Settings):
    """Size of the image that the network sees."""

    height: int = setting(
        224, "network input height, a multiple of 32", unit="px", minimum=64, maximum=4096
    )
    width: int = setting(
        320, "network input width, a multiple of 32", unit="px", minimum=64, maximum=4096
    )

    def check(self) -> None:
        """Refuse sizes that are no multiple of the networks' stride."""
        for name, value in (("height", self.height), ("width", self.width)):
            if value % STRIDE:
                near = max(64, round(value / STRIDE) * STRIDE)
                raise InvalidSettingError(
                    f"{name} must be a multiple of {STRIDE}, got {value}; {near} would do"
                )

    @classmethod
    def near(cls, image_height: int, image_width: int, pixels: int) -> InputSize:
        """Return the size with about `pixels` pixels and the image's aspect ratio."""
        aspect = image_width / image_height
        height = max(2, round((pixels / aspect) ** 0.5 / STRIDE)) * STRIDE
        width = max(2, round(height * aspect / STRIDE)) * STRIDE
        return cls(height=height, width=width)


class StudentOutput:
    """What a training objective sees of a raw output; gradients flow through it.

    Attributes:
        logits: of the DPM, before softmax, (B, C, h, w); None where the head regresses depth.
    """

    def __init__(
        self,
        logits: Tensor | None,
        depth: Callable[[], Tensor],
        fine_depth: Callable[[], Tensor] | None = None,
    ) -> None:
        self.logits = logits
        self._depth = depth
        self._fine_depth = fine_depth

    @cached_property
    def depth(self) -> Tensor:
        """Metres, (B, 1, h, w); made when asked for, since a DPM's costs maps of all bins."""
        return self._depth()

    @cached_property
    def fine_depth(self) -> Tensor | None:
        """Metres at the input's resolution, (B, 1, H, W); None where there is no finer map."""
        return None if self._fine_depth is None else self._fine_depth()


class Moments(NamedTuple):
    """What a student says of each pixel, in metres; std NaN = not known.

    Each (B, 1, h, w), or (B, 1, H, W) where a network upsamples by itself.
    """

    mean: Tensor
    std: Tensor
    novelty: Tensor | None = None
    """How far what is seen is from all that the student learnt from: one value for all pixels, 0
    where that is not known. None where the network cannot tell."""


class StudentNetwork(nn.Module, abc.ABC):
    """Base of all students.

    One has a submodule `backbone`, its encoder: it may learn at a rate of its own, and files of
    ImageNet weights are for it. Each of its batch norms is registered right behind the convolution
    that feeds it, so that runtimes can fuse them. It takes inputs down to 64x64 whose sides are
    multiples of `STRIDE`.

    Attributes:
        bins: the depth range and, for a DPM head, its bins.
        input_multiple: training sizes are multiples of this; then raw output and input fit
            without a rest.
        output_scale: how many times smaller than the input the raw output is.
        has_dpm: whether the raw output is the logits of a DPM; otherwise there is no confidence.
        align_corners: how the raw output is resized to the input, as it was trained.
    """

    bins: DepthBins
    input_multiple: int
    output_scale: int
    has_dpm: bool
    align_corners: bool

    def __init__(self, bins: DepthBins) -> None:
        super().__init__()
        self.bins = bins

    @abc.abstractmethod
    def forward(self, x: Tensor) -> Any:
        """Return the raw output for normalised RGB, (B, 3, H, W).

        Whatever `output` and `moments` read; most often logits, (B, C or 1, h, w).
        """

    @abc.abstractmethod
    def output(self, raw: Any) -> StudentOutput:
        """Return depth and logits for a training objective, with gradients."""

    @abc.abstractmethod
    def moments(self, raw: Any) -> Moments:
        """Return depth and its spread, inside the depth range; for inference."""

    def answer(self, raw: Any) -> Tensor:
        """Return the maps that an exported graph gives, (B, K, ...), for `moments_of`."""
        return torch.cat([each for each in self.moments(raw) if each is not None], dim=1)

    def moments_of(self, answer: Tensor) -> Moments:
        """Return depth and its spread for what `answer` gave."""
        return Moments(*answer.split(1, dim=1))

    @abc.abstractmethod
    def start_from_histogram(self, probabilities: Tensor) -> None:
        """Set the head's bias so that the first answer is what is known of depth beforehand.

        Args:
            probabilities: the share of the labels in each bin, (C,); need not sum to 1.
        """

    def summary(self, raw: Any) -> Tensor | None:
        """Return what tells one place from another, (B, F); None where the network has none."""
        return None

    def remember(self, summaries: Tensor) -> None:
        """Keep summaries, (N, F), of what was learnt from: novelty is the distance to them.

        Does nothing where the network has no summary.
        """

    def absent_weights(self) -> dict[str, Tensor]:
        """Return the values of weights that files of earlier versions lack."""
        return {}

    def predict_depth(self, x: Tensor) -> Tensor:
        """Return depth in metres for normalised RGB, both of size H x W: (B, 1, H, W).

        As the published inference does: clamped to the range, then resized bilinearly.
        """
        depth = self.moments(self(x)).mean
        depth = depth.clamp(self.bins.min_depth_m, self.bins.max_depth_m)
        if depth.shape[2:] != x.shape[2:]:
            depth = functional.interpolate(
                depth, x.shape[2:], mode="bilinear", align_corners=self.align_corners
            )
        return depth


SHIFT = 64.0
"""What `shifted` logits lie below their mean over the bins: their largest is >= -SHIFT."""


class DpmNetwork(StudentNetwork):
    """A student whose raw output is the logits of a DPM; depth is its expectation.

    Attributes:
        centres: of the bins, metres, (C,).
        feature_limit: the classifier's input lies between 0 and this.
        shifted: the logits were shifted such that exp of them is a number (`shift_logits`).
    """

    centres: Tensor
    has_dpm = True
    feature_limit = math.inf
    shifted = False

    def __init__(self, bins: DepthBins) -> None:
        super().__init__(bins)
        self.register_buffer("centres", bins.centres(), persistent=False)

    @property
    @abc.abstractmethod
    def classifier(self) -> nn.Conv2d:
        """The last convolution, which makes the logits; it has a bias."""

    def output(self, raw: Any) -> StudentOutput:
        """Return the DPM's expectation and its logits."""
        return StudentOutput(raw, partial(self._expectation, raw))

    def _expectation(self, raw: Tensor) -> Tensor:
        dtype = torch.promote_types(raw.dtype, torch.float32)
        probabilities = raw.softmax(dim=1, dtype=dtype)  # (B, C, h, w)
        # Not a convolution: autocast would run it, and so depth itself, in half precision.
        return (probabilities * self.centres.view(1, -1, 1, 1)).sum(dim=1, keepdim=True)

    def moments(self, raw: Any) -> Moments:
        """Return mean and standard deviation of the depth probability map.

        softmax(z) . c is computed as one matrix product over exp(z - max z): the three sums
        of weights, depth and squared depth come out together, and no probability map is
        ever normalised or stored.

        Args:
            raw: logits, (B, C, h, w); overwritten where they are `shifted`.
        """
        height, width = raw.shape[2:]
        # No convolution: on a GPU it would round to TF32, too coarse for the spread.
        sums = self.sums_kernel() @ self.weights(raw).flatten(2)  # (B, 3, h * w)
        return self.moments_of(sums.unflatten(2, (height, width)))

    def weights(self, raw: Tensor) -> Tensor:
        """Return the DPM before it is normalised, exp(raw - shift), (B, C, h, w)."""
        if self.shifted:
            return raw.exp_()
        return (raw - raw.amax(dim=1, keepdim=True)).exp_()

    def sums_kernel(self) -> Tensor:
        """Return what weights are multiplied by for the sums of 1, d, d^2: (3, C).

        d is depth as a share of the last centre, so that no sum is larger than the first.
        """
        d = self.centres / self.centres[-1]
        return torch.stack((torch.ones_like(d), d, d * d))

    def answer(self, raw: Tensor) -> Tensor:
        """Return the three sums, (B, 3, h, w): a convolution, unlike in `moments`."""
        return functional.conv2d(self.weights(raw), self.sums_kernel()[:, :, None, None])

    def moments_of(self, answer: Tensor) -> Moments:
        """Return depth and spread for the three sums, (B, 3, h, w)."""
        total, first, second = answer.split(1, dim=1)
        mean = first / total
        variance = (second / total - mean * mean).clamp_min(0.0)
        return Moments(mean * self.centres[-1], variance.sqrt() * self.centres[-1])

    @torch.no_grad()
    def start_from_histogram(self, probabilities: Tensor) -> None:
        """Set the bias of the logits to the logarithm of the shares, (C,)."""
        bias = self.classifier.bias
        assert bias is not None
        bias.copy_((probabilities + 1e-9).log())


class RegressionNetwork(StudentNetwork):
    """A student whose raw output is depth before the sigmoid: d = sigmoid(z) * max_depth."""

    has_dpm = False

    @property
    @abc.abstractmethod
    def regressor(self) -> nn.Conv2d:
        """The last convolution, with one output channel and a bias."""

    def output(self, raw: Tensor) -> StudentOutput:
        """Return sigmoid(raw) * max_depth; there are no logits of bins."""
        return StudentOutput(None, lambda: raw.float().sigmoid() * self.bins.max_depth_m)

    def moments(self, raw: Tensor) -> Moments:
        """Return depth, never nearer than the range; how sure it is, is not known (NaN)."""
        depth = self.output(raw).depth.clamp_min(self.bins.min_depth_m)
        return Moments(depth, torch.full_like(depth, torch.nan))

    @torch.no_grad()
    def start_from_histogram(self, probabilities: Tensor) -> None:
        """Set the bias so that a trunk that says nothing gives the histogram's mean depth."""
        shares = (probabilities / probabilities.sum()).cpu()
        mean = (shares * self.bins.centres()).sum() / self.bins.max_depth_m
        bias = self.regressor.bias
        assert bias is not None
        bias.copy_(mean.logit())
