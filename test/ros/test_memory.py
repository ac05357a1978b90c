"""What a node's process holds on several GPUs, with CUDA's answers made up."""

from __future__ import annotations

import gc
import math
import weakref
from collections.abc import Iterator

import pytest
import torch

from tiekd_ros.nodes.common.reporting import gpu_memory_mb, process_memory_mb
from tiekd_ros.nodes.common.run import freeze_garbage, release_memory

HELD = {0: 0, 1: 300e6, 2: 200e6}
FREE = {1: 5e9, 2: 7e9}


@pytest.fixture
def three_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(HELD))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: HELD[device])
    # As real ones do: to ask a GPU that is not in use would take memory of it.
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (FREE[device], 80e9))


@pytest.fixture
def thawed() -> Iterator[None]:
    yield
    gc.unfreeze()


@pytest.mark.usefixtures("three_gpus")
def test_what_is_held_counts_on_whatever_gpu_it_is() -> None:
    assert gpu_memory_mb() == (500.0, 12000.0)


@pytest.mark.usefixtures("three_gpus")
def test_where_nothing_is_held_no_gpu_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 0)
    held, free = gpu_memory_mb() or (math.nan, math.nan)
    assert held == 0
    assert math.isnan(free)


@pytest.mark.skipif(torch.cuda.is_initialized(), reason="a test before used the GPU")
def test_a_process_without_cuda_holds_no_gpu() -> None:
    assert gpu_memory_mb() is None
    assert process_memory_mb() > 20


class Ring:
    """Refers to itself, so that only the collector frees it."""

    def __init__(self) -> None:
        self.itself = self


@pytest.mark.usefixtures("thawed")
def test_what_was_settled_is_freed_once_nobody_needs_it_and_the_rest_stays_settled() -> None:
    ring = Ring()
    freeze_garbage()
    seen = weakref.ref(ring)
    del ring
    gc.collect()
    assert seen() is not None
    release_memory()
    assert seen() is None
    assert gc.get_freeze_count() > 0


@pytest.mark.usefixtures("thawed")
def test_a_process_that_was_not_settled_is_left_so() -> None:
    gc.unfreeze()
    release_memory()
    assert gc.get_freeze_count() == 0
