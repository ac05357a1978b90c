"""What a first student starts from: the base student that ships, or random weights."""

from __future__ import annotations

from collections.abc import Sequence

from tiekd_ros.distillation.replay import BASE_START, StudentSettings, first_bins, median_focal
from tiekd_ros.distillation.samples import Sample
from tiekd_ros.student import (
    DepthBins,
    InputSize,
    Student,
    StudentCard,
    StudentNetwork,
    TargetWidth,
    build_network,
)
from tiekd_ros.student.network import ARCHITECTURE
from tiekd_ros.student.transfer import start_from_base


def first_student(
    samples: Sequence[Sample], size: InputSize, settings: StudentSettings, target: TargetWidth
) -> Student:
    """Return the student that a first round trains; its card's `training` says the start.

    Args:
        samples: the training frames; they give the depth range and the focal length.
        size: the network's input size, that of the samples.
        settings: bins and start.
        target: how wide the target of the training is.

    Raises:
        RoundRefusedError: no sample has a pixel of known depth.
        CheckpointError: the base student that ships is missing or damaged.
    """
    bins = first_bins([s.depth for s in samples], settings)
    network = first_network(bins, size, settings.start, median_focal(samples))
    card = StudentCard(
        bins=bins,
        input_size=size,
        architecture=ARCHITECTURE,
        target=target,
        training={"start": settings.start},
    )
    return Student(card, network)


def first_network(
    bins: DepthBins, size: InputSize, start: str, focal_px: tuple[float, float] | None
) -> StudentNetwork:
    """Return a `mobilenetv2-fast` that starts from the base, or from random weights.

    Args:
        bins: of the new student.
        size: its input size.
        start: one of `replay.STARTS`.
        focal_px: focal lengths (fx, fy) of the camera at the network's input size, if known.
    """
    if start != BASE_START:
        return build_network(ARCHITECTURE, bins)
    focal = None if focal_px is None else (focal_px[0] * focal_px[1]) ** 0.5
    return start_from_base(bins, size, focal)
