"""`mobilenetv2-fast`: the default student.

The published compact student spends 96 % of its 212 GMAC (480x640) in a dense decoder. This
one keeps the idea (encoder, depth probability map over bins, depth as its expectation) and
drops the cost: output stride 32, separable decoder with additive skips and nearest
upsampling, bins predicted at 1/4 resolution.

Shapes: B batch, C bins, H and W the network's input size, h = H/4 and w = W/4.
"""

from __future__ import annotations

import itertools

from torch import Tensor, nn
from torch.nn import functional

from tiekd_ros.student.architecture import STRIDE, DpmNetwork
from tiekd_ros.student.bins import DepthBins
from tiekd_ros.student.networks.mobilenetv2 import ConvNormAct, MobileNetV2Backbone

_DECODER_CHANNELS = (128, 96, 64, 64)  # at strides 32, 16, 8, 4
_HEAD_CHANNELS = 64


class _Separable(nn.Sequential):
    """5x5 depthwise, then 1x1: the cheap form of a dense decoder convolution."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(
            ConvNormAct(in_channels, in_channels, 5, groups=in_channels),
            ConvNormAct(in_channels, out_channels, 1),
        )


class FastStudent(DpmNetwork):
    """MobileNetV2 encoder, separable decoder, depth probability map at 1/4 resolution."""

    input_multiple = STRIDE
    output_scale = 4
    align_corners = False
    feature_limit = 6.0  # `refine` ends in a ReLU6

    def __init__(self, bins: DepthBins) -> None:
        super().__init__(bins)
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
        self.apply(_initialise)

    @property
    def classifier(self) -> nn.Conv2d:
        """The head."""
        return self.head

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


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        if module.bias is not None:
            nn.init.normal_(module.weight, std=0.01)
            nn.init.zeros_(module.bias)
