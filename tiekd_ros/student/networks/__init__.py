"""All architectures by name: the one table."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache, partial
from typing import TypeVar

from torch import Tensor, nn

from tiekd_ros.core.errors import InvalidSettingError
from tiekd_ros.student.architecture import StudentNetwork
from tiekd_ros.student.bins import DepthBins
from tiekd_ros.student.networks.mobilenetv2_fast import ARCHITECTURE, FastStudent
from tiekd_ros.student.networks.official import OFFICIAL_ARCHITECTURES, build_official

_BUILDERS: dict[str, Callable[[DepthBins], StudentNetwork]] = {
    ARCHITECTURE: FastStudent,
    **{name: partial(build_official, name) for name in OFFICIAL_ARCHITECTURES},
}

ARCHITECTURES = tuple(_BUILDERS)


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


def materialise(hollow: StudentNetwork, state: Mapping[str, Tensor]) -> StudentNetwork:
    """Return a copy of a hollow network with the weights of a state_dict that fits it.

    To build a network and draw its random weights takes ten times as long, all of it in Python:
    time that a robot's frames would have to wait while a new student is loaded.
    """
    return _filled(hollow, state, "")


_M = TypeVar("_M", bound=nn.Module)


def _filled(hollow: _M, state: Mapping[str, Tensor], prefix: str) -> _M:
    """Return a copy of a tree of modules, with its weights of the names that begin so."""
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
            copied._modules[name] = _filled(child, state, f"{prefix}{name}.")
    return copied


def build_network(architecture: str, bins: DepthBins) -> StudentNetwork:
    """Return a freshly initialised network of the named architecture.

    Raises:
        InvalidSettingError: no architecture has this name.
    """
    if architecture not in _BUILDERS:
        raise InvalidSettingError(
            f"unknown student architecture {architecture!r}: known are {', '.join(ARCHITECTURES)}"
        )
    return _BUILDERS[architecture](bins)
