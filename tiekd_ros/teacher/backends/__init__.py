"""What can answer for depth, by name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from tiekd_ros.errors import InvalidSettingError
from tiekd_ros.teacher.backends.options import BackendOptions, parse_backend

if TYPE_CHECKING:  # the command line describes the options, and has no use for gRPC
    from tiekd_ros.teacher.backend import Backend

__all__ = ["BACKENDS", "BackendOptions", "create_backend", "parse_backend"]


# A backend is imported only when it is asked for: the next may need torch and gigabytes.
def _recorded(options: BackendOptions) -> Backend:
    from tiekd_ros.teacher.backends.recorded import RecordedBackend

    if not options.frames:
        raise InvalidSettingError(
            "the recorded backend needs a folder of frames: give frames=DIR (--frames DIR), with "
            "images/, depth/ and K.txt in it"
        )
    return RecordedBackend(Path(options.frames))


def _synthetic(options: BackendOptions) -> Backend:
    from tiekd_ros.teacher.backends.synthetic import SyntheticBackend
    from tiekd_ros.worlds import WorldSettings

    return SyntheticBackend(WorldSettings(seed=options.seed, period_s=options.period_s))


def _huggingface(options: BackendOptions) -> Backend:
    from tiekd_ros.teacher.backends.huggingface import HuggingFaceBackend

    if not options.model:
        raise InvalidSettingError(
            "the huggingface backend needs a checkpoint: give model=DIR or model=ORG/NAME (--model)"
        )
    return HuggingFaceBackend(options)


def _onnx(options: BackendOptions) -> Backend:
    from tiekd_ros.teacher.backends.onnx import OnnxBackend

    if not options.model:
        raise InvalidSettingError(
            "the onnx backend needs an exported network: give model=FILE.onnx (--model)"
        )
    return OnnxBackend(options)


def _ensemble(options: BackendOptions) -> Backend:
    from tiekd_ros.teacher.backends.ensemble import EnsembleBackend, member_options

    return EnsembleBackend(
        [create_backend(name, member) for name, member in member_options(options)]
    )


_FACTORIES: dict[str, Callable[[BackendOptions], Backend]] = {
    "recorded": _recorded,
    "synthetic": _synthetic,
    "huggingface": _huggingface,
    "onnx": _onnx,
    "ensemble": _ensemble,
}
BACKENDS = tuple(_FACTORIES)


def create_backend(name: str, options: BackendOptions | None = None) -> Backend:
    """Make the backend called `name`, one of `BACKENDS`.

    Where `options.align` names a folder, the backend is fitted to its depth; of an ensemble, each
    member is.

    Raises:
        InvalidSettingError: there is no such backend, or it lacks an option.
        TiekdError: what the backend says when it cannot start, of its folder for example.
    """
    options = options or BackendOptions()
    factory = _FACTORIES.get(name)
    if factory is None:
        raise InvalidSettingError(
            f"unknown teacher backend {name!r}: there are {', '.join(BACKENDS)}"
        )
    backend = factory(options)
    if not options.align or name == "ensemble":
        return backend
    from tiekd_ros.teacher.backends.alignment import AlignedBackend

    return AlignedBackend(backend, options.align, options.align_max_error)
