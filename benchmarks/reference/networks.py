"""Checks of the official networks: key lists, features and outputs.

Their weights and inputs come from a formula, so that fixtures need no weight file: element i of
the tensor named k is a hash of (i, crc32(k)), mapped to v in [-1, 1) and scaled by what the
tensor is for. The formula stands in the README of the fixtures.

Shapes: B batch, C bins, H and W the input, h and w the head's output.
"""

from __future__ import annotations

import json
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from reference.checks import EDGES, EXACT, Check, Fixture, FixtureError, Tolerance, compared, failed
from tiekd_ros.evaluation.protocol import flip_averaged
from tiekd_ros.student.architecture import StudentNetwork
from tiekd_ros.student.bins import DepthBins
from tiekd_ros.student.networks import build_network
from tiekd_ros.student.networks.official import KITTI_BINS

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


_FEATURES = {  # channels of the backbone's outputs
    (24, 32, 96, 320): "mobilenetv2",
    (64, 64, 128, 256, 512): "resnet18",
    (64, 256, 512, 1024, 2048): "resnet50",
}
_REGRESSION_CLASSES = 256  # rows of the DPM layer that only a regression head has
_DEPTH_SHARE = 2.5e-5  # of the range: 2 mm on KITTI, 0.25 mm on NYU
_MEAN_STD = Tolerance(1e-5)
_PROBABILITY = Tolerance(1e-4)


def encoder_of(names: list[str]) -> str:
    """Return which encoder has parameters of these names."""
    for start, encoder in (
        ("conv3", "resnet50"),
        ("conv1", "resnet18"),
        ("conv.", "mobilenetv2"),
    ):
        if any(name.startswith(f"backbone.layer1.0.{start}") for name in names):
            return encoder
    raise FixtureError("the names of the parameters fit no published encoder")


def check_key_list(path: Path, name: str) -> list[Check]:
    """Check a list of an official network's keys with shapes and types, in order.

    Args:
        path: the file.
        name: what to call it in the table.

    Raises:
        FixtureError: it is no such list.
    """
    try:
        listed = json.loads(path.read_text())
        state = listed.get("state_dict", listed)
        theirs = {key: (list(t["shape"]), str(t["dtype"])) for key, t in state.items()}
        rows = theirs["decode_head.conv_out.0.weight"][0][0]
    except (OSError, ValueError) as error:
        raise FixtureError(f"no JSON that can be read: {error}") from error
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        raise FixtureError(
            "unknown JSON file: no list of an official network's keys with shape and dtype"
        ) from error
    architecture, bins = encoder_of(list(theirs)), KITTI_BINS
    if rows == _REGRESSION_CLASSES:
        architecture += "-regression"
    else:
        bins = DepthBins(int(rows), bins.min_depth_m, bins.max_depth_m)
    network = build_network(architecture, bins)
    ours = {
        key: (list(t.shape), str(t.dtype).removeprefix("torch."))
        for key, t in network.state_dict().items()
    }
    checks = [compared(name, "state_dict: keys in order", list(ours), list(theirs), EXACT)]
    shared = [key for key in theirs if key in ours]
    for index, what in enumerate(("shapes", "dtypes")):
        a, b = ([str(values[key][index]) for key in shared] for values in (ours, theirs))
        checks.append(compared(name, f"state_dict: {what}", a, b, EXACT))
    sizes = [parameter.numel() for parameter in network.parameters()]
    counts = {"n_tensors": len(ours), "n_param_tensors": len(sizes), "n_params": sum(sizes)}
    for key in listed if "state_dict" in listed else ():
        if key in counts:
            checks.append(compared(name, key, counts[key], listed[key], EXACT))
        elif key not in ("config", "note", "state_dict"):
            checks.append(failed(name, key, "not checked"))
    return checks


def _build(fixture: Fixture, cases: list[int]) -> StudentNetwork:
    """Build the network that a file of outputs is of, with its hash weights."""
    first = f"s{cases[0]}_"
    levels = sorted(key for key in fixture.keys(f"{first}feat") if key.endswith("_shape"))
    channels = tuple(int(fixture.arrays[f"{first}feat{key}"][1]) for key in levels)
    if channels not in _FEATURES:
        raise FixtureError(f"no published encoder has features of {channels} channels")
    low, high = fixture.number("min_depth"), fixture.number("max_depth")
    samples = fixture.arrays.get(f"{first}dpm_samples")
    count, head = (257, "-regression") if samples is None else (samples.shape[1], "")
    network = build_network(_FEATURES[channels] + head, DepthBins(count, low, high))
    load_hash_weights(network, fixture.number("out_gain"))
    return network


def check_student(fixture: Fixture) -> None:
    """Check a file of an official network's outputs."""
    fixture.ignore("config")
    keys = [key for key in fixture.arrays if key.endswith("_input_key")]
    cases = sorted(int(key[1:].removesuffix("_input_key")) for key in keys)
    if not cases:
        raise FixtureError("there is no case s0_input_key")
    if "hash_check" in fixture:
        shape = fixture.take("hash_check").shape
        ours = hash_values(fixture.text("hash_check_key"), shape)
        fixture.compare("hash_check", ours, EXACT)
    network = _build(fixture, cases).eval()
    for case in cases:
        with torch.inference_mode():
            _check_case(fixture, network, f"s{case}_")


def _check_case(fixture: Fixture, network: StudentNetwork, case: str) -> None:
    shape = tuple(int(n) for n in fixture.take(f"{case}input_shape"))
    image = hash_input(fixture.text(f"{case}input_key"), shape)  # (B, 3, H, W)
    features = network.get_submodule("backbone")(image)
    for level, feature in enumerate(features):
        fixture.compare(f"{case}feat{level}_shape", feature.shape, EXACT)
        wide = feature.double()
        statistics = torch.stack((wide.mean(), wide.std()))
        fixture.compare(f"{case}feat{level}_mean_std", statistics, _MEAN_STD)
    raw = network(image)
    output = network.output(raw)
    metres = Tolerance(_DEPTH_SHARE * network.bins.max_depth_m, "m")
    fixture.compare(f"{case}head_depth", output.depth, metres)
    if output.logits is not None:
        fixture.compare(f"{case}bin_edges", network.bins.edges(), EDGES)
        y, x = fixture.take(f"{case}dpm_sample_yx")
        samples = output.logits.softmax(dim=1).numpy()[:, :, y, x]  # (B, C, n)
        fixture.compare(f"{case}dpm_samples", samples, _PROBABILITY)
    straight = network.predict_depth(image)
    fixture.compare(f"{case}simple_test", straight, metres)
    # Not once more for the image as it is: large networks take seconds.
    flipped = flip_averaged(lambda x: straight if x is image else network.predict_depth(x), image)
    fixture.compare(f"{case}flip_aug_test", flipped, metres)
