"""The published training augmentation, draw for draw.

Shapes: H and W the picture, h and w the training crop. Pictures are RGB uint8, depth is float32
metres. The teacher's map is made at test size, so KITTI's comes cropped already; and the
published rotation leaves it as it is, so that in half of the samples picture and teacher are
up to 2.5 degrees apart (about 26 px at the borders). `rotate_teacher` mends that.

Order: window, rotation, horizontal flip, random crop, colour, normalisation.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import cv2
import numpy as np
import numpy.typing as npt

from tiekd_ros.core.errors import BadDepthError, BadImageError
from tiekd_ros.core.images import KB_SIZE, DepthMap, RgbImage, check_rgb, kb_crop

_Scalar = TypeVar("_Scalar", bound=np.generic)

_MEAN = np.array((123.675, 116.28, 103.53))  # ImageNet, RGB, 0..255
_STD = np.array((58.395, 57.12, 57.375))
_NYU_WINDOW = (45, 472, 43, 608)  # top, bottom, left, right: NYU's frame without white borders


@dataclass(frozen=True)
class Augmentation:
    """The numbers of one data set's augmentation."""

    crop_size: tuple[int, int]  # (h, w)
    brightness: tuple[float, float]
    kb_size: tuple[int, int] | None = None  # KITTI: bottom centre window of picture and truth
    window: tuple[int, int, int, int] | None = None  # NYU: of picture, truth and teacher
    rotate_share: float = 0.5  # of the samples
    max_degrees: float = 2.5
    rotate_teacher: bool = False  # published: no
    flip_share: float = 0.5
    colour_share: float = 0.5
    gamma: tuple[float, float] = (0.9, 1.1)  # on 0..255, so it also scales by up to 1.74
    channel: tuple[float, float] = (0.9, 1.1)


KITTI_AUGMENTATION = Augmentation((352, 704), brightness=(0.9, 1.1), kb_size=KB_SIZE)
NYU_AUGMENTATION = Augmentation((416, 544), brightness=(0.75, 1.25), window=_NYU_WINDOW)


class Draws(NamedTuple):
    """The random numbers of one sample, in the order in which they are drawn.

    A step with a share of the samples is done where its number is below that share; its
    parameters are drawn in any case.
    """

    rotate: float
    degrees: float  # clockwise positive
    flip: float
    top: int
    left: int
    colour: float
    gamma: float
    brightness: float
    blue: float
    green: float
    red: float


class TrainingView(NamedTuple):
    """What one step of training sees of one frame."""

    image: npt.NDArray[np.float32]  # (h, w, 3), RGB, normalised
    truth: DepthMap | None  # (h, w); what the rotation brings in from outside is 0, unknown
    teacher: DepthMap | None  # (h, w)
    draws: Draws


def augment(
    image: RgbImage,
    truth: DepthMap | None,
    teacher: DepthMap | None,
    numbers: Augmentation,
    rng: np.random.RandomState,
) -> TrainingView:
    """Return a random view of one frame.

    Args:
        image: (H, W, 3), RGB uint8.
        truth: (H, W), or None where there is none.
        teacher: of the size of the picture, on KITTI after its crop; or None.
        numbers: `KITTI_AUGMENTATION`, `NYU_AUGMENTATION` or others.
        rng: the 11 numbers are drawn from it as the published code draws them from numpy's
            global generator; `RandomState(seed)` is that generator after `seed(seed)`.

    Raises:
        BadImageError: no uint8 RGB picture, or smaller than the crops.
        BadDepthError: a depth map whose size does not fit the picture's.
    """
    image, truth, teacher = _windowed(image, truth, teacher, numbers)
    draws = draw(rng, numbers, *image.shape[:2])
    return _apply(image, truth, teacher, numbers, draws)


def draw(rng: np.random.RandomState, numbers: Augmentation, height: int, width: int) -> Draws:
    """Draw the numbers for a picture that is (height, width) after its window.

    Raises:
        BadImageError: the picture is smaller than the training crop.
    """
    free = height - numbers.crop_size[0], width - numbers.crop_size[1]
    if min(free) < 0:
        raise BadImageError(
            f"a picture of {height}x{width} is smaller than the training crop "
            f"{numbers.crop_size[0]}x{numbers.crop_size[1]}: choose a smaller crop_size"
        )
    rotate = rng.rand()
    degrees = rng.uniform(-numbers.max_degrees, numbers.max_degrees)
    flip = rng.rand()
    top, left = (int(rng.randint(0, margin + 1)) for margin in free)
    colour = rng.rand()
    gamma = rng.uniform(*numbers.gamma)
    brightness = rng.uniform(*numbers.brightness)
    blue, green, red = rng.uniform(*numbers.channel, size=3)
    return Draws(rotate, degrees, flip, top, left, colour, gamma, brightness, blue, green, red)


def apply_draws(
    image: RgbImage,
    truth: DepthMap | None,
    teacher: DepthMap | None,
    numbers: Augmentation,
    draws: Draws,
) -> TrainingView:
    """Return the view that these numbers make; arguments and errors as of `augment`."""
    return _apply(*_windowed(image, truth, teacher, numbers), numbers, draws)


def _windowed(
    image: RgbImage, truth: DepthMap | None, teacher: DepthMap | None, numbers: Augmentation
) -> tuple[RgbImage, DepthMap | None, DepthMap | None]:
    check_rgb(image)
    if truth is not None and truth.shape != image.shape[:2]:
        raise BadDepthError(
            f"the truth is {truth.shape}, its picture {image.shape[:2]}: both must have one size"
        )
    if numbers.kb_size is not None:
        image = kb_crop(image, numbers.kb_size)
        truth = None if truth is None else kb_crop(truth, numbers.kb_size)
    if numbers.window is not None:
        top, bottom, left, right = numbers.window
        if image.shape[0] < bottom or image.shape[1] < right:
            raise BadImageError(
                f"the window of rows {top}..{bottom - 1} and columns {left}..{right - 1} does "
                f"not fit a picture of {image.shape[0]}x{image.shape[1]}"
            )
        rows, columns = slice(top, bottom), slice(left, right)
        image = image[rows, columns]
        truth = None if truth is None else truth[rows, columns]
        teacher = None if teacher is None else teacher[rows, columns]
    if teacher is not None and teacher.shape != image.shape[:2]:
        raise BadDepthError(
            f"the teacher's map is {teacher.shape} where the picture is {image.shape[:2]}: it "
            "must have the size of the picture at test time (KITTI: after the 352x1216 crop)"
        )
    return image, truth, teacher


def _apply(
    image: RgbImage,
    truth: DepthMap | None,
    teacher: DepthMap | None,
    numbers: Augmentation,
    draws: Draws,
) -> TrainingView:
    if draws.rotate < numbers.rotate_share:
        image = _rotated(image, draws.degrees, cv2.INTER_LINEAR)
        truth = None if truth is None else _rotated(truth, draws.degrees, cv2.INTER_NEAREST)
        if teacher is not None and numbers.rotate_teacher:
            teacher = _rotated(teacher, draws.degrees, cv2.INTER_NEAREST)
    flips = draws.flip < numbers.flip_share
    view = _View(draws.top, draws.left, *numbers.crop_size, flips)
    colour = draws if draws.colour < numbers.colour_share else None
    return TrainingView(
        _normalised(view.of(image), colour),
        None if truth is None else view.of(truth),
        None if teacher is None else view.of(teacher),
        draws,
    )


class _View(NamedTuple):
    """Flip, then crop."""

    top: int
    left: int
    height: int
    width: int
    flips: bool

    def of(self, array: npt.NDArray[_Scalar]) -> npt.NDArray[_Scalar]:
        whole = array[:, ::-1] if self.flips else array
        part = whole[self.top : self.top + self.height, self.left : self.left + self.width]
        return np.ascontiguousarray(part)


def _rotated(array: npt.NDArray[_Scalar], degrees: float, method: int) -> npt.NDArray[_Scalar]:
    """Turn clockwise about the middle; what comes in from outside is 0."""
    height, width = array.shape[:2]
    # OpenCV counts angles against the clock.
    matrix = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), -degrees, 1.0)
    turned: npt.NDArray[_Scalar] = cv2.warpAffine(
        np.ascontiguousarray(array), matrix, (width, height), flags=method, borderValue=0
    )
    return turned


def _normalised(image: RgbImage, colour: Draws | None) -> npt.NDArray[np.float32]:
    """Change colours and normalise: both act on single values, so 256 per channel will do."""
    table = np.repeat(np.arange(256.0)[:, None], 3, axis=1)  # (256, 3)
    if colour is not None:
        channels = np.array((colour.red, colour.green, colour.blue))
        table = (table**colour.gamma * colour.brightness * channels).clip(0, 255)
    table = ((table - _MEAN) / _STD).astype(np.float32)
    normalised: npt.NDArray[np.float32] = table[image, np.arange(3)]
    return normalised
