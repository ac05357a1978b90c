"""The base student that ships with the package, fitted to any camera and any depth bins.

The base was trained in one canonical camera: a view taken with focal length f had its depth
multiplied by f_c / f, because what a lens of focal length f shows at depth z looks, pixel by
pixel, like what one of f_c shows at z f_c / f. So a camera's depth is s = f / f_c times what
the base says, and only the head has to know: its rows are read off the base's at c / s for
every new bin centre c. Focal lengths are compared in images of equally many pixels: the base
was taught that resolution changes no depth.

A scale that is fitted to the first labels of a place enters at the same point.
"""

from __future__ import annotations

import tempfile
from importlib.resources import files
from pathlib import Path

import torch
from torch import Tensor

from tiekd_ros.student.architecture import DpmNetwork, InputSize
from tiekd_ros.student.bins import DepthBins
from tiekd_ros.student.checkpoint import (
    CARD,
    WEIGHTS,
    CheckpointError,
    Student,
    StudentCard,
    load_student,
)
from tiekd_ros.student.networks import ARCHITECTURES, DEFAULT_ARCHITECTURE, build_network

_FAR_DECAY = 0.1  # beyond the base's range, probability falls by e each tenth of its far end


def load_base(architecture: str = DEFAULT_ARCHITECTURE) -> Student:
    """Return the base student that ships; `card.focal_px` holds its canonical focal length.

    Args:
        architecture: one whose `ArchitectureSpec` names a base.

    Raises:
        CheckpointError: none ships, or its files are missing or damaged, or hold something else.
    """
    folder = ARCHITECTURES[architecture].base
    if not folder:
        raise CheckpointError(f"no base student ships for {architecture!r}")
    try:
        student = _load_shipped(folder)
        if student.card.architecture != architecture or student.card.focal_px is None:
            raise CheckpointError("it is no base student: another network, or no focal length")
    except (CheckpointError, OSError) as error:
        raise CheckpointError(
            f"the base student that ships with tiekd_ros cannot be used ({error}); install "
            "tiekd_ros again, or start from random weights (student.start: random)"
        ) from error
    return student


def start_from_base(
    bins: DepthBins,
    size: InputSize,
    focal_px: float | None,
    base: Student | None = None,
    *,
    architecture: str = DEFAULT_ARCHITECTURE,
    scale: float = 1.0,
) -> DpmNetwork:
    """Return a network with these bins that starts from the base's weights.

    Args:
        bins: of the new student, metres of its own camera.
        size: the new student's input size.
        focal_px: its camera's focal length in pixels at that size; None: not known, the base's
            own is assumed, and depth may be wrong by one factor everywhere.
        base: another base than the one that ships.
        architecture: of the base that ships, where no other is given.
        scale: of depth as it is with that focal length, fitted to labels (`method.calibration`).

    Raises:
        CheckpointError: the base that ships cannot be used.
    """
    base = base or load_base(architecture)
    if focal_px is not None:
        scale *= depth_scale(base.card, size, focal_px)
    network = build_network(base.card.architecture, bins)
    if not isinstance(network, DpmNetwork):
        raise CheckpointError(f"a {base.card.architecture!r} student has no bins to be fitted")
    head = next(name for name, part in network.named_modules() if part is network.classifier)
    weight_name, bias_name = f"{head}.weight", f"{head}.bias"
    state = base.network.state_dict()
    weight, bias = remap_head(
        state[weight_name].flatten(1), state[bias_name], base.card.bins, bins, scale
    )
    weight = weight.unflatten(1, state[weight_name].shape[1:])
    network.load_state_dict({**state, weight_name: weight, bias_name: bias})
    return network


def depth_scale(base: StudentCard, size: InputSize, focal_px: float) -> float:
    """Return how many times the base's depth a camera's depth is.

    Args:
        base: card of the base, with its canonical focal lengths and input size.
        size: input size of the camera's student.
        focal_px: the camera's focal length in pixels at that size.
    """
    if base.focal_px is None:
        raise CheckpointError("the card of the base student names no focal length")
    fx, fy = base.focal_px
    pixels = base.input_size.height * base.input_size.width
    shrunk = (pixels / (size.height * size.width)) ** 0.5
    return float(focal_px * shrunk / (fx * fy) ** 0.5)


def remap_head(
    weight: Tensor, bias: Tensor, old: DepthBins, new: DepthBins, scale: float
) -> tuple[Tensor, Tensor]:
    """Return a head's weight and bias for other bins and scaled depth.

    Logits are read as the logarithm of a density over depth: interpolated linearly between the
    old centres, plus the logarithm of the bins' width, so that probability is kept. Beyond the
    ends of the old range the last row holds, with a bias that falls with the distance.

    Args:
        weight: (C, F) of the old head.
        bias: (C,).
        old: the C bins of the old head.
        new: the C' bins of the new one.
        scale: new metres in an old one.

    Returns:
        Weight (C', F) and bias (C',).
    """
    old_centres, old_edges = old.centres().double(), old.edges().double()
    new_edges = new.edges().double() / scale
    wanted = new.centres().double() / scale  # (C',), in old metres
    right = torch.searchsorted(old_centres, wanted).clamp(1, old.count - 1)
    left = right - 1
    share = (wanted - old_centres[left]) / (old_centres[right] - old_centres[left])
    share = share.clamp(0.0, 1.0)
    density = bias.double() - old_edges.diff().log()  # (C,)
    new_bias = density[left] * (1 - share) + density[right] * share + new_edges.diff().log()
    near_m = float(old_edges[1] - old_edges[0])
    far_m = _FAR_DECAY * float(old_centres[-1])
    new_bias -= (old_centres[0] - wanted).clamp_min(0) / near_m
    new_bias -= (wanted - old_centres[-1]).clamp_min(0) / far_m
    rows = weight.double()
    share = share[:, None]
    new_weight = rows[left] * (1 - share) + rows[right] * share
    return new_weight.to(weight), new_bias.to(bias)


def _load_shipped(name: str) -> Student:
    folder = files("tiekd_ros.student") / name
    if isinstance(folder, Path):
        return load_student(folder)
    with tempfile.TemporaryDirectory() as copy:  # the package lies in an archive
        for name in (WEIGHTS, CARD):
            (Path(copy) / name).write_bytes((folder / name).read_bytes())
        return load_student(Path(copy))
