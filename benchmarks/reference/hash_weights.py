"""Weights and inputs from a formula, so that fixtures of whole networks need no weight file.

Element i of the tensor named k is a hash of (i, crc32(k)), mapped to v in [-1, 1) and scaled by
what the tensor is for; the formula stands in the README of the fixtures.
"""

from __future__ import annotations

import zlib

import numpy as np
import torch
from torch import Tensor, nn

_STEP = np.uint64(0x9E3779B97F4A7C15)
_FIRST = np.uint64(0xBF58476D1CE4E5B9)
_SECOND = np.uint64(0x94D049BB133111EB)


def hash_values(key: str, shape: tuple[int, ...]) -> np.ndarray:
    """Return float32 in [-1, 1) of this shape, by the tensor's name."""
    count = int(np.prod(shape, dtype=np.int64))
    z = np.arange(count, dtype=np.uint64)
    z += np.uint64(zlib.crc32(key.encode()) << 32)
    z *= _STEP  # wraps around, as do the products below
    z ^= z >> np.uint64(30)
    z *= _FIRST
    z ^= z >> np.uint64(27)
    z *= _SECOND
    z ^= z >> np.uint64(31)
    unit = (z >> np.uint64(40)).astype(np.float32) / np.float32(2**24)
    return (2 * unit - 1).reshape(shape)


def hash_tensor(key: str, shape: tuple[int, ...], out_gain: float) -> Tensor:
    """Return the tensor of this name in the state_dict of an official network."""
    if key.endswith("num_batches_tracked"):
        return torch.zeros(shape, dtype=torch.int64)
    v = hash_values(key, shape)
    if len(shape) == 4:
        fan_in = shape[1] * shape[2] * shape[3]
        gain = 6 if key.startswith("decode_head.") else 3
        v = v * np.float32(np.sqrt(gain / fan_in))
        if key == "decode_head.conv_out.0.weight":
            v = v * np.float32(out_gain)
    elif key.endswith("running_var"):
        v = 1 + np.float32(0.5) * v
    elif key.endswith(".weight"):
        v = 1 + np.float32(0.2) * v
    else:  # running_mean and every bias
        v = np.float32(0.1) * v
    return torch.from_numpy(v)


def hash_input(key: str, shape: tuple[int, ...]) -> Tensor:
    """Return a "normalised image" of this shape."""
    return torch.from_numpy(2 * hash_values(key, shape))


def load_hash_weights(network: nn.Module, out_gain: float) -> None:
    """Fill a network whose state_dict has the official names."""
    state = network.state_dict()
    weights = {key: hash_tensor(key, tuple(t.shape), out_gain) for key, t in state.items()}
    network.load_state_dict(weights)
