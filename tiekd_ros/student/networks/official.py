"""The published TIE-KD students (arXiv 2402.14340), key for key.

MobileNetV2 (dilated, output stride 8), ResNet-18 and ResNet-50 with the dense decoder, each with
a DPM head or, as the response-based baselines have it, with a regression head. They answer at
the input's own size. Names in the state_dict are those of the published checkpoints.

Coarse features are resized to the next finer ones' size, put beside them and passed through
two 3x3 convolutions with bias and ReLU, without batch norm; then doubled up to the input's
size. Module names and their order are those of the published checkpoints. Both output layers
always exist there, whichever is used; so do both doublings, though the ResNets use one.

Shapes: B batch, C bins, H and W the network's input.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from tiekd_ros.student.architecture import DpmNetwork, RegressionNetwork
from tiekd_ros.student.bins import DepthBins
from tiekd_ros.student.networks.mobilenetv2 import MobileNetV2Backbone, Stage

_STEM_CHANNELS = 64
_BLOCKS = {18: (2, 2, 2, 2), 50: (3, 4, 6, 3)}


def _convolution(in_channels: int, out_channels: int, kernel: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, kernel, stride, kernel // 2, bias=False)


def _shortcut(in_channels: int, out_channels: int, stride: int) -> nn.Sequential | None:
    if stride == 1 and in_channels == out_channels:
        return None
    return nn.Sequential(
        _convolution(in_channels, out_channels, 1, stride), nn.BatchNorm2d(out_channels)
    )


class _BasicBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut."""

    expansion = 1

    def __init__(self, in_channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = _convolution(in_channels, width, 3, stride)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = _convolution(width, width, 3)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample = _shortcut(in_channels, width, stride)
        nn.init.zeros_(self.bn2.weight)  # a fresh block passes its input on

    def forward(self, x: Tensor) -> Tensor:
        short = x if self.downsample is None else self.downsample(x)
        x = torch.relu_(self.bn1(self.conv1(x)))
        return torch.relu_(self.bn2(self.conv2(x)) + short)


class _Bottleneck(nn.Module):
    """1x1, 3x3 (with the stride), 1x1 beside a shortcut."""

    expansion = 4

    def __init__(self, in_channels: int, width: int, stride: int) -> None:
        super().__init__()
        out_channels = width * self.expansion
        self.conv1 = _convolution(in_channels, width, 1)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = _convolution(width, width, 3, stride)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = _convolution(width, out_channels, 1)
        self.bn3 = nn.BatchNorm2d(out_channels)
        self.downsample = _shortcut(in_channels, out_channels, stride)
        nn.init.zeros_(self.bn3.weight)  # a fresh block passes its input on

    def forward(self, x: Tensor) -> Tensor:
        short = x if self.downsample is None else self.downsample(x)
        x = torch.relu_(self.bn1(self.conv1(x)))
        x = torch.relu_(self.bn2(self.conv2(x)))
        return torch.relu_(self.bn3(self.conv3(x)) + short)


class ResNetBackbone(nn.Module):
    """ResNet encoder (He et al. 2015, arXiv 1512.03385), its names those of torchvision's models.

    Stem and four stages; `channels` are those of the five feature maps, fine to coarse.

    Args:
        depth: 18 or 50.
    """

    def __init__(self, depth: int) -> None:
        super().__init__()
        block = _BasicBlock if depth == 18 else _Bottleneck
        self.conv1 = nn.Conv2d(3, _STEM_CHANNELS, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(_STEM_CHANNELS)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        channels = [_STEM_CHANNELS]
        for index, blocks in enumerate(_BLOCKS[depth]):
            width = _STEM_CHANNELS * 2**index
            stride = 1 if index == 0 else 2
            layer = [block(channels[-1], width, stride)]
            layer += [block(width * block.expansion, width, 1) for _ in range(blocks - 1)]
            self.add_module(f"layer{index + 1}", nn.Sequential(*layer))
            channels.append(width * block.expansion)
        self.channels = tuple(channels)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Return the feature maps at strides 2 (the stem's, before pooling), 4, 8, 16, 32."""
        x = torch.relu_(self.bn1(self.conv1(x)))
        features = [x]
        x = self.maxpool(x)
        for number in range(1, 5):
            x = getattr(self, f"layer{number}")(x)
            features.append(x)
        return features


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


KITTI_BINS = DepthBins(count=257, min_depth_m=1e-3, max_depth_m=80.0)
NYU_BINS = DepthBins(count=49, min_depth_m=1e-3, max_depth_m=10.0)

_UNUSED_CLASSES = 256  # rows of the DPM layer that a regression head carries along

STRIDE_8 = (
    Stage(1, 16, 1, 1),
    Stage(6, 24, 2, 2),
    Stage(6, 32, 3, 2),
    Stage(6, 64, 4, 1, dilation=2),
    Stage(6, 96, 3, 1, dilation=2),
    Stage(6, 160, 3, 1, dilation=4),
    Stage(6, 320, 1, 1, dilation=4),
)
"""MobileNetV2's stages as published: dilation instead of stride, in first blocks only."""


class _Encoder(NamedTuple):
    """An encoder and its decoder: widths after each stage, doublings up to the input's size."""

    build: Callable[[], MobileNetV2Backbone | ResNetBackbone]
    widths: tuple[int, ...]
    doublings: int


_ENCODERS = {
    "mobilenetv2": _Encoder(partial(MobileNetV2Backbone, STRIDE_8), (2048, 512, 256, 128), 2),
    "resnet18": _Encoder(partial(ResNetBackbone, 18), (512, 256, 256, 128, 128), 1),
    "resnet50": _Encoder(partial(ResNetBackbone, 50), (2048, 1024, 512, 256, 128), 1),
}


def _make_backbone(encoder: str) -> MobileNetV2Backbone | ResNetBackbone:
    backbone = _ENCODERS[encoder].build()
    for module in backbone.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return backbone


def _make_decoder(encoder: str, channels: tuple[int, ...], classes: int) -> DenseDecoder:
    found = _ENCODERS[encoder]
    return DenseDecoder(channels, found.widths, found.doublings, classes)


class OfficialDpmStudent(DpmNetwork):
    """A published student with a DPM head.

    Args:
        encoder: mobilenetv2, resnet18 or resnet50.
        bins: as many as `conv_out` has rows; published are `KITTI_BINS` and `NYU_BINS`.
    """

    output_scale = 1
    align_corners = True

    def __init__(self, encoder: str, bins: DepthBins) -> None:
        super().__init__(bins)
        self.input_multiple = 2 ** _ENCODERS[encoder].doublings
        self.backbone = _make_backbone(encoder)
        self.decode_head = _make_decoder(encoder, self.backbone.channels, bins.count)

    @property
    def classifier(self) -> nn.Conv2d:
        """The layer `decode_head.conv_out.0`."""
        layer = self.decode_head.conv_out[0]
        assert isinstance(layer, nn.Conv2d)
        return layer

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (B, C, H, W), sizes rounded up to `input_multiple`, for (B, 3, H, W)."""
        logits: Tensor = self.decode_head.conv_out(self.decode_head(self.backbone(x)))
        return logits


class OfficialRegressionStudent(RegressionNetwork):
    """A published student with a regression head; its DPM layer is carried along unused.

    Args:
        encoder: mobilenetv2, resnet18 or resnet50.
        bins: only their range counts.
    """

    output_scale = 1
    align_corners = True

    def __init__(self, encoder: str, bins: DepthBins) -> None:
        super().__init__(bins)
        self.input_multiple = 2 ** _ENCODERS[encoder].doublings
        self.backbone = _make_backbone(encoder)
        self.decode_head = _make_decoder(encoder, self.backbone.channels, _UNUSED_CLASSES)

    @property
    def regressor(self) -> nn.Conv2d:
        """The layer `decode_head.conv_depth`."""
        return self.decode_head.conv_depth

    def forward(self, x: Tensor) -> Tensor:
        """Return depth before the sigmoid, (B, 1, H, W), sizes rounded up as the DPM head's."""
        raw: Tensor = self.decode_head.conv_depth(self.decode_head(self.backbone(x)))
        return raw
