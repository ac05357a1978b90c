"""ResNet-18 and ResNet-50 encoders (He et al. 2015, arXiv 1512.03385), without the classifier.

Parameter names are those of torchvision's models, which the published TIE-KD students use too.
Shapes: B batch, H and W the input's height and width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

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
    """Stem and four stages; `channels` are those of the five feature maps, fine to coarse.

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
