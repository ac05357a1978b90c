"""What a backend is made of, looked at before anything is imported, fetched or loaded."""

from __future__ import annotations

import re
from dataclasses import dataclass, fields
from pathlib import Path

from tiekd_ros.core.errors import InvalidSettingError
from tiekd_ros.core.settings import Settings, setting


@dataclass(frozen=True)
class BackendOptions(Settings):
    """Options of all backends; each uses its own."""

    model: str = setting(
        "",
        "huggingface: a checkpoint's folder, or its hub id (ORG/NAME, ORG/NAME@REVISION); onnx: "
        "the .onnx file, described by a .yaml of the same name beside it",
    )
    device: str = setting(
        "auto", "huggingface, onnx: cpu, cuda or cuda:N; auto takes a GPU where there is one"
    )
    dtype: str = setting(
        "auto",
        "huggingface: number type of the network; auto is float16 on a GPU, else float32",
        choices=("auto", "float32", "float16", "bfloat16"),
    )
    meaning: str = setting(
        "auto",
        "huggingface: what the network's numbers are, where its configuration does not say it",
        choices=("auto", "metric", "relative_depth", "inverse_depth"),
    )
    input_side: int = setting(
        0,
        "huggingface: height and width that images are fitted to, in place of the checkpoint's "
        "own; 0 keeps that. Smaller is faster and less sharp",
        unit="pixels",
        minimum=0,
        maximum=8192,
    )
    max_input_pixels: int = setting(
        4_000_000,
        "huggingface, onnx: largest image that the network itself is given; bounds its memory",
        unit="pixels",
        minimum=1024,
        maximum=1 << 28,
    )
    align: str = setting(
        "",
        "huggingface, onnx: fit the network's numbers to metres once, on this folder of images/, "
        "depth/ and K.txt of the robots' camera; empty serves them as they are",
    )
    align_max_error: float = setting(
        0.25,
        "huggingface, onnx: largest median relative error of the fit of --align, on parts of the "
        "folder that did not make it",
        minimum=0.0,
        maximum=10.0,
    )
    members: str = setting(
        "",
        "ensemble: its members as KIND:ARGUMENT, separated by commas, for example "
        "huggingface:ORG/NAME,onnx:FILE",
    )
    frames: str = setting("", "recorded: folder of images/, depth/ and K.txt that it answers from")
    seed: int = setting(
        0,
        "synthetic: seed of the world; the camera's must be the same",
        minimum=0,
        maximum=2**31 - 1,
    )
    period_s: float = setting(
        60.0, "synthetic: time of the camera's one round", unit="s", minimum=1.0, maximum=86400.0
    )


_NETWORK = ("model", "device", "max_input_pixels", "align", "align_max_error")
_USED = {
    "huggingface": (*_NETWORK, "dtype", "meaning", "input_side"),
    "onnx": _NETWORK,
    "recorded": ("frames",),
    "synthetic": ("seed", "period_s"),
}
"""The options that each backend uses; an ensemble hands those of its members on to them."""
# Of each member alone, as its argument says them.
_OF_A_MEMBER = frozenset(("model", "frames", "seed"))

_ARGUMENTS = {
    "huggingface": "model",
    "onnx": "model",
    "recorded": "frames",
    "synthetic": "seed",
    "ensemble": "members",
}
"""The option that the argument of `kind:argument` is, by kind."""


def unused_options(kind: str, options: BackendOptions) -> list[str]:
    """Return the names of options that were given and say nothing to this kind of backend."""
    given = [each for each in fields(options) if getattr(options, each.name) != each.default]
    used = set(_USED.get(kind, ()))
    if kind == "ensemble":
        named = {text.strip().partition(":")[0] for text in options.members.split(",")}
        members = named & set(_USED) or _USED
        used = {"members", *(name for each in members for name in _USED[each])} - _OF_A_MEMBER
    return [each.name for each in given if each.name not in used]


def takes_align(kind: str) -> bool:
    """Say whether `align` fits this kind of backend to metres: networks, by themselves."""
    return "align" in _USED.get(kind, ())


def named_option(text: str) -> str | None:
    """Return the option that the argument of `kind:argument` says; None where there is none."""
    kind, _, argument = text.strip().partition(":")
    return _ARGUMENTS.get(kind) if argument else None


def parse_backend(text: str) -> tuple[str, BackendOptions]:
    """Read `huggingface:MODEL`, `onnx:FILE`, `recorded:DIR`, `synthetic:SEED` or `ensemble:...`.

    Returns:
        The backend's name, and its options.

    Raises:
        InvalidSettingError: the text is none of these.
    """
    kind, _, argument = text.strip().partition(":")
    if kind not in _ARGUMENTS:
        raise InvalidSettingError(
            f"unknown teacher backend {kind!r} in {text!r}: there are "
            + ", ".join(f"{name}:{option.upper()}" for name, option in _ARGUMENTS.items())
        )
    if kind != "synthetic":
        if not argument:
            raise InvalidSettingError(
                f"{text!r} lacks its argument: {kind}:{_ARGUMENTS[kind].upper()}"
            )
        return kind, BackendOptions.from_mapping({_ARGUMENTS[kind]: argument})
    try:
        return kind, BackendOptions(seed=int(argument or 0))
    except ValueError as error:
        raise InvalidSettingError(
            f"the seed of {text!r} must be a whole number that is not negative: synthetic:0"
        ) from error


_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*(@[\w./-]+)?")


def check_source(name: str, options: BackendOptions) -> None:
    """Check that what the backend called `name` is to be made of is named, and here if a file.

    Raises:
        InvalidSettingError: it is not.
        DatasetError: the recording is no folder.
    """
    if name == "huggingface":
        check_model(options.model)
    elif name == "onnx":
        if not options.model:
            raise InvalidSettingError(
                "the onnx backend needs an exported network: give model=FILE.onnx (--model)"
            )
        path = Path(options.model).expanduser()
        if not path.is_file():
            raise InvalidSettingError(f"there is no file {path}; model must name an .onnx file")
    elif name == "recorded":
        if not options.frames:
            raise InvalidSettingError(
                "the recorded backend needs a folder of frames: give frames=DIR (--frames DIR), "
                "with images/, depth/ and K.txt in it"
            )
        if not Path(options.frames).is_dir():
            from tiekd_ros.datasets import DatasetError  # the command line need not load it

            raise DatasetError(f"the folder of frames {options.frames} does not exist")


def check_model(model: str) -> None:
    """Check that this can be a checkpoint: a folder here, or a hub id.

    Raises:
        InvalidSettingError: it is neither, or a file.
    """
    if not model:
        raise InvalidSettingError(
            "the huggingface backend needs a checkpoint: give model=DIR or model=ORG/NAME (--model)"
        )
    path = Path(model).expanduser()
    if path.is_file():
        raise InvalidSettingError(
            f"model {model!r} is a file; give the folder that it lies in, {path.parent}"
        )
    if not path.is_dir() and not _HUB_ID.fullmatch(model):
        raise InvalidSettingError(
            f"model {model!r} is no folder here, and no hub id either (ORG/NAME or "
            "ORG/NAME@REVISION)"
        )
