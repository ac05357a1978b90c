"""The published TIE-KD students (arXiv 2402.14340), key for key.

MobileNetV2 (dilated, output stride 8), ResNet-18 and ResNet-50 with the dense decoder, each with
a DPM head or, as the response-based baselines have it, with a regression head. They answer at
the input's own size. Names in the state_dict are those of the published checkpoints.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor, nn

from tiekd_ros.student.architecture import DpmNetwork, RegressionNetwork, StudentNetwork
from tiekd_ros.student.backbone import MobileNetV2Backbone, Stage
from tiekd_ros.student.bins import DepthBins
from tiekd_ros.student.dense_decoder import DenseDecoder
from tiekd_ros.student.resnet import ResNetBackbone

KITTI_BINS = DepthBins(count=257, min_depth_m=1e-3, max_depth_m=80.0)
NYU_BINS = DepthBins(count=49, min_depth_m=1e-3, max_depth_m=10.0)

REGRESSION = "-regression"
"""What the name of an architecture with a regression head ends in."""

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


class _Plan(NamedTuple):
    """One encoder's decoder: widths after each stage, doublings up to the input's size."""

    widths: tuple[int, ...]
    doublings: int


_PLANS = {
    "mobilenetv2": _Plan((2048, 512, 256, 128), 2),
    "resnet18": _Plan((512, 256, 256, 128, 128), 1),
    "resnet50": _Plan((2048, 1024, 512, 256, 128), 1),
}

OFFICIAL_ARCHITECTURES = (*_PLANS, *(name + REGRESSION for name in _PLANS))


def _make_backbone(encoder: str) -> MobileNetV2Backbone | ResNetBackbone:
    backbone: MobileNetV2Backbone | ResNetBackbone
    if encoder == "mobilenetv2":
        backbone = MobileNetV2Backbone(STRIDE_8)
    else:
        backbone = ResNetBackbone(int(encoder.removeprefix("resnet")))
    for module in backbone.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return backbone


def _make_decoder(encoder: str, channels: tuple[int, ...], classes: int) -> DenseDecoder:
    plan = _PLANS[encoder]
    return DenseDecoder(channels, plan.widths, plan.doublings, classes)


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
        self.input_multiple = 2 ** _PLANS[encoder].doublings
        self.backbone = _make_backbone(encoder)
        self.decode_head = _make_decoder(encoder, self.backbone.channels, bins.count)

    @property
    def classifier(self) -> nn.Conv2d:
        """The layer `decode_head.conv_out.0`."""
        layer = self.decode_head.conv_out[0]
        assert isinstance(layer, nn.Conv2d)
        return layer

    def forward(self, x: Tensor) -> Tensor:
        """Return the DPM's logits, (B, C, H, W), H and W rounded up to `input_multiple`.

        Args:
            x: normalised RGB, (B, 3, H, W), of any size.
        """
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
        self.input_multiple = 2 ** _PLANS[encoder].doublings
        self.backbone = _make_backbone(encoder)
        self.decode_head = _make_decoder(encoder, self.backbone.channels, _UNUSED_CLASSES)

    @property
    def regressor(self) -> nn.Conv2d:
        """The layer `decode_head.conv_depth`."""
        return self.decode_head.conv_depth

    def forward(self, x: Tensor) -> Tensor:
        """Return depth before the sigmoid, (B, 1, H, W), sizes rounded up as the DPM head's.

        Args:
            x: normalised RGB, (B, 3, H, W), of any size.
        """
        raw: Tensor = self.decode_head.conv_depth(self.decode_head(self.backbone(x)))
        return raw


def build_official(architecture: str, bins: DepthBins) -> StudentNetwork:
    """Return a freshly initialised published network, one of `OFFICIAL_ARCHITECTURES`."""
    encoder = architecture.removesuffix(REGRESSION)
    if architecture.endswith(REGRESSION):
        return OfficialRegressionStudent(encoder, bins)
    return OfficialDpmStudent(encoder, bins)
