"""Depth of one image by a student, at the image's size, as its kind of student is evaluated."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from tiekd_ros.devices import choose_device
from tiekd_ros.distillation.evaluation import flip_averaged
from tiekd_ros.errors import TiekdError
from tiekd_ros.images import DepthMap, RgbImage
from tiekd_ros.state import StateFolder
from tiekd_ros.student import Student, StudentCard, StudentRegistry
from tiekd_ros.student.checkpoint import CARD, load_student
from tiekd_ros.student.importing import DATASETS
from tiekd_ros.student.official import OFFICIAL_ARCHITECTURES
from tiekd_ros.student.preprocessing import normalise
from tiekd_ros.student.torch_runtime import TorchRuntime

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
    if card.architecture not in OFFICIAL_ARCHITECTURES:
        return False
    if card.training.get("imported"):
        return card.input_size in [dataset.input_size for dataset in DATASETS.values()]
    dataset = DATASETS.get(str(card.training.get("data")))
    return dataset is not None and card.input_size == dataset.input_size
