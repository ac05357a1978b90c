"""Make the base student that ships with the package, and show what it is worth.

    python benchmarks/base_student.py make --minutes 60 --output build/base --frames DIR ...

renders random views of random worlds (in a process of its own), trains an encoder with ImageNet
weights (imagenet_encoder.py) on them meanwhile, and on the real frames of RGB-D folders, and writes
`student.safetensors` and `card.json`, at first after five minutes. To judge a base on a scene by
scenes.py, make one without its frames.

    python benchmarks/base_student.py evaluate --frames ../shared/data/hololens

prints the errors of the base as it ships, without any training, as it is and up to scale. What it
is worth as a start is measured by scenes.py.
"""

from __future__ import annotations

import argparse
import json
from datetime import datetime
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from base_training import Recipe, make
from harness import Report, parser, run

from tiekd_ros.datasets import RgbdFolder
from tiekd_ros.method.first_student import (
    StudentSettings,
    first_input_size,
)
from tiekd_ros.method.metrics import DepthMetrics, depth_metrics, mean_metrics
from tiekd_ros.student.base_student import start_from_base
from tiekd_ros.student.bins import DepthBins
from tiekd_ros.student.checkpoint import Student, StudentCard
from tiekd_ros.student.runtimes.torch_runtime import TorchRuntime


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
    add("--frames", type=Path, nargs="*", default=[], help="RGB-D folders of real frames")
    add("--cache", type=Path, help="folder for rendered views [OUTPUT/views]")
    add("--worlds", type=int, default=600, help="worlds to train on [600]")
    add("--views", type=int, default=12, help="views of each world [12]")
    add("--rate", type=float, default=4e-3, help="peak learning rate [4e-3]")
    add("--seed", type=int, default=0, help="seed of weights and draws [0]")
    add = command("evaluate", evaluate, 2, "the base on real frames, without training").add_argument
    add("--frames", type=Path, required=True, help="RGB-D folder")
    add("--focal", type=float, help="focal length in px [from K.txt]")
    add("--pixels", type=int, default=38_000, help="input size [38000]")
    return made.parse_args(argv)


def make_base(options: argparse.Namespace) -> int:
    names = ("minutes", "worlds", "views", "seed", "output", "rate")
    cache = options.cache or options.output / "views"
    values = {name: getattr(options, name) for name in names}
    make(Recipe(cache=cache, frames=tuple(options.frames), **values), _say)
    return 0


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
