"""The start of a training: its student (random, base, given, or from a backbone) and its sizes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import safetensors
import safetensors.torch
import torch
from torch import Tensor

from tiekd_ros.core.errors import TiekdError
from tiekd_ros.datasets import DepthItem
from tiekd_ros.method.first_student import (
    BASE_START,
    STARTS,
    first_bins,
    first_input_size,
    first_network,
    median_focal,
    start_from_label_histogram,
)
from tiekd_ros.method.losses import MASKED_OBJECTIVES, describe_unknown
from tiekd_ros.method.samples import fit_sample
from tiekd_ros.student.architecture import InputSize, StudentNetwork
from tiekd_ros.student.checkpoint import CheckpointError, Student, StudentCard, load_student
from tiekd_ros.student.importing import read_weights
from tiekd_ros.student.networks import ARCHITECTURES, build_network
from tiekd_ros.training.data import MEASURED, Items, TrainingData
from tiekd_ros.training.recipes import Recipe, RecipeError, TrainingPlan, label_of

AUTO = "auto"
"""Of `--init`: as `student.start` says, where there is such a start."""
_SAMPLED_ITEMS = 64  # items that tell the depth range, the histogram of labels and the focal length


def sample_items(items: Items) -> list[DepthItem]:
    """Return some items, evenly spread, passing over those that cannot be read.

    Raises:
        TiekdError: not one of them can be read; why the first one cannot.
    """
    sampled, problem = [], None
    for index in np.unique(np.linspace(0, len(items) - 1, _SAMPLED_ITEMS).astype(int)):
        try:
            item = items.item(int(index))
            label_of(item)
        except TiekdError as error:
            problem = problem or error
            continue
        sampled.append(item)
    if problem is not None and not sampled:
        raise problem
    return sampled


@dataclass(frozen=True)
class TrainingSizes:
    """What the student sees on the robot, and what it sees in training."""

    student: InputSize
    training: InputSize


def training_sizes(recipe: Recipe, plan: TrainingPlan, first: DepthItem) -> TrainingSizes:
    """Return the sizes that were asked for, else the recipe's, else those of the first item."""
    given = plan.train.height or plan.train.width
    asked = InputSize(plan.train.height, plan.train.width) if given else None
    if recipe.augmentation is not None and recipe.input_size is not None:
        return TrainingSizes(recipe.input_size, asked or InputSize(*recipe.augmentation.crop_size))
    size = asked or first_input_size(first.image.shape[0], first.image.shape[1], plan.student)
    return TrainingSizes(size, size)


def check_size(student: Student, size: InputSize) -> None:
    """Raise RecipeError where a network cannot be trained at a size."""
    multiple = student.network.input_multiple
    for name, value in (("height", size.height), ("width", size.width)):
        if value % multiple:
            raise RecipeError(
                f"{student.card.architecture} needs a {name} that is a multiple of {multiple}, "
                f"got {value}; give --input-size with {round(value / multiple) * multiple}"
            )


def check_labels(plan: TrainingPlan, data: TrainingData, sampled: Sequence[DepthItem]) -> str:
    """Look for holes in the labels that the objective would take for 0 m.

    Returns:
        A warning where a teacher's maps have some, as the published ones may; else "".

    Raises:
        RecipeError: measured depth has some.
    """
    unknown = describe_unknown(plan.loss.objective, [label_of(item) for item in sampled])
    masked = f"an objective that knows valid pixels ({', '.join(MASKED_OBJECTIVES)})"
    if not unknown:
        return ""
    if data.labels == MEASURED:
        raise RecipeError(f"{unknown}, of measured depth; take --labels teacher, or {masked}")
    return f"warning: {unknown}, as published; where that is not wanted, take {masked}"


def first_student(
    init: str, plan: TrainingPlan, size: InputSize, sampled: Sequence[DepthItem], *, histogram: bool
) -> Student:
    """Return the student that a training starts from.

    Args:
        init: `random`, `base`, the folder of a student, or a file of ImageNet weights for the
            backbone (torchvision's ResNets, mmcls's mobilenet_v2).
        plan: names the architecture and the bins.
        size: the student's input.
        sampled: some training items.
        histogram: let a head that was not learnt answer with the labels' distribution.

    Raises:
        RecipeError: the weights do not belong to the architecture.
        CheckpointError: a file cannot be used.
    """
    torch.manual_seed(plan.train.seed)
    samples = [fit_sample(i.image, label_of(i), i.intrinsics, size) for i in sampled]
    name = plan.student.architecture
    card_of = partial(
        StudentCard,
        input_size=size,
        architecture=name,
        target=plan.loss.target_width,
        focal_px=median_focal(samples),
    )
    if init in STARTS or Path(init).is_file():
        labels = [sample.depth for sample in samples]
        card = card_of(first_bins(labels, plan.student))
        network = _new_network(init, card)
        if histogram and init != BASE_START:
            start_from_label_histogram(network, labels)
        return Student(card, network)
    if not Path(init).is_dir():
        raise RecipeError(
            f"--init {init}: neither 'random' nor 'base', nor the folder of a student (with "
            "card.json), nor a file of backbone weights"
        )
    start = load_student(Path(init))
    if start.card.architecture != name:
        raise RecipeError(
            f"{init} holds a {start.card.architecture!r} student, --arch asks for {name!r}; "
            f"give --arch {start.card.architecture}"
        )
    return Student(card_of(start.card.bins, parent=start.card.version or init), start.network)


def _new_network(init: str, card: StudentCard) -> StudentNetwork:
    if init == BASE_START and not ARCHITECTURES[card.architecture].base:
        raise RecipeError(
            f"no base student ships for {card.architecture!r}; give --init random, or a file of "
            "ImageNet weights for the backbone"
        )
    if init in STARTS:
        return first_network(card.architecture, card.bins, card.input_size, init, card.focal_px)
    network = build_network(card.architecture, card.bins)
    load_backbone(network, Path(init))
    return network


def load_backbone(network: StudentNetwork, path: Path) -> None:
    """Load a classifier's weights into a network's backbone; what the classifier adds is dropped.

    Args:
        network: any of the architectures; its backbone's names are those of mmcls (MobileNetV2)
            or torchvision (ResNets).
        path: `.safetensors`, or a file of torch that holds tensors only.

    Raises:
        CheckpointError: it cannot be read, would run code, or has not all weights.
    """
    backbone = network.backbone
    assert isinstance(backbone, torch.nn.Module)
    given = {name.removeprefix("backbone."): tensor for name, tensor in _read_weights(path).items()}
    wanted = backbone.state_dict()
    missing = [
        name
        for name, tensor in wanted.items()
        if (name not in given or given[name].shape != tensor.shape)
        and not name.endswith("num_batches_tracked")
    ]
    if missing:
        raise CheckpointError(
            f"{path} has not the weights of this backbone: {len(missing)} of {len(wanted)} are "
            f"missing or misshapen (first: {missing[0]})"
        )
    backbone.load_state_dict({**wanted, **{k: v for k, v in given.items() if k in wanted}})


def _read_weights(path: Path) -> dict[str, Tensor]:
    if path.suffix != ".safetensors":
        return read_weights(path, legacy=True)
    try:
        weights: dict[str, Tensor] = safetensors.torch.load_file(path)
    except (OSError, safetensors.SafetensorError) as error:
        raise CheckpointError(f"{path} is no safetensors file: {error}") from error
    return weights
