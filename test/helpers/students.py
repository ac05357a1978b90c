"""Small students, untrained: quick to make, load and run."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch

from helpers.children import wait_until
from tiekd_ros.core.images import RgbImage
from tiekd_ros.core.state import StateFolder
from tiekd_ros.student.architecture import InputSize
from tiekd_ros.student.bins import DepthBins
from tiekd_ros.student.checkpoint import Student, StudentCard
from tiekd_ros.student.live import LiveStudent
from tiekd_ros.student.registry import StudentRegistry

FASTEST = "mobilenetv2-fast"
BINS = DepthBins(count=33)
SIZE = InputSize(64, 96)


def small_student(seed: int = 0, *, architecture: str = FASTEST, **card: Any) -> Student:
    """Return a student with random weights; another one for each seed."""
    torch.manual_seed(seed)
    return Student.fresh(StudentCard(BINS, SIZE, architecture, **card))


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


def frames_while_exchanged(live: LiveStudent, image: RgbImage, swaps: int) -> list[str | None]:
    """Exchange three students so often while another thread predicts depth of an image.

    Returns:
        The version that was live after each frame.
    """
    stop, frames = threading.Event(), []

    def stream() -> None:
        while not stop.is_set():
            depth = live.runtime.predict(image).depth
            assert BINS.min_depth_m <= depth.min() <= depth.max() <= BINS.max_depth_m
            frames.append(live.state.version)

    with ThreadPoolExecutor(1) as pool:
        streaming = pool.submit(stream)
        try:
            for number in range(swaps):
                version = ("000002", "000003", "000001")[number % 3]
                live.request(version)
                wait_until(lambda wanted=version: live.state.version == wanted)
        finally:
            stop.set()
        streaming.result(30)
    return frames


def overflowing_student() -> Student:
    """Return a student whose weights are finite and whose logits are not."""
    student = with_statistics(small_student())
    with torch.no_grad():
        student.network.get_submodule("head").weight.fill_(3e38)
    return student
