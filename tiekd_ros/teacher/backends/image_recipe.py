"""Preprocessing of a checkpoint's images, as its preprocessor_config.json describes it.

The same steps as transformers' image processors, which need torchvision for some models and
work on one image at a time without it: here they run in torch, on the network's device, for a
whole batch. Normalising and interpolating commute, so that one order of steps serves all.

Shapes: B images, H x W pixels of an image, h x w pixels of the network's input.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tiekd_ros.core.images import RgbImage
from tiekd_ros.teacher.errors import BackendError, BackendRefusal

if TYPE_CHECKING:
    import torch

_ZOE_MARGIN = 3  # Zoe pads each side by 3 sqrt(side / 2) pixels of the image


@dataclass(frozen=True)
class Prepared:
    """A batch as the network takes it, and where in it the images are."""

    pixels: torch.Tensor
    """(B, 3, h, w)."""
    canvas: tuple[int, int]
    """(height, width) at which `margin` counts."""
    margin: tuple[int, int, int, int]
    """Padding at top, bottom, left and right of the canvas."""

    def content_of(self, maps: torch.Tensor) -> torch.Tensor:
        """Cut the padding off the network's output, (B, any height, any width)."""
        if not any(self.margin):
            return maps
        top, bottom, left, right = self.margin
        whole = resized(maps, self.canvas)
        return whole[:, top : self.canvas[0] - bottom, left : self.canvas[1] - right]

    def content_size(self, height: int, width: int) -> tuple[int, int]:
        """Return how much of an output of this size shows the image."""
        top, bottom, left, right = self.margin
        rows = height * (self.canvas[0] - top - bottom) / self.canvas[0]
        columns = width * (self.canvas[1] - left - right) / self.canvas[1]
        return max(1, round(rows)), max(1, round(columns))


@dataclass(frozen=True)
class ImageRecipe:
    """Steps from an image to a network's input."""

    size: tuple[int, int] | None
    """(height, width) that images are fitted to; None: their own, rounded down."""
    keep_aspect: bool
    multiple: int
    filter: str
    antialias: bool
    align_corners: bool
    scale: float
    mean: tuple[float, ...]
    std: tuple[float, ...]
    zoe_margin: bool
    divisor: int
    """Both sides are padded to multiples of this; 0 pads nothing."""
    max_pixels: int

    def prepare(
        self, images: Sequence[RgbImage], device: torch.device, dtype: torch.dtype
    ) -> Prepared:
        """Return the network's input for images of one size.

        Raises:
            BackendRefusal: the network's input would be too large, or smaller than a pixel.
        """
        import torch
        from torch.nn import functional as F

        height, width = images[0].shape[:2]
        rows, columns = self._zoe_margin(height, width)
        size = self.seen_size(height, width)
        batch = torch.from_numpy(np.stack(images)).to(device)  # (B, H, W, 3)
        x = batch.permute(0, 3, 1, 2)  # (B, 3, H, W)
        if rows or columns:
            x = F.pad(x.float(), (columns, columns, rows, rows), mode="reflect")
        x = self._normalised(self._resized(x, size))
        if rows or columns:
            padded = (height + 2 * rows, width + 2 * columns)
            return Prepared(x.to(dtype), padded, (rows, rows, columns, columns))
        margin = self._divisor_margin(size)
        if any(margin):
            x = F.pad(x, (margin[2], margin[3], margin[0], margin[1]))
        return Prepared(x.to(dtype), (x.shape[2], x.shape[3]), margin)

    def seen_size(self, height: int, width: int) -> tuple[int, int]:
        """Return the (h, w) of an image, and its margin, at the network; refuses as `prepare`."""
        rows, columns = self._zoe_margin(height, width)
        return self.input_size(height + 2 * rows, width + 2 * columns)

    def magnification(self, height: int, width: int) -> tuple[float, float]:
        """Return how many of the network's pixels one of the image's becomes: (in x, in y)."""
        rows, columns = self._zoe_margin(height, width)
        h, w = self.seen_size(height, width)
        return w / (width + 2 * columns), h / (height + 2 * rows)

    def input_size(self, height: int, width: int) -> tuple[int, int]:
        """Return the (h, w) that an image of this size is resized to."""
        if self.size is None:
            sides = (height // self.multiple, width // self.multiple)
        else:
            scales = [self.size[0] / height, self.size[1] / width]
            if self.keep_aspect:
                scales = [min(scales, key=lambda scale: abs(1 - scale))] * 2
            sides = (
                round(scales[0] * height / self.multiple),
                round(scales[1] * width / self.multiple),
            )
        h, w = sides[0] * self.multiple, sides[1] * self.multiple
        if min(h, w) < 1 or h * w > self.max_pixels:
            raise BackendRefusal(
                f"an image of {width}x{height} would become {w}x{h} for this network, which has "
                f"to be at least {self.multiple}x{self.multiple} and at most {self.max_pixels} "
                "pixels (max_input_pixels); send one of another size"
            )
        return h, w

    def _resized(self, x: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
        """Resize bytes, or floats of 0 to 255, (B, 3, any height, any width)."""
        from torch.nn import functional as F

        if x.shape[2:] == size:
            return x
        if self.filter == "nearest":
            return F.interpolate(x.float(), size, mode="nearest-exact")
        # Of bytes a CPU is ten times as fast as of floats; a GPU cannot do it, nor need it.
        if not self.antialias or x.device.type != "cpu":
            x = x.float().contiguous()
        x = F.interpolate(
            x,
            size,
            mode=self.filter,
            align_corners=self.align_corners,
            antialias=self.antialias,
        )
        return x.clamp_(0, 255)  # bicubic overshoots; what works on bytes cuts that off

    def _normalised(self, x: torch.Tensor) -> torch.Tensor:
        import torch

        # A copy, of bytes anyway, so that what follows may change it in place.
        x = x.to(torch.float32, memory_format=torch.contiguous_format)
        if not self.mean:
            return x.mul_(self.scale)
        shape = (1, 3, 1, 1)
        mean = torch.tensor(self.mean, device=x.device).view(shape)
        std = torch.tensor(self.std, device=x.device).view(shape)
        return x.mul_(self.scale / std).sub_(mean / std)  # (scale x - mean) / std, in place

    def _zoe_margin(self, height: int, width: int) -> tuple[int, int]:
        if not self.zoe_margin:
            return 0, 0
        rows, columns = (int(math.sqrt(side / 2) * _ZOE_MARGIN) for side in (height, width))
        if rows >= height or columns >= width:
            raise BackendRefusal(f"an image of {width}x{height} is too small for this network")
        return rows, columns

    def _divisor_margin(self, size: tuple[int, int]) -> tuple[int, int, int, int]:
        if not self.divisor:
            return 0, 0, 0, 0
        rows, columns = (-side % self.divisor for side in size)
        return rows // 2, rows - rows // 2, columns // 2, columns - columns // 2


def resized(maps: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Bring maps (B, any height, any width) to a (height, width), bilinearly."""
    from torch.nn import functional as F

    if maps.shape[1:] == size:
        return maps
    return F.interpolate(maps[:, None], size, mode="bilinear", align_corners=False)[:, 0]


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
