"""The MobileNetV2 encoder (Sandler et al. 2018), and the fastest student, `mobilenetv2-fast`.

The published compact student spends 96 % of its 212 GMAC (480x640) in a dense decoder. The fast
one keeps the idea (encoder, depth probability map over bins, depth as its expectation) and
drops the cost: output stride 32, separable decoder with additive skips and nearest
upsampling, bins predicted at 1/4 resolution.

Shapes: B batch, C bins, H and W the network's input size, h = H/4 and w = W/4. Parameter names
follow the layout of the published TIE-KD students (`conv1`, `layer1` … `layer7`, each convolution
with `conv` and `bn` inside), so that weights can be carried over by name.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from tiekd_ros.student.architecture import STRIDE, DpmNetwork
from tiekd_ros.student.bins import DepthBins


class ConvNormAct(nn.Module):
    """Convolution without bias, batch norm and, if asked for, ReLU6."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int,
        *,
        stride: int = 1,
        dilation: int = 1,
        groups: int = 1,
        activation: bool = True,
        padding: int | None = None,
    ) -> None:
        super().__init__()
        if padding is None:
            padding = dilation * (kernel - 1) // 2
        self.conv = nn.Conv2d(
            in_channels, out_channels, kernel, stride, padding, dilation, groups, bias=False
        )
        self.bn: nn.Module = nn.BatchNorm2d(out_channels)
        self.act: nn.Module = nn.ReLU6(inplace=True) if activation else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Return act(bn(conv(x)))."""
        if self.training and not self.bn.training and isinstance(self.bn, nn.BatchNorm2d):
            return self._forward_frozen(x, self.bn)
        out: Tensor = self.act(self.bn(self.conv(x)))
        return out

    def _forward_frozen(self, x: Tensor, bn: nn.BatchNorm2d) -> Tensor:
        """Train with a batch norm that keeps its statistics: it is folded into the convolution.

        The same function of the same parameters, so gradients are the same as well, but the
        norm's passes over the activations and their gradients are spared: a sixth of a step.
        """
        assert bn.running_mean is not None  # for mypy, as the next line
        assert bn.running_var is not None
        scale = bn.weight * torch.rsqrt(bn.running_var + bn.eps)  # (out_channels,)
        weight = self.conv.weight * scale.view(-1, 1, 1, 1)
        bias = bn.bias - bn.running_mean * scale
        conv = self.conv
        out: Tensor = functional.conv2d(
            x, weight, bias, conv.stride, conv.padding, conv.dilation, conv.groups
        )
        out = self.act(out)
        return out


class InvertedResidual(nn.Module):
    """Expand (1x1), filter each channel, project (1x1); residual where shapes allow."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        ratio: int,
        stride: int,
        dilation: int,
        kernel: int = 3,
    ) -> None:
        super().__init__()
        hidden = in_channels * ratio
        layers: list[nn.Module] = []
        if ratio != 1:
            layers.append(ConvNormAct(in_channels, hidden, 1))
        layers.append(
            ConvNormAct(hidden, hidden, kernel, stride=stride, dilation=dilation, groups=hidden)
        )
        layers.append(ConvNormAct(hidden, out_channels, 1, activation=False))
        self.conv = nn.Sequential(*layers)
        self.residual = stride == 1 and in_channels == out_channels

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's output, (B, out_channels, H / stride, W / stride)."""
        out: Tensor = self.conv(x)
        return x + out if self.residual else out


@dataclass(frozen=True)
class Stage:
    """One row of MobileNetV2's table; `stride` and `dilation` hold for its first block."""

    ratio: int
    channels: int
    blocks: int
    stride: int
    dilation: int = 1
    kernel: int = 3


STRIDE_32 = (
    Stage(1, 16, 1, 1),
    Stage(6, 24, 2, 2),
    Stage(6, 32, 3, 2),
    Stage(6, 64, 4, 2),
    Stage(6, 96, 3, 1),
    Stage(6, 160, 3, 2),
    Stage(6, 320, 1, 1),
)
"""The stages of the original network: the last feature map is 1/32 of the input."""


class MobileNetV2Backbone(nn.Module):
    """Seven stages of inverted residuals after a strided stem."""

    def __init__(
        self, stages: Sequence[Stage] = STRIDE_32, returned: Sequence[int] = (2, 3, 5, 7)
    ) -> None:
        super().__init__()
        self.conv1 = ConvNormAct(3, 32, 3, stride=2)
        self.returned = tuple(returned)
        in_channels = 32
        for number, stage in enumerate(stages, start=1):
            self.add_module(f"layer{number}", _make_layer(in_channels, stage))
            in_channels = stage.channels
        self.channels = tuple(stages[number - 1].channels for number in self.returned)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Return the feature maps of the `returned` stages, fine to coarse.

        With `STRIDE_32`: (B, 24, H/4, W/4), (B, 32, H/8, W/8), (B, 96, H/16, W/16) and
        (B, 320, H/32, W/32).
        """
        x = self.conv1(x)
        features = []
        for number in range(1, max(self.returned) + 1):
            x = getattr(self, f"layer{number}")(x)
            if number in self.returned:
                features.append(x)
        return features


def _make_layer(in_channels: int, stage: Stage) -> nn.Sequential:
    blocks = []
    for index in range(stage.blocks):
        first = index == 0
        blocks.append(
            InvertedResidual(
                in_channels,
                stage.channels,
                ratio=stage.ratio,
                stride=stage.stride if first else 1,
                dilation=stage.dilation if first else 1,
                kernel=stage.kernel,
            )
        )
        in_channels = stage.channels
    return nn.Sequential(*blocks)


_DECODER_CHANNELS = (128, 96, 64, 64)  # at strides 32, 16, 8, 4
HEAD_CHANNELS = 64


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

    def __init__(
        self,
        bins: DepthBins,
        stages: Sequence[Stage] = STRIDE_32,
        returned: Sequence[int] = (2, 3, 5, 7),
    ) -> None:
        super().__init__(bins)
        self.backbone = MobileNetV2Backbone(stages, returned)
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
        self.refine = _Separable(widths[-1], HEAD_CHANNELS)
        self.head = nn.Conv2d(HEAD_CHANNELS, bins.count, 1)
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
        logits: Tensor = self.head(self.features(x))
        return logits

    def features(self, x: Tensor) -> Tensor:
        """Return what the head gets, (B, 64, H/4, W/4), for normalised RGB (B, 3, H, W)."""
        return self.decode(self.backbone(x))

    def decode(self, encoded: Sequence[Tensor]) -> Tensor:
        """Return what the head gets for the encoder's feature maps."""
        *finer, x = encoded
        x = self.neck(x)  # (B, 128, H/32, W/32)
        for up, skip, feature in zip(self.up, self.skip, reversed(finer), strict=True):
            x = functional.interpolate(up(x), scale_factor=2.0, mode="nearest")
            x = x + skip(feature)
        refined: Tensor = self.refine(x)
        return refined


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        if module.bias is not None:
            nn.init.normal_(module.weight, std=0.01)
            nn.init.zeros_(module.bias)
