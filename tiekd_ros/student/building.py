"""All architectures by name: the one table."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from tiekd_ros.errors import InvalidSettingError
from tiekd_ros.student.architecture import StudentNetwork
from tiekd_ros.student.bins import DepthBins
from tiekd_ros.student.network import ARCHITECTURE, FastStudent
from tiekd_ros.student.official import OFFICIAL_ARCHITECTURES, build_official

_BUILDERS: dict[str, Callable[[DepthBins], StudentNetwork]] = {
    ARCHITECTURE: FastStudent,
    **{name: partial(build_official, name) for name in OFFICIAL_ARCHITECTURES},
}

ARCHITECTURES = tuple(_BUILDERS)


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
