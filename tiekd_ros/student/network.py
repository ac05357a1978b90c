"""`mobilenetv2-fast`: the default student.

The published compact student spends 96 % of its 212 GMAC (480x640) in a dense decoder. This
one keeps the idea (encoder, depth probability map over bins, depth as its expectation) and
drops the cost: output stride 32, separable decoder with additive skips and nearest
upsampling, bins predicted at 1/4 resolution.

Shapes: B batch, C bins, H and W the network's input size, h = H/4 and w = W/4.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from tiekd_ros.errors import InvalidSettingError
from tiekd_ros.settings import Settings, setting
from tiekd_ros.student.backbone import ConvNormAct, MobileNetV2Backbone
from tiekd_ros.student.bins import DepthBins

ARCHITECTURE = "mobilenetv2-fast"
STRIDE = 32
"""Input sizes are multiples of this, so that every skip fits its upsampled partner."""

_DECODER_CHANNELS = (128, 96, 64, 64)  # at strides 32, 16, 8, 4
_HEAD_CHANNELS = 64


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
        """Refuse sizes that are no multiple of the network's stride."""
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


class Moments(NamedTuple):
    """What a depth probability map says of each pixel, each (B, 1, h, w) in metres."""

    mean: Tensor
    std: Tensor


class _Separable(nn.Sequential):
    """5x5 depthwise, then 1x1: the cheap form of a dense decoder convolution."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(
            ConvNormAct(in_channels, in_channels, 5, groups=in_channels),
            ConvNormAct(in_channels, out_channels, 1),
        )


class FastStudent(nn.Module):
    """MobileNetV2 encoder, separable decoder, depth probability map at 1/4 resolution."""

    centres: Tensor

    def __init__(self, bins: DepthBins) -> None:
        super().__init__()
        self.bins = bins
        self.backbone = MobileNetV2Backbone()
        widths = _DECODER_CHANNELS
        skips = self.backbone.channels[-2::-1]  # coarse to fine: 96, 32, 24
        self.neck = ConvNormAct(self.backbone.channels[-1], widths[0], 1)
        self.up = nn.ModuleList(
            _Separable(before, after) for before, after in itertools.pairwise(widths)
        )
        self.skip = nn.ModuleList(
            ConvNormAct(channels, width, 1, activation=False)
            for channels, width in zip(skips, widths[1:], strict=True)
        )
        self.refine = _Separable(widths[-1], _HEAD_CHANNELS)
        self.head = nn.Conv2d(_HEAD_CHANNELS, bins.count, 1)
        self.register_buffer("centres", bins.centres(), persistent=False)
        self.apply(_initialise)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits of the depth probability map.

        Args:
            x: normalised RGB, (B, 3, H, W), H and W multiples of 32.

        Returns:
            Logits, (B, C, H/4, W/4).
        """
        *finer, x = self.backbone(x)
        x = self.neck(x)  # (B, 128, H/32, W/32)
        for up, skip, feature in zip(self.up, self.skip, reversed(finer), strict=True):
            x = functional.interpolate(up(x), scale_factor=2.0, mode="nearest")
            x = x + skip(feature)
        logits: Tensor = self.head(self.refine(x))
        return logits

    def moments(self, logits: Tensor) -> Moments:
        """Return mean and standard deviation of the depth probability map.

        softmax(z) . c is computed as one matrix product over exp(z - max z): the three sums
        of weights, depth and squared depth come out together, and no probability map is
        ever normalised or stored.
        """
        weights = (logits - logits.amax(dim=1, keepdim=True)).exp_()  # (B, C, h, w)
        c = self.centres
        kernel = torch.stack((torch.ones_like(c), c, c * c))[:, :, None, None]  # (3, C, 1, 1)
        total, first, second = functional.conv2d(weights, kernel).split(1, dim=1)
        mean = first / total
        variance = (second / total - mean * mean).clamp_min(0.0)
        return Moments(mean, variance.sqrt())


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        if module.bias is not None:
            nn.init.normal_(module.weight, std=0.01)
            nn.init.zeros_(module.bias)


def build_network(architecture: str, bins: DepthBins) -> FastStudent:
    """Return a freshly initialised network of the named architecture.

    Raises:
        InvalidSettingError: no architecture has this name.
    """
    if architecture != ARCHITECTURE:
        raise InvalidSettingError(
            f"unknown student architecture {architecture!r}: known is {ARCHITECTURE!r}"
        )
    return FastStudent(bins)
