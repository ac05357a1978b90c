"""The data of a training: its items, and the stream of batches that worker processes read.

Every draw depends only on the seed, the epoch and the sample's index, never on how many
workers or devices there are or at which step a run was continued.

Shapes: B the process's part of a batch, Hn and Wn the network's input.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple, Protocol

import cv2
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from tiekd_ros.core.errors import TiekdError
from tiekd_ros.datasets import (
    AUTO,
    DatasetError,
    DepthDataset,
    DepthItem,
    ReadOptions,
    SkipReport,
    detect_kind,
)
from tiekd_ros.datasets.items import TEACHER_FOLDER
from tiekd_ros.evaluation.frame_log_dataset import FRAMES, FrameLogDataset, frame_log_file
from tiekd_ros.evaluation.frame_log_dataset import open_data as open_any
from tiekd_ros.framelog.records import Split
from tiekd_ros.method.stepping import TrainingError
from tiekd_ros.training.recipes import (
    DepthArray,
    ImageArray,
    Prepare,
    Recipe,
    RecipeError,
    TrainingPlan,
)

ANY, TEACHER, TRUTH = "auto", "teacher", "truth"
LABELS = (ANY, TEACHER, TRUTH)
MEASURED = "measured depth"
_FOLDERS = ("rgbd", "images")
Key = tuple[int, int]
"""Epoch and index of a sample: all that its variation depends on, beside the seed."""


class Items(Protocol):
    """What is needed of a data set."""

    @property
    def names(self) -> Sequence[str]:
        """The items' names."""
        ...

    def __len__(self) -> int: ...

    def item(self, index: int) -> DepthItem:
        """Read one item; TiekdError where that is not possible."""
        ...


@dataclass(frozen=True)
class Subset:
    """Some items of a data set, by their indices."""

    whole: Items
    indices: Sequence[int]

    @property
    def names(self) -> Sequence[str]:
        """The items' names."""
        return [self.whole.names[index] for index in self.indices]

    def __len__(self) -> int:
        return len(self.indices)

    def item(self, index: int) -> DepthItem:
        """Read one item."""
        return self.whole.item(self.indices[index])


@dataclass(frozen=True)
class DataOptions:
    """Where the data lies.

    Attributes:
        path: the data set's folder, or a state folder with a frame log.
        kind: its layout; auto = as it looks.
        split: which items train; None = the layout's usual file (folders: all images that do
            not validate).
        val_split: which items validate; None = the last part of the training data (a frame
            log: its held-out frames).
        teacher_dir: teacher maps; None = `teacher/` in the data.
        labels: train on the teacher's depth, on the truth, or (auto) on the teacher's where
            there are maps of it.
    """

    path: Path
    kind: str = AUTO
    split: Path | None = None
    val_split: Path | None = None
    teacher_dir: Path | None = None
    labels: str = ANY


@dataclass(frozen=True)
class TrainingData:
    """Training and validation items of one layout."""

    kind: str
    labels: str
    """Whose depth is learnt, in words."""
    train: Items
    validation: Items
    reports: tuple[SkipReport, ...] = ()
    """What the readers left out."""

    @property
    def left_out(self) -> dict[str, str]:
        """Items that cannot be used, by name, as known when the data was opened, and why."""
        return {name: why for report in self.reports for name, why in report.bad.items()}

    def describe(self) -> str:
        """Say what there is, and what of it makes no sense."""
        left_out = f", {len(self.left_out)} left out" if self.left_out else ""
        text = (
            f"{self.kind}: {len(self.train)} images to train on, {len(self.validation)} to "
            f"validate{left_out}; labels: {self.labels}"
        )
        in_both = len(set(self.train.names) & set(self.validation.names))
        if in_both:
            text += (
                f"\nwarning: {in_both} of the {len(self.validation)} images that validate are "
                "trained on as well, so the scores say little; give other images with --val-split"
            )
        return text


def open_training_data(
    options: DataOptions, recipe: Recipe, plan: TrainingPlan, skip_bad: bool
) -> TrainingData:
    """Open the data for a recipe.

    Raises:
        RecipeError: the recipe is for another layout, or its losses need a teacher's maps.
        DatasetError: files are missing or do not fit.
    """
    kind = _kind(options)
    if recipe.kind is not None and kind != recipe.kind:
        raise RecipeError(
            f"recipe {recipe.name} is for {recipe.kind} data, {options.path} is {kind}; take "
            "recipe tiekd"
        )
    if kind == FRAMES:
        return _open_frames(options)
    teacher = _wants_teacher(options, kind, recipe)
    truth = kind == "rgbd" or not teacher

    def read(split: Path | None, *, truth: bool, teacher: bool) -> DepthDataset:
        wanted = ReadOptions(
            split=split,
            subset="train",
            truth=truth,
            teacher=teacher,
            teacher_maps=options.teacher_dir,
            skip_bad=skip_bad,
        )
        return open_any(kind, options.path, wanted)

    data = read(options.split, truth=truth, teacher=teacher)
    maps = options.teacher_dir or Path(TEACHER_FOLDER)
    labels = f"teacher maps in {maps.name or maps}" if teacher else MEASURED
    if options.val_split is not None:
        without_truth = kind == "images"
        other = read(options.val_split, truth=not without_truth, teacher=without_truth)
        train: Items = data
        if options.split is None and kind in _FOLDERS:
            train = _without(data, other, options)
        return TrainingData(kind, labels, train, other, (data.report, other.report))
    held = round(len(data) * plan.train.validation_share)
    cut = len(data) - held
    train, last = Subset(data, range(cut)), Subset(data, range(cut, len(data)))
    return TrainingData(kind, labels, train, last, (data.report,))


def _without(data: DepthDataset, validation: DepthDataset, options: DataOptions) -> Items:
    """Return the items that do not validate."""
    names = {*validation.names, *validation.report.bad}
    indices = [index for index, name in enumerate(data.names) if name not in names]
    if not indices:
        raise RecipeError(
            f"{options.val_split} names every image of {options.path}: none is left to train on; "
            "name fewer, or give --split"
        )
    return Subset(data, indices)


def _kind(options: DataOptions) -> str:
    if options.kind != AUTO:
        return options.kind
    if frame_log_file(options.path) is not None:
        return FRAMES
    return detect_kind(options.path)


def _wants_teacher(options: DataOptions, kind: str, recipe: Recipe) -> bool:
    """Decide whose depth is learnt."""
    if options.labels not in LABELS:
        raise RecipeError(f"labels must be one of {', '.join(LABELS)}, got {options.labels!r}")
    if options.labels == TRUTH:
        if kind == "images":
            raise RecipeError(f"{options.path} has no measured depth; take --labels teacher")
        return False
    there = (options.path.expanduser() / TEACHER_FOLDER).is_dir()
    asked = options.labels == TEACHER or options.teacher_dir is not None
    return asked or there or kind == "images" or recipe.needs_teacher


def _open_frames(options: DataOptions) -> TrainingData:
    if options.split or options.val_split or options.teacher_dir or options.labels == TRUTH:
        raise RecipeError(
            f"{options.path} is a frame log: it has its own split and its teacher's labels, so "
            "--split, --val-split, --teacher-dir and --labels truth do not apply"
        )
    train = _LoggedFrames(options.path, "train")
    try:
        validation: Items = _LoggedFrames(options.path, "held_out")
    except DatasetError:
        validation = Subset(train, range(0))
    return TrainingData(FRAMES, "the frame log's teacher", train, validation)


class _LoggedFrames:
    """The frames that a log had when the run began, for processes that read side by side.

    SQLite's connections must not cross a fork, so each process opens its own.
    """

    def __init__(self, path: Path, split: Split) -> None:
        self._path, self._split = path, split
        self._open()
        self.names: Sequence[str] = list(self._log.names)

    def _open(self) -> None:
        self._log = FrameLogDataset(self._path, self._split)
        self._pid = os.getpid()
        self._index = {name: index for index, name in enumerate(self._log.names)}

    def __len__(self) -> int:
        return len(self.names)

    def item(self, index: int) -> DepthItem:
        """Read one frame; DatasetError where it is damaged or was evicted."""
        if os.getpid() != self._pid:
            self._open()
        name = self.names[index]
        if name not in self._index:
            raise DatasetError(f"frame {name} is no more in the frame log")
        return self._log.item(self._index[name])


class Batch(NamedTuple):
    """One process's part of a batch."""

    images: Tensor
    """(B, Hn, Wn, 3), uint8, or float32 where it is normalised already."""
    depth: Tensor
    """Metres, (B, 1, Hn, Wn), NaN = unknown."""
    bad: dict[str, str]
    """Items that could not be read and were replaced by the next one, with the reason."""


class UnreadableItem(NamedTuple):
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
class TrainingSample:
    """A sample as it leaves a worker."""

    image: ImageArray
    depth: DepthArray
    bad: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class TrainingSet(Dataset["TrainingSample | UnreadableItem"]):
    """Samples of a data set by epoch and index."""

    items: Items
    prepare: Prepare
    seed: int
    skip_bad: bool = False

    def __getitem__(self, key: Key) -> TrainingSample | UnreadableItem:
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
                    return UnreadableItem(str(error))
                bad[self.items.names[at]] = str(error)
                continue
            return TrainingSample(image, depth, bad)
        return UnreadableItem(
            f"none of the {len(self.items)} items can be read: {bad.popitem()[1]}"
        )


def stack(samples: Sequence[TrainingSample | UnreadableItem]) -> Batch | UnreadableItem:
    """Make a batch of samples of one size."""
    good: list[TrainingSample] = []
    bad: dict[str, str] = {}
    for sample in samples:
        if isinstance(sample, UnreadableItem):
            return sample
        good.append(sample)
        bad |= sample.bad
    images = torch.from_numpy(np.stack([s.image for s in good]))
    depth = torch.from_numpy(np.stack([s.depth for s in good])[:, None])
    return Batch(images, depth, bad)


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
    loader: DataLoader[TrainingSample | UnreadableItem] = DataLoader(
        samples,
        batch_sampler=plan.parts(*steps, rank),
        num_workers=workers,
        collate_fn=stack,
        worker_init_fn=_start_worker,
        multiprocessing_context="fork" if workers else None,
        pin_memory=torch.cuda.is_available(),
    )
    for batch in loader:
        if isinstance(batch, UnreadableItem):
            raise TrainingError(f"{batch.reason} (--skip-bad passes over what cannot be read)")
        yield batch


def _start_worker(_number: int) -> None:
    # The process that trains ends its workers: signals to its group are not for them.
    os.setpgid(0, 0)
    cv2.setNumThreads(0)
