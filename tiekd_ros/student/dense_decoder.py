"""The dense decoder of the published TIE-KD students (arXiv 2402.14340).

Coarse features are resized to the next finer ones' size, put beside them and passed through
two 3x3 convolutions with bias and ReLU, without batch norm; then doubled up to the input's
size. Module names and their order are those of the published checkpoints. Both output layers
always exist there, whichever is used; so do both doublings, though the ResNets use one.

Shapes: B batch, C bins, H and W the network's input.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

_TRUNK_CHANNELS = 128


class _ConvRelu(nn.Module):
    """Convolution with bias and, if asked for, ReLU."""

    def __init__(
        self, in_channels: int, out_channels: int, kernel: int, *, activation: bool = True
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, kernel, padding=kernel // 2)
        nn.init.kaiming_normal_(self.conv.weight, mode="fan_out", nonlinearity="relu")
        assert self.conv.bias is not None
        nn.init.zeros_(self.conv.bias)
        self.act: nn.Module = nn.ReLU(inplace=True) if activation else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.act(self.conv(x))
        return out


class _Merge(nn.Module):
    """Resize to the skip's size, put the skip behind, filter twice."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.convA = _ConvRelu(in_channels, out_channels, 3)
        self.convB = _ConvRelu(out_channels, out_channels, 3)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        x = _resize(x, skip.shape[2], skip.shape[3])
        out: Tensor = self.convB(self.convA(torch.cat((x, skip), dim=1)))
        return out


class _Double(nn.Module):
    """Twice the size, then filter twice."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.convA = _ConvRelu(channels, channels, 3)
        self.convB = _ConvRelu(channels, channels, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = _resize(x, 2 * x.shape[2], 2 * x.shape[3])
        out: Tensor = self.convB(self.convA(x))
        return out


class DenseDecoder(nn.Module):
    """Features, fine to coarse, to a trunk map of 128 channels at the input's size.

    Args:
        feature_channels: channels of the features, fine to coarse.
        widths: channels of the coarsest map, then after each merge.
        doublings: how often the map is doubled after the merges, 1 or 2.
        classes: rows of `conv_out`, the layer that gives the logits of the bins.
    """

    def __init__(
        self, feature_channels: Sequence[int], widths: Sequence[int], doublings: int, classes: int
    ) -> None:
        super().__init__()
        *finer, coarsest = feature_channels
        self.doublings = doublings
        self.conv_depth = nn.Conv2d(_TRUNK_CHANNELS, 1, 3, padding=1)
        self.conv_out = nn.Sequential(nn.Conv2d(_TRUNK_CHANNELS, classes, 1))
        stages: list[nn.Module] = [_ConvRelu(coarsest, widths[0], 1, activation=False)]
        before = widths[0]
        for skip, width in zip(reversed(finer), widths[1:], strict=True):
            stages.append(_Merge(before + skip, width))
            before = width
        self.conv_list = nn.ModuleList(stages)
        self.upsample_custom = _Double(_TRUNK_CHANNELS)
        self.upsample_custom2 = _Double(_TRUNK_CHANNELS)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Return the trunk map, (B, 128, H, W), H and W rounded up to even multiples."""
        *finer, x = features
        project, *merges = self.conv_list
        x = project(x)
        for merge, skip in zip(merges, reversed(finer), strict=True):
            x = merge(x, skip)
        x = self.upsample_custom(x)
        if self.doublings == 2:
            x = self.upsample_custom2(x)
        trunk: Tensor = x
        return trunk


def _resize(x: Tensor, height: int, width: int) -> Tensor:
    if (x.shape[2], x.shape[3]) == (height, width):
        return x
    return functional.interpolate(x, (height, width), mode="bilinear", align_corners=True)
