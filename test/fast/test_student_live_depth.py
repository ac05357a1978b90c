"""The live student's depth of a logged frame, whatever the student is like."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from helpers.stores import view
from helpers.students import overflowing_student, small_student
from tiekd_ros.core.errors import BadImageError
from tiekd_ros.core.images import encode_jpeg
from tiekd_ros.student.checkpoint import Student
from tiekd_ros.student.live_depth import LiveStudentDepth
from tiekd_ros.student.registry import StudentRegistry
from tiekd_ros.student.runtimes.torch_runtime import TorchRuntime

IMAGE = encode_jpeg(view(0))


def promote(registry: StudentRegistry, student: Student) -> str:
    version = registry.add(student).version
    registry.promote(version, force=True)
    return version


@pytest.fixture
def registry(tmp_path: Path) -> StudentRegistry:
    return StudentRegistry(tmp_path / "students")


@pytest.fixture
def live(registry: StudentRegistry) -> LiveStudentDepth:
    return LiveStudentDepth(registry)


def test_the_live_student_is_followed(registry, live):
    assert live(b"no image", (30, 40)) is None  # decoded only for a student
    for seed in range(2):
        version = promote(registry, small_student(seed))
        seen = live(IMAGE, (30, 40))
        assert seen.version == version
        assert seen.depth.shape == (30, 40)
        assert seen.min_depth_m <= seen.depth.min() <= seen.depth.max() <= seen.max_depth_m * 1.001
    registry.rollback()
    assert live(IMAGE, (30, 40)).version == "000001"
    with pytest.raises(BadImageError):
        live(b"no image", (30, 40))


def test_a_student_that_cannot_run_or_fails_on_images_is_told_of_once(
    registry, live, monkeypatch, caplog
):
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("out of memory")

    promote(registry, overflowing_student())
    for _ in range(3):
        assert live(IMAGE, (30, 40)) is None
    assert caplog.text.count("labels are not compared with student 000001") == 1
    promote(registry, small_student())
    assert live(IMAGE, (30, 40)).version == "000002"
    with monkeypatch.context() as broken:
        broken.setattr(TorchRuntime, "predict", fail)
        for _ in range(3):
            assert live(IMAGE, (30, 40)) is None
    assert caplog.text.count("out of memory") == 1
    assert live(IMAGE, (30, 40)).version == "000002"


def test_torch_keeps_its_threads(registry, live):
    promote(registry, small_student())
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        live(IMAGE, (30, 40))
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
