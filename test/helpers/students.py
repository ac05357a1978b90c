"""Small students, untrained: quick to make, load and run."""

from __future__ import annotations

from typing import Any

import torch

from tiekd_ros.student import DepthBins, InputSize, Student, StudentCard

BINS = DepthBins(count=33)
SIZE = InputSize(64, 96)


def small_student(seed: int = 0, **card: Any) -> Student:
    """Return a student with random weights; another one for each seed."""
    torch.manual_seed(seed)
    return Student.fresh(StudentCard(BINS, SIZE, **card))
