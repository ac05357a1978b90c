"""Importing published TIE-KD checkpoints (mmcv layout) as students, and torch's weight files.

The one place where a pickle is read, and only by torch's restricted unpickler, which builds
tensors and plain values and nothing else: a file that would run code is refused unread.
"""

from __future__ import annotations

import contextlib
import hashlib
import pickle
import re
import zipfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from tiekd_ros.core.errors import InvalidSettingError
from tiekd_ros.student.architecture import InputSize
from tiekd_ros.student.bins import DepthBins
from tiekd_ros.student.checkpoint import (
    CheckpointError,
    Student,
    StudentCard,
    TargetWidth,
    check_finite,
    describe_misfits,
)
from tiekd_ros.student.networks import ARCHITECTURES, PUBLISHED_ARCHITECTURES, build_network
from tiekd_ros.student.networks.official import KITTI_BINS, NYU_BINS
from tiekd_ros.student.runtimes.torch_runtime import TorchRuntime


class Dataset(NamedTuple):
    """What a published student was trained for."""

    bins: DepthBins
    input_size: InputSize


DATASETS = {
    "kitti": Dataset(KITTI_BINS, InputSize(352, 1216)),
    "nyu": Dataset(NYU_BINS, InputSize(480, 640)),
}

PUBLISHED_WIDTH = TargetWidth(floor_m=2.3, relative=0.0)
"""The published target at any depth: a Gaussian of 0.5 m that a softmax widens to 2.3 m."""

_CLASSIFIER = "decode_head.conv_out.0.weight"
_LEGACY_START = pickle.dumps(0x1950A86A20F9469CFC6C, protocol=2)  # torch's magic number
_PROBE_SIZE = InputSize(64, 64)
_META_KEPT = ("exp_name", "epoch", "iter", "time", "mmcv_version")


def import_student(
    path: Path, architecture: str, *, bins: str = "", input_size: InputSize | None = None
) -> Student:
    """Read a published checkpoint as a student that has not been judged yet.

    Args:
        path: a `.pth` file, `{'meta', 'state_dict', 'optimizer'}` or a bare state_dict.
        architecture: one of `PUBLISHED_ARCHITECTURES`.
        bins: a key of `DATASETS`; "" = by the number of bins in the file.
        input_size: size of the network's input; None = the published test size.

    Raises:
        InvalidSettingError: an unknown architecture or bins, or bins that must be given.
        CheckpointError: the file is damaged, would run code, or does not fit.
    """
    if architecture not in PUBLISHED_ARCHITECTURES:
        raise InvalidSettingError(
            f"architecture must be one of {', '.join(PUBLISHED_ARCHITECTURES)}, "
            f"got {architecture!r}"
        )
    if bins and bins not in DATASETS:
        raise InvalidSettingError(f"bins must be one of {', '.join(DATASETS)}, got {bins!r}")
    content = _load(path, legacy=False)
    state = _find_state(content, path)
    dataset = DATASETS[bins or _bins_of(state, architecture)]
    _check_fit(state, architecture, dataset.bins, path)
    state = {key: value.to(_kind_of(value)) for key, value in state.items()}
    check_finite(state, str(path))
    card = StudentCard(
        bins=dataset.bins,
        input_size=input_size or dataset.input_size,
        architecture=architecture,
        target=PUBLISHED_WIDTH,
        reason=f"imported from {path.name}; not judged yet",
        training={"imported": _origin(content, path)},
    )
    student = Student.fresh(card)
    student.network.load_state_dict(state)
    student.network.eval()
    TorchRuntime(replace(student, card=replace(card, input_size=_PROBE_SIZE)))  # it answers
    return student


def read_weights(path: Path, *, legacy: bool = False) -> dict[str, Tensor]:
    """Return the tensors by name of a torch file: `{'state_dict': ...}`, or they alone.

    Args:
        path: the file; nothing in it is run.
        legacy: read torch's former format as well (before 1.6), which has no checksums.

    Raises:
        CheckpointError: the file is damaged, would run code, or holds no weights.
    """
    return _find_state(_load(path, legacy=legacy), path)


def _load(path: Path, *, legacy: bool) -> Any:
    """Return what the file holds, tensors and plain values only."""
    former = legacy and _is_legacy(path)
    if not former:
        _check_archive(path)
    try:
        with _numpy_scalars_allowed():
            return torch.load(path, map_location="cpu", weights_only=True, mmap=not former)
    except pickle.UnpicklingError as error:
        raise CheckpointError(f"{path} is refused: {_what_it_asks_for(str(error))}") from error
    except Exception as error:  # whatever else a hostile or damaged file makes torch raise
        text = str(error).partition("\n")[0][:200]
        raise CheckpointError(
            f"{path} is no torch checkpoint ({type(error).__name__}: {text})"
        ) from error


def _is_legacy(path: Path) -> bool:
    """Return whether a file begins as those of torch before 1.6."""
    try:
        with path.open("rb") as file:
            return file.read(len(_LEGACY_START)) == _LEGACY_START
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror}") from error


def _check_archive(path: Path) -> None:
    """Refuse what is no whole zip archive; torch itself does not look at the checksums."""
    try:
        size = path.stat().st_size
        if size and zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                damaged = archive.testzip()
            if damaged is None:
                return
            raise CheckpointError(f"{path} is damaged ({damaged}); download or copy it again")
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror}") from error
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError) as error:
        raise CheckpointError(f"{path} is damaged ({error}); download or copy it again") from error
    raise CheckpointError(
        f"{path} ({size} bytes) is no torch zip archive: it is empty, truncated or of another "
        "format; download or copy it again"
    )


def _numpy_scalars_allowed() -> contextlib.AbstractContextManager[Any]:
    """Let numpy numbers pass, which mmcv notes as best score: they hold bytes and a dtype."""
    version = tuple(int(part) for part in torch.__version__.split(".")[:2])
    if version < (2, 6):  # no names for allowed globals yet
        return contextlib.nullcontext()
    scalar = np.float64(0).__reduce__()[0]
    allowed: list[Any] = [(scalar, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")]
    allowed += [np.dtype, *(type(np.dtype(kind)) for kind in ("f4", "f8", "i4", "i8"))]
    return torch.serialization.safe_globals(allowed)


def _what_it_asks_for(error: str) -> str:
    found = re.search(r"(?:GLOBAL|class|global) ([\w.]+)", error)
    if found is None:
        return "its pickle holds more than tensors and plain values, and could run code"
    return (
        f"loading it would call {found[1]}, which is no tensor and no plain value and could run "
        "code. A checkpoint holds {'state_dict': tensors by name, 'meta': texts and numbers}; "
        "ask its author for one that does"
    )


def _find_state(content: Any, path: Path) -> dict[str, Tensor]:
    """Return the weights by their published names."""
    table = content
    if isinstance(content, Mapping) and isinstance(content.get("state_dict"), Mapping):
        table = content["state_dict"]
    if not isinstance(table, Mapping) or not table:
        empty = "an empty " if isinstance(table, Mapping) else "a "
        raise CheckpointError(
            f"{path} holds no weights: expected {{'state_dict': tensors by name}} or tensors by "
            f"name, got {empty}{type(table).__name__}"
        )
    prefix = "module." if all(str(key).startswith("module.") for key in table) else ""
    state = {}
    for key, value in table.items():
        if not isinstance(key, str) or not _is_plain(value):
            raise CheckpointError(
                f"{path}: {key!r} is no plain tensor but {type(value).__name__}; expected "
                "{'state_dict': tensors by name} or tensors by name"
            )
        state[key.removeprefix(prefix)] = value.detach()
    return state


def _is_plain(value: Any) -> bool:
    if not isinstance(value, Tensor):
        return False
    dense = value.layout == torch.strided and not value.is_quantized
    return dense and not value.is_complex() and value.device.type == "cpu"


def _kind_of(value: Tensor) -> torch.dtype:
    return torch.float32 if value.is_floating_point() else torch.int64


def _bins_of(state: Mapping[str, Tensor], architecture: str) -> str:
    """Return the data set whose number of bins the file has."""
    if not ARCHITECTURES[architecture].has_dpm:
        ranges = ", ".join(f"{n} ({d.bins.max_depth_m:g} m)" for n, d in DATASETS.items())
        raise InvalidSettingError(
            "a regression head does not say for which depth range it was trained; "
            f"give bins, one of {ranges}"
        )
    rows = len(state[_CLASSIFIER]) if _CLASSIFIER in state and state[_CLASSIFIER].dim() else 0
    fitting = [name for name, dataset in DATASETS.items() if dataset.bins.count == rows]
    return fitting[0] if fitting else "kitti"  # then the shapes will be found not to fit


def _check_fit(state: Mapping[str, Tensor], architecture: str, bins: DepthBins, path: Path) -> None:
    misfits = describe_misfits(state, _layout(architecture, bins))
    if misfits:
        raise CheckpointError(
            f"{path} does not fit {architecture} with {bins.count} bins: {misfits}; "
            f"{_suggestion(state)}"
        )


def _layout(architecture: str, bins: DepthBins) -> dict[str, Tensor]:
    """Return names and shapes, without memory for the weights."""
    with torch.device("meta"):
        return build_network(architecture, bins).state_dict()


def _suggestion(state: Mapping[str, Tensor]) -> str:
    shapes = {(key, tensor.shape) for key, tensor in state.items()}
    differences = {}
    for architecture in PUBLISHED_ARCHITECTURES:
        for name, dataset in DATASETS.items():
            wanted = {(k, t.shape) for k, t in _layout(architecture, dataset.bins).items()}
            either = not ARCHITECTURES[architecture].has_dpm
            choice = architecture if either else f"{architecture} with bins {name}"
            differences[choice] = len(shapes ^ wanted)
    choice, number = min(differences.items(), key=lambda item: item[1])
    if number == 0:
        return f"it fits {choice}"
    if number >= len(shapes):
        return "it is no published student"
    return f"the nearest is {choice}, which does not fit either"


def _origin(content: Any, path: Path) -> dict[str, Any]:
    """Return where the weights come from, for the card."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    origin: dict[str, Any] = {"file": path.name, "sha256": digest.hexdigest()}
    meta = content.get("meta") if isinstance(content, Mapping) else None
    if isinstance(meta, Mapping):
        kept = {key: meta.get(key) for key in _META_KEPT}
        origin |= {k: v for k, v in kept.items() if isinstance(v, (int, str))}
    return origin
