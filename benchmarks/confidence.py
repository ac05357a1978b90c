"""Measure what confidence is worth, in the place that was learnt and in others, and drift.

    python benchmarks/confidence.py DIR DIR [DIR ...] [--seeds 2] [--json FILE]

In each DIR, an RGB-D folder (docs/training.md), a first student is trained, with blocks of time
held out. What makes its spread a confidence is fitted to the earlier half of these; judged are the
later half, and up to 60 frames of every other place. Beside it: the same without novelty, and the
confidence of students that no round has calibrated (1 = as sharp as it was taught).

Reported are AbsRel, the mean confidence, the share of pixels within 10 % of the label, and by how
much that share differs from the confidence among pixels that say about 0.5, 0.7 and 0.9; ENCE, AUSE
and AURG (tiekd_ros/method/confidence.py); the share of pixels that say 0.5 or more; and the largest
confidence over share in steps of 0.1 from 0.3 on.

Drift: labels as they might come are drawn in stretches of four from the frames that are judged. In
the place that was learnt, how many alarms come in a thousand labels, and after how many labels
errors that are 1.5, 2 and 3 times as large are noticed; elsewhere, after how many labels that is.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import scenes
import torch
from harness import Report, Row, parser, run

from tiekd_ros.method.confidence import (
    ConfidenceSettings,
    FrameSpread,
    Values,
    confidence_errors,
    confidences,
    fit_confidence,
    frame_spreads,
    relative_errors,
    remember_frames,
)
from tiekd_ros.method.first_student import BASE_START, StudentSettings, first_input_size
from tiekd_ros.method.samples import Sample, fit_sample, spread
from tiekd_ros.rounds.drift import DriftDetector
from tiekd_ros.student.architecture import InputSize
from tiekd_ros.student.checkpoint import StudentCard

_ELSEWHERE = 60  # frames
_STEPS = np.arange(0.3, 1.0, 0.1)
_STREAMS, _STRETCH, _SOON = 100, 4, 30
_FACTORS = (1.5, 2.0, 3.0)


def main(argv: list[str] | None = None) -> int:
    options = read_options(argv)
    torch.set_num_threads(options.threads)
    cv2.setNumThreads(1)
    report = Report("confidence", options)
    settings = {"iterations": options.iterations, "pixels": options.pixels}
    runs = report.experiment(
        [
            (
                {"scene": folder.name, "start": options.start, "seed": seed, **settings},
                partial(train_and_judge, folder, options.scenes, options.start, seed, settings),
            )
            for folder, seed in itertools.product(options.scenes, range(options.seeds))
        ]
    )
    report.table("confidence", "Confidence", summary([row for r in runs for row in r["rows"]]))
    report.table("drift", "Drift", [row for r in runs for row in r["drift"]])
    return report.finish()


def read_options(argv: list[str] | None) -> argparse.Namespace:
    made = parser(__doc__)
    add = made.add_argument
    add("scenes", nargs="+", type=Path, metavar="DIR", help="RGB-D folders")
    add("--start", default=BASE_START, help="as for scenes.py: base, random, a folder [base]")
    add("--seeds", type=int, default=1, help="students of each place [1]")
    add("--iterations", type=int, help="steps of each training [150; quick: 20]")
    add("--pixels", type=int, help=f"input size [{StudentSettings().pixels}; quick: 12288]")
    add("--threads", type=int, default=torch.get_num_threads(), help="CPU threads [all cores]")
    options = made.parse_args(argv)
    options.iterations = options.iterations or (20 if options.quick else 150)
    options.pixels = options.pixels or (12288 if options.quick else StudentSettings().pixels)
    return options


def train_and_judge(
    folder: Path, places: Sequence[Path], start: str, seed: int, settings: dict[str, int]
) -> dict[str, Any]:
    """Train a student in one place; return what its confidence is worth there and elsewhere."""
    first = StudentSettings(pixels=settings["pixels"])
    frames = scenes.load_scene(folder)
    size = first_input_size(*frames[0].image.shape[:2], first)
    both = scenes.split_by_time(len(frames), "blocks")
    train, held_out = (fitted([frames[i] for i in part], size) for part in both)
    torch.manual_seed(seed)
    student = scenes.starting_student(train, first, start)
    budget = {"iterations": settings["iterations"]}
    scenes.fine_tune(student, train, seed, budget, has_parent=start != "random")
    network = student.network.eval()
    remember_frames(network, train)
    tolerance = ConfidenceSettings().tolerance
    middle = len(held_out) // 2
    scale = fit_confidence(frame_spreads(network, held_out[:middle]), tolerance)
    without_novelty = replace(scale, known_novelty=0.0)
    rows, drift = [], []
    usual = float(relative_errors(frame_spreads(network, held_out[:middle])).mean())
    for place in places:
        seen = held_out[middle:]
        if place != folder:
            seen = fitted(spread(scenes.load_scene(place), _ELSEWHERE), size)
        found = frame_spreads(network, seen)
        for name, said in (
            ("calibrated", confidences(scale, found)),
            ("without novelty", confidences(without_novelty, found)),
            ("as sharp as taught", as_taught(student.card, found)),
        ):
            rows.append({"learnt": folder.name, "in": place.name, "confidence": name}
                        | measured(said, relative_errors(found), tolerance))  # fmt: skip
        each = np.array([frame.error.mean() for frame in found])
        drift.append(
            {"learnt": folder.name, "in": place.name, "seed": seed, "frames": len(each)}
            | noticed(each, usual, is_known=place == folder)
        )
    return {"rows": rows, "drift": drift, "scale": [scale.offset, scale.slope, scale.known_novelty]}


def fitted(frames: Sequence[scenes.Frame], size: InputSize) -> list[Sample]:
    return [fit_sample(f.image, f.depth, f.intrinsics, size) for f in frames]


def as_taught(card: StudentCard, frames: Sequence[FrameSpread]) -> Values:
    """Return the confidence of a student without a scale, but for its floor near by."""
    stds = np.concatenate([frame.relative_std for frame in frames])
    return np.minimum(card.target.relative / np.maximum(stds, 1e-6), 1.0)


def measured(said: Values, error: Values, tolerance: float) -> dict[str, float]:
    errors = confidence_errors(said, error, tolerance)
    right = error <= tolerance
    over = []
    for low in _STEPS:
        those = (said >= low) & (said < low + 0.1)
        if those.mean() >= 0.005:
            over.append(float(said[those].mean() / max(right[those].mean(), 1e-3)))
    return {
        "AbsRel": float(error.mean()),
        "mean": errors.mean,
        "right": errors.right,
        **{f"gap {level:g}": gap for level, gap in errors.gaps.items()},
        "ENCE": errors.ence,
        "AUSE": errors.ause,
        "constant's": errors.ause_constant,
        "AURG": errors.ause_constant - errors.ause,
        "c >= 0.5": float((said >= 0.5).mean()),
        "c / right": max(over, default=float("nan")),
    }


def noticed(each: Values, usual: float, *, is_known: bool) -> dict[str, float | None]:
    """Return after how many labels drift is noticed, or how often in vain.

    Args:
        each: AbsRel of each judged frame, in the order of time.
        usual: what the student had when it went live.
        is_known: whether the place is that of the student.
    """
    rng = np.random.default_rng(0)

    def labels_until(factor: float, count: int) -> float:
        starts = rng.integers(max(len(each) - _STRETCH, 0) + 1, size=-(-count // _STRETCH))
        stream = [error for start in starts for error in each[start : start + _STRETCH]]
        detector = DriftDetector(lambda version: usual)
        for number, error in enumerate(stream[:count], start=1):
            detector.add("", factor * error)
            if detector.found(""):
                return number
        return float("inf")

    if not is_known:
        late = np.array([labels_until(1.0, _SOON) for _ in range(_STREAMS)])
        return {"labels": float(np.median(late)), "within 30": float(np.isfinite(late).mean())}
    alarms = np.array([labels_until(1.0, 1000) for _ in range(_STREAMS)])
    seen = np.minimum(alarms, 1000).sum()
    row: dict[str, float | None] = {
        "alarms in 1000": 1000 * float(np.isfinite(alarms).sum() / seen)
    }
    for factor in _FACTORS:
        late = np.array([labels_until(factor, _SOON) for _ in range(_STREAMS)])
        row[f"{factor:g}x within 30"] = float(np.isfinite(late).mean())
    return row


def summary(rows: Sequence[dict[str, Any]]) -> list[Row]:
    """Return the mean over the seeds of each place, judged place and confidence."""
    found: list[Row] = []
    names = ("learnt", "in", "confidence")
    keys = list(dict.fromkeys(tuple(row[n] for n in names) for row in rows))
    for key in keys:
        own = [row for row in rows if tuple(row[n] for n in names) == key]
        means: Row = dict(zip(names, key, strict=True))
        for name in own[0]:
            if name not in names:
                values = np.array([np.nan if r[name] is None else r[name] for r in own], float)
                known = values[np.isfinite(values)]
                means[name] = float(known.mean()) if len(known) else None
        found.append(means)
    return found


if __name__ == "__main__":
    run(main)
