"""The losses compared: the same student, data and budget; only the loss differs.

    python benchmarks/ablation.py --quick                     less than 10 minutes on 2 cores
    python benchmarks/ablation.py --json ablation.json        the whole table: an hour

Every run starts from random weights and sees the same batches in the same order. Reported is
what the last weights do on test images that share no scene (synthetic world) or no time (real
frames) with the training images: mean and standard deviation over seeds. With `--json`, runs
that the file has already are not repeated, so an interrupted table goes on where it was.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import pickle
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # the runs are what is parallel

import cv2
import numpy as np
import torch
from harness import Report, Row, best_cells, markdown, mean_std, parser, plain, run

from tiekd_ros.core.images import DepthMap
from tiekd_ros.datasets import ReadOptions, RgbdFolder
from tiekd_ros.method.comparison import mean_errors, student_predictor
from tiekd_ros.method.losses import LossSettings
from tiekd_ros.method.samples import AugmentSettings, Sample, fit_sample
from tiekd_ros.rounds.trainer import Trainer, TrainSettings
from tiekd_ros.student.architecture import InputSize
from tiekd_ros.student.bins import DepthBins
from tiekd_ros.student.checkpoint import Student, StudentCard
from tiekd_ros.student.runtimes.torch_runtime import TorchRuntime
from tiekd_ros.worlds import IndoorWorld, WorldSettings

_VIEWS = 24  # of each scene
_PERIOD_S = 60.0
_IMAGE = (320, 240)  # width, height of what the camera sees
_BLOCKS = "tettvttet"  # of a recording: train, test (e), validation
_SENSOR_SHARE = 0.003  # of the pixels: 5 % of the cells of the student's output, as a LiDAR has
_PIXELS = 12288  # of the network's input: 96x128 for 4:3 images
_RANGE_M = 10.0
_NEAR_M = 3.0
_FRAMES = Path("../shared/data/hololens")
_COLUMNS = {"AbsRel": "abs_rel", "RMSE [m]": "rmse", "a1": "a1", "AbsRel < 3 m": "near_abs_rel"}
_BEST = {"AbsRel": min, "RMSE [m]": min, "a1": max, "AbsRel < 3 m": min}


@dataclass(frozen=True)
class Split:
    """Samples for training, choosing (validation) and reporting (test).

    The parts have no scene (synthetic) and no time (real) in common.
    """

    taught: list[Sample]
    """To train on: depth as the teacher gives it, of every pixel."""
    known: list[Sample]
    """The same, but only where it can be trusted; the same as `taught` where that is all."""
    measured: list[Sample]
    """The same images with what a sparse sensor measures: the baseline's truth."""
    validation: list[Sample]
    test: list[Sample]


def synthetic(scenes: Sequence[int], size: InputSize, seed: int) -> Split:
    """Render scenes: so many for training, validation and test, each a world of its own.

    The teacher is a good one, not an oracle: its depth is smooth at edges and wrong by a
    slowly varying factor (standard deviation 4 %), as depth networks are.
    """
    rng = np.random.default_rng(seed)
    first = 1000 * (seed + 1)
    parts: list[list[Sample]] = []
    for name, count in zip(("train", "validation", "test"), scenes, strict=True):
        print(f"synthetic world: {count} scenes for {name}")
        parts.append([s for i in range(count) for s in _scene(first + i, size, rng)])
        first += count
    train, validation, test = parts
    taught = [replace(s, depth=teacher_like(s.depth, rng)) for s in train]
    measured = [replace(s, depth=sparse(s.depth, rng)) for s in train]
    return Split(taught, taught, measured, validation, test)


def real(folder: Path, size: InputSize, seed: int) -> Split:
    """Read a folder of real frames and split it by time, in blocks as the frame log does.

    The last frame of a block is left out where the next block has another use, so that
    neighbours never straddle a border. There is no teacher for these frames: the measured
    depth is the teacher's. A teacher answers for every pixel, and the published losses know
    no other; so holes are filled from their borders.
    """
    data = RgbdFolder(folder, ReadOptions(skip_bad=True))
    uses = [_BLOCKS[i * len(_BLOCKS) // len(data)] for i in range(len(data))]
    parts: dict[str, list[Sample]] = {use: [] for use in set(_BLOCKS)}
    for i, use in enumerate(uses):
        if i + 1 == len(uses) or uses[i + 1] == use:
            image, depth = data.image(i), data.depth(i)
            parts[use].append(fit_sample(image, depth, data.intrinsics, size))
    train, validation, test = (parts[use] for use in "tve")
    if not (train and validation and test):
        raise SystemExit(f"{folder} has {len(data)} frames; a split by time needs at least 18")
    rng = np.random.default_rng(seed)
    taught = [replace(s, depth=filled(s.depth)) for s in train]
    measured = [replace(s, depth=sparse(s.depth, rng)) for s in train]
    return Split(taught, train, measured, validation, test)


def filled(depth: DepthMap) -> DepthMap:
    """Return depth (H, W) whose holes are filled smoothly from their borders."""
    holes = ~np.isfinite(depth)
    return cv2.inpaint(np.nan_to_num(depth, nan=0.0), holes.astype(np.uint8), 3, cv2.INPAINT_TELEA)


def teacher_like(depth: DepthMap, rng: np.random.Generator) -> DepthMap:
    """Return depth (H, W) as a good network would give it: soft edges, a few percent off."""
    height, width = depth.shape
    coarse = rng.normal(0, 1, (4, 5)).astype(np.float32)
    field = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
    soft = cv2.GaussianBlur(depth, (0, 0), 0.006 * width)
    return (soft * np.exp(0.04 * field / max(field.std(), 1e-6))).astype(np.float32)


def sparse(depth: DepthMap, rng: np.random.Generator) -> DepthMap:
    """Return depth (H, W) known only where a scanning sensor would have measured it."""
    measured = rng.random(depth.shape) < _SENSOR_SHARE
    return np.where(measured, depth, np.float32(np.nan))


def _scene(seed: int, size: InputSize, rng: np.random.Generator) -> Iterator[Sample]:
    world = IndoorWorld(WorldSettings(seed=seed, period_s=_PERIOD_S))
    camera = world.default_intrinsics(*_IMAGE)
    for step in range(_VIEWS):
        time_ns = round((step + rng.random()) / _VIEWS * _PERIOD_S * 1e9)
        view = world.render(time_ns, *_IMAGE, camera)
        yield fit_sample(view.image, view.depth, camera, size)


def save(path: Path, split: Split) -> str:
    """Write a split for other processes, and return a digest of its images and depths."""
    path.write_bytes(pickle.dumps(split))
    digest = hashlib.sha256()
    for samples in vars(split).values():
        for part in ("image", "depth"):
            digest.update(np.stack([getattr(sample, part) for sample in samples]).tobytes())
    return digest.hexdigest()[:16]


def load(path: Path) -> Split:
    """Read what `save` wrote."""
    return pickle.loads(path.read_bytes())


@dataclass(frozen=True)
class Arm:
    """One way to teach."""

    name: str
    family: str
    objective: str
    labels: str = "taught"
    spacing: str = "uniform"
    loss: dict[str, Any] = field(default_factory=dict)


ARMS = (
    Arm("SI on sparse truth", "no distillation", "si", labels="measured"),
    Arm("SSIM", "response", "ssim"),
    Arm("MSE", "response", "mse"),
    Arm("SI", "response", "si"),
    Arm("SSIM + SI", "response", "ssim+si"),
    Arm("SSIM + MSE", "response", "ssim+mse"),
    Arm("L_DPM", "TIE-KD, paper", "paper-dpm"),
    Arm("L_DEPTH", "TIE-KD, paper", "paper-depth"),
    Arm("both", "TIE-KD, paper", "paper"),
    Arm("L_DPM", "TIE-KD, tiekd", "tiekd-dpm"),
    Arm("L_DEPTH", "TIE-KD, tiekd", "tiekd-depth"),
    Arm("both", "TIE-KD, tiekd", "tiekd"),
    Arm("both, log bins", "TIE-KD, tiekd", "tiekd", spacing="log", loss={"sigma_floor_m": 0.02}),
    Arm("both, holes masked", "TIE-KD, tiekd", "tiekd", labels="known"),
)


@dataclass(frozen=True)
class DataFile:
    """A data set as all runs with one seed see it."""

    name: str
    seed: int
    path: str
    digest: str


@dataclass(frozen=True)
class Job:
    """One training: an arm on a data set."""

    data: DataFile
    arm: int
    iterations: int

    @property
    def key(self) -> dict[str, Any]:
        """The identity of a run, also in the results file."""
        return {
            "data": self.data.name,
            "digest": self.data.digest,
            "seed": self.data.seed,
            "iterations": self.iterations,
            "arm": asdict(ARMS[self.arm]),
        }


def train(job: Job) -> dict[str, Any]:
    """Train and judge, in a process of its own."""
    torch.set_num_threads(1)
    arm, split = ARMS[job.arm], load(Path(job.data.path))
    torch.manual_seed(job.data.seed)
    height, width = split.test[0].depth.shape
    bins = DepthBins(max_depth_m=_RANGE_M, spacing=arm.spacing)
    student = Student.fresh(StudentCard(bins=bins, input_size=InputSize(height, width)))
    trainer = Trainer(
        student.network,
        getattr(split, arm.labels),
        TrainSettings(iterations=job.iterations, seed=job.data.seed, threads=1),
        loss=LossSettings(objective=arm.objective, **arm.loss),
        augmentation=AugmentSettings(),
        has_parent=False,
    )
    trainer.run(lambda progress: None)
    runtime = TorchRuntime(student)
    return {"validation": judge(runtime, split.validation), "test": judge(runtime, split.test)}


def judge(runtime: TorchRuntime, samples: list[Sample]) -> dict[str, float]:
    """Return mean metrics over samples, and AbsRel where the truth is nearer than 3 m."""
    bins, predict = runtime.card.bins, student_predictor(runtime)
    near = [
        replace(s, depth=np.where(s.depth < _NEAR_M, s.depth, np.float32(np.nan))) for s in samples
    ]
    whole, nearby = (mean_errors(predict, each, bins) for each in (samples, near))
    return {**whole.as_dict(), "near_abs_rel": nearby.abs_rel}


def prepare(options: argparse.Namespace, folder: Path) -> list[DataFile]:
    """Make the data sets, one file a seed."""
    files = []

    def keep(name: str, seed: int, split: Split) -> None:
        path = folder / f"{name}_{seed}.npz"
        files.append(DataFile(name, seed, str(path), save(path, split)))

    if options.frames is None:
        print("no folder of real frames (--frames): synthetic world only")
    for seed in range(options.seeds):
        size = InputSize.near(240, 320, _PIXELS)
        keep("synthetic", seed, synthetic(options.scenes, size, seed))
        if options.frames is not None:
            keep(options.frames.name, seed, real(options.frames, size, seed))
    return files


def table_rows(runs: list[dict[str, Any]]) -> list[Row]:
    """Return each arm's test scores, means over the seeds."""
    rows: list[Row] = []
    for arm in ARMS:
        scores = [r["test"] for r in runs if r["arm"] == plain(asdict(arm))]
        if scores:
            means = {c: mean_std([s[key] for s in scores]) for c, key in _COLUMNS.items()}
            rows.append({"family": arm.family, "loss": arm.name, **means})
    return rows


def read_options(argv: list[str] | None) -> argparse.Namespace:
    made = parser(__doc__ or "")
    made.add_argument(
        "--frames",
        type=Path,
        help=f"RGB-D folder of real frames in time order (default: {_FRAMES}, if it is there)",
    )
    made.add_argument("--only", choices=sorted({a.objective for a in ARMS}), help="one objective")
    made.add_argument("--seeds", type=int, help="runs of each arm (3; quick: 1)")
    made.add_argument("--iterations", type=int, help="steps of a run (300; quick: 120)")
    made.add_argument(
        "--scenes", type=int, nargs=3, help="train, validation, test (12 3 6; quick: 6 2 3)"
    )
    made.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="runs at a time")
    made.add_argument("--markdown", type=Path, help="write the tables here, too")
    options = made.parse_args(argv)
    options.seeds = options.seeds or (1 if options.quick else 3)
    options.iterations = options.iterations or (120 if options.quick else 300)
    options.scenes = options.scenes or ((6, 2, 3) if options.quick else (12, 3, 6))
    if options.frames is not None and not options.frames.is_dir():
        made.error(f"there is no folder {options.frames}: --frames wants images/, depth/, K.txt")
    options.frames = options.frames or (_FRAMES if _FRAMES.is_dir() else None)
    return options


def main(argv: list[str] | None = None) -> int:
    options = read_options(argv)
    report = Report("ablation", options)
    with tempfile.TemporaryDirectory() as folder:
        jobs = [
            Job(data, number, options.iterations)
            for data in prepare(options, Path(folder))
            for number, arm in enumerate(ARMS)
            if options.only in (None, arm.objective)
            and (arm.labels != "known" or data.name != "synthetic")  # there: as taught
        ]
        runs = report.experiment([(job.key, partial(train, job)) for job in jobs], options.jobs)
    text = ""
    for name in dict.fromkeys(job.data.name for job in jobs):
        rows = table_rows([r for r in runs if r["data"] == name])
        title = f"{name}, test images, mean ± standard deviation, seeds: {options.seeds}"
        bold = best_cells(rows, _BEST)
        report.table(name, title, rows, bold=bold)
        text += markdown(title, rows, bold) + "\n"
    if options.markdown is not None:
        options.markdown.write_text(text)
    return report.finish()


if __name__ == "__main__":
    run(main)
