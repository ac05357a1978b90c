"""Where a training starts: random weights, the base student, a student, or a backbone."""

from __future__ import annotations

from collections.abc import Sequence
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
    RANDOM_START,
    STARTS,
    first_bins,
    first_network,
    median_focal,
    start_from_label_histogram,
)
from tiekd_ros.method.samples import fit_sample
from tiekd_ros.student import (
    ARCHITECTURE,
    CheckpointError,
    InputSize,
    Student,
    StudentCard,
    StudentNetwork,
    build_network,
    load_student,
)
from tiekd_ros.student.importing import read_weights
from tiekd_ros.training.data import Items
from tiekd_ros.training.recipes import RecipeError, label_of
from tiekd_ros.training.settings import TrainingPlan

AUTO = "auto"
"""Of `--init`: as `student.start` says, where there is such a start."""

_LOOKED_AT = 64  # items that tell the depth range, the histogram of labels and the focal length


def look_at(items: Items) -> list[DepthItem]:
    """Return some items, evenly spread, passing over those that cannot be read.

    Raises:
        TiekdError: not one of them can be read; why the first one cannot.
    """
    seen, problem = [], None
    for index in np.unique(np.linspace(0, len(items) - 1, _LOOKED_AT).astype(int)):
        try:
            item = items.item(int(index))
            label_of(item)
        except TiekdError as error:
            problem = problem or error
            continue
        seen.append(item)
    if problem is not None and not seen:
        raise problem
    return seen


def first_student(
    init: str, plan: TrainingPlan, size: InputSize, seen: Sequence[DepthItem], *, histogram: bool
) -> Student:
    """Return the student that a training starts from.

    Args:
        init: `random`, `base`, the folder of a student, or a file of ImageNet weights for the
            backbone (torchvision's ResNets, mmcls's mobilenet_v2).
        plan: names the architecture and the bins.
        size: the student's input.
        seen: some training items.
        histogram: let a head that was not learnt answer with the labels' distribution.

    Raises:
        RecipeError: the weights do not belong to the architecture.
        CheckpointError: a file cannot be used.
    """
    torch.manual_seed(plan.train.seed)
    samples = [fit_sample(i.image, label_of(i), i.intrinsics, size) for i in seen]
    focal = median_focal(samples)
    name = plan.train.architecture
    if init in STARTS or Path(init).is_file():
        labels = [sample.depth for sample in samples]
        bins = first_bins(labels, plan.student)
        card = StudentCard(
            bins=bins,
            input_size=size,
            architecture=name,
            target=plan.loss.target_width,
            focal_px=focal,
        )
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
    parent = start.card.version or str(init)
    card = StudentCard(
        bins=start.card.bins,
        input_size=size,
        architecture=name,
        target=plan.loss.target_width,
        focal_px=focal,
        parent=parent,
    )
    return Student(card, start.network)


def _new_network(init: str, card: StudentCard) -> StudentNetwork:
    if card.architecture == ARCHITECTURE and init in STARTS:
        return first_network(card.bins, card.input_size, init, card.focal_px)
    if init == BASE_START:
        raise RecipeError(
            f"the base student is a {ARCHITECTURE!r}, --arch asks for {card.architecture!r}; give "
            "--init random, or a file of ImageNet weights for the backbone"
        )
    network = build_network(card.architecture, card.bins)
    if init != RANDOM_START:
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
