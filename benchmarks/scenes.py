"""Compare starts of a first student on real scenes: the yardstick of every default.

    python benchmarks/scenes.py DIR [DIR ...] --starts base,random --seeds 2

Each DIR is an RGB-D folder (docs/training.md). On each, a first student is trained from each
start as a round on a robot does it, and judged on frames held out, at the resolution of their
depth:

    blocks   every third of nine blocks of time is held out, and its neighbours are left out
    later    the first 60 % are trained on, the last 33 % are judged
    second   the same after a first round, with default settings, on the first 30 %

A start is `base`, `random`, or a folder with another base student; a base is calibrated to the
training frames, as a first round does it, and `--iterations 0` judges it so. A base that was made
from frames of a scene says nothing on that scene: leave it out (docs/base_student.md).

Reported are AbsRel, RMSE in metres, a1, AbsRel nearer than 2 m, boundary F1 and flying pixels
(tiekd_ros/method/metrics.py), and the AbsRel of the best constant depth. Runs that the file
of `--json` has already are not repeated.
"""

from __future__ import annotations

import argparse
import itertools
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from harness import Report, Row, mean_std, parser, run

from tiekd_ros.core.camera import Intrinsics
from tiekd_ros.core.images import DepthMap, RgbImage
from tiekd_ros.datasets import RgbdFolder
from tiekd_ros.method.first_student import (
    BASE_START,
    RANDOM_START,
    STARTS,
    StudentSettings,
    first_input_size,
    first_student,
)
from tiekd_ros.method.losses import LossSettings
from tiekd_ros.method.metrics import best_constant, frame_metrics, mean_metrics
from tiekd_ros.method.samples import AugmentSettings, Sample, fit_sample
from tiekd_ros.rounds.trainer import Trainer, TrainSettings
from tiekd_ros.student.base_student import load_base
from tiekd_ros.student.bins import DepthBins
from tiekd_ros.student.checkpoint import Student, load_student
from tiekd_ros.student.runtimes.torch_runtime import TorchRuntime

SPLITS = ("blocks", "later", "second")
_BLOCKS = 9
_TRAIN_SHARE, _JUDGED_SHARE = 0.6, 0.33  # of the splits `later` and `second`
ERRORS = ("abs_rel", "rmse", "a1", "near_abs_rel", "boundary_f1", "flying")


@dataclass(frozen=True)
class Frame:
    """One frame as it is: uint8 RGB (H, W, 3), depth (H, W) in metres, NaN = unknown."""

    image: RgbImage
    depth: DepthMap
    intrinsics: Intrinsics | None


def main(argv: list[str] | None = None) -> int:
    options = read_options(argv)
    torch.set_num_threads(options.threads)
    cv2.setNumThreads(1)
    report = Report("scenes", options)
    settings = {"iterations": options.iterations, "pixels": options.pixels, **options.train}
    names = ("scene", "split", "start", "seed")
    arms = itertools.product(options.scenes, options.splits, options.starts, range(options.seeds))
    runs = report.experiment(
        [
            (
                {**dict(zip(names, (arm[0].name, *arm[1:]), strict=True)), **settings},
                partial(train_and_judge, *arm, settings),
            )
            for arm in arms
        ]
    )
    for start, scene in seen(options.starts, [folder.name for folder in options.scenes]):
        print(f"{Path(start).name} was made with frames of {scene}: it says nothing on that scene")
    report.table("scenes", f"Held-out errors after {options.iterations} iterations", summary(runs))
    if RANDOM_START in options.starts:
        title = f"AbsRel over that from `{RANDOM_START}`, same seeds"
        report.table("ratios", title, ratios(runs))
    return report.finish()


def read_options(argv: list[str] | None) -> argparse.Namespace:
    made = parser(__doc__)
    defaults = TrainSettings()
    add = made.add_argument
    add("scenes", nargs="+", type=Path, metavar="DIR", help="RGB-D folders")
    add("--splits", type=_words(SPLITS), default=list(SPLITS[:2]), help="[blocks,later]")
    add("--starts", type=_words(), default=list(STARTS), help="base, random, folders [base,random]")
    add("--seeds", type=int, default=2, help="runs of each [2]")
    steps = f"steps of each run; 0 = the start as it is [{defaults.iterations}; quick: 20]"
    add("--iterations", type=int, help=steps)
    add("--pixels", type=int, help=f"input size [{StudentSettings().pixels}; quick: 12288]")
    add(
        "--train", type=_setting, nargs="*", default=[], help="of the last round, e.g. batch_size=8"
    )
    add("--threads", type=int, default=torch.get_num_threads(), help="CPU threads [all cores]")
    options = made.parse_args(argv)
    if options.iterations is None:
        options.iterations = 20 if options.quick else defaults.iterations
    options.pixels = options.pixels or (12288 if options.quick else StudentSettings().pixels)
    if options.iterations == 0 and "second" in options.splits:
        made.error("--splits second trains twice: it needs --iterations")
    options.train = dict(options.train)
    return options


def seen(starts: Sequence[str], scenes: Sequence[str]) -> list[tuple[str, str]]:
    """Return the bases among the starts with each scene that their card says they have seen."""
    found = []
    for start in starts:
        if start != RANDOM_START:
            card = (load_base() if start == BASE_START else load_student(Path(start))).card
            found += [(start, s) for s in scenes if s in card.training.get("real_frames", {})]
    return found


def _words(known: Sequence[str] = ()) -> Callable[[str], list[str]]:
    def read(text: str) -> list[str]:
        words = text.split(",")
        if known and not set(words) <= set(known):
            raise argparse.ArgumentTypeError(f"{text!r}: known are {', '.join(known)}")
        return words

    return read


def _setting(text: str) -> tuple[str, Any]:
    name, _, value = text.partition("=")
    try:
        return name, json.loads(value)
    except json.JSONDecodeError:
        return name, value


@lru_cache(maxsize=1)
def load_scene(folder: Path) -> list[Frame]:
    """Return the frames of an RGB-D folder, in their order."""
    scene = RgbdFolder(folder)
    return [Frame(scene.image(i), scene.depth(i), scene.intrinsics) for i in range(len(scene))]


def split_by_time(count: int, split: str) -> tuple[list[int], list[int]]:
    """Return the numbers of the frames to train on and of those held out; no two are neighbours."""
    if split != "blocks":
        last, first_held = round(_TRAIN_SHARE * count), round((1 - _JUDGED_SHARE) * count)
        return list(range(last)), list(range(max(last + 1, first_held), count))
    held_out = {i for i in range(count) if i * _BLOCKS // count % 3 == 1}
    near = {i + step for i in held_out for step in (-1, 0, 1)}
    return [i for i in range(count) if i not in near], sorted(held_out)


def train_and_judge(
    folder: Path, split: str, start: str, seed: int, settings: dict[str, Any]
) -> dict[str, Any]:
    """Train a first student on one part of a scene, and return its errors on the other.

    Args:
        folder: the scene, an RGB-D folder.
        split: one of SPLITS.
        start: see `starting_student`.
        seed: of weights, order and augmentation.
        settings: `pixels`, and those of `TrainSettings` that replace its own in the last round.
    """
    frames = load_scene(folder)
    train, held_out = ([frames[i] for i in part] for part in split_by_time(len(frames), split))
    first = StudentSettings(pixels=settings["pixels"])
    size = first_input_size(*train[0].image.shape[:2], first)
    samples = [fit_sample(f.image, f.depth, f.intrinsics, size) for f in train]
    torch.manual_seed(seed)
    earlier = samples[: len(samples) // 2] if split == "second" else []
    student = starting_student(earlier or samples, first, start)
    has_parent = start != RANDOM_START
    if earlier:
        budget = {"iterations": settings["iterations"]}
        fine_tune(student, earlier, seed, budget, has_parent=has_parent)
    seconds = 0.0
    if settings["iterations"]:
        plan = {name: value for name, value in settings.items() if name != "pixels"}
        has_parent = has_parent or bool(earlier)
        seconds = fine_tune(student, samples, seed, plan, has_parent=has_parent)
    bins = student.card.bins
    constant = best_constant([f.depth for f in held_out], bins.min_depth_m, bins.max_depth_m)
    flat = [np.full_like(f.depth, constant) for f in held_out]
    return {
        **judge(student, held_out),
        "seconds": round(seconds, 1),
        "constant_abs_rel": mean_errors(flat, held_out, bins)["abs_rel"],
        "train_frames": len(train),
        "held_out_frames": len(held_out),
    }


def fine_tune(
    student: Student, samples: list[Sample], seed: int, plan: dict[str, Any], *, has_parent: bool
) -> float:
    """Train a student as a round does; return the seconds that it took."""
    trainer = Trainer(
        student.network,
        samples,
        TrainSettings(**{"device": "cpu", "seed": seed, **plan}),
        loss=LossSettings(),
        augmentation=AugmentSettings(),
        has_parent=has_parent,
    )
    return trainer.run(lambda progress: None).seconds


def starting_student(samples: Sequence[Sample], settings: StudentSettings, start: str) -> Student:
    """Return the untrained first student of a start: a name in `STARTS`, or a base's folder."""
    height, width = samples[0].depth.shape
    size = first_input_size(height, width, settings)
    target = LossSettings().target_width
    if start in STARTS:
        return first_student(samples, size, replace(settings, start=start), target)
    base = load_student(Path(start))
    settings = replace(settings, start=BASE_START, architecture=base.card.architecture)
    return first_student(samples, size, settings, target, base)


def judge(student: Student, frames: Sequence[Frame]) -> dict[str, float]:
    """Return a student's mean errors on frames, at the resolution of their depth."""
    runtime = TorchRuntime(student)
    found = [
        runtime.predict(f.image, (len(f.depth), len(f.depth[0])), confidence=False).depth
        for f in frames
    ]
    return mean_errors(found, frames, student.card.bins)


def mean_errors(
    found: Sequence[DepthMap], frames: Sequence[Frame], bins: DepthBins
) -> dict[str, float]:
    """Return the mean over frames of each of ERRORS, within the range of the bins."""
    low, high = bins.min_depth_m, bins.max_depth_m
    each = (frame_metrics(d, f.depth, low, high) for d, f in zip(found, frames, strict=True))
    mean = mean_metrics([one for one in each if one is not None])
    return {name: round(getattr(mean, name), 4) for name in ERRORS}


def summary(runs: Sequence[dict[str, Any]]) -> list[Row]:
    """Return mean and spread over the seeds for each scene, split and start."""
    rows: list[Row] = []
    for (scene, split, start), own in _grouped(runs, "scene", "split", "start"):
        means = {name: mean_std([_number(r[name]) for r in own]) for name in ERRORS}
        row = {"scene": scene, "split": split, "start": Path(start).name, **means}
        row |= {"constant": own[0]["constant_abs_rel"]}
        rows.append(row | {"seconds": float(np.mean([r["seconds"] for r in own]))})
    return rows


def ratios(runs: Sequence[dict[str, Any]]) -> list[Row]:
    """Return each start's AbsRel as a multiple of the random start's, each split and on average."""
    means = {
        key: float(np.mean([_number(r["abs_rel"]) for r in own]))
        for key, own in _grouped(runs, "scene", "split", "start")
    }
    others = dict.fromkeys(start for _, _, start in means if start != RANDOM_START)
    rows: list[Row] = []
    for scene, split in dict.fromkeys(key[:2] for key in means):
        random = means.get((scene, split, RANDOM_START), float("nan"))
        found = {Path(s).name: means.get((scene, split, s), float("nan")) / random for s in others}
        rows.append({"scene": scene, "split": split, **found})
    names = [Path(s).name for s in others]
    averages = {n: float(np.nanmean([row[n] for row in rows])) for n in names if rows}
    return [*rows, {"scene": "mean", "split": "", **averages}]


def _grouped(
    runs: Sequence[dict[str, Any]], *names: str
) -> list[tuple[tuple[str, ...], list[dict[str, Any]]]]:
    groups: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for each in runs:
        groups.setdefault(tuple(each[name] for name in names), []).append(each)
    return list(groups.items())


def _number(value: float | None) -> float:
    return float("nan") if value is None else value


if __name__ == "__main__":
    run(main)
