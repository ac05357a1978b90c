"""Putting together what a training needs: sizes, validation, how samples are made."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tiekd_ros.datasets import DepthItem
from tiekd_ros.distillation.evaluation import protocol_for
from tiekd_ros.distillation.losses import MASKED_OBJECTIVES
from tiekd_ros.distillation.objectives import describe_unknown
from tiekd_ros.distillation.replay import first_input_size
from tiekd_ros.distillation.samples import AugmentSettings
from tiekd_ros.distillation.training.data import TrainingSet
from tiekd_ros.distillation.training.judging import Judge
from tiekd_ros.distillation.training.loop import TrainingJob
from tiekd_ros.distillation.training.recipes import (
    OwnPreparation,
    Recipe,
    RecipeError,
    label_of,
)
from tiekd_ros.distillation.training.run_folder import RunFolder
from tiekd_ros.distillation.training.settings import HousekeepingSettings, TrainingPlan
from tiekd_ros.distillation.training.validation import Validator
from tiekd_ros.offline.training_data import MEASURED, TrainingData
from tiekd_ros.report.pictures import colour_depth
from tiekd_ros.student import InputSize, Student


@dataclass(frozen=True)
class Sizes:
    """What the student sees on the robot, and what it sees in training."""

    student: InputSize
    training: InputSize


def training_sizes(recipe: Recipe, plan: TrainingPlan, first: DepthItem) -> Sizes:
    """Return the sizes that were asked for, else the recipe's, else those of the first item."""
    given = plan.train.height or plan.train.width
    asked = InputSize(plan.train.height, plan.train.width) if given else None
    if recipe.augmentation is not None and recipe.input_size is not None:
        return Sizes(recipe.input_size, asked or InputSize(*recipe.augmentation.crop_size))
    size = asked or first_input_size(first.image.shape[0], first.image.shape[1], plan.student)
    return Sizes(size, size)


def check_labels(plan: TrainingPlan, data: TrainingData, seen: Sequence[DepthItem]) -> str:
    """Look for holes in the labels that the objective would take for 0 m.

    Returns:
        A warning where a teacher's maps have some, as the published ones may; else "".

    Raises:
        RecipeError: measured depth has some.
    """
    unknown = describe_unknown(plan.loss.objective, [label_of(item) for item in seen])
    masked = f"an objective that knows valid pixels ({', '.join(MASKED_OBJECTIVES)})"
    if not unknown:
        return ""
    if data.labels == MEASURED:
        raise RecipeError(f"{unknown}, of measured depth; take --labels teacher, or {masked}")
    return f"warning: {unknown}, as published; where that is not wanted, take {masked}"


def reading_workers(workers: int, processes: int) -> int:
    """Return how many processes read for each of those that train; -1 = by the cores."""
    if workers >= 0:
        return workers
    return min(8, max(0, (os.cpu_count() or 1) // processes - 1))


def check_size(student: Student, size: InputSize) -> None:
    """Raise RecipeError where a network cannot be trained at a size."""
    multiple = student.network.input_multiple
    for name, value in (("height", size.height), ("width", size.width)):
        if value % multiple:
            raise RecipeError(
                f"{student.card.architecture} needs a {name} that is a multiple of {multiple}, "
                f"got {value}; give --input-size with {round(value / multiple) * multiple}"
            )


def training_job(
    recipe: Recipe,
    plan: TrainingPlan,
    housekeeping: HousekeepingSettings,
    run: RunFolder,
    data: TrainingData,
    student: Student,
    sizes: Sizes,
) -> TrainingJob:
    """Return the training of a student on opened data, into a run's folder."""
    skip, seed = housekeeping.skip_bad, plan.train.seed
    bins = student.card.bins
    validator = None
    if len(data.validation):
        validator = Validator(
            data.validation,
            sizes.student,
            protocol_for(data.kind, bins),
            flip=recipe.flip_test,
            skip_bad=skip,
        )
    still = OwnPreparation(sizes.training, AugmentSettings(0.0, 1.0, 0.0, 0.0, 0.0))
    averages = recipe.average_norms and plan.train.batch_norm == "batch"
    judge = Judge(
        validator,
        TrainingSet(data.train, still, seed, skip) if averages else None,
        plan.train.batch_size,
        {
            "recipe": recipe.name,
            "objective": plan.loss.objective,
            "seed": seed,
            "images": len(data.train),
            "data": data.kind,
        },
    )
    samples = TrainingSet(data.train, recipe.preparation(plan, sizes.training), seed, skip)
    return TrainingJob(recipe, plan, housekeeping, run, samples, judge, colour_depth)


def run_settings(
    recipe: Recipe,
    plan: TrainingPlan,
    data: TrainingData,
    student: Student,
    sizes: Sizes,
    init: str,
) -> dict[str, Any]:
    """Return all that a run's result depends on, as plain values: what a resumed run must share."""
    return {
        "recipe": recipe.name,
        "init": init,
        "data": {
            "kind": data.kind,
            "labels": data.labels,
            "train": len(data.train),
            "validation": len(data.validation),
            "names_sha256": _digest(data),
        },
        "bins": student.card.bins.as_dict(),
        "input_size": sizes.student.as_dict(),
        "training_size": sizes.training.as_dict(),
        **plan.as_dict(),
    }


def _digest(data: TrainingData) -> str:
    """Return a hash of the items' names."""
    digest = hashlib.sha256()
    for part in (data.train, data.validation):
        digest.update("\n".join(part.names).encode() + b"\0")
    return digest.hexdigest()
