"""Running a student: one RGB image in, metric depth and confidence out.

Shapes: H and W the image, Hn and Wn the network's input, h and w its raw output (a quarter of
the input for the fast student, the input's own size for the published ones).
"""

from __future__ import annotations

import copy
import itertools
from typing import NamedTuple

import cv2
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.fusion import fuse_conv_bn_eval

from tiekd_ros.errors import InvalidSettingError
from tiekd_ros.images import DepthMap, RgbImage, check_rgb
from tiekd_ros.student.architecture import InputSize, StudentNetwork
from tiekd_ros.student.card import CheckpointError
from tiekd_ros.student.checkpoint import Student

_MEAN = (123.675, 116.28, 103.53)  # ImageNet, RGB, 0..255
_STD = (58.395, 57.12, 57.375)


class Prediction(NamedTuple):
    """Depth in metres and confidence 0..1, both float32 of the same shape.

    Confidence is NaN, not known, where the student has no depth probability map.
    """

    depth: DepthMap
    confidence: npt.NDArray[np.float32]


def choose_device(name: str) -> torch.device:
    """Return the torch device for `auto`, `cpu`, `cuda` or `cuda:N`.

    Raises:
        InvalidSettingError: there is no such device on this machine.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise InvalidSettingError(
            f"device must be auto, cpu, cuda or cuda:N, got {name!r}"
        ) from error
    if device.type not in ("cpu", "cuda"):
        raise InvalidSettingError(f"device must be auto, cpu, cuda or cuda:N, got {name!r}")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise InvalidSettingError(
            f"device {name!r} was asked for, but torch {torch.__version__} sees no CUDA device; "
            "set device to auto or cpu"
        )
    return device


def resize_image(image: RgbImage, size: InputSize) -> RgbImage:
    """Resize to the network's input by area averaging, as in training."""
    if image.shape[:2] == (size.height, size.width):
        return image
    shrinks = image.shape[0] > size.height
    method = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    resized: RgbImage = cv2.resize(image, (size.width, size.height), interpolation=method)
    return resized


def normalise(images: Tensor) -> Tensor:
    """Turn uint8 RGB (B, Hn, Wn, 3) into normalised float (B, 3, Hn, Wn), channels last."""
    x = images.permute(0, 3, 1, 2).float()  # stays channels last in memory
    mean = torch.tensor(_MEAN, device=x.device).view(1, 3, 1, 1)
    std = torch.tensor(_STD, device=x.device).view(1, 3, 1, 1)
    return (x - mean) / std


class TorchRuntime:
    """A student ready to run: on its device, batch norms fused, warmed and proved.

    Raises:
        CheckpointError: the student's answer to a probe image is not finite or lies outside
            its depth range.
    """

    def __init__(self, student: Student, device: torch.device | str = "cpu") -> None:
        self.card = student.card
        self.device = torch.device(device)
        network = fuse_batch_norms(copy.deepcopy(student.network).eval())
        self._network = network.to(self.device)
        to_channels_last(self._network)
        self._probe()

    @torch.inference_mode()
    def predict(self, image: RgbImage, size: tuple[int, int] | None = None) -> Prediction:
        """Predict depth for one RGB image, uint8 (H, W, 3).

        Args:
            image: the camera's image, any size.
            size: (height, width) of the answer; the image's own where None.
        """
        check_rgb(image)
        height, width = size or image.shape[:2]
        resized = resize_image(image, self.card.input_size)
        batch = torch.from_numpy(resized).to(self.device)[None]  # (1, Hn, Wn, 3)
        moments = self._network.moments(self._network(normalise(batch)))
        target = self.card.target
        sigma = target.sigma(moments.mean, self.card.bins)
        confidence = (sigma / moments.std.clamp_min(1e-6)).clamp_max(1.0)
        maps = torch.cat((moments.mean, confidence), dim=1)  # (1, 2, h, w)
        if maps.shape[2:] != (height, width):
            maps = functional.interpolate(maps, (height, width), mode="bilinear")
        depth, sure = maps[0].float().cpu().numpy()
        return Prediction(depth, sure)

    def _probe(self) -> None:
        size = self.card.input_size
        ramp = np.linspace(0, 255, size.height * size.width * 3).astype(np.uint8)
        for _ in range(2):  # the first run pays for kernels and memory
            depth, confidence = self.predict(ramp.reshape(size.height, size.width, 3))
        bins = self.card.bins
        finite = bool(np.isfinite(depth).all())
        if self._network.has_dpm:
            finite = finite and bool(np.isfinite(confidence).all())
        if not finite or depth.min() < bins.min_depth_m or depth.max() > bins.max_depth_m:
            raise CheckpointError(
                f"student {self.card.version or '(unsaved)'} answers a probe image with depth "
                f"outside {bins.min_depth_m:g} .. {bins.max_depth_m:g} m; it is not used"
            )


def to_channels_last(network: nn.Module) -> None:
    """Lay the weights out channels last, in place: much the faster layout for depthwise filters."""
    for parameter in network.parameters():
        if parameter.dim() == 4:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)


def fuse_batch_norms(network: StudentNetwork) -> StudentNetwork:
    """Fold every batch norm of a network in eval mode into its convolution, in place.

    All networks here register a batch norm right behind the convolution that feeds it.
    """
    for parent in list(network.modules()):
        for (name, before), (norm_name, norm) in itertools.pairwise(parent.named_children()):
            if isinstance(before, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                setattr(parent, name, fuse_conv_bn_eval(before, norm))
                setattr(parent, norm_name, nn.Identity())
    return network
