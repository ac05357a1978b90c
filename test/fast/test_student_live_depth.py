"""The live student's depth of a logged frame, whatever the student is like."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from helpers.stores import view
from helpers.students import overflowing_student, small_student
from tiekd_ros.core.errors import BadImageError
from tiekd_ros.core.images import encode_jpeg
from tiekd_ros.student.live_depth import LiveStudentDepth
from tiekd_ros.student.registry import StudentRegistry
from tiekd_ros.student.runtimes.torch_runtime import TorchRuntime

IMAGE = encode_jpeg(view(0))


@pytest.fixture
def registry(tmp_path: Path) -> StudentRegistry:
    return StudentRegistry(tmp_path / "students")


def promote(registry: StudentRegistry, seed: int) -> str:
    version = registry.add(small_student(seed)).version
    registry.promote(version, force=True)
    return version


def test_the_live_student_is_followed(registry):
    live = LiveStudentDepth(registry)
    assert live(IMAGE, (30, 40)) is None
    for seed in range(2):
        version = promote(registry, seed)
        seen = live(IMAGE, (30, 40))
        assert seen.version == version
        assert seen.depth.shape == (30, 40)
        assert seen.min_depth_m <= seen.depth.min() <= seen.depth.max() <= seen.max_depth_m * 1.001
    registry.rollback()
    assert live(IMAGE, (30, 40)).version == "000001"


def test_a_student_that_cannot_run_is_told_of_once_until_its_successor_does(
    registry: StudentRegistry, caplog: pytest.LogCaptureFixture
) -> None:
    broken = registry.add(overflowing_student()).version
    registry.promote(broken, force=True)
    live = LiveStudentDepth(registry)
    for _ in range(3):
        assert live(IMAGE, (30, 40)) is None
    assert caplog.text.count("labels are not compared with student 000001") == 1
    promote(registry, 1)
    assert live(IMAGE, (30, 40)).version == "000002"


def test_a_student_that_fails_on_an_image_is_told_of_once(
    registry: StudentRegistry, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("out of memory")

    promote(registry, 0)
    live = LiveStudentDepth(registry)
    assert live(IMAGE, (30, 40)) is not None
    with monkeypatch.context() as broken:
        broken.setattr(TorchRuntime, "predict", fail)
        for _ in range(3):
            assert live(IMAGE, (30, 40)) is None
    assert caplog.text.count("out of memory") == 1
    assert live(IMAGE, (30, 40)).version == "000001"


def test_an_image_is_not_decoded_for_a_student_that_is_not_there(registry: StudentRegistry) -> None:
    live = LiveStudentDepth(registry)
    assert live(b"no image", (30, 40)) is None
    promote(registry, 0)
    with pytest.raises(BadImageError):
        live(b"no image", (30, 40))


def test_torch_keeps_its_threads(registry: StudentRegistry) -> None:
    promote(registry, 0)
    live = LiveStudentDepth(registry)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        live(IMAGE, (30, 40))
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
