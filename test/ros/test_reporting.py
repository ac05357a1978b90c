"""Numbers in the diagnostics: memory, rates, percentiles and shares."""

from __future__ import annotations

import gc
import math
import weakref
from collections.abc import Iterator

import pytest
import torch

from tiekd_ros.nodes.common.reporting import (
    Percentiles,
    Rate,
    Share,
    gpu_memory_mb,
    process_memory_mb,
)
from tiekd_ros.nodes.common.run import freeze_garbage, release_memory

HELD = {0: 0, 1: 300e6, 2: 200e6}
FREE = {1: 5e9, 2: 7e9}


@pytest.fixture
def thawed() -> Iterator[None]:
    yield
    gc.unfreeze()


def test_what_is_held_counts_on_whatever_gpu_it_is_and_only_those_in_use_are_asked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    held = dict(HELD)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(held))
    monkeypatch.setattr(torch.cuda, "memory_reserved", held.get)
    # To ask a GPU that is not in use would take memory of it: here it raises KeyError.
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (FREE[device], 80e9))
    assert gpu_memory_mb() == (500.0, 12000.0)
    held.update(dict.fromkeys(held, 0))
    assert gpu_memory_mb() == (0, pytest.approx(math.nan, nan_ok=True))


@pytest.mark.skipif(torch.cuda.is_initialized(), reason="a test before used the GPU")
def test_a_process_without_cuda_holds_no_gpu() -> None:
    assert gpu_memory_mb() is None
    assert process_memory_mb() > 20


class Ring:
    """Refers to itself, so that only the collector frees it."""

    def __init__(self) -> None:
        self.itself = self


@pytest.mark.usefixtures("thawed")
def test_what_was_frozen_is_freed_once_nothing_refers_to_it_and_the_rest_stays_frozen() -> None:
    ring = Ring()
    freeze_garbage()
    seen = weakref.ref(ring)
    del ring
    gc.collect()
    assert seen() is not None
    release_memory()
    assert seen() is None
    assert gc.get_freeze_count() > 0
    gc.unfreeze()
    release_memory()
    assert gc.get_freeze_count() == 0


def test_a_rate_is_that_of_the_last_seconds() -> None:
    rate = Rate(window_s=5.0)
    assert rate.value(0.0) == 0
    rate.tick(0.0)
    assert rate.value(1.0) == 1 / 5
    for tick in range(1, 101):
        rate.tick(tick / 10)
    assert rate.value(10.0) == pytest.approx(10.0)
    assert rate.value(12.5) == pytest.approx(10.0)  # by the events that are left
    assert rate.value(15.1) == 0
    assert rate.total == 101


def test_percentiles_are_of_the_last_values_and_unknown_without_any() -> None:
    percentiles = Percentiles(window=10, window_s=5.0)
    assert math.isnan(percentiles.at(50, 0.0))
    for now, value in enumerate([1000.0, 1000.0, *range(10)]):
        percentiles.add(value, float(now))
    assert percentiles.at(50, 6.0) == 4.5  # ten are kept
    assert percentiles.at(0, 11.0) == 4.0  # none older than five seconds
    assert math.isnan(percentiles.at(50, 17.0))


def test_a_share_is_what_grew_within_the_window_and_unknown_where_the_whole_did_not() -> None:
    share, still, reset = (Share(window_s=10.0) for _ in range(3))
    for now, part, whole in ((0.0, 0, 0), (5.0, 40, 100), (12.0, 40, 200), (14.0, 70, 200)):
        share.add(now, part, whole)
    assert share.value() == 0.3
    for now in (0.0, 1.0):
        still.add(now, 0, 7)
    assert math.isnan(still.value())
    reset.add(0.0, 50, 100)
    reset.add(1.0, 0, 200)  # a part that is counted anew
    assert reset.value() == 0
