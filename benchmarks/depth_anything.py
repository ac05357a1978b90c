"""Depth Anything V2 Small (arXiv 2406.09414) from transformers, with random weights.

Its speed does not depend on its weights, and so nothing is downloaded. It answers relative
depth; here it stands for what a user would pick instead of a student, as to time and memory.
"""

from __future__ import annotations

import importlib.util
import io
import warnings
from collections.abc import Callable
from typing import Any

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


def build_network() -> nn.Module:
    """Return the small model, 24.8 million parameters."""
    from transformers import DepthAnythingConfig, DepthAnythingForDepthEstimation, Dinov2Config

    backbone = Dinov2Config(
        hidden_size=384,
        num_hidden_layers=12,
        num_attention_heads=6,
        patch_size=_STEP,
        image_size=_SHORT_SIDE,
        out_features=["stage3", "stage6", "stage9", "stage12"],
        reshape_hidden_states=False,
        apply_layernorm=True,
    )
    config = DepthAnythingConfig(
        backbone_config=backbone,
        patch_size=_STEP,
        reassemble_hidden_size=384,
        reassemble_factors=[4, 2, 1, 0.5],
        neck_hidden_sizes=[48, 96, 192, 384],
        fusion_hidden_size=64,
        head_hidden_size=32,
    )
    torch.manual_seed(0)
    return DepthAnythingForDepthEstimation(config).eval()


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
            depth: torch.Tensor = self.network(x).predicted_depth
            return depth

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
