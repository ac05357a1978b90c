"""Weights of the published students from a formula, as the reference numbers were made with."""

from __future__ import annotations

import json
import math
import zlib
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor

from tiekd_ros.student.bins import DepthBins
from tiekd_ros.student.networks import build_network
from tiekd_ros.student.networks.official import KITTI_BINS

REFERENCE = Path(__file__).resolve().parents[3] / "shared" / "reference"
needs_reference = pytest.mark.skipif(
    not REFERENCE.is_dir(), reason=f"no reference data in {REFERENCE}"
)
META = {
    "mmcv_version": "1.5.0",
    "config": "model = dict(type='DepthEncoderDecoder')\n",
    "epoch": 24,
    "hook_msgs": {"best_score": np.float64(0.0628), "last_ckpt": "epoch_24.pth"},
}
"""What mmcv notes beside the weights; the best score is a numpy number."""


def hash_values(key: str, shape: Sequence[int]) -> npt.NDArray[np.float32]:
    """Return numbers in [-1, 1) that depend on the key and the index only."""
    with np.errstate(over="ignore"):
        z = np.arange(math.prod(shape), dtype=np.uint64)
        z += np.uint64(zlib.crc32(key.encode()) << 32)
        z *= np.uint64(0x9E3779B97F4A7C15)
        z ^= z >> np.uint64(30)
        z *= np.uint64(0xBF58476D1CE4E5B9)
        z ^= z >> np.uint64(27)
        z *= np.uint64(0x94D049BB133111EB)
        z ^= z >> np.uint64(31)
    z >>= np.uint64(40)
    values = z.astype(np.float32) * np.float32(2.0 / 2**24) - np.float32(1.0)
    return values.reshape(tuple(shape))


def hash_tensor(key: str, shape: Sequence[int], out_gain: float = 1.0) -> Tensor:
    """Return one weight; `out_gain` sharpens the DPM (layer `conv_out`)."""
    if key.endswith("num_batches_tracked"):
        return torch.zeros((), dtype=torch.int64)
    v = hash_values(key, shape)
    if len(shape) == 4:
        fan_in = shape[1] * shape[2] * shape[3]
        v = v * np.float32(math.sqrt((6 if key.startswith("decode_head.") else 3) / fan_in))
        if key == "decode_head.conv_out.0.weight":
            v = v * np.float32(out_gain)
    elif key.endswith("running_var"):
        v = np.float32(1) + np.float32(0.5) * v
    elif key.endswith(("running_mean", "bias")):
        v = np.float32(0.1) * v
    else:
        v = np.float32(1) + np.float32(0.2) * v
    return torch.from_numpy(v)


def hash_state(
    shapes: Mapping[str, Sequence[int]], out_gain: float = 1.0
) -> OrderedDict[str, Tensor]:
    """Return a state_dict of these shapes."""
    return OrderedDict((k, hash_tensor(k, shape, out_gain)) for k, shape in shapes.items())


def shapes_of(network: torch.nn.Module) -> dict[str, tuple[int, ...]]:
    """Return the shapes of a network's state_dict."""
    return {key: tuple(value.shape) for key, value in network.state_dict().items()}


def published_shapes(encoder: str) -> dict[str, tuple[int, ...]]:
    """Return keys and shapes of a published KITTI student with a DPM head, in order."""
    text = (REFERENCE / f"official_state_dict_{encoder}.json").read_text()
    return {k: tuple(v["shape"]) for k, v in json.loads(text)["state_dict"].items()}


def layout(architecture: str, bins: DepthBins = KITTI_BINS) -> dict[str, tuple[int, ...]]:
    """Return keys and shapes of a student, without memory for its weights."""
    with torch.device("meta"):
        return shapes_of(build_network(architecture, bins))


def flat_state(
    architecture: str = "resnet18", bins: DepthBins = KITTI_BINS
) -> OrderedDict[str, Tensor]:
    """Return weights that are all zero and take next to no room in a file."""
    return OrderedDict(
        (key, torch.zeros((), dtype=torch.int64 if "tracked" in key else None).expand(shape))
        for key, shape in layout(architecture, bins).items()
    )


def written(path: Path, state: Mapping[str, Any], meta: Mapping[str, Any] = META) -> Path:
    """Write a checkpoint as mmcv does."""
    torch.save({"meta": meta, "state_dict": state, "optimizer": {"state": {}}}, path)
    return path
