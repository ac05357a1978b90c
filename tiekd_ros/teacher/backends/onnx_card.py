"""The YAML file beside an exported network: what goes in, and what comes out means.

    name: adabins-kitti          # default: the file's name
    input:
      width: 704                 # default: what the graph fixes, else the image's own
      height: 352
      mean: [0.485, 0.456, 0.406]
      std: [0.229, 0.224, 0.225]
    output:
      meaning: metric            # or relative_depth, inverse_depth: always to be said

All keys and their defaults: `InputCard` and `OutputCard`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tiekd_ros.datasets.calibration import read_yaml
from tiekd_ros.datasets.errors import DatasetError
from tiekd_ros.errors import InvalidSettingError
from tiekd_ros.settings import Settings, setting
from tiekd_ros.teacher.errors import BackendError

Channels = tuple[float, float, float]

_KEYS = ("name", "input", "output")


@dataclass(frozen=True)
class InputCard(Settings):
    """What the network is given."""

    name: str = setting("", "the graph's input for images; empty: its only one of 4 dimensions")
    width: int = setting(
        0, "0: what the graph fixes, else the image's own", unit="pixels", minimum=0, maximum=8192
    )
    height: int = setting(
        0, "0: what the graph fixes, else the image's own", unit="pixels", minimum=0, maximum=8192
    )
    multiple_of: int = setting(
        32, "the image's own size is rounded down to this", unit="pixels", minimum=1, maximum=512
    )
    fit: str = setting(
        "stretch",
        "stretch: fill the input, whatever the aspect; pad: keep the aspect, fill up with grey",
        choices=("stretch", "pad"),
    )
    layout: str = setting("nchw", "order of the dimensions", choices=("nchw", "nhwc"))
    channels: str = setting("rgb", "order of the colours", choices=("rgb", "bgr"))
    divide_by: float = setting(
        255.0, "bytes are divided by this before mean and std", minimum=1e-6, maximum=1e6
    )
    focal: str = setting(
        "", "an input, if any, that takes the focal length in pixels of the network's input"
    )


@dataclass(frozen=True)
class OutputCard(Settings):
    """What the network answers."""

    name: str = setting("", "the graph's output for depth; empty: its only one")
    meaning: str = setting(
        "",
        "what its numbers are: metric, depth along the optical axis; relative_depth, in an unknown "
        "unit; inverse_depth, which grows towards the camera",
        choices=("", "metric", "relative_depth", "inverse_depth"),
    )
    unit_m: float = setting(
        1.0, "metric: metres of one unit, 0.001 for millimetres", minimum=1e-6, maximum=1e6
    )
    min_depth_m: float = setting(
        0.0, "metric: nearer is unknown", unit="m", minimum=0.0, maximum=1000.0
    )
    max_depth_m: float = setting(
        1000.0, "metric: farther is unknown", unit="m", minimum=1e-3, maximum=1000.0
    )
    canonical_focal_px: float = setting(
        0.0,
        "metric: focal length at which its metres are right, in pixels of the network's input; "
        "depth is scaled by the camera's. 0: it knows nothing of focal lengths",
        unit="pixels",
        minimum=0.0,
        maximum=1e6,
    )

    def check(self) -> None:
        """Check that the meaning is said, and the range in order."""
        if not self.meaning:
            raise InvalidSettingError(
                "meaning must be said: metric, relative_depth or inverse_depth"
            )
        if self.min_depth_m >= self.max_depth_m:
            raise InvalidSettingError(
                f"max_depth_m must be above min_depth_m = {self.min_depth_m:g}, got "
                f"{self.max_depth_m:g}"
            )


@dataclass(frozen=True)
class OnnxCard:
    """A network's whole description."""

    name: str
    input: InputCard
    output: OutputCard
    mean: Channels
    std: Channels

    @property
    def needs_focal(self) -> bool:
        """Whether an image without intrinsics can be labelled at all."""
        canonical = self.output.meaning == "metric" and self.output.canonical_focal_px > 0
        return canonical or bool(self.input.focal)


def card_file(model: Path) -> Path:
    """Return where the description of an .onnx file has to lie."""
    return model.with_suffix(".yaml")


def read_card(model: Path) -> OnnxCard:
    """Read the description of an .onnx file.

    Raises:
        BackendError: there is none, or it says what cannot be.
    """
    path = card_file(model)
    if not path.is_file():
        raise BackendError(
            f"{path} is missing: write there what the network takes and answers, at least "
            "`output: {meaning: metric}` (or relative_depth, inverse_depth)"
        )
    try:
        content = read_yaml(path)
        unknown = sorted(str(key) for key in set(content) - set(_KEYS))
        if unknown:
            raise InvalidSettingError(f"unknown key {unknown[0]!r}: known are {', '.join(_KEYS)}")
        given = _section(content, "input")
        mean = _channels(given.pop("mean", (0.0, 0.0, 0.0)), "mean")
        std = _channels(given.pop("std", (1.0, 1.0, 1.0)), "std")
        if min(std) <= 0:
            raise InvalidSettingError(f"std must be positive, got {list(std)}")
        return OnnxCard(
            name=str(content.get("name") or model.stem),
            input=InputCard.from_mapping(given),
            output=OutputCard.from_mapping(_section(content, "output")),
            mean=mean,
            std=std,
        )
    except DatasetError as error:
        raise BackendError(str(error)) from error
    except InvalidSettingError as error:
        raise BackendError(f"{path}: {error}") from error


def _section(content: dict[str, Any], name: str) -> dict[str, Any]:
    section = content.get(name) or {}
    if not isinstance(section, dict):
        raise InvalidSettingError(f"{name} must hold `key: value` lines, got {section!r}")
    return dict(section)


def _channels(values: Any, name: str) -> Channels:
    fits = isinstance(values, list | tuple) and len(values) == 3
    if not fits or not all(isinstance(v, int | float) for v in values):
        raise InvalidSettingError(f"{name} must be 3 numbers, red, green, blue; got {values!r}")
    red, green, blue = (float(value) for value in values)
    return red, green, blue
