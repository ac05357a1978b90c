"""What the live student says of a logged frame, whatever the student is like."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from helpers.stores import view
from helpers.students import overflowing_student, small_student
from tiekd_ros.core.errors import BadImageError
from tiekd_ros.core.images import encode_jpeg
from tiekd_ros.nodes.companion.live_depth import LiveDepth
from tiekd_ros.student.registry import StudentRegistry
from tiekd_ros.student.runtimes.torch_runtime import TorchRuntime
from tiekd_ros.teacher.trust import TrustSettings

IMAGE = encode_jpeg(view(0))


@pytest.fixture
def registry(tmp_path: Path) -> StudentRegistry:
    return StudentRegistry(tmp_path / "students")


def promote(registry: StudentRegistry, seed: int) -> str:
    version = registry.add(small_student(seed)).version
    registry.promote(version, force=True)
    return version


def test_the_live_student_is_followed(registry):
    live = LiveDepth(registry)
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
    live = LiveDepth(registry)
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
    live = LiveDepth(registry)
    assert live(IMAGE, (30, 40)) is not None
    with monkeypatch.context() as broken:
        broken.setattr(TorchRuntime, "predict", fail)
        for _ in range(3):
            assert live(IMAGE, (30, 40)) is None
    assert caplog.text.count("out of memory") == 1
    assert live(IMAGE, (30, 40)).version == "000001"


def test_an_image_is_not_decoded_for_a_student_that_is_not_there(registry: StudentRegistry) -> None:
    live = LiveDepth(registry)
    assert live(b"no image", (30, 40)) is None
    promote(registry, 0)
    with pytest.raises(BadImageError):
        live(b"no image", (30, 40))


@pytest.mark.parametrize(
    ("settings", "needed"),
    [
        ({}, True),
        ({"student": False}, False),
        ({"max_scale_jump": 0.0}, True),
        ({"max_scale_jump": 0.0, "max_student_factor": 0.0}, False),
    ],
)
def test_the_student_is_only_run_where_something_is_compared_with_it(settings, needed):
    assert TrustSettings(**settings).needs_student == needed


def test_torch_keeps_its_threads(registry: StudentRegistry, run_in_threads: Callable) -> None:
    promote(registry, 0)
    live = LiveDepth(registry)
    assert run_in_threads(lambda: live(IMAGE, (30, 40))) == 2


@pytest.fixture
def run_in_threads() -> Iterator[Callable[[Callable[[], object]], int]]:
    import torch

    before = torch.get_num_threads()

    def run(work: Callable[[], object]) -> int:
        torch.set_num_threads(2)
        work()
        return torch.get_num_threads()

    yield run
    torch.set_num_threads(before)
