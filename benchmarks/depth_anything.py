"""Depth Anything V2 (arXiv 2406.09414) from transformers, with random weights.

Its speed does not depend on its weights, and so nothing is downloaded. The small one stands for
what a user would pick instead of a student, as to time and memory; the others are teachers.
"""

from __future__ import annotations

import importlib.util
import io
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from torch import nn

from tiekd_ros.core.images import RgbImage
from tiekd_ros.student.preprocessing import normalise

_STEP = 14  # side of a patch
_SHORT_SIDE = 518  # what its image processor resizes to, keeping the aspect

Run = Callable[[RgbImage], object]


def missing_package() -> str:
    """Return what has to be installed for this comparison; empty where nothing has to."""
    if importlib.util.find_spec("transformers") is None:
        return "Depth Anything needs transformers: pip install '.[bench]' -c constraints.txt"
    return ""


def working_size(height: int, width: int) -> tuple[int, int]:
    """Return the (height, width) that the model's image processor gives an image.

    The side that has to change least decides the scale; both become multiples of 14.
    """
    scale = min(_SHORT_SIDE / height, _SHORT_SIDE / width, key=lambda s: abs(1 - s))
    fitted = [max(1, round(scale * side / _STEP)) * _STEP for side in (height, width)]
    return fitted[0], fitted[1]


class Size(NamedTuple):
    """The measures of a Vision Transformer with Depth Anything's neck and head."""

    width: int
    layers: int
    heads: int
    neck: tuple[int, int, int, int]
    fusion: int
    short_side: int  # of the image that goes in, pixels


SIZES = {
    "tiny": Size(192, 4, 3, (24, 48, 96, 192), 32, 126),
    "small": Size(384, 12, 6, (48, 96, 192, 384), 64, _SHORT_SIDE),
    "large": Size(1024, 24, 16, (256, 512, 1024, 1024), 256, _SHORT_SIDE),
}


def build_network(name: str = "small", **more: Any) -> nn.Module:
    """Return a network; the small one has 24.8 million parameters.

    Args:
        name: of SIZES.
        more: of DepthAnythingConfig, for a metric network.
    """
    from transformers import DepthAnythingConfig, DepthAnythingForDepthEstimation, Dinov2Config

    size = SIZES[name]
    backbone = Dinov2Config(
        hidden_size=size.width,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        patch_size=_STEP,
        image_size=_SHORT_SIDE,
        out_features=[f"stage{size.layers * quarter // 4}" for quarter in range(1, 5)],
        reshape_hidden_states=False,
        apply_layernorm=True,
    )
    config = DepthAnythingConfig(
        backbone_config=backbone,
        patch_size=_STEP,
        reassemble_hidden_size=size.width,
        reassemble_factors=[4, 2, 1, 0.5],
        neck_hidden_sizes=list(size.neck),
        fusion_hidden_size=size.fusion,
        head_hidden_size=32,
        **more,
    )
    torch.manual_seed(0)
    return DepthAnythingForDepthEstimation(config).eval()


def write_checkpoint(folder: Path, name: str) -> None:
    """Write a checkpoint with random weights: metric, up to 20 m, as Depth Anything's indoors."""
    from transformers import DPTImageProcessor
    from transformers.utils import logging

    logging.set_verbosity_error()  # what is to be read here are the tables
    logging.disable_progress_bar()
    network: Any = build_network(name, depth_estimation_type="metric", max_depth=20)
    network.save_pretrained(folder)
    side = SIZES[name].short_side
    DPTImageProcessor(
        size={"height": side, "width": side},
        keep_aspect_ratio=True,
        ensure_multiple_of=_STEP,
        do_pad=False,
        image_mean=[0.485, 0.456, 0.406],
        image_std=[0.229, 0.224, 0.225],
    ).save_pretrained(folder)


def start_torch(size: tuple[int, int], device: str) -> Run:
    """Return the model in torch, as transformers runs it, at a (height, width)."""
    network = build_network().to(device)

    @torch.inference_mode()
    def run(image: RgbImage) -> object:
        batch = torch.from_numpy(resize(image, size))[None].to(device)
        return network(normalise(batch).contiguous()).predicted_depth.cpu()

    return run


def start_onnxruntime(size: tuple[int, int], threads: int) -> Run:
    """Return the model exported to onnxruntime on the CPU, at a (height, width)."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(
        _export(size), options, providers=["CPUExecutionProvider"]
    )

    def run(image: RgbImage) -> object:
        x = normalise(torch.from_numpy(resize(image, size))[None]).contiguous()
        return session.run(None, {"x": x.numpy()})

    return run


def _export(size: tuple[int, int]) -> bytes:
    class Depth(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = build_network()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.network(x).predicted_depth

    file = io.BytesIO()
    options: dict[str, Any] = {"input_names": ["x"], "opset_version": 17, "dynamo": False}
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # of the tracer: sizes become constants, as they are
        torch.onnx.export(Depth().eval(), (torch.zeros(1, 3, *size),), file, **options)
    return file.getvalue()


def resize(image: RgbImage, size: tuple[int, int]) -> RgbImage:
    """Resize to a (height, width) with bicubic interpolation, as its image processor does."""
    height, width = size
    return np.asarray(cv2.resize(image, (width, height), interpolation=cv2.INTER_CUBIC))
