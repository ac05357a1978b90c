"""What can answer for depth, by name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from tiekd_ros.core.errors import InvalidSettingError
from tiekd_ros.teacher.backends.options import (
    BackendOptions,
    check_source,
    named_option,
    parse_backend,
    takes_align,
    unused_options,
)

if TYPE_CHECKING:
    from tiekd_ros.teacher.backend import Backend

__all__ = [
    "BACKENDS",
    "BackendOptions",
    "check_kind",
    "create_backend",
    "named_option",
    "parse_backend",
    "unused_options",
]


# A backend is imported only when it is asked for: the next may need torch and gigabytes.
def _recorded(options: BackendOptions) -> Backend:
    from tiekd_ros.teacher.backends.recorded import RecordedBackend

    return RecordedBackend(Path(options.frames))


def _synthetic(options: BackendOptions) -> Backend:
    from tiekd_ros.teacher.backends.synthetic import SyntheticBackend
    from tiekd_ros.worlds import WorldSettings

    return SyntheticBackend(WorldSettings(seed=options.seed, period_s=options.period_s))


def _huggingface(options: BackendOptions) -> Backend:
    from tiekd_ros.teacher.backends.huggingface import HuggingFaceBackend

    return HuggingFaceBackend(options)


def _onnx(options: BackendOptions) -> Backend:
    from tiekd_ros.teacher.backends.onnx import OnnxBackend

    return OnnxBackend(options)


def _ensemble(options: BackendOptions) -> Backend:
    from tiekd_ros.teacher.backends.ensemble import EnsembleBackend, member_options

    members = member_options(options)
    for name, member in members:  # a mistake in the last should not wait for the others to load
        check_source(name, member)
    return EnsembleBackend([create_backend(name, member) for name, member in members])


_FACTORIES: dict[str, Callable[[BackendOptions], Backend]] = {
    "recorded": _recorded,
    "synthetic": _synthetic,
    "huggingface": _huggingface,
    "onnx": _onnx,
    "ensemble": _ensemble,
}
BACKENDS = tuple(_FACTORIES)


def check_kind(name: str) -> None:
    """Check that there is a backend called `name`.

    Raises:
        InvalidSettingError: there is none.
    """
    if name not in BACKENDS:
        raise InvalidSettingError(
            f"unknown teacher backend {name!r}: there are {', '.join(BACKENDS)}"
        )


def create_backend(name: str, options: BackendOptions | None = None) -> Backend:
    """Make the backend called `name`, one of `BACKENDS`.

    Where `options.align` names a folder, a network is fitted to its depth; of an ensemble, each
    member that is one.

    Raises:
        InvalidSettingError: there is no such backend, or it lacks an option.
        TiekdError: what the backend says when it cannot start, of its folder for example.
    """
    options = options or BackendOptions()
    check_kind(name)
    check_source(name, options)
    backend = _FACTORIES[name](options)
    if not (options.align and takes_align(name)):
        return backend
    from tiekd_ros.teacher.backends.alignment import AlignedBackend

    return AlignedBackend(backend, options.align, options.align_max_error)
