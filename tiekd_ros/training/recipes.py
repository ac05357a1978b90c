"""Named recipes: all numbers of a training beside the data, and how a sample is varied."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.optim import Optimizer
from torch.optim.lr_scheduler import OneCycleLR

from tiekd_ros.core.errors import BadDepthError, InvalidSettingError, TiekdError
from tiekd_ros.core.images import DepthMap
from tiekd_ros.core.settings import SettingGroups
from tiekd_ros.datasets import DepthItem
from tiekd_ros.method.first_student import StudentSettings
from tiekd_ros.method.losses import LossSettings
from tiekd_ros.method.paper import pipeline
from tiekd_ros.method.paper.losses import LOSS_WEIGHT, loss_numbers
from tiekd_ros.method.paper.target import PUBLISHED_SIGMA_M
from tiekd_ros.method.samples import AugmentSettings, augment, fit_sample
from tiekd_ros.method.stepping import warm_up_then_cosine
from tiekd_ros.student.architecture import InputSize
from tiekd_ros.student.bins import DepthBins
from tiekd_ros.student.networks import ARCHITECTURES
from tiekd_ros.student.networks.official import KITTI_BINS, NYU_BINS
from tiekd_ros.training.settings import OfflineSettings


@dataclass(frozen=True)
class TrainingPlan(SettingGroups):
    """What a training is: everything that its result depends on, beside the data."""

    train: OfflineSettings = field(default_factory=OfflineSettings)
    student: StudentSettings = field(default_factory=StudentSettings)
    loss: LossSettings = field(default_factory=LossSettings)
    augment: AugmentSettings = field(default_factory=AugmentSettings)


ImageArray = npt.NDArray[np.generic]
DepthArray = npt.NDArray[np.float32]
Prepare = Callable[[DepthItem, np.random.Generator], tuple[ImageArray, DepthArray]]
"""Makes the network's input and its label from an item.

Returns:
    The image, uint8 RGB (Hn, Wn, 3) or float32 normalised (Hn, Wn, 3), and depth in metres,
    float32 (Hn, Wn), NaN = unknown.
"""


class RecipeError(TiekdError):
    """Settings that are each valid, but cannot work together."""


FROM_BASE: Mapping[str, Any] = {"learning_rate": 4e-3}
"""Of recipe tiekd, where it starts from the base student: as a round does."""


@dataclass(frozen=True)
class Recipe:
    """What a name stands for.

    Attributes:
        name: the recipe's.
        plan: its settings, where nothing else is asked for.
        rate: learning rate at a step of so many, up to a peak.
        kind: the layout of data that it is for; None = any.
        augmentation: the published one; None = the project's own.
        input_size: the student's, where it does not follow from the data.
        flip_test: validate with the mean of the image's and its mirror image's prediction.
        average_norms: judge and export with batch norms averaged over training frames.
        needs_teacher: its losses do not know unknown depth.
    """

    name: str
    plan: TrainingPlan
    rate: Callable[[int, int, float], float]
    kind: str | None = None
    augmentation: pipeline.Augmentation | None = None
    input_size: InputSize | None = None
    flip_test: bool = False
    average_norms: bool = True
    needs_teacher: bool = False

    def plan_for(
        self,
        changes: Mapping[str, Mapping[str, Any]],
        *,
        baseline: bool = False,
        from_base: bool = False,
    ) -> TrainingPlan:
        """Return the settings with changes, and the measured or published numbers that suit them.

        Args:
            changes: settings by group and name; what they give is never replaced.
            baseline: measured depth is learnt, no teacher's.
            from_base: the training starts from the base student.

        Raises:
            InvalidSettingError: a change is not valid.
        """
        plan = self.plan.changed(changes)
        own: dict[str, Mapping[str, Any]]
        if self.kind is None:
            own = {"train": FROM_BASE if from_base else {}}
        else:
            objective, architecture = plan.loss.objective, plan.student.architecture
            own = {"loss": loss_numbers(self.kind, objective, architecture, baseline=baseline)}
        return self.plan.changed(own).changed(changes)

    def synchronises_norms(self, architecture: str) -> bool:
        """Return whether batch norms are of the whole batch; published ResNets' are not."""
        return self.kind is None or ARCHITECTURES[architecture].shares_batch_norms

    def preparation(self, plan: TrainingPlan, size: InputSize) -> Prepare:
        """Return how items become samples for a network input of `size`."""
        if self.augmentation is None:
            return OwnPreparation(size, plan.augment)
        crop_size = (size.height, size.width)
        return PublishedPreparation(replace(self.augmentation, crop_size=crop_size))


@dataclass(frozen=True)
class OwnPreparation:
    """The project's own augmentation, of frames scaled to the network's input."""

    size: InputSize
    settings: AugmentSettings

    def __call__(self, item: DepthItem, rng: np.random.Generator) -> tuple[ImageArray, DepthArray]:
        """Return uint8 RGB (Hn, Wn, 3) and metres (Hn, Wn)."""
        sample = fit_sample(item.image, label_of(item), item.intrinsics, self.size)
        varied = augment(sample, self.settings, rng)
        return varied.image, varied.depth


@dataclass(frozen=True)
class PublishedPreparation:
    """The published augmentation; the training crop is what the network sees."""

    numbers: pipeline.Augmentation

    def __call__(self, item: DepthItem, rng: np.random.Generator) -> tuple[ImageArray, DepthArray]:
        """Return normalised float32 (Hn, Wn, 3) and metres (Hn, Wn)."""
        legacy = np.random.RandomState(rng.integers(2**32, dtype=np.uint32))
        view = pipeline.augment(item.image, item.truth, item.teacher, self.numbers, legacy)
        depth = view.truth if view.teacher is None else view.teacher
        if depth is None:
            raise no_label(item)
        # The published pipeline fills with 0 what a rotation brings in: unknown.
        return view.image, np.where(depth > 0, depth, np.float32(np.nan)).astype(np.float32)


def label_of(item: DepthItem) -> DepthMap:
    """Return the label of an item: the teacher's depth, else the truth, else BadDepthError."""
    label = item.truth if item.teacher is None else item.teacher
    if label is None:
        raise no_label(item)
    return label


def no_label(item: DepthItem) -> BadDepthError:
    """Return the error for an item without any depth."""
    return BadDepthError(
        f"{item.name} has neither a teacher's map nor measured depth; make maps with `tiekd label`"
    )


START_DIVISOR = 25.0
END_DIVISOR = 100.0
RISING_SHARE = 0.3


def one_cycle(optimizer: Optimizer, iterations: int, max_lr: float = 1e-3) -> OneCycleLR:
    """Return the published schedule; call its `step()` once after every iteration.

    Cosine from max_lr / 25 up to max_lr at iteration 0.3 * iterations - 1, and down to
    max_lr / 2500 at iteration `iterations - 1`, the last one. Momentum is not cycled.

    Args:
        optimizer: its groups all get this learning rate, from now on.
        iterations: length of the whole training.
        max_lr: the peak.

    Raises:
        InvalidSettingError: there is no iteration, or max_lr is not positive.
    """
    if iterations < 1 or not max_lr > 0:
        raise InvalidSettingError(
            f"one cycle needs at least 1 iteration and a positive max_lr, got {iterations} "
            f"iterations and max_lr {max_lr!r}"
        )
    return OneCycleLR(
        optimizer,
        max_lr=max_lr,
        total_steps=iterations,
        pct_start=RISING_SHARE,
        anneal_strategy="cos",
        cycle_momentum=False,
        div_factor=START_DIVISOR,
        final_div_factor=END_DIVISOR,
    )


def _own_rate(step: int, steps: int, peak: float) -> float:
    return warm_up_then_cosine(peak, step / steps)


def _published_rate(step: int, steps: int, peak: float) -> float:
    return _published_rates(steps, peak)[step]


@lru_cache(maxsize=1)
def _published_rates(steps: int, peak: float) -> list[float]:
    """Return the learning rate of every step, as the published schedule sets it."""
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=peak)
    schedule = one_cycle(optimizer, steps, peak)
    rates = []
    for step in range(steps):
        rates.append(float(optimizer.param_groups[0]["lr"]))
        optimizer.step()
        if step < steps - 1:
            schedule.step()
    return rates


def _published(
    kind: str, bins: DepthBins, augmentation: pipeline.Augmentation, input_size: InputSize
) -> Recipe:
    """Return how one data set's published students were trained, whichever the network."""
    plan = TrainingPlan(
        train=OfflineSettings(
            epochs=24,
            batch_size=16,  # published: 8 on each of 2 GPUs
            learning_rate=1e-3,
            beta1=0.95,
            beta2=0.99,
            weight_decay=0.01,  # of every parameter, batch norms' and biases too
            clip_norm=35.0,
            validation_share=0.0,
        ),
        student=StudentSettings(
            architecture="mobilenetv2",
            bins=bins.count,
            min_depth_m=bins.min_depth_m,
            max_depth_m=bins.max_depth_m,
        ),
        loss=LossSettings(
            objective="paper",
            paper_weight=LOSS_WEIGHT,
            paper_sigma_m=PUBLISHED_SIGMA_M,
        ),
    )
    return Recipe(
        f"paper-{kind}",
        plan,
        _published_rate,
        kind=kind,
        augmentation=augmentation,
        input_size=input_size,
        flip_test=True,
        average_norms=False,
        needs_teacher=True,
    )


RECIPES = {
    recipe.name: recipe
    for recipe in (
        Recipe("tiekd", TrainingPlan(), _own_rate),
        _published("kitti", KITTI_BINS, pipeline.KITTI_AUGMENTATION, InputSize(352, 1216)),
        _published("nyu", NYU_BINS, pipeline.NYU_AUGMENTATION, InputSize(480, 640)),
    )
}
"""Recipe by name."""


def get_recipe(name: str) -> Recipe:
    """Return the recipe of this name; RecipeError where there is none."""
    if name not in RECIPES:
        raise RecipeError(f"unknown recipe {name!r}: known are {', '.join(RECIPES)}")
    return RECIPES[name]
