"""`tiekd evaluate`: a student's errors over a data set, by the published protocol."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tiekd_ros import __version__
from tiekd_ros.core.devices import choose_device
from tiekd_ros.core.errors import TiekdError
from tiekd_ros.core.images import DepthMap, RgbImage, resize_depth
from tiekd_ros.core.state import StateFolder
from tiekd_ros.datasets import DatasetError, DepthDataset, DepthItem, readable_items
from tiekd_ros.evaluation.protocol import (
    METRIC_NAMES,
    TEACHER_METRIC_NAMES,
    ImageScore,
    Protocol,
    flip_averaged,
    mean_score,
    score_image,
)
from tiekd_ros.student.checkpoint import CARD, Student, StudentCard, load_student
from tiekd_ros.student.importing import DATASETS
from tiekd_ros.student.networks import PUBLISHED_ARCHITECTURES
from tiekd_ros.student.preprocessing import normalise
from tiekd_ros.student.registry import StudentRegistry
from tiekd_ros.student.runtimes.torch_runtime import TorchRuntime

LIVE = "live"


def find_student(name: str, state: StateFolder) -> Student:
    """Return a student by name.

    Args:
        name: a version of the registry, 'live', or the folder of a student.
        state: whose registry it is.

    Raises:
        TiekdError: there is no such student, or it cannot be used.
    """
    folder = Path(name).expanduser()
    if (folder / CARD).is_file():
        return load_student(folder)
    if not state.students.is_dir():
        raise TiekdError(
            f"{name!r} is no student's folder, and there is no registry {state.students}; give "
            "the state folder with --state"
        )
    registry = StudentRegistry(state.students)
    version = registry.live() if name == LIVE else name
    if version is None:
        raise TiekdError(
            f"no student of {state.root} is live; name a version (`tiekd students list`)"
        )
    return registry.load(version.zfill(6) if version.isdigit() else version)


class Predictor:
    """A student, ready to predict images of any size.

    Students made for the published size of KITTI or NYU, imported or trained on those data,
    run on the whole image, as the published ones were evaluated; their depth is clamped to the
    range and resized with aligned corners. Any other runs as on the robot: at the input size
    of its card, its depth resized to the image's size.
    """

    def __init__(self, student: Student, device: str = "auto", *, flip: bool = True) -> None:
        """Put the student on its device.

        Args:
            student: weights and card.
            device: as `choose_device`.
            flip: average the depth of the image and of its mirror image.

        Raises:
            InvalidSettingError: there is no such device.
        """
        self.card = student.card
        self.device = choose_device(device)
        self.whole_image = _is_for_whole_images(student.card)
        self.flip = flip
        self._depth_of = self._on_image(student) if self.whole_image else self._on_robot(student)

    @torch.inference_mode()
    def predict(self, image: RgbImage) -> DepthMap:
        """Return depth in metres, float32 (H, W), for an image, uint8 RGB (H, W, 3)."""
        pixels = torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)[None]
        depth = flip_averaged(self._depth_of, pixels) if self.flip else self._depth_of(pixels)
        result: DepthMap = depth[0, 0].float().cpu().numpy()
        return result

    def _on_image(self, student: Student) -> Callable[[Tensor], Tensor]:
        network = student.network.eval().to(self.device)

        def depth_of(pixels: Tensor) -> Tensor:
            # uint8 (1, 3, H, W) -> metres (1, 1, H, W)
            return network.predict_depth(normalise(pixels.to(self.device).permute(0, 2, 3, 1)))

        return depth_of

    def _on_robot(self, student: Student) -> Callable[[Tensor], Tensor]:
        runtime = TorchRuntime(student, self.device)

        def depth_of(pixels: Tensor) -> Tensor:
            image = np.ascontiguousarray(pixels[0].permute(1, 2, 0).numpy())
            return torch.from_numpy(runtime.predict(image, confidence=False).depth)[None, None]

        return depth_of


def _is_for_whole_images(card: StudentCard) -> bool:
    if card.architecture not in PUBLISHED_ARCHITECTURES:
        return False
    if card.training.get("imported"):
        return card.input_size in [dataset.input_size for dataset in DATASETS.values()]
    dataset = DATASETS.get(str(card.training.get("data")))
    return dataset is not None and card.input_size == dataset.input_size


_NYU_SHAPE = (480, 640)


@dataclass(frozen=True)
class Evaluation:
    """What a student scored, and on what."""

    provenance: dict[str, Any]
    """Student, data, protocol, program and time."""
    mean: dict[str, float]
    """The plain mean over images, by published name; NaN where no image had a value."""
    rows: list[dict[str, Any]]
    """One an image: name, number of pixels compared with the truth, errors by name."""
    without_truth: int
    """Images of which not one pixel could be compared with the truth."""
    skipped: dict[str, str]
    """Entries left out because they cannot be used, and why."""

    def as_dict(self) -> dict[str, Any]:
        """Return plain values fit for JSON; what is not a number is None."""
        return {
            **self.provenance,
            "mean": _plain(self.mean),
            "images": len(self.rows),
            "without_valid_truth": self.without_truth,
            "skipped": self.skipped,
            "rows": [_plain(row) for row in self.rows],
        }


def evaluate_student(
    dataset: DepthDataset,
    predictor: Predictor,
    protocol: Protocol,
    *,
    limit: int | None = None,
    skip_bad: bool = False,
    advance: Callable[[], None] = lambda: None,
) -> Evaluation:
    """Run a student over a data set.

    Args:
        dataset: what to compare with: each item's truth and teacher map, as far as it has them.
        predictor: the student.
        protocol: what counts; the data set must have been opened with its crop.
        limit: number of images at most.
        skip_bad: leave out items that cannot be read, and list them.
        advance: called after each image.

    Raises:
        DatasetError: an item cannot be used, and `skip_bad` is off; or none is left.
    """
    scores: list[ImageScore] = []
    rows: list[dict[str, Any]] = []
    names: tuple[str, ...] = ()
    for item in readable_items(dataset, skip_bad=skip_bad, limit=limit):
        score = _score(item, predictor.predict(item.image), protocol)
        names = _compared(item)
        values = score.as_row()
        row = {"name": item.name, "valid_pixels": score.valid_pixels}
        rows.append(row | {name: values[name] for name in names})
        scores.append(score)
        advance()
    if not scores:
        reasons = "; ".join(list(dataset.report.bad.values())[:3])
        raise DatasetError(f"no image of the data set can be used: {reasons or 'it is empty'}")
    mean = mean_score(scores)
    without = mean.without_truth if METRIC_NAMES[0] in names else 0
    return Evaluation(
        provenance=_provenance(dataset, predictor, protocol),
        mean={name: mean.values[name] for name in names},
        rows=rows,
        without_truth=without,
        skipped=dict(dataset.report.bad),
    )


def _score(item: DepthItem, predicted: DepthMap, protocol: Protocol) -> ImageScore:
    """Score a prediction at the sizes of the maps that it is compared with."""
    if protocol.crop == "nyu" and item.truth is not None and item.truth.shape != _NYU_SHAPE:
        height, width = item.truth.shape
        raise DatasetError(
            f"{item.name}: the crop 'nyu' is made for depth of 640x480, this is {width}x{height}; "
            "choose another one (--crop none)"
        )
    against_truth = against_teacher = None
    count = 0
    if item.truth is not None:
        against = score_image(resize_depth(predicted, *item.truth.shape), item.truth, protocol)
        against_truth, count = against.truth, against.valid_pixels
    if item.teacher is not None:
        fitted = resize_depth(predicted, *item.teacher.shape)
        against_teacher = score_image(fitted, None, protocol, item.teacher).teacher
    return ImageScore(against_truth, against_teacher, count)


def _compared(item: DepthItem) -> tuple[str, ...]:
    truth = METRIC_NAMES if item.truth is not None else ()
    return truth + (TEACHER_METRIC_NAMES if item.teacher is not None else ())


def _provenance(dataset: DepthDataset, predictor: Predictor, protocol: Protocol) -> dict[str, Any]:
    card, size = predictor.card, predictor.card.input_size
    return {
        "student": {
            "version": card.version,
            "architecture": card.architecture,
            "weights_sha256": card.weights_sha256,
            "input": "the image's size" if predictor.whole_image else [size.height, size.width],
            "teacher": card.teacher,
        },
        "data": {
            "kind": dataset.kind,
            "items": len(dataset),
            "without_truth_in_split": len(dataset.report.without_truth),
        },
        "protocol": {
            "crop": protocol.crop,
            "kb_crop": protocol.kb_crop,
            "flip": predictor.flip,
            "min_depth_m": protocol.min_depth_m,
            "max_depth_m": protocol.max_depth_m,
            "first_row_against_teacher": protocol.teacher_top,
        },
        "device": str(predictor.device),
        "tiekd_ros": __version__,
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


def _plain(values: dict[str, Any]) -> dict[str, Any]:
    return {
        key: None if isinstance(value, float) and not math.isfinite(value) else value
        for key, value in values.items()
    }
