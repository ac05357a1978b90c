"""Small students, untrained: quick to make, load and run."""

from __future__ import annotations

from typing import Any

import torch

from tiekd_ros.core.state import StateFolder
from tiekd_ros.student.architecture import InputSize
from tiekd_ros.student.bins import DepthBins
from tiekd_ros.student.checkpoint import Student, StudentCard
from tiekd_ros.student.registry import StudentRegistry

BINS = DepthBins(count=33)
SIZE = InputSize(64, 96)


def small_student(seed: int = 0, **card: Any) -> Student:
    """Return a student with random weights; another one for each seed."""
    torch.manual_seed(seed)
    return Student.fresh(StudentCard(BINS, SIZE, **card))


def promote_small(state: StateFolder) -> str:
    """Make a small student live in a state folder; return its version."""
    registry = StudentRegistry(state.students)
    version = registry.add(small_student()).version
    registry.promote(version)
    return version


def with_statistics(student: Student, seed: int = 0) -> Student:
    """Give a student's batch norms statistics of their own, as a trained one's have."""
    torch.manual_seed(seed)
    size = student.card.input_size
    student.network.train()
    with torch.no_grad():
        student.network(torch.randn(2, 3, size.height, size.width))
    student.network.eval()
    return student


def overflowing_student() -> Student:
    """Return a student whose weights are finite and whose logits are not."""
    student = with_statistics(small_student())
    with torch.no_grad():
        student.network.get_submodule("head").weight.fill_(3e38)
    return student
