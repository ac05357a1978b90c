"""The recorder: it stores, counts and pauses, and faults pass."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tiekd_ros.framelog import (
    AddResult,
    FrameLogSettings,
    FrameStore,
    Observation,
    Recorder,
    StoreLockedError,
)

S = 1_000_000_000


def seen(seed: int) -> Observation:
    pixels = np.random.default_rng(seed).integers(0, 256, (24, 32, 3), dtype=np.uint8)
    return Observation(pixels.repeat(5, 0).repeat(5, 1), seed * S, "cam")


@pytest.fixture
def store(tmp_path: Path) -> Iterator[FrameStore]:
    with FrameStore(tmp_path / "frames.sqlite3", FrameLogSettings(guard_share=0.0)) as opened:
        yield opened


def test_images_are_stored_counted_and_announced_unless_it_is_paused(store: FrameStore) -> None:
    announced: list[int] = []
    recorder = Recorder(store, on_kept=announced.append)
    for number in (0, 1, 2, 2):
        recorder.record(seen(number))
    found = recorder.snapshot()
    assert (found.offered, found.kept, found.not_kept) == (4, 3, {"too_soon": 1})
    assert announced == [1, 2, 3]
    assert store.stats().total == 3
    recorder.pause()
    recorder.record(seen(3))
    assert recorder.snapshot().paused
    assert recorder.snapshot().offered == 4
    recorder.resume()
    recorder.record(seen(4))
    assert store.unlabelled(9)[-1].stamp_ns == 4 * S


@pytest.mark.parametrize("fault", [StoreLockedError("held"), RuntimeError("a bug")])
def test_logging_goes_on_when_a_fault_is_over(store, monkeypatch, fault) -> None:
    def add(observation: Observation) -> AddResult:
        raise fault

    recorder = Recorder(store)
    with monkeypatch.context() as broken:
        broken.setattr(store, "add", add)
        for number in range(2):
            recorder.record(seen(number))
    found = recorder.snapshot()
    assert (found.errors, found.healthy) == (2, False)
    assert str(fault) in found.last_error
    recorder.record(Observation(np.zeros((3, 3), np.float32), 0, "cam"))  # type: ignore[arg-type]
    assert "expected a non-empty RGB image" in recorder.snapshot().last_error
    recorder.record(seen(5))
    found = recorder.snapshot()
    assert (found.errors, found.healthy, found.kept) == (3, True, 1)
