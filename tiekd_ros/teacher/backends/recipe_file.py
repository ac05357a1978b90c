"""How a checkpoint wants its images, read from its preprocessor_config.json."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tiekd_ros.teacher.backends.image_recipe import ImageRecipe
from tiekd_ros.teacher.errors import BackendError

CONFIG_FILES = ("preprocessor_config.json", "processor_config.json")

_FILTERS = {0: "nearest", 2: "bilinear", 3: "bicubic"}  # PIL's numbers

# The processors' own defaults, which a configuration may leave out.
_HALF = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
_DEFAULTS: dict[str, dict[str, Any]] = {
    "DPTImageProcessor": {**_HALF, "size": 384, "resample": 3},
    "ViTImageProcessor": {**_HALF, "size": 224, "resample": 2},
    "GLPNImageProcessor": {"resample": 2, "size_divisor": 32, "do_normalize": False},
    "ZoeDepthImageProcessor": {
        **_HALF,
        "size": {"height": 384, "width": 512},
        "resample": 2,
        "keep_aspect_ratio": True,
        "do_pad": True,
    },
    "DepthProImageProcessor": {**_HALF, "size": 1536, "resample": 2},
    "Tipsv2DptImageProcessor": {"size": 448, "resample": 2, "do_normalize": False},
}


def read_recipe(folder: Path, input_side: int, max_pixels: int) -> ImageRecipe:
    """Read how the checkpoint in `folder` wants its images.

    Args:
        folder: where preprocessor_config.json lies.
        input_side: height and width in place of the configuration's; 0 keeps those.
        max_pixels: largest input that the network may be given.

    Raises:
        BackendError: there is no configuration, or it asks for what is not known here.
    """
    config = _read_config(folder)
    kind = _kind_of(config)
    if kind not in _DEFAULTS:
        raise BackendError(
            f"{folder}: the image processor {kind!r} is not known here; known are "
            f"{', '.join(_DEFAULTS)}"
        )
    values = {**_DEFAULTS[kind], **{k: v for k, v in config.items() if v is not None}}
    if values.get("do_center_crop"):
        raise BackendError(f"{folder}: its image processor cuts images, which loses their edges")
    if values.get("resample") not in _FILTERS:
        raise BackendError(
            f"{folder}: resample must be one of {sorted(_FILTERS)} (PIL's numbers), got "
            f"{values.get('resample')!r}"
        )
    return _recipe(folder, kind, values, input_side, max_pixels)


def _recipe(
    folder: Path, kind: str, values: Mapping[str, Any], input_side: int, max_pixels: int
) -> ImageRecipe:
    zoe, free = kind == "ZoeDepthImageProcessor", kind == "GLPNImageProcessor"
    if free and input_side:
        raise BackendError("this network works at the image's own size: leave out input_side")
    size = None
    if not free and values.get("do_resize", True):
        size = (input_side, input_side) if input_side else _size(folder, values["size"])
    multiple = values.get("size_divisor" if free else "ensure_multiple_of", 1)
    normalise = values.get("do_normalize", True)
    try:
        return ImageRecipe(
            size=size,
            keep_aspect=bool(values.get("keep_aspect_ratio", False)),
            multiple=max(1, int(multiple)) if values.get("do_resize", True) else 1,
            filter=_FILTERS[values["resample"]],
            antialias=not zoe and kind != "DepthProImageProcessor",
            align_corners=zoe,
            scale=float(values.get("rescale_factor", 1 / 255))
            if values.get("do_rescale", True)
            else 1.0,
            mean=_channels(values["image_mean"]) if normalise else (),
            std=_channels(values["image_std"]) if normalise else (),
            zoe_margin=zoe and bool(values["do_pad"]),
            divisor=0 if zoe or free or not values.get("do_pad") else int(values["size_divisor"]),
            max_pixels=max_pixels,
        )
    except (KeyError, TypeError, ValueError) as error:
        raise BackendError(f"{folder}: its image processor cannot be used: {error!r}") from error


def _read_config(folder: Path) -> dict[str, Any]:
    for name in CONFIG_FILES:
        path = folder / name
        if not path.is_file():
            continue
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            return dict(content.get("image_processor", content))
        except (OSError, ValueError, AttributeError, TypeError) as error:
            raise BackendError(f"{path} is no readable JSON object: {error}") from error
    raise BackendError(
        f"{folder} has no {CONFIG_FILES[0]}, which says how the network wants its images; copy "
        "it from the model that this one comes from"
    )


def _kind_of(config: Mapping[str, Any]) -> str:
    name = config.get("image_processor_type") or config.get("feature_extractor_type") or ""
    for suffix in ("Fast", "Pil"):  # names of the same processor in other releases
        name = str(name).removesuffix(suffix)
    return name.replace("FeatureExtractor", "ImageProcessor")


def _size(folder: Path, size: Any) -> tuple[int, int]:
    if isinstance(size, int):
        return size, size
    try:
        return int(size["height"]), int(size["width"])
    except (KeyError, TypeError, ValueError) as error:
        raise BackendError(
            f"{folder}: the image processor's size must have height and width, got {size!r}"
        ) from error


def _channels(values: Any) -> tuple[float, ...]:
    numbers = tuple(float(value) for value in values)
    if len(numbers) != 3:
        raise ValueError(f"3 channels, got {values!r}")
    return numbers
