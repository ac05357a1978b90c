"""A teacher that was exported to ONNX: AdaBins, BTS, DepthFormer or anything else.

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

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from tiekd_ros.core.camera import Intrinsics
from tiekd_ros.core.errors import DatasetError, InvalidSettingError
from tiekd_ros.core.images import RgbImage, resize_depth
from tiekd_ros.core.settings import Settings, setting
from tiekd_ros.datasets.calibration import read_yaml
from tiekd_ros.teacher.backend import Backend
from tiekd_ros.teacher.backends.network import (
    METRIC,
    PROBE,
    BatchedBackend,
    Meaning,
    NetworkSettings,
    answer_size,
    fingerprint,
    finished,
    identity_of,
    needed_focal,
)
from tiekd_ros.teacher.errors import BackendError, BackendRefusal
from tiekd_ros.teacher.protocol import DepthAnswer, DepthRequest

Channels = tuple[float, float, float]

_KEYS = ("name", "input", "output")
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class OnnxSettings(NetworkSettings):
    """An exported network, and the device that it runs on."""

    MISSING = "the onnx backend needs an exported network: give model=FILE.onnx (--model)"

    model: str = setting("", "the .onnx file, described by a .yaml of the same name beside it")

    @property
    def path(self) -> Path:
        """Where the file is."""
        return Path(self.model).expanduser()

    def check_source(self) -> None:
        """Check that the file is there."""
        if not self.path.is_file():
            raise InvalidSettingError(
                f"there is no file {self.path}; model must name an .onnx file"
            )

    def load(self) -> Backend:
        """Load the file and try it once."""
        return OnnxBackend(self)


@dataclass(frozen=True)
class InputCard(Settings):
    """Description of a network's input."""

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
    """Description of a network's output."""

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
        """True where an image without intrinsics cannot be labelled."""
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


_TYPES = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(double)": np.float64,
}
_GPU, _CPU = "CUDAExecutionProvider", "CPUExecutionProvider"


class DepthSession:
    """Runs a graph as its card describes it; safe to use from several threads.

    Raises:
        InvalidSettingError: there is no such device.
        BackendError: onnxruntime is missing or cannot load the file, or the card does not fit.
    """

    def __init__(self, path: Path, card: OnnxCard, device: str) -> None:
        """Load the graph at `path`."""
        self._session = _open(path, device)
        self.provider: str = self._session.get_providers()[0]
        inputs = {node.name: node for node in self._session.get_inputs()}
        image = _pick(path, "input.name", card.input.name, [
            node for node in inputs.values() if len(node.shape) == 4
        ])  # fmt: skip
        self._focal = None
        if card.input.focal:
            self._focal = _pick(path, "input.focal", card.input.focal, list(inputs.values()))
        others = sorted(set(inputs) - {image.name, card.input.focal})
        if others:
            raise BackendError(f"{path} has the input {others[0]!r}, which cannot be filled here")
        self._image = image
        self._output = _pick(path, "output.name", card.output.name, self._session.get_outputs())
        self._path = path
        self.batches = not isinstance(image.shape[0], int)
        """True where the graph leaves the batch's size open."""
        height, width = image.shape[2:] if card.input.layout == "nchw" else image.shape[1:3]
        self.size = (
            _side(path, "height", card.input.height, height),
            _side(path, "width", card.input.width, width),
        )
        """(height, width) of the network's input; 0 where it is open."""

    def run(
        self, pixels: npt.NDArray[np.float32], focals: npt.NDArray[np.float32]
    ) -> npt.NDArray[np.float32]:
        """Run images in the card's layout, with their focal lengths (B,); returns (B, h, w).

        Raises:
            BackendError: onnxruntime fails, or the output is no depth map.
        """
        if not self.batches and len(pixels) > 1:
            pairs = [(pixels[i : i + 1], focals[i : i + 1]) for i in range(len(pixels))]
            return np.concatenate([self.run(*pair) for pair in pairs])
        feed = {self._image.name: pixels.astype(_type(self._image))}
        if self._focal is not None:
            shape = (len(focals),) + (1,) * (len(self._focal.shape) - 1)
            feed[self._focal.name] = focals.reshape(shape).astype(_type(self._focal))
        try:
            (output,) = self._session.run([self._output.name], feed)
        except Exception as error:  # onnxruntime's errors have no common root
            text = " ".join(str(error).split())[:300]
            raise BackendError(f"{self._path} does not run: {text}") from error
        return self._maps(np.asarray(output, np.float32), len(pixels))

    def _maps(self, output: npt.NDArray[np.float32], count: int) -> npt.NDArray[np.float32]:
        shape = output.shape
        if output.ndim == 2 and count == 1:
            output = output[None]
        elif output.ndim == 4 and 1 in (shape[1], shape[3]):
            output = output[:, 0] if shape[1] == 1 else output[..., 0]
        if output.ndim != 3 or len(output) != count or min(output.shape) < 1:
            raise BackendError(
                f"{self._path}: the output {self._output.name!r} has the shape {shape} for {count} "
                "images; a depth map is (B, 1, h, w), (B, h, w, 1), (B, h, w) or (h, w)"
            )
        return output


def _open(path: Path, device: str) -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        raise BackendError(
            f"the onnx backend needs onnxruntime ({error}): pip install 'tiekd_ros[onnx]'"
        ) from error
    there = onnxruntime.get_available_providers()
    kind, _, index = device.partition(":")
    if kind not in ("auto", "cpu", "cuda") or (index and not (kind == "cuda" and index.isdigit())):
        raise InvalidSettingError(f"device must be auto, cpu, cuda or cuda:N, got {device!r}")
    if kind == "cuda" and _GPU not in there:
        raise InvalidSettingError(
            f"device is {device!r}, and this onnxruntime runs on {', '.join(there)}; install "
            "onnxruntime-gpu, or use cpu"
        )
    gpu: list[Any] = [(_GPU, {"device_id": int(index or 0)})]
    providers = [*gpu, _CPU] if kind != "cpu" and _GPU in there else [_CPU]
    options = onnxruntime.SessionOptions()
    threads = os.environ.get("OMP_NUM_THREADS", "")  # which onnxruntime does not look at itself
    options.intra_op_num_threads = int(threads) if threads.isdigit() else 0  # 0: as many as cores
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=providers)
    except Exception as error:  # onnxruntime's errors have no common root
        raise BackendError(f"{path} cannot be loaded: {' '.join(str(error).split())}") from error
    if kind == "cuda" and session.get_providers()[0] != _GPU:
        raise BackendError(f"onnxruntime cannot use {device!r}: see what it printed above")
    return session


def _pick(path: Path, key: str, name: str, nodes: list[Any]) -> Any:
    found = [node for node in nodes if node.name == name] if name else nodes
    if len(found) != 1:
        names = ", ".join(repr(node.name) for node in nodes) or "none"
        raise BackendError(f"{path}: {key} is {name!r}, and the graph has {names}; name one")
    return found[0]


def _side(path: Path, key: str, said: int, graph: Any) -> int:
    if not isinstance(graph, int):
        return said
    if said not in (0, graph):
        raise BackendError(f"{path} takes images of {key} {graph}, its card says {said}")
    return graph


def _type(node: Any) -> Any:
    if node.type not in _TYPES:
        raise BackendError(f"the input {node.name!r} is {node.type}; known are {', '.join(_TYPES)}")
    return _TYPES[node.type]


class OnnxBackend(BatchedBackend):
    """One .onnx file, described by the .yaml of the same name beside it (see `OnnxCard`).

    Images of one size are one batch where the graph leaves the batch's size open.

    Raises:
        InvalidSettingError: the device does not exist.
        BackendError: the description is missing or does not fit the graph, or it does not run.
    """

    def __init__(self, settings: OnnxSettings) -> None:
        """Load the file that `settings.model` names and try it once."""
        path = settings.path
        self._card = read_card(path)
        self._session = DepthSession(path, self._card, settings.device)
        self._max_pixels = settings.max_input_pixels
        self.meaning: Meaning = self._card.output.meaning  # type: ignore[assignment]
        # Large networks keep their weights in files beside the graph: NAME.onnx.data, NAME.data.
        parts = {path, card_file(path), *path.parent.glob(f"{path.name}[._]*")}
        parts |= set(path.parent.glob(f"{path.stem}.data"))
        self.identity = identity_of(self._card.name, fingerprint(parts), self.meaning)
        self._try()
        _LOG.info(
            "%s version %s on %s, %s", self.identity.name, self.identity.version,
            self._session.provider, self.meaning,
        )  # fmt: skip

    def check(self, request: DepthRequest, height: int, width: int) -> None:
        """Refuse a size that does not suit the network, or a request without its intrinsics."""
        self._input_size(height, width)
        self._focal(request, 1.0)

    def seen_focal_px(
        self, intrinsics: Intrinsics, height: int, width: int
    ) -> tuple[float, float] | None:
        """Return (fx, fy) in pixels of the network's input; None where it counts itself."""
        if self._card.needs_focal:
            return None
        inner = self._inner_size((height, width), self._input_size(height, width))
        return intrinsics.fx * inner[1] / width, intrinsics.fy * inner[0] / height

    def infer_batch(
        self, images: Sequence[RgbImage], requests: Sequence[DepthRequest]
    ) -> list[DepthAnswer]:
        """Label images of one size; errors as `check`'s."""
        height, width = images[0].shape[:2]
        size = self._input_size(height, width)
        inner = self._inner_size((height, width), size)
        focals = [self._focal(request, inner[1] / width) for request in requests]
        maps = self._numbers(images, focals, size, inner)
        return [
            self._answer(values, focal, (height, width), size, inner)
            for values, focal in zip(maps, focals, strict=True)
        ]

    def _numbers(
        self,
        images: Sequence[RgbImage],
        focals: Sequence[float],
        size: tuple[int, int],
        inner: tuple[int, int],
    ) -> npt.NDArray[np.float32]:
        """Return what the network answers, (B, h, w)."""
        pixels = np.stack([self._pixels(image, size, inner) for image in images])
        return self._session.run(pixels, np.array(focals, np.float32))

    def _input_size(self, height: int, width: int) -> tuple[int, int]:
        step = self._card.input.multiple_of
        fixed_height, fixed_width = self._session.size
        size = (fixed_height or height // step * step, fixed_width or width // step * step)
        if min(size) < 1 or size[0] * size[1] > self._max_pixels:
            raise BackendRefusal(
                f"an image of {width}x{height} would become {size[1]}x{size[0]} for this network, "
                f"which has to be at least {step}x{step} and at most {self._max_pixels} pixels "
                "(max_input_pixels); send one of another size"
            )
        return size

    def _inner_size(self, image: tuple[int, int], size: tuple[int, int]) -> tuple[int, int]:
        """Return the (height, width) of the image inside the network's input."""
        if self._card.input.fit == "stretch":
            return size
        factor = min(size[0] / image[0], size[1] / image[1])
        return max(1, round(image[0] * factor)), max(1, round(image[1] * factor))

    def _focal(self, request: DepthRequest, factor: float) -> float:
        """Return the focal length in pixels of the network's input; 1 where none counts."""
        if not self._card.needs_focal:
            return 1.0
        return needed_focal(request) * factor

    def _pixels(
        self, image: RgbImage, size: tuple[int, int], inner: tuple[int, int]
    ) -> npt.NDArray[np.float32]:
        card = self._card
        shrinks = inner[0] < image.shape[0]
        method = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
        small = cv2.resize(image, inner[::-1], interpolation=method).astype(np.float32)
        normal = (small / card.input.divide_by - card.mean) / card.std
        pixels = np.zeros((*size, 3), np.float32)  # 0 is the mean colour
        pixels[: inner[0], : inner[1]] = normal
        if card.input.channels == "bgr":
            pixels = pixels[..., ::-1]
        return pixels.transpose(2, 0, 1) if card.input.layout == "nchw" else pixels

    def _answer(
        self,
        values: npt.NDArray[np.float32],
        focal: float,
        image: tuple[int, int],
        size: tuple[int, int],
        inner: tuple[int, int],
    ) -> DepthAnswer:
        rows = max(1, round(values.shape[0] * inner[0] / size[0]))
        columns = max(1, round(values.shape[1] * inner[1] / size[1]))
        content = np.ascontiguousarray(values[:rows, :columns])
        depth = resize_depth(content, *answer_size(image, (rows, columns)))
        output = self._card.output
        if self.meaning != METRIC:
            return DepthAnswer(finished(depth, self.meaning))
        depth = depth * np.float32(output.unit_m)
        if output.canonical_focal_px > 0:
            depth = depth * np.float32(focal / output.canonical_focal_px)
        with np.errstate(invalid="ignore"):
            depth[(depth < output.min_depth_m) | (depth > output.max_depth_m)] = np.nan
        return DepthAnswer(finished(depth, self.meaning))

    def _try(self) -> None:
        """Run once, so that what cannot work stops the start."""
        request = DepthRequest(b"", Intrinsics(500.0, 500.0, 319.5, 239.5), 0, "")
        image: Any = np.full((*PROBE, 3), 128, np.uint8)
        try:
            size = self._input_size(*PROBE)
        except BackendRefusal as error:
            raise BackendError(f"{self.identity.name} cannot serve: {error}") from error
        inner = self._inner_size(PROBE, size)
        focal = self._focal(request, inner[1] / PROBE[1])
        if not np.isfinite(self._numbers([image], [focal], size, inner)).any():
            raise BackendError(
                f"{self.identity.name} answers no finite number: where it was exported in half "
                "precision, its arithmetic overflows; export it with dtype=float32"
            )
