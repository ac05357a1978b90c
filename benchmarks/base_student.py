"""Make the base student that ships with the package, and show what it is worth.

    python benchmarks/base_student.py make --minutes 60 --output build/base

renders random views of random worlds (in a process of its own), trains on them meanwhile and
writes `student.safetensors` and `card.json`, at first after five minutes.

    python benchmarks/base_student.py compare --frames ../shared/data/hololens --json FILE

trains on real frames from the base that ships and from random weights, and prints the errors
on held-out frames.

    python benchmarks/base_student.py evaluate --frames ../shared/data/hololens

prints the errors of the base as it ships, without any training, as it is and up to scale.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from base_training import Recipe, make
from harness import Report, Row, mean_std, parser, run

from tiekd_ros.datasets import RgbdFolder
from tiekd_ros.method.comparison import constant_predictor, mean_errors, student_predictor
from tiekd_ros.method.first_student import (
    BASE_START,
    RANDOM_START,
    STARTS,
    StudentSettings,
    first_bins,
    first_input_size,
    first_student,
)
from tiekd_ros.method.losses import LossSettings
from tiekd_ros.method.metrics import DepthMetrics, depth_metrics, mean_metrics
from tiekd_ros.method.samples import AugmentSettings, Sample, fit_sample
from tiekd_ros.rounds.trainer import Trainer, TrainSettings
from tiekd_ros.student.base_student import load_base, start_from_base
from tiekd_ros.student.bins import DepthBins
from tiekd_ros.student.checkpoint import Student, StudentCard
from tiekd_ros.student.runtimes.torch_runtime import TorchRuntime

SPLITS = ("blocks", "later")
"""Held out are every third block of time, as a frame log does it, or the last third of time."""
BLOCKS = 9
TRAIN_SHARE, GAP_SHARE = 0.6, 0.07  # of the split `later`
_ERRORS = {"AbsRel": "abs_rel", "RMSE (m)": "rmse", "a1": "a1"}


def main(argv: list[str] | None = None) -> int:
    options = read_options(argv)
    torch.set_num_threads(options.threads)
    cv2.setNumThreads(1)
    return options.act(options)


def read_options(argv: list[str] | None) -> argparse.Namespace:
    kind = argparse.RawDescriptionHelpFormatter
    made = argparse.ArgumentParser(description=__doc__, formatter_class=kind)
    commands = made.add_subparsers(required=True)

    def command(name: str, act: Any, threads: int, text: str) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=text, parents=[parser(text, is_parent=True)])
        added.add_argument("--threads", type=int, default=threads, help=f"CPU threads [{threads}]")
        added.set_defaults(act=act)
        return added

    add = command("make", make_base, 1, "render, train, write the student").add_argument
    add("--minutes", type=float, required=True, help="duration of the training")
    add("--output", type=Path, required=True, help="folder for the student")
    add("--cache", type=Path, help="folder for rendered views [OUTPUT/views]")
    add("--worlds", type=int, default=400, help="worlds to train on [400]")
    add("--views", type=int, default=32, help="views of each world [32]")
    add("--rate", type=float, default=4e-3, help="peak learning rate [4e-3]")
    add("--seed", type=int, default=0, help="seed of weights and draws [0]")
    add = command("compare", compare, 2, "training from the base against from nothing").add_argument
    add("--frames", type=Path, required=True, help="RGB-D folder")
    add("--iterations", type=int, help="steps of each [200; quick: 50]")
    add("--seeds", type=int, help="runs of each start [3; quick: 1]")
    add("--pixels", type=int, default=38_000, help="input size [38000]")
    add("--split", choices=SPLITS, default=SPLITS[0], help="what is held out")
    add("--starts", nargs="+", choices=STARTS, default=STARTS, help="[both]")
    add("--train", nargs="*", default=[], help="settings, e.g. fine_tune_rate=0.002")
    add = command("evaluate", evaluate, 2, "the base on real frames, without training").add_argument
    add("--frames", type=Path, required=True, help="RGB-D folder")
    add("--focal", type=float, help="focal length in px [from K.txt]")
    add("--pixels", type=int, default=38_000, help="input size [38000]")
    return made.parse_args(argv)


def make_base(options: argparse.Namespace) -> int:
    names = ("minutes", "worlds", "views", "seed", "output", "rate")
    cache = options.cache or options.output / "views"
    make(Recipe(cache=cache, **{name: getattr(options, name) for name in names}), _say)
    return 0


def compare(options: argparse.Namespace) -> int:
    """Train from each start with each seed; print held-out errors, means and ratios."""
    report = Report("base_student", options)
    options.iterations = options.iterations or (50 if options.quick else 200)
    options.seeds = options.seeds or (1 if options.quick else 3)
    train, held_out, settings = load(options)
    plan = {name: _value(text) for name, text in (word.split("=", 1) for word in options.train)}
    asked = {
        "frames": options.frames.name,
        "split": options.split,
        "train_frames": len(train),
        "held_out_frames": len(held_out),
        "iterations": options.iterations,
        "input": list(train[0].depth.shape),
        "settings": plan,
    }
    jobs = []
    for start in options.starts:
        base = load_base().card.weights_sha256 if start == BASE_START else ""
        for seed in range(options.seeds):
            key = {**asked, "start": start, "seed": seed, "base": base}
            own = {"iterations": options.iterations, "seed": seed, **plan}
            jobs.append((key, partial(train_once, train, held_out, settings, own, start)))
    runs = report.experiment(jobs)
    bins = first_bins([s.depth for s in train], settings)
    constant = mean_errors(constant_predictor(held_out, bins), held_out, bins)
    title = (
        f"{asked['frames']}, split by time ({options.split}): {len(train)} frames to train on, "
        f"{len(held_out)} held out, {options.iterations} iterations at "
        f"{'x'.join(map(str, train[0].depth.shape))}"
    )
    report.table("compare", title, comparison_rows(runs, errors_of(constant)))
    return report.finish()


def comparison_rows(runs: Sequence[dict[str, Any]], constant: dict[str, float]) -> list[Row]:
    """Return each run, each start's mean, the best constant depth, and base over random."""
    rows: list[Row] = [
        {
            "start": r["start"],
            "seed": r["seed"],
            **{column: f"{r[key]:.3f}" for column, key in _ERRORS.items()},
            "AbsRel before training": f"{r['before']['abs_rel']:.3f}",
        }
        for r in sorted(runs, key=lambda r: (r["start"], r["seed"]))
    ]
    means = {}
    for start in STARTS:
        own = [r for r in runs if r["start"] == start]
        if own:
            means[start] = {c: mean_std([r[key] for r in own]) for c, key in _ERRORS.items()}
            rows.append({"start": start, "seed": "mean ± std", **means[start]})
    rows.append({"start": "best constant", **{c: constant[key] for c, key in _ERRORS.items()}})
    if len(means) == len(STARTS):
        base, random = means[BASE_START], means[RANDOM_START]
        ratios = {c: base[c].mean / random[c].mean for c in ("AbsRel", "RMSE (m)")}
        rows.append({"start": "base / random", **ratios})
    return rows


def load(options: argparse.Namespace) -> tuple[list[Sample], list[Sample], StudentSettings]:
    """Return training frames, held-out frames, both blocks of time, and the student's shape."""
    folder = RgbdFolder(options.frames)
    settings = StudentSettings(pixels=options.pixels)
    width, height = folder.image_size
    size = first_input_size(height, width, settings)
    samples = [
        fit_sample(folder.image(i), folder.depth(i), folder.intrinsics, size)
        for i in range(len(folder))
    ]
    train, held_out = split_by_time(len(samples), options.split)
    return [samples[i] for i in train], [samples[i] for i in held_out], settings


def split_by_time(count: int, split: str) -> tuple[list[int], list[int]]:
    """Return the numbers of the frames to train on and of those held out; no two are neighbours."""
    if split == "later":
        last = round(TRAIN_SHARE * count)
        first_held = last + max(1, round(GAP_SHARE * count))
        return list(range(last)), list(range(first_held, count))
    held_out = {i for i in range(count) if i * BLOCKS // count % 3 == 1}
    near = {i + step for i in held_out for step in (-1, 0, 1)}
    return [i for i in range(count) if i not in near], sorted(held_out)


def train_once(
    train: Sequence[Sample],
    held_out: Sequence[Sample],
    settings: StudentSettings,
    plan: dict[str, Any],
    start: str,
) -> dict[str, Any]:
    """Return the held-out errors after a training and, under `before`, of its start.

    Args:
        train: samples to train on.
        held_out: samples to judge by.
        settings: shape of the student.
        plan: settings that replace `TrainSettings`' own.
        start: one of STARTS.
    """
    torch.manual_seed(plan["seed"])
    loss = LossSettings()
    from_start = replace(settings, start=start)
    height, width = train[0].depth.shape
    size = first_input_size(height, width, from_start)
    student = first_student(train, size, from_start, loss.target_width)

    def errors() -> dict[str, float]:
        predictor = student_predictor(TorchRuntime(student))
        return errors_of(mean_errors(predictor, held_out, student.card.bins))

    before = errors()
    trainer = Trainer(
        student.network,
        train,
        TrainSettings(**{"device": "cpu", **plan}),
        loss=loss,
        augmentation=AugmentSettings(),
        has_parent=start == BASE_START,
    )
    trainer.run(lambda progress: None)
    return {**errors(), "before": before}


def errors_of(metrics: DepthMetrics) -> dict[str, float]:
    return {name: round(getattr(metrics, name), 4) for name in ("abs_rel", "rmse", "a1", "silog")}


def evaluate(options: argparse.Namespace) -> int:
    """Print the base's errors on real frames as it ships, as they are and up to scale.

    Up to scale: prediction multiplied by median(truth) / median(prediction) of the image. Beside
    it stands what a constant would have: each image's median depth.
    """
    report = Report("base_student", options)
    folder = RgbdFolder(options.frames)
    width, height = folder.image_size
    size = first_input_size(height, width, StudentSettings(pixels=options.pixels))
    focal = options.focal or (folder.intrinsics.fx * folder.intrinsics.fy) ** 0.5
    focal *= (size.width * size.height / (width * height)) ** 0.5
    bins = DepthBins(count=257, min_depth_m=0.1, max_depth_m=20.0)
    card = StudentCard(bins=bins, input_size=size)
    runtime = TorchRuntime(Student(card, start_from_base(bins, size, focal)))
    each: dict[str, list[DepthMetrics]] = {"as it is": [], "up to scale": [], "median depth": []}
    for index in range(len(folder)):
        truth = folder.depth(index)
        known = np.isfinite(truth)
        found = runtime.predict(folder.image(index), truth.shape).depth
        median = float(np.median(truth[known]))
        scaled = found * np.float32(median / float(np.median(found[known])))
        flat = np.full_like(truth, median)
        for name, answer in zip(each, (found, scaled, flat), strict=True):
            each[name].append(depth_metrics(answer, truth, bins.min_depth_m, bins.max_depth_m))
    rows = [{"depth": name, **errors_of(mean_metrics(own))} for name, own in each.items()]
    report.table("evaluate", f"The base student on {options.frames.name}, untrained", rows)
    return report.finish()


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


def _say(line: str) -> None:
    print(f"{datetime.now():%H:%M:%S} {line}", flush=True)


if __name__ == "__main__":
    run(main)
