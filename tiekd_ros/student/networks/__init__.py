"""The table of architectures, and networks made by their names.

A new architecture is a file here with its network, and a row of `ARCHITECTURES`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import TypeVar

from torch import Tensor, nn

from tiekd_ros.core.errors import InvalidSettingError
from tiekd_ros.student.architecture import StudentNetwork
from tiekd_ros.student.bins import DepthBins
from tiekd_ros.student.networks.efficientnet import EfficientNetStudent
from tiekd_ros.student.networks.mobilenetv2 import FastStudent
from tiekd_ros.student.networks.official import OfficialDpmStudent, OfficialRegressionStudent


@dataclass(frozen=True)
class ArchitectureSpec:
    """All that the rest of the package knows of an architecture.

    Attributes:
        build: makes a freshly initialised network for some bins.
        has_dpm: whether it gives a depth probability map, and so a confidence; else it regresses
            depth.
        base: folder of the base student that ships for it, in `tiekd_ros/student`; "" = none.
        is_published: whether published TIE-KD checkpoints hold it, with layers that its head does
            not use.
        shares_batch_norms: whether its published training took batch norms over all devices.
    """

    build: Callable[[DepthBins], StudentNetwork]
    has_dpm: bool = True
    base: str = ""
    is_published: bool = False
    shares_batch_norms: bool = True


_DPM = partial(ArchitectureSpec, is_published=True)
_REGRESSION = partial(ArchitectureSpec, is_published=True, has_dpm=False)

ARCHITECTURES: Mapping[str, ArchitectureSpec] = {
    "efficientnet-lite0": ArchitectureSpec(EfficientNetStudent, base="base"),
    "mobilenetv2-fast": ArchitectureSpec(FastStudent),
    "mobilenetv2": _DPM(partial(OfficialDpmStudent, "mobilenetv2")),
    "resnet18": _DPM(partial(OfficialDpmStudent, "resnet18"), shares_batch_norms=False),
    "resnet50": _DPM(partial(OfficialDpmStudent, "resnet50"), shares_batch_norms=False),
    "mobilenetv2-regression": _REGRESSION(partial(OfficialRegressionStudent, "mobilenetv2")),
    "resnet18-regression": _REGRESSION(
        partial(OfficialRegressionStudent, "resnet18"), shares_batch_norms=False
    ),
    "resnet50-regression": _REGRESSION(
        partial(OfficialRegressionStudent, "resnet50"), shares_batch_norms=False
    ),
}
DEFAULT_ARCHITECTURE = "efficientnet-lite0"
PUBLISHED_ARCHITECTURES = tuple(n for n, spec in ARCHITECTURES.items() if spec.is_published)


@lru_cache(maxsize=4)
def meta_network(architecture: str, bins: DepthBins) -> StudentNetwork:
    """Return a network in eval mode whose weights have shapes and no values; for `materialise`."""
    network = build_network(architecture, bins).eval()
    for module in network.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                module._parameters[name] = nn.Parameter(parameter.to("meta"))
        for name, buffer in module._buffers.items():
            if buffer is not None and name not in module._non_persistent_buffers_set:
                module._buffers[name] = buffer.to("meta")
    return network


_M = TypeVar("_M", bound=nn.Module)


def materialise(hollow: _M, state: Mapping[str, Tensor], prefix: str = "") -> _M:
    """Return a copy of a hollow network with the weights of a state_dict that fits it.

    To build a network and draw its random weights takes ten times as long, all of it in Python:
    time that a robot's frames would have to wait while a new student is loaded.

    Args:
        hollow: of `meta_network`, or a part of it.
        state: the weights by name.
        prefix: of the part's names in the state_dict.
    """
    copied = hollow.__new__(type(hollow))
    for name, value in hollow.__dict__.items():
        copied.__dict__[name] = value.copy() if isinstance(value, dict | set) else value
    for name, parameter in hollow._parameters.items():
        if parameter is not None:
            weight = state[prefix + name].to(parameter.dtype)
            copied._parameters[name] = nn.Parameter(weight, parameter.requires_grad)
    for name, buffer in hollow._buffers.items():
        if buffer is not None and buffer.is_meta:
            copied._buffers[name] = state[prefix + name].to(buffer.dtype)
    for name, child in hollow._modules.items():
        if child is not None:
            copied._modules[name] = materialise(child, state, f"{prefix}{name}.")
    return copied


def build_network(architecture: str, bins: DepthBins) -> StudentNetwork:
    """Return a freshly initialised network of the named architecture.

    Raises:
        InvalidSettingError: no architecture has this name.
    """
    if architecture not in ARCHITECTURES:
        raise InvalidSettingError(
            f"unknown student architecture {architecture!r}: known are {', '.join(ARCHITECTURES)}"
        )
    return ARCHITECTURES[architecture].build(bins)
