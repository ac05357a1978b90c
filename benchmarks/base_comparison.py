"""What a start from the base student is worth: the same training from it and from nothing."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tiekd_ros.datasets import RgbdFolder
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
from tiekd_ros.rounds.gate import score_best_constant, score_student
from tiekd_ros.rounds.trainer import Trainer, TrainSettings
from tiekd_ros.student import DepthBins, Student, StudentCard, TorchRuntime
from tiekd_ros.student.base_student import load_base, start_from_base

SPLITS = ("blocks", "later")
"""Held out are every third block of time, as a frame log does it, or the last third of time."""
BLOCKS = 9
TRAIN_SHARE, GAP_SHARE = 0.6, 0.07  # of the split `later`


@dataclass(frozen=True)
class Comparison:
    """What is compared; the settings are those of a round."""

    frames: Path
    iterations: int
    seeds: int
    pixels: int
    split: str
    starts: Sequence[str]
    train: dict[str, Any]  # settings that replace TrainSettings' own


def compare(comparison: Comparison, json_file: Path, say: Callable[[str], None]) -> dict[str, Any]:
    """Train from each start with each seed; return held-out errors, means and ratios.

    Runs that the JSON file holds already, of the same settings and base, are not repeated; it is
    written after each run.
    """
    train, held_out, settings = load(comparison)
    asked = {
        "frames": comparison.frames.name,
        "split": comparison.split,
        "train_frames": len(train),
        "held_out_frames": len(held_out),
        "iterations": comparison.iterations,
        "input": list(train[0].depth.shape),
        "settings": comparison.train,
    }
    runs = _runs_before(json_file, asked)
    constant = score_best_constant(held_out, first_bins([s.depth for s in train], settings))
    found: dict[str, Any] = {}
    for start in comparison.starts:
        base = load_base().card.weights_sha256 if start == BASE_START else ""
        for seed in range(comparison.seeds):
            key = {"start": start, "seed": seed, "base": base}
            if not any(key.items() <= run.items() for run in runs):
                runs = [r for r in runs if (r["start"], r["seed"]) != (start, seed)]
                run = key | _run(comparison, train, held_out, settings, start, seed)
                runs.append(run)
                say(json.dumps(run))
            found = {**asked, "best_constant": _errors(constant), "runs": runs, **_means(runs)}
            json_file.write_text(json.dumps(found, indent=2) + "\n")
    return found


def _runs_before(json_file: Path, asked: dict[str, Any]) -> list[dict[str, Any]]:
    if not json_file.exists():
        return []
    before = json.loads(json_file.read_text())
    same = all(before.get(name) == value for name, value in asked.items())
    return list(before["runs"]) if same else []


def _means(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return mean and standard deviation of each start's errors, and how they compare."""
    means: dict[str, Any] = {}
    for start in STARTS:
        mine = [r for r in runs if r["start"] == start]
        if mine:
            values = {n: [r[n] for r in mine] for n in ("abs_rel", "rmse", "a1")}
            means[start] = {n: [float(np.mean(v)), float(np.std(v))] for n, v in values.items()}
    if len(means) == len(STARTS):
        base, random = means[BASE_START], means[RANDOM_START]
        means["ratio"] = {n: base[n][0] / random[n][0] for n in ("abs_rel", "rmse")}
    return means


def load(comparison: Comparison) -> tuple[list[Sample], list[Sample], StudentSettings]:
    """Return training frames, held-out frames, both blocks of time, and the student's shape."""
    folder = RgbdFolder(comparison.frames)
    settings = StudentSettings(pixels=comparison.pixels)
    width, height = folder.image_size
    size = first_input_size(height, width, settings)
    samples = [
        fit_sample(folder.image(i), folder.depth(i), folder.intrinsics, size)
        for i in range(len(folder))
    ]
    train, held_out = split_by_time(len(samples), comparison.split)
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


def _run(
    comparison: Comparison,
    train: Sequence[Sample],
    held_out: Sequence[Sample],
    settings: StudentSettings,
    start: str,
    seed: int,
) -> dict[str, Any]:
    began = time.monotonic()
    torch.manual_seed(seed)
    loss = LossSettings()
    plan = TrainSettings(
        **{"iterations": comparison.iterations, "seed": seed, "device": "cpu", **comparison.train}
    )
    from_start = StudentSettings.from_mapping({**settings.as_dict(), "start": start})
    height, width = train[0].depth.shape
    size = first_input_size(height, width, from_start)
    student = first_student(train, size, from_start, loss.target_width)
    before = score_student(TorchRuntime(student), held_out, student.card.bins)
    trainer = Trainer(
        student.network,
        train,
        plan,
        loss=loss,
        augmentation=AugmentSettings(),
        has_parent=start == BASE_START,
    )
    trainer.run(lambda progress: None)
    after = score_student(TorchRuntime(student), held_out, student.card.bins)
    seconds = round(time.monotonic() - began, 1)
    return {**_errors(after), "seconds": seconds, "before": _errors(before)}


def _errors(metrics: DepthMetrics) -> dict[str, float]:
    return {name: round(getattr(metrics, name), 4) for name in ("abs_rel", "rmse", "a1", "silog")}


def untrained_errors(frames: Path, focal_px: float | None, pixels: int) -> dict[str, Any]:
    """Return the base's errors on real frames as it ships, as they are and up to scale.

    Up to scale: prediction multiplied by median(truth) / median(prediction) of the image. Beside
    it stands what a constant would have: each image's median depth.

    Args:
        frames: RGB-D folder.
        focal_px: focal length in pixels of the images; None: the folder's own.
        pixels: input size.
    """
    folder = RgbdFolder(frames)
    width, height = folder.image_size
    size = first_input_size(height, width, StudentSettings(pixels=pixels))
    focal = focal_px or (folder.intrinsics.fx * folder.intrinsics.fy) ** 0.5
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
            metrics = depth_metrics(answer, truth, bins.min_depth_m, bins.max_depth_m)
            assert metrics is not None
            each[name].append(metrics)
    return {name: _errors(mean_metrics(metrics)) for name, metrics in each.items()}


def table(found: dict[str, Any]) -> str:
    """Return the result as Markdown."""
    lines = [
        f"{found['frames']}, split by time ({found['split']}): {found['train_frames']} frames to "
        f"train on, {found['held_out_frames']} held out, {found['iterations']} iterations at "
        f"{found['input'][0]}x{found['input'][1]}",
        "",
        "| start | seed | AbsRel | RMSE (m) | a1 | AbsRel before training |",
        "|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {r['start']} | {r['seed']} | {r['abs_rel']:.3f} | {r['rmse']:.3f} | {r['a1']:.3f} "
        f"| {r['before']['abs_rel']:.3f} |"
        for r in sorted(found["runs"], key=lambda r: (r["start"], r["seed"]))
    ]
    for start in (s for s in STARTS if s in found):
        cells = [f"{mean:.3f} ± {std:.3f}" for mean, std in found[start].values()]
        lines.append(f"| **{start}** | mean ± std | {' | '.join(cells)} | |")
    constant = found["best_constant"]
    lines.append(
        f"| best constant | | {constant['abs_rel']:.3f} | {constant['rmse']:.3f} "
        f"| {constant['a1']:.3f} | |"
    )
    if "ratio" in found:
        ratio = found["ratio"]
        lines += ["", f"base / random: AbsRel {ratio['abs_rel']:.2f}, RMSE {ratio['rmse']:.2f}"]
    return "\n".join(lines)
