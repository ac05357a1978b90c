"""Depth networks whose answer is known, exported to ONNX with their cards."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
import yaml
from torch import nn

from tiekd_ros.core.images import DepthMap, RgbImage


class Brightness(nn.Module):
    """Answers offset + slope * the mean of the colours, (B, 1, h, w)."""

    def __init__(self, offset: float = 1.0, slope: float = 9.0) -> None:
        super().__init__()
        self.numbers = nn.Parameter(torch.tensor([offset, slope]))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.numbers[0] + self.numbers[1] * image.mean(1, keepdim=True)


class Weighted(nn.Module):
    """Answers 1 + red + 2 green + 4 blue of an image in NHWC, as (B, h, w)."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return 1 + image[..., 0] + 2 * image[..., 1] + 4 * image[..., 2]


class FocalBrightness(Brightness):
    """Answers its brightness times a focal length that it is given, (B,), over 100."""

    def forward(self, image: torch.Tensor, focal: torch.Tensor) -> torch.Tensor:
        return super().forward(image) * focal.view(-1, 1, 1, 1) / 100


def export(
    path: Path,
    network: nn.Module,
    card: dict[str, Any] | None = None,
    *,
    shape: Sequence[int] = (1, 3, 32, 64),
    open_dimensions: Sequence[int] = (0,),
    inputs: Sequence[str] = ("image",),
) -> Path:
    """Write a network as .onnx, and its card beside it.

    Args:
        path: the .onnx file.
        network: takes an image of `shape`, and (B,) for each further input.
        card: what the .yaml says; a metric card where nothing is given.
        shape: of the image input.
        open_dimensions: those of the image that the graph leaves open.
        inputs: the inputs' names.
    """
    images = (torch.zeros(*shape), *(torch.ones(shape[0]) for _ in inputs[1:]))
    batch = {name: {0: "batch"} for name in inputs[1:] if 0 in open_dimensions}
    axes = {inputs[0]: {axis: f"open{axis}" for axis in open_dimensions}, **batch}
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # the exporter that needs no more packages is an old one
        torch.onnx.export(
            network.eval(),
            images,
            str(path),
            input_names=list(inputs),
            output_names=["depth"],
            dynamic_axes=axes,
            opset_version=17,
            dynamo=False,
        )
    write_card(path, {"output": {"meaning": "metric"}} if card is None else card)
    return path


def write_card(path: Path, card: dict[str, Any]) -> None:
    """Write the .yaml beside an .onnx file."""
    path.with_suffix(".yaml").write_text(yaml.safe_dump(card))


def grey_picture(seed: int = 0, width: int = 64, height: int = 48) -> RgbImage:
    """Return a smooth grey picture of all grey levels, uint8 (H, W, 3)."""
    coarse = np.random.default_rng(seed).uniform(0, 255, (4, 5)).astype(np.float32)
    grey = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_LINEAR)
    low, high = float(grey.min()), float(grey.max())
    stretched = ((grey - low) / (high - low) * 255).round().astype(np.uint8)
    return np.repeat(stretched[..., None], 3, axis=2)


def brightness_of(image: RgbImage) -> DepthMap:
    """Return the mean of the colours, 0..1, (H, W)."""
    return (image.astype(np.float32) / 255).mean(axis=2)
