"""The published response-based losses (Res-KD): student depth against teacher depth alone.

Shapes: student and teacher depth (B, 1, h, w), metres. None of these losses crops maps that
are 704 wide, and none is scaled by 10. A teacher pixel that is unknown (NaN here) is a 0 in the
published depth PNGs: SSIM and MSE take it for the depth 0 m, SI leaves it out.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from tiekd_ros.distillation.global_batch import batch_count, batch_sum
from tiekd_ros.distillation.paper.ssim import published_ssim
from tiekd_ros.distillation.paper.target import unknown_as_zero
from tiekd_ros.errors import BadDepthError

SSIM_WEIGHT = 1.5  # of SSIM alone and in its sums, in every published config
SI_WEIGHT = 1.0  # of SI alone; the published NYU configs of Res-KD have 1.5
_SI_MEAN_SHARE = 0.15
_SI_EPS_M = 0.001


def ssim_loss(student: Tensor, teacher: Tensor, weight: float = SSIM_WEIGHT) -> Tensor:
    """Return weight * (1 - SSIM) over all pixels."""
    student, teacher = _pair(student, teacher)
    return weight * (1 - published_ssim(student, teacher))


def mse_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Return the mean squared error over all pixels, square metres.

    It has no weight: the published one ignores the weight of its config.
    """
    student, teacher = _pair(student, teacher)
    return ((student - teacher) ** 2).mean()


def si_loss(student: Tensor, teacher: Tensor, weight: float = SI_WEIGHT) -> Tensor:
    """Return the scale-invariant loss over the pixels with teacher depth > 0.

    weight * sqrt(Var(g) + 0.15 mean(g)^2), g = ln(student + 1 mm) - ln(teacher + 1 mm), with
    the unbiased variance over all such pixels of the batch together. Where fewer than two
    pixels count, or all agree exactly, the published loss or its gradient is NaN; here it is 0.
    """
    student, teacher = _pair(student, teacher)
    known = teacher > 0
    g = torch.log(student[known] + _SI_EPS_M) - torch.log(teacher[known] + _SI_EPS_M)  # (n,)
    count = batch_count(known)  # of all processes that share the batch, as the sums below
    if count < 2:
        return 0 * student.sum()
    mean = batch_sum(g.sum()) / count
    square = batch_sum(((g - mean) ** 2).sum()) / (count - 1) + _SI_MEAN_SHARE * mean**2
    positive = square > 0
    root = torch.where(positive, square, torch.ones_like(square)).sqrt()
    return weight * torch.where(positive, root, torch.zeros_like(root))


def ssim_si_loss(student: Tensor, teacher: Tensor, weight: float = SSIM_WEIGHT) -> Tensor:
    """Return weight * (1 - SSIM) + SI."""
    return ssim_loss(student, teacher, weight) + si_loss(student, teacher)


def ssim_mse_loss(student: Tensor, teacher: Tensor, weight: float = SSIM_WEIGHT) -> Tensor:
    """Return weight * (1 - SSIM) + MSE."""
    return ssim_loss(student, teacher, weight) + mse_loss(student, teacher)


RESPONSE_LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "ssim": ssim_loss,
    "mse": mse_loss,
    "si": si_loss,
    "ssim+si": ssim_si_loss,
    "ssim+mse": ssim_mse_loss,
}
"""Loss by name: (student depth, teacher depth) -> scalar, with the weights for KITTI."""


def _pair(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    if student.shape != teacher.shape:
        raise BadDepthError(
            f"student depth {tuple(student.shape)} and teacher depth {tuple(teacher.shape)} must "
            "have one shape: bring the teacher's map to the student's output size"
        )
    return student, unknown_as_zero(teacher)
