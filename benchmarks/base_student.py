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
from datetime import datetime
from pathlib import Path
from typing import Any

import cv2
import torch
from base_comparison import SPLITS, Comparison, compare, table, untrained_errors
from base_training import Recipe, make

from tiekd_ros.method.first_student import STARTS


def main() -> None:
    """Read the command line and do as told."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    made = commands.add_parser("make", help="render, train, write the student")
    made.add_argument("--minutes", type=float, required=True, help="duration of the training")
    made.add_argument("--output", type=Path, required=True, help="folder for the student")
    made.add_argument("--cache", type=Path, help="folder for rendered views [OUTPUT/views]")
    made.add_argument("--worlds", type=int, default=400, help="worlds to train on [400]")
    made.add_argument("--views", type=int, default=32, help="views of each world [32]")
    made.add_argument("--rate", type=float, default=4e-3, help="peak learning rate [4e-3]")
    made.add_argument("--seed", type=int, default=0, help="seed of weights and draws [0]")
    made.add_argument("--threads", type=int, default=1, help="CPU threads [1]")
    compared = commands.add_parser("compare", help="training from the base against from nothing")
    compared.add_argument("--frames", type=Path, required=True, help="RGB-D folder")
    compared.add_argument("--iterations", type=int, default=200, help="steps of each [200]")
    compared.add_argument("--seeds", type=int, default=3, help="runs of each start [3]")
    compared.add_argument("--pixels", type=int, default=38_000, help="input size [38000]")
    compared.add_argument("--split", choices=SPLITS, default=SPLITS[0], help="what is held out")
    compared.add_argument("--starts", nargs="+", choices=STARTS, default=STARTS, help="[both]")
    compared.add_argument(
        "--train", nargs="*", default=[], help="settings, e.g. fine_tune_rate=0.002"
    )
    compared.add_argument("--threads", type=int, default=2, help="CPU threads [2]")
    compared.add_argument(
        "--json", type=Path, required=True, help="for the numbers; runs in it are not repeated"
    )
    judged = commands.add_parser("evaluate", help="the base on real frames, without training")
    judged.add_argument("--frames", type=Path, required=True, help="RGB-D folder")
    judged.add_argument("--focal", type=float, help="focal length in px [from K.txt]")
    judged.add_argument("--pixels", type=int, default=38_000, help="input size [38000]")
    judged.add_argument("--threads", type=int, default=2, help="CPU threads [2]")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    cv2.setNumThreads(1)
    if args.command == "make":
        _make(args)
    elif args.command == "compare":
        _compare(args)
    else:
        for name, errors in untrained_errors(args.frames, args.focal, args.pixels).items():
            print(f"{name:12s} {errors}")


def _make(args: argparse.Namespace) -> None:
    make(
        Recipe(
            minutes=args.minutes,
            worlds=args.worlds,
            views=args.views,
            seed=args.seed,
            output=args.output,
            cache=args.cache or args.output / "views",
            rate=args.rate,
        ),
        _say,
    )


def _compare(args: argparse.Namespace) -> None:
    changed = dict(word.split("=", 1) for word in args.train)
    found = compare(
        Comparison(
            frames=args.frames,
            iterations=args.iterations,
            seeds=args.seeds,
            pixels=args.pixels,
            split=args.split,
            starts=args.starts,
            train={name: _value(text) for name, text in changed.items()},
        ),
        args.json,
        _say,
    )
    print(table(found))


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


def _say(line: str) -> None:
    print(f"{datetime.now():%H:%M:%S} {line}", flush=True)


if __name__ == "__main__":
    main()
