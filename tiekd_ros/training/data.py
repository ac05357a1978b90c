"""The stream of training batches: which samples, how varied, read by worker processes.

Every draw depends only on the seed, the epoch and the sample's index, never on how many
workers or devices there are or at which step a run was continued.

Shapes: B the process's part of a batch, Hn and Wn the network's input.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import NamedTuple, Protocol

import cv2
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from tiekd_ros.core.errors import TiekdError
from tiekd_ros.datasets import DepthItem
from tiekd_ros.method.stepping import TrainingError

Key = tuple[int, int]
"""Epoch and index of a sample: all that its variation depends on, beside the seed."""

ImageArray = npt.NDArray[np.generic]
DepthArray = npt.NDArray[np.float32]

Prepare = Callable[[DepthItem, np.random.Generator], tuple[ImageArray, DepthArray]]
"""Makes the network's input and its label from an item.

Returns:
    The image, uint8 RGB (Hn, Wn, 3) or float32 normalised (Hn, Wn, 3), and depth in metres,
    float32 (Hn, Wn), NaN = unknown.
"""


class Items(Protocol):
    """What is needed of a data set."""

    @property
    def names(self) -> Sequence[str]:
        """The items' names."""
        ...

    def __len__(self) -> int:
        """Return the number of items."""
        ...

    def item(self, index: int) -> DepthItem:
        """Read one item; TiekdError where that is not possible."""
        ...


@dataclass(frozen=True)
class Part:
    """Some items of a data set, by their indices."""

    whole: Items
    indices: Sequence[int]

    @property
    def names(self) -> Sequence[str]:
        """The items' names."""
        return [self.whole.names[index] for index in self.indices]

    def __len__(self) -> int:
        """Return the number of items."""
        return len(self.indices)

    def item(self, index: int) -> DepthItem:
        """Read one item."""
        return self.whole.item(self.indices[index])


class Batch(NamedTuple):
    """One process's part of a batch."""

    images: Tensor
    """(B, Hn, Wn, 3), uint8, or float32 where it is normalised already."""
    depth: Tensor
    """Metres, (B, 1, Hn, Wn), NaN = unknown."""
    bad: dict[str, str]
    """Items that could not be read and were replaced by the next one, with the reason."""


class Unreadable(NamedTuple):
    """In place of a batch: an item of it cannot be read, and is not to be passed over."""

    reason: str


@dataclass(frozen=True)
class BatchPlan:
    """Which samples each step uses: every epoch in another order, incomplete batches dropped.

    Raises:
        TrainingError: too few samples for one batch, or a batch that devices cannot share.
    """

    samples: int
    batch_size: int
    seed: int
    processes: int = 1

    def __post_init__(self) -> None:
        if self.samples < self.batch_size:
            raise TrainingError(
                f"{self.samples} samples are too few for one batch of {self.batch_size}; add data "
                f"or give --batch-size {max(self.samples, 1)}"
            )
        if self.batch_size % self.processes:
            near = max(1, round(self.batch_size / self.processes)) * self.processes
            raise TrainingError(
                f"{self.processes} devices cannot share a batch of {self.batch_size} equally; "
                f"--batch-size {near} would do"
            )

    @property
    def steps_per_epoch(self) -> int:
        """How many whole batches an epoch has."""
        return self.samples // self.batch_size

    def keys(self, step: int) -> list[Key]:
        """Return the samples of a step (from 0), for all processes together."""
        epoch, position = divmod(step, self.steps_per_epoch)
        order = _order(self.samples, self.seed, epoch)
        first = position * self.batch_size
        return [(epoch, int(index)) for index in order[first : first + self.batch_size]]

    def parts(self, first: int, last: int, rank: int) -> Iterator[list[Key]]:
        """Yield one process's part of the batches of steps `first` to `last` - 1."""
        size = self.batch_size // self.processes
        for step in range(first, last):
            yield self.keys(step)[rank * size : (rank + 1) * size]


@lru_cache(maxsize=2)
def _order(samples: int, seed: int, epoch: int) -> npt.NDArray[np.int64]:
    return np.random.default_rng([seed, epoch]).permutation(samples)


@dataclass(frozen=True)
class Sampled:
    """A sample as it leaves a worker."""

    image: ImageArray
    depth: DepthArray
    bad: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class TrainingSet(Dataset["Sampled | Unreadable"]):
    """Samples of a data set by epoch and index."""

    items: Items
    prepare: Prepare
    seed: int
    skip_bad: bool = False

    def __getitem__(self, key: Key) -> Sampled | Unreadable:
        """Read and vary one sample; an item that is bad is replaced by the next one or told."""
        epoch, index = key
        bad: dict[str, str] = {}
        for offset in range(len(self.items)):
            at = (index + offset) % len(self.items)
            try:
                image, depth = self.prepare(
                    self.items.item(at), np.random.default_rng([self.seed, epoch, index])
                )
            except TiekdError as error:
                if not self.skip_bad:
                    return Unreadable(str(error))
                bad[self.items.names[at]] = str(error)
                continue
            return Sampled(image, depth, bad)
        return Unreadable(f"none of the {len(self.items)} items can be read: {bad.popitem()[1]}")


def stack(samples: Sequence[Sampled | Unreadable]) -> Batch | Unreadable:
    """Make a batch of samples of one size."""
    good: list[Sampled] = []
    bad: dict[str, str] = {}
    for sample in samples:
        if isinstance(sample, Unreadable):
            return sample
        good.append(sample)
        bad |= sample.bad
    images = torch.from_numpy(np.stack([s.image for s in good]))
    depth = torch.from_numpy(np.stack([s.depth for s in good])[:, None])
    return Batch(images, depth, bad)


class _Parts:
    """A batch sampler for DataLoader: batches of keys from one step to another."""

    def __init__(self, plan: BatchPlan, first: int, last: int, rank: int) -> None:
        self._range = (first, last)
        self._plan = plan
        self._rank = rank

    def __iter__(self) -> Iterator[list[Key]]:
        return self._plan.parts(*self._range, self._rank)

    def __len__(self) -> int:
        return self._range[1] - self._range[0]


def batches(
    samples: TrainingSet, plan: BatchPlan, steps: tuple[int, int], rank: int, workers: int
) -> Iterator[Batch]:
    """Yield one process's part of the batches of steps `steps[0]` to `steps[1]` - 1.

    Args:
        samples: what to draw from.
        plan: which samples each step uses.
        steps: first step and the one after the last.
        rank: which process's part.
        workers: processes that read ahead; 0 = read in this one.

    Raises:
        TrainingError: an item cannot be read, and bad ones are not to be passed over.
    """
    loader: DataLoader[Sampled | Unreadable] = DataLoader(
        samples,
        batch_sampler=_Parts(plan, *steps, rank),
        num_workers=workers,
        collate_fn=stack,
        worker_init_fn=_begin_worker,
        multiprocessing_context="fork" if workers else None,
        pin_memory=torch.cuda.is_available(),
    )
    for batch in loader:
        if isinstance(batch, Unreadable):
            raise TrainingError(f"{batch.reason} (--skip-bad passes over what cannot be read)")
        yield batch


def _begin_worker(_number: int) -> None:
    # The process that trains ends its workers: signals to its group are not for them.
    os.setpgid(0, 0)
    cv2.setNumThreads(0)
