"""The stream of batches: the same samples, in the same order, whichever process reads them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch

from tiekd_ros.datasets import DatasetError, DepthItem
from tiekd_ros.method.samples import AugmentSettings
from tiekd_ros.method.stepping import TrainingError
from tiekd_ros.student.architecture import InputSize
from tiekd_ros.training.data import Batch, BatchPlan, TrainingSet, batches
from tiekd_ros.training.recipes import OwnPreparation

SIZE = InputSize(64, 96)


class Noise:
    """Ten items of noise; some of them cannot be read."""

    def __init__(self, bad: Sequence[int] = ()) -> None:
        self.names = [f"item{k}" for k in range(10)]
        self._bad = bad

    def __len__(self) -> int:
        return len(self.names)

    def item(self, index: int) -> DepthItem:
        if index in self._bad:
            raise DatasetError(f"item{index}.png is damaged")
        rng = np.random.default_rng(index)
        image = rng.integers(0, 256, (64, 96, 3), dtype=np.uint8)
        depth = rng.uniform(1, 5, (64, 96)).astype(np.float32)
        return DepthItem(self.names[index], image, None, depth, None)


def samples(items=None, *, seed: int = 0, skip_bad: bool = False) -> TrainingSet:
    preparation = OwnPreparation(SIZE, AugmentSettings())
    return TrainingSet(items or Noise(), preparation, seed, skip_bad)


def read(plan: BatchPlan, steps: tuple[int, int], rank: int = 0, **how) -> list[Batch]:
    workers = how.pop("workers", 0)
    return list(batches(samples(**how), plan, steps, rank, workers))


def test_an_epoch_uses_no_sample_twice_and_the_next_one_has_another_order():
    plan = BatchPlan(samples=10, batch_size=3, seed=0)
    assert plan.steps_per_epoch == 3
    epochs = [[key for step in range(e * 3, e * 3 + 3) for key in plan.keys(step)] for e in (0, 1)]
    for number, keys in enumerate(epochs):
        assert {epoch for epoch, _ in keys} == {number}
        assert len({index for _, index in keys}) == 9
    assert [i for _, i in epochs[0]] != [i for _, i in epochs[1]]


def test_processes_share_each_batch_without_overlap():
    whole, shared = BatchPlan(10, 4, 0), BatchPlan(10, 4, 0, processes=2)
    parts = [list(shared.parts(0, 5, rank)) for rank in (0, 1)]
    for step in range(5):
        assert parts[0][step] + parts[1][step] == whole.keys(step)
    with pytest.raises(TrainingError, match="3 samples are too few for one batch of 4"):
        BatchPlan(3, 4, 0)
    with pytest.raises(TrainingError, match=r"2 devices cannot share a batch of 5 .*-size 4 would"):
        BatchPlan(10, 5, 0, processes=2)


def test_batches_do_not_depend_on_workers_nor_on_where_reading_starts():
    plan = BatchPlan(10, 4, seed=3)
    alone, helped = read(plan, (0, 5), seed=3), read(plan, (0, 5), seed=3, workers=2)
    later = read(plan, (3, 5), seed=3)
    for one, other in (*zip(alone, helped, strict=True), *zip(alone[3:], later, strict=True)):
        assert torch.equal(one.images, other.images)
        assert torch.equal(one.depth.nan_to_num(-1), other.depth.nan_to_num(-1))


def test_the_same_sample_is_varied_otherwise_in_another_epoch_and_with_another_seed():
    first, second, other = samples()[0, 1], samples()[1, 1], samples(seed=1)[0, 1]
    assert not np.array_equal(first.image, second.image)
    assert not np.array_equal(first.image, other.image)
    assert np.array_equal(first.image, samples()[0, 1].image)


def test_an_item_that_cannot_be_read_ends_the_training_or_is_replaced_and_listed():
    plan = BatchPlan(10, 10, 0)
    for workers in (0, 1):
        with pytest.raises(TrainingError, match=r"item7\.png is damaged \(--skip-bad"):
            read(plan, (0, 1), items=Noise(bad=[7]), workers=workers)
    (batch,) = read(plan, (0, 1), items=Noise(bad=[7, 8]), skip_bad=True)
    assert batch.images.shape == (10, 64, 96, 3)
    assert batch.bad == {"item7": "item7.png is damaged", "item8": "item8.png is damaged"}
    with pytest.raises(TrainingError, match="none of the 10 items can be read"):
        read(plan, (0, 1), items=Noise(bad=range(10)), skip_bad=True)
