"""What a training reads: training and validation items, with the labels that were asked for."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

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
from tiekd_ros.training.data import Items, Part
from tiekd_ros.training.recipes import Recipe, RecipeError
from tiekd_ros.training.settings import TrainingPlan

ANY, TEACHER, TRUTH = "auto", "teacher", "truth"
LABELS = (ANY, TEACHER, TRUTH)
MEASURED = "measured depth"
_FOLDERS = ("rgbd", "images")


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

    @property
    def in_both(self) -> int:
        """How many items train and validate."""
        return len(set(self.train.names) & set(self.validation.names))

    def describe(self) -> str:
        """Say what there is, and what of it makes no sense."""
        left_out = f", {len(self.left_out)} left out" if self.left_out else ""
        text = (
            f"{self.kind}: {len(self.train)} images to train on, {len(self.validation)} to "
            f"validate{left_out}; labels: {self.labels}"
        )
        if self.in_both:
            text += (
                f"\nwarning: {self.in_both} of the {len(self.validation)} images that validate are "
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
    labels = _teacher_name(options) if teacher else MEASURED
    if options.val_split is not None:
        without_truth = kind == "images"
        other = read(options.val_split, truth=not without_truth, teacher=without_truth)
        train: Items = data
        if options.split is None and kind in _FOLDERS:
            train = _without(data, other, options)
        return TrainingData(kind, labels, train, other, (data.report, other.report))
    held = round(len(data) * plan.train.validation_share)
    cut = len(data) - held
    train, last = Part(data, range(cut)), Part(data, range(cut, len(data)))
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
    return Part(data, indices)


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


def _teacher_name(options: DataOptions) -> str:
    folder = options.teacher_dir or Path(TEACHER_FOLDER)
    return f"teacher maps in {folder.name or folder}"


def _open_frames(options: DataOptions) -> TrainingData:
    if options.split or options.val_split or options.teacher_dir or options.labels == TRUTH:
        raise RecipeError(
            f"{options.path} is a frame log: it has its own split and its teacher's labels, so "
            "--split, --val-split, --teacher-dir and --labels truth do not apply"
        )
    train = _Frames(lambda: FrameLogDataset(options.path, "train"))
    try:
        validation: Items = _Frames(lambda: FrameLogDataset(options.path, "held_out"))
    except DatasetError:
        validation = Part(train, range(0))
    return TrainingData(FRAMES, "the frame log's teacher", train, validation)


class _Frames:
    """The frames that a log had when the run began, for processes that read side by side.

    SQLite's connections must not cross a fork, so each process opens its own.
    """

    def __init__(self, opening: Callable[[], FrameLogDataset]) -> None:
        self._opening = opening
        self._open()
        self.names: Sequence[str] = list(self._log.names)

    def _open(self) -> None:
        self._log = self._opening()
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
