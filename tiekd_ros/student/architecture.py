"""What every student network is: an image in, a depth probability map (DPM) or depth out.

Shapes: B batch, C bins, H and W the network's input, h and w its raw output (H / output_scale,
W / output_scale, rounded up).
"""

from __future__ import annotations

import abc
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from tiekd_ros.errors import InvalidSettingError
from tiekd_ros.settings import Settings, setting
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


class StudentOutput(NamedTuple):
    """What a training objective sees of a raw output; gradients flow through it."""

    depth: Tensor
    """Metres, (B, 1, h, w)."""
    logits: Tensor | None
    """Of the DPM, before softmax, (B, C, h, w); None where the head regresses depth."""


class Moments(NamedTuple):
    """What a student says of each pixel, each (B, 1, h, w) in metres; std NaN = not known."""

    mean: Tensor
    std: Tensor


class StudentNetwork(nn.Module, abc.ABC):
    """Base of all students.

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
    def forward(self, x: Tensor) -> Tensor:
        """Return the raw output, (B, C or 1, h, w), for normalised RGB, (B, 3, H, W)."""

    @abc.abstractmethod
    def output(self, raw: Tensor) -> StudentOutput:
        """Return depth and logits for a training objective, with gradients."""

    @abc.abstractmethod
    def moments(self, raw: Tensor) -> Moments:
        """Return depth and its spread, inside the depth range; for inference."""

    @abc.abstractmethod
    def start_from_histogram(self, probabilities: Tensor) -> None:
        """Set the head's bias so that the first answer is what is known of depth beforehand.

        Args:
            probabilities: the share of the labels in each bin, (C,); need not sum to 1.
        """

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


class DpmNetwork(StudentNetwork):
    """A student whose raw output is the logits of a DPM; depth is its expectation."""

    centres: Tensor
    has_dpm = True

    def __init__(self, bins: DepthBins) -> None:
        super().__init__(bins)
        self.register_buffer("centres", bins.centres(), persistent=False)

    @property
    @abc.abstractmethod
    def classifier(self) -> nn.Conv2d:
        """The last convolution, which makes the logits; it has a bias."""

    def output(self, raw: Tensor) -> StudentOutput:
        """Return the DPM's expectation and its logits."""
        probabilities = raw.softmax(dim=1)  # (B, C, h, w)
        # Not a convolution: autocast would run it, and so depth itself, in half precision.
        depth = (probabilities * self.centres.view(1, -1, 1, 1)).sum(dim=1, keepdim=True)
        return StudentOutput(depth, raw)

    def moments(self, raw: Tensor) -> Moments:
        """Return mean and standard deviation of the depth probability map.

        softmax(z) . c is computed as one matrix product over exp(z - max z): the three sums
        of weights, depth and squared depth come out together, and no probability map is
        ever normalised or stored.
        """
        weights = (raw - raw.amax(dim=1, keepdim=True)).exp_()  # (B, C, h, w)
        c = self.centres
        kernel = torch.stack((torch.ones_like(c), c, c * c))[:, :, None, None]  # (3, C, 1, 1)
        total, first, second = functional.conv2d(weights, kernel).split(1, dim=1)
        mean = first / total
        variance = (second / total - mean * mean).clamp_min(0.0)
        return Moments(mean, variance.sqrt())

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
        return StudentOutput(raw.float().sigmoid() * self.bins.max_depth_m, None)

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
